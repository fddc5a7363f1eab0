"""The batch runner: everything checked before, each lab's end told as it was, and nothing left running."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from rich.text import Text

from labkit.errors import LabError, LabkitError, RecordError, ServerError
from labkit.labs import Lab
from labkit.machine import Machine
from labkit.machine import versions as installed_versions
from labkit.machine.processes import Scope, adopts_orphans
from labkit.records import LabRun, Record, RunInfo, read, read_run
from labkit.runs import plan as plans
from labkit.runs.notebook import kernel_environment, one_line, stop_on_signals
from labkit.runs.plan import Plan, make_plan, read_defaults
from labkit.runs.runner import Progress, RunResult, estimates, log_path, now_and_then, opening_lines, run_labs
from tests.unit import synthetic
from tests.unit.refusals import not_refused
from tools.reliability import summarise

GOOD, FAILS, SLEEPS, DIES, FORGETS = synthetic.LABS
NUMBER = {"number": {"type": "int", "help": "h"}}  # which the profile sets


@pytest.fixture(autouse=True)
def _synthetic_course(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_ROOT", str(synthetic.ROOT))


def plan(*names: str, out_dir: Path | None, machine: Machine | None = None, **options: Any) -> Plan:
    """A plan of the synthetic labs, on a machine without a GPU unless another is given."""
    machine = machine or synthetic.machine()
    return make_plan(names, out_dir=out_dir, labs=synthetic.LABS, machine=machine, **options)


def write_parameters(notebook: Path, source: str, *, tags: Sequence[str] = ("parameters",)) -> Path:
    """A notebook of one cell."""
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    return notebook


@pytest.fixture
def add_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lab]:
    """`add_lab(name, source, **entry)`: a lab of a course of its own, whose notebook assigns parameters by `source`."""
    course = tmp_path / "course"
    (course / "notebooks").mkdir(parents=True)
    (course / "data").symlink_to(synthetic.ROOT / "data")
    monkeypatch.setenv("LABKIT_ROOT", str(course))

    def add(name: str, source: str, **entry: Any) -> Lab:
        write_parameters(course / "notebooks" / f"{name}.ipynb", source)
        about = {"title": "Made", "question": "Why?", "minutes": 1, "engine": "none", "parameters": NUMBER}
        return Lab.model_validate({"name": name, **about, **entry})

    return add


# --- before anything starts


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Each mistake has its message with the remedy, and not even the run's folder appears."""
    bad: list[tuple[dict[str, Any], str]] = [
        ({"names": ["90_god"]}, "did you mean 90_good"),
        ({"settings": ["90.numbr=1"]}, "did you mean number"),
        ({"settings": ["all.numbr=1"]}, "did you mean number"),
        ({"settings": ["90.number=11"]}, "90_good.number is '11'; it must be a float from 0 to 10 (s)"),
        ({"settings": ["all.seed=x"]}, "an int from 0 to 1000"),
        ({"settings": ["all.out_dir=/elsewhere"]}, "no lab of this run has it"),
        ({"settings": ["91.number=1"]}, "of a lab that does not run"),
        ({"profile": "cpuu"}, "did you mean cpu"),
        ({"profile": "gpu"}, synthetic.NO_GPU),
    ]
    run = {"names": [GOOD], "out_dir": tmp_path / "run", "labs": synthetic.LABS, "machine": synthetic.machine()}
    assert not_refused(lambda options: make_plan(**{**run, **options}), bad) == []
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Without --resume an earlier run stays what it was; a path through a file is not a folder; a bad record stays."""
    (tmp_path / "run.json").write_text("{}")
    folders = {tmp_path: "--resume to complete that run, or another --out", tmp_path / "run.json" / "run": "directory"}
    assert not_refused(lambda folder: plan(GOOD, out_dir=folder), folders.items()) == []
    corrupt = tmp_path / f"{GOOD}.json"
    corrupt.write_text('{"format": 1, "lab": ')
    with pytest.raises(RecordError) as refused:
        plan(GOOD, out_dir=tmp_path, resume=True)
    assert (corrupt.read_text(), (tmp_path / "run.json").read_text()) == ('{"format": 1, "lab": ', "{}")
    assert refused.value.remedy == f"rm {corrupt}; labkit run {GOOD} --out {tmp_path} --resume"
    corrupt.unlink()  # the remedy is accepted
    assert plan(GOOD, out_dir=tmp_path, resume=True).running


def test_what_would_fail_later_is_refused_with_its_numbers(
    add_lab: Callable[..., Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk, a model's folder, a parameter that only labs.yaml names; no memory is an error for who asked for the lab.

    In a run of all the lab without memory is skipped."""
    monkeypatch.setattr(plans, "disk_free_bytes", lambda _: synthetic.GIB)
    small, text = add_lab("94_small", "number = 1"), f"model = '{tmp_path}'\nout_dir = ''"
    declared = {name: {"type": "str", "help": "h"} for name in ("model", "out_dir")}

    def planned(source: str, needs: dict[str, Any], *names: str) -> Plan:
        labs = {small.name: small, "95_made": add_lab("95_made", source, needs=needs, parameters=declared)}
        return make_plan(names, out_dir=tmp_path / "run", labs=labs, machine=synthetic.machine(memory_gib=2))

    bad = [
        ((text, {"disk_gib": 3}), "needs 3.0 GiB of disk and 1.0 GiB are free"),
        ((text, {}), "no config.json"),
        (("out_dir = ''", {}), "disagree on model"),
        ((text, {"memory_gib": 8}), "95_made cannot run here: it takes 8 GiB of memory and 2.0 of 32.0"),
    ]
    assert not_refused(lambda given: planned(*given, "95"), bad, LabkitError) == []
    jobs = planned(text, {"memory_gib": 8}).jobs
    assert [(job.lab.name, bool(job.refused)) for job in jobs] == [("94_small", False), ("95_made", True)]


def test_given_versions_are_used_also_if_there_are_none(tmp_path: Path) -> None:
    """A machine on which no package was found keeps its empty list: this machine's versions do not replace it."""
    assert plan(GOOD, out_dir=tmp_path / "run", versions={}).versions == {}
    assert plan(GOOD, out_dir=tmp_path / "run").versions == installed_versions() != {}


def test_an_optional_lab_runs_only_when_it_is_named(add_lab: Callable[..., Lab], tmp_path: Path) -> None:
    """ "90b" is a lab of its own beside "90", a whole run leaves it out, and its number finds it."""
    labs = {name: add_lab(name, "number = 1", optional=name == "90b_made") for name in ("90_made", "90b_made")}
    options: dict[str, Any] = {"out_dir": tmp_path / "run", "labs": labs, "machine": synthetic.machine()}
    for names, run in (((), ["90"]), (("90",), ["90"]), (("90b",), ["90b"])):
        assert [job.lab.number for job in make_plan(names, **options).jobs] == run


def test_parameters_are_read_as_python_would_assign_them(tmp_path: Path) -> None:
    """Signs, lists, None, annotations; a computed value, a syntax error or no tagged cell is the notebook's error."""
    notebook = tmp_path / "a.ipynb"
    source = '# comment\na = -1  # unit\nb: float = 0.5\nc = [1, 2]\nd = None\n"""text"""'
    assert read_defaults(write_parameters(notebook, source)) == {"a": -1, "b": 0.5, "c": [1, 2], "d": None}
    for source, says in (("a = f(1)", "a = f(1) is not a literal"), ("a =", "syntax")):
        assert not_refused(read_defaults, [(write_parameters(notebook, source), says)], LabError) == []
    untagged = write_parameters(notebook, "a = 1", tags=())
    assert not_refused(read_defaults, [(untagged, "a.ipynb has no cell tagged")], LabError) == []


def test_profile_and_settings_reach_the_notebook(tmp_path: Path) -> None:
    """What is passed is checked and typed; the full parameters hold the notebook's defaults too, but no out_dir."""
    (job,) = plan(GOOD, out_dir=tmp_path, settings=["90.seed=9", "90.out_dir=/nowhere"]).jobs
    assert job.given == {"seed": 9, "number": 2.0}
    assert job.parameters == {"seed": 9, "number": 2.0, "guess": None}


# --- a run, and what it leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Four labs that end in four ways, run once."""
    out_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_ROOT", str(synthetic.ROOT))
        planned = plan(GOOD, FAILS, DIES, FORGETS, out_dir=out_dir, settings=["all.guess=1.9"])
        return run_labs(planned, stream=io.StringIO())


@pytest.mark.notebook
def test_one_labs_failure_leaves_the_others_and_every_end_is_told(finished: RunResult) -> None:
    """An exception names its cell by number and first line, a dead kernel says so, a forgotten finish() too.

    run.json describes the run, and a record is failed whenever its notebook is, with what had been found."""
    info = read_run(finished.out_dir)
    assert (finished.interrupted, info.labs, info.profile, info.seed) == (False, finished.labs, "cpu", 7)
    assert info.ended is not None
    where = 'cell 6 [In 5]: raise ValueError(f"seed {seed} is unlucky")'
    good, fails, dies, forgets = (lab.error for lab in finished.labs)
    assert (good, fails) == ("", f"ValueError: seed 7 is unlucky (in {where})")
    assert "the kernel died while this cell ran" in dies
    assert "import os" in dies
    assert forgets == "the notebook ended without lab.finish()"
    records = [read(finished.out_dir / f"{lab.name}.json") for lab in finished.labs]
    statuses = ["done", "failed", "failed", "failed"]
    assert [lab.status for lab in finished.labs] == [record.status for record in records] == statuses
    assert all(record.ended for record in records)
    assert [record.exact for record in records] == [{"tokens": [1, 2, 3]}, *[{"kept": 1}] * 3]
    assert all(record.parameters == {"seed": 7, "number": 2.0, "guess": 1.9} for record in records)
    (prediction,) = records[0].predictions
    assert (prediction["guess"], prediction["measured"], prediction["source"]) == (1.9, 2.0, "parameter")


@pytest.mark.notebook
def test_repeated_runs_are_counted_with_their_failures_and_differences(finished: RunResult, tmp_path: Path) -> None:
    """Passes, labs and executed cells are counted; a run with another exact value than the first is named."""
    again = tmp_path / "again"
    shutil.copytree(finished.out_dir, again)
    record = read(again / f"{GOOD}.json")
    (again / f"{GOOD}.json").write_text(record.model_copy(update={"exact": {"total": -1}}).model_dump_json())
    summary = summarise([finished.out_dir, finished.out_dir, again])
    assert (summary.runs, summary.passed, summary.labs, summary.labs_done) == (3, 0, 12, 3)
    assert summary.executed < summary.cells  # what comes after a failed cell does not run
    assert summary.differing == ("again",)
    assert len(summary.failures) == 9


@pytest.mark.notebook
def test_the_folder_holds_notebooks_and_logs_and_no_process_is_left(finished: RunResult) -> None:
    """Each executed notebook is whole and shows its error, each log what was printed."""
    assert "a good day" in log_path(finished.out_dir, GOOD).read_text()
    for lab, error in ((FAILS, "ValueError"), (DIES, "DeadKernelError")):
        notebook = nbformat.read(finished.out_dir / f"{lab}.ipynb", 4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert [output.ename for output in outputs if output.output_type == "error"] == [error]
    children = psutil.Process().children(recursive=True)  # the sleeper that the dead kernel had started
    assert [child.cmdline() for child in children if "296" in child.cmdline()] == []


@pytest.mark.notebook
def test_a_resumed_run_keeps_what_was_done_and_names_its_commits(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A done record of the same parameters is kept, the same file; a failed one, or other parameters, are run again.

    run.json has this run's commit and, once each, those under which kept labs ran."""
    same, other = ["all.guess=1.9"], ["all.guess=1.9", "90.number=3"]
    for settings, done in ((same, [True, False]), (other, [False, False])):
        again = plan(GOOD, FAILS, out_dir=finished.out_dir, resume=True, settings=settings)
        assert [job.done for job in again.jobs] == done
    record = tmp_path / f"{GOOD}.json"
    record.write_bytes((finished.out_dir / record.name).read_bytes())
    before = record.stat()
    # Records without a run.json come from unknown commits.
    for commit, earlier in (("aaa", ()), ("aaa", ()), ("bbb", ("aaa",)), ("ccc", ("bbb", "aaa"))):
        monkeypatch.setattr("labkit.runs.runner.git_commit", lambda commit=commit: commit)
        (lab,) = run_labs(plan(GOOD, out_dir=tmp_path, resume=True, settings=same), stream=io.StringIO()).labs
        assert (lab.status, lab.seconds is None) == ("done", False)
        info = read_run(tmp_path)
        assert (info.git_commit, info.earlier_commits) == (commit, earlier)
    assert record.stat().st_mtime_ns == before.st_mtime_ns
    assert not (tmp_path / f"{GOOD}.ipynb").exists()


def resumed(folder: Path, *names: str) -> tuple[RunInfo, str]:
    """run.json, and what was said, after the labs of a run were resumed, all of which are done already."""
    stream = io.StringIO()
    run_labs(plan(*names, out_dir=folder, resume=True, settings=["all.guess=1.9"]), stream=stream)
    return read_run(folder), stream.getvalue()


@pytest.mark.notebook
def test_a_resumed_run_keeps_the_labs_that_it_does_not_run(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming one lab leaves the others' entries, and their commit; one that was killed has failed."""
    for file in finished.out_dir.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = read_run(tmp_path).model_copy(update={"git_commit": "aaa"})
    before.with_lab(LabRun(name=SLEEPS, status="running")).write(tmp_path)
    monkeypatch.setattr("labkit.runs.runner.git_commit", lambda: "bbb")
    info, said = resumed(tmp_path, GOOD)
    killed = LabRun(name=SLEEPS, status="failed", error="the run was killed")
    assert {lab.name: lab for lab in info.labs if lab.name != GOOD} == {
        **{lab.name: lab for lab in before.labs if lab.name != GOOD},
        SLEEPS: killed,
    }
    assert [lab.name for lab in info.labs] == sorted(lab.name for lab in info.labs)
    assert (info.git_commit, info.earlier_commits, said) == ("bbb", ("aaa",), "")
    # A lab that runs again under this commit does not make the others' commit go.
    monkeypatch.setattr("labkit.runs.runner.git_commit", lambda: "ccc")
    run_labs(plan(FAILS, out_dir=tmp_path, resume=True), executor=lambda *_: iter(()), stream=io.StringIO())
    assert read_run(tmp_path).earlier_commits == ("bbb", "aaa")


@pytest.mark.notebook
@pytest.mark.parametrize("text", ["", "{", '{"format": 2}', '{"format": 1, "seed": Infinity}', "[" * 100_000, "\udc80"])
def test_a_corrupt_run_file_is_said_and_made_anew(finished: RunResult, tmp_path: Path, text: str) -> None:
    """It is kept under another name; every lab whose record is in the folder is in the new one, as it ended."""
    for file in finished.out_dir.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "run.json").write_text(text, errors="surrogateescape")
    (tmp_path / f"{SLEEPS}.json").write_text("{")
    info, said = resumed(tmp_path, GOOD)
    assert {lab.name: lab.status for lab in info.labs} == {
        GOOD: "done",
        **dict.fromkeys((FAILS, SLEEPS, DIES, FORGETS), "failed"),
    }
    assert "run.json.unreadable" in said
    assert (tmp_path / "run.json.unreadable").read_text(errors="surrogateescape") == text


def test_resume_without_a_folder_takes_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`labkit run --resume` completes the run that was written last, and says so where there is none."""
    for folder in ("data", "notebooks"):
        (tmp_path / folder).symlink_to(synthetic.ROOT / folder)
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    assert not_refused(lambda name: plan(name, out_dir=None, resume=True), [(GOOD, "no run to resume")]) == []
    for age_s, name in ((20, "new"), (900, "old")):
        run_file = tmp_path / "runs" / name / "run.json"
        run_file.parent.mkdir(parents=True)
        run_file.write_text("{}")
        os.utime(run_file, (time.time() - age_s,) * 2)
    assert plan(GOOD, out_dir=None, resume=True).out_dir == tmp_path / "runs" / "new"


def test_estimates_come_from_an_earlier_run_of_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest run in which a lab ended well tells how long it takes; without one labs.yaml does."""
    planned = plan(GOOD, FAILS, out_dir=tmp_path / "out")
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    labs = [{"name": GOOD, "status": "done", "seconds": 42.0}, {"name": FAILS, "status": "failed", "seconds": 9.0}]
    about = {"format": 1, "machine": {}, "versions": {}, "seed": 0, "started": "2026-01-01T00:00:00Z"}
    for name, content in (("a", json.dumps({**about, "profile": "cpu", "labs": labs})), ("b", "{")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(content)
    other = replace(planned, profile=planned.profile.model_copy(update={"name": "gpu"}))
    for run, expected_s in ((planned, {GOOD: 42.0, FAILS: 3.0}), (other, {GOOD: 3.0, FAILS: 3.0})):
        assert {lab: estimate.seconds for lab, estimate in estimates(run).items()} == pytest.approx(expected_s)


def test_a_run_opens_with_its_minutes_only_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU a run opens with its profile alone; with one, the minutes follow."""
    planned = plan(GOOD, out_dir=tmp_path / "out")
    monkeypatch.delenv("LABKIT_ROOT")  # the course's own list of cards
    assert opening_lines(planned) == [planned.line]
    assert opening_lines(replace(planned, machine=synthetic.machine(gpu_gib=80)))[:2] == [
        planned.line,
        "minutes expected on Test GPU:",
    ]


def test_an_error_is_told_in_one_line_without_the_servers_log() -> None:
    """What happened and the remedy stay; the log's end is in the notebook and in the lab's own log."""
    error = ServerError("vllm serve died", remedy="take a smaller model", log_tail="a\nb")
    assert one_line(str(error)) == "vllm serve died To fix it: take a smaller model"


# --- stopping


def with_token(token: str) -> dict[psutil.Process, str]:
    """The processes of this machine that carry the token in their environment, with their command lines."""
    carriers = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LABKIT_TEST_TOKEN") == token and process.status() != psutil.STATUS_ZOMBIE:
                carriers[process] = " ".join(process.cmdline())
    return carriers


def carrying(token: str, words: str = "") -> int:
    """How many processes carry the token and have the words in their command line."""
    return sum(words in line for line in with_token(token).values())


@pytest.fixture
def asleep(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str, Path]]:
    """`labkit run` of a good lab, one that sleeps by now, and one more; the token that every process below it carries;
    the folder for their temporary files."""
    token, folder = uuid.uuid4().hex, tmp_path / "run"
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        run = subprocess.Popen(
            [sys.executable, "-m", "labkit", "run", "90", "92", "93", "--out", str(folder)],
            env={**os.environ, "TMPDIR": temporary, "LABKIT_TEST_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while not (folder / "asleep").exists() and run.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        yield run, token, Path(temporary)
    for process in with_token(token):  # a killed run cannot end what its lab had started
        process.kill()


def left_in(temporary: Path) -> list[Path]:
    """What is still there after a while."""
    end = time.monotonic() + 30
    while (left := list(temporary.iterdir())) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.mark.notebook
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process_and_keeps_its_records(
    asleep: tuple["subprocess.Popen[str]", str, Path], tmp_path: Path, how: signal.Signals
) -> None:
    """Exit 130; children in other sessions, orphans, one that ignores SIGTERM and temporary files are gone; what was
    found is there."""
    run, token, temporary = asleep
    folder = tmp_path / "run"
    assert carrying(token, "sleep 297") >= 4
    run.send_signal(how)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert with_token(token) == {}
    kept: dict[str, Record] = {lab: read(folder / f"{lab}.json") for lab in (GOOD, SLEEPS)}
    assert {lab: record.status for lab, record in kept.items()} == {GOOD: "done", SLEEPS: "failed"}
    assert kept[SLEEPS].exact == {"kept": 1}
    assert [lab.status for lab in read_run(folder).labs] == ["done", "failed", "waiting"]
    assert nbformat.read(folder / f"{SLEEPS}.ipynb", 4).cells
    assert (folder / "report.html").exists()
    assert left_in(temporary) == []


@pytest.mark.notebook
def test_a_killed_run_leaves_no_temporary_file(asleep: tuple["subprocess.Popen[str]", str, Path]) -> None:
    """The kernel's connection file and what the lab makes in TMPDIR are in one folder, which goes with the lab."""
    run, _, temporary = asleep
    (folder,) = temporary.iterdir()
    assert (folder / "kernel.json").exists()
    run.kill()
    run.communicate(timeout=120)
    assert left_in(temporary) == []


def test_the_second_request_to_stop_is_urgent() -> None:
    """The first leaves time to clean up, the second does not; signals ask just like that, and are given back."""
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked.wait(5)
        assert not stop.urgent.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.urgent.wait(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    """A run inside a thread (a notebook's, a server's) works: it can be stopped by its Stop only."""

    def inside() -> bool:
        with stop_on_signals() as stop:
            return stop.asked.is_set()

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(inside).result() is False


def test_a_scope_ends_what_started_in_it_and_nothing_else() -> None:
    """Later children, their orphans in other sessions included, are ended; an older child lives on."""
    older = subprocess.Popen(["sleep", "60"])
    try:
        with Scope() as scope:
            orphaning = "import subprocess; subprocess.Popen(['sleep', '61'], start_new_session=True)"
            subprocess.run([sys.executable, "-c", orphaning], check=True)
            subprocess.Popen(["sleep", "62"])
            assert sorted(process.cmdline()[1] for process in scope.alive()) == ["61", "62"]
            assert scope.end() == 2
            assert scope.alive() == []
        assert older.poll() is None
        assert not adopts_orphans()
    finally:
        older.kill()
        older.wait()


def test_the_kernel_finds_the_programs_of_its_environment() -> None:
    """`vllm` in a notebook is this environment's, also when nobody activated it."""
    assert kernel_environment()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


# --- progress


@pytest.fixture
def clock_s() -> list[float]:
    """The time, in seconds, that `progress` reads."""
    return [0.0]


def progress(estimates_s: dict[str, float], clock_s: list[float], stream: io.StringIO | None = None) -> Progress:
    """Progress that the test can read, on the test's clock."""
    return Progress(estimates_s, stream=stream or io.StringIO(), now=lambda: clock_s[0])


def test_progress_counts_down_what_is_left(clock_s: list[float]) -> None:
    """What is left is the current lab's estimate less its time, never below 0, and the labs after it.

    What waits is spread over those that run at the same time; the longest of them is the least that is left."""
    run = progress({"a": 60.0, "b": 30.0}, clock_s)
    left_s = [run.left_s()]
    run.lab_started("a")
    for clock_s[0] in (45, 500):
        left_s.append(run.left_s())
    run.lab_started("b")
    assert [*left_s, run.left_s()] == [90, 45, 30, 30]
    run = progress({"a": 60.0, "b": 20.0, "c": 30.0}, clock_s)
    run.lab_started("a")
    run.lab_started("b")
    left_s = [run.left_s()]
    clock_s[0] += 10
    left_s.append(run.left_s())
    run.lab_ended("a", "done", 10)
    left_s.append(run.left_s())
    run.lab_started("c")
    run.lab_ended("b", "done", 10)
    assert [*left_s, run.left_s()] == [60, 50, 10 + 30, 30]


def test_a_file_gets_two_lines_a_lab(clock_s: list[float]) -> None:
    """Nothing is redrawn, wrapped or styled where no terminal is, so that a log stays readable."""
    stream, long = io.StringIO(), "out of memory [1] " * 20
    with progress({"a": 60.0, "b": 30.0}, clock_s, stream) as run:
        run.lab_started("a")
        run.lab_ended("a", "done", 59.6)
        run.lab_started("b")
        run.cell_started("b", 2, 9)
        run.lab_ended("b", "failed", 67.0, long)
    assert stream.getvalue().splitlines() == [
        "[1/2] a: about 1:00, all about 1:30",
        "[1/2] a: done in 1:00",
        "[2/2] b: about 0:30, all about 0:30",
        f"[2/2] b: failed in 1:07 - {long}",
    ]


def test_a_terminal_shows_every_lab_that_runs(clock_s: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two labs at once: each with its number, cell and time, and about how long the run still takes."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with progress({"a": 60.0, "b": 30.0}, clock_s, stream) as run:
        for lab, cell in (("a", 1), ("b", 4)):
            run.lab_started(lab)
            run.cell_started(lab, cell, 9)
            clock_s[0] += 5
        run.note("a note that stays")
        end_s = time.monotonic() + 10  # the bars are drawn ten times a second
        while "about 0:50 left" not in stream.getvalue() and time.monotonic() < end_s:
            time.sleep(0.05)
        shown = [" ".join(line.split()) for line in Text.from_ansi(stream.getvalue()).plain.splitlines()]
        run.lab_ended("b", "failed", 67.0, "out of memory")
    assert "a note that stays" in shown
    assert shown[-3:] == ["[1/2] a 2/9 0:00:10", "[2/2] b 5/9 0:00:05", "about 0:50 left"]
    assert "[2/2] b: failed in 1:07 - out of memory\n" in Text.from_ansi(stream.getvalue()).plain


def test_a_wait_is_told_of_now_and_then() -> None:
    """Told of every quarter of a second for half a minute, a wait shows its first text and one every ten seconds."""
    now_s, said = [0.0], list[str]()
    tell = now_and_then(said.append, every_s=10, now=lambda: now_s[0])
    for quarter in range(120):
        now_s[0] = quarter / 4
        tell(f"{now_s[0]:g} s")
    assert said == ["0 s", "10 s", "20 s"]
