"""A workshop's tools: is a machine ready, is a room, how far is everybody, and the solutions apart."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import labs, models, session, teaching
from labkit.errors import LoadError, RecordError, ServerError, UsageError
from labkit.files import notebooks_path
from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.records import Attempts, Record, Recorder, read
from labkit.workshop import doctor, learners, room
from labkit.workshop import learners as solved
from labkit.workshop.doctor import Check, LabState
from tests.unit import synthetic
from tests.unit.stub_server import serving
from tests.unit.test_cli import CONFIG, Ended
from tests.unit.test_cli import labkit as labkit  # the fixture that runs a command

LAB = "01_first_deployment"
MORNING = datetime(2026, 11, 24, 9, tzinfo=UTC)


def a_record(hour: int, status: Any = "running", lab: str = LAB, **more: Any) -> tuple[Record, datetime]:
    """A record that was started so many hours after the morning, and its last sign of life."""
    started = MORNING + timedelta(hours=hour)
    record = Record(lab=lab, status=status, parameters={}, machine={}, versions={}, seed=0, started=started, **more)
    return record, started


def guessed(name: str, guess: float | None, hit: bool | None, confidence: float | None = None) -> dict[str, Any]:
    """A prediction as a record holds it."""
    return {"id": name, "guess": guess, "hit": hit, "confidence": confidence}


def tried(*, passed: bool, misconceptions: tuple[str, ...] = ()) -> Attempts:
    """An exercise after one answer."""
    return Attempts(passed=passed, tries=1, misconceptions=misconceptions)


# --- exercises in the record


def test_an_answer_to_an_exercise_is_recorded_by_the_lab(tmp_path: Path) -> None:
    """The starter leaves no trace; wrong answers count with their misconception; what was passed stays passed."""
    lab = session.start("00_start_here", {**_parameters("00_start_here"), "out_dir": str(tmp_path)})
    exercise = teaching.find("00.weight_bytes")
    facts = exercise.context(exercise.needs)
    misconception, wrong = next(iter(exercise.wrong_answers(facts)))
    for given_answer in (..., wrong, wrong, exercise.reference(facts), wrong):
        teaching.check(exercise.id, given_answer, facts)
    teaching.check("01.tpot", 1.0)  # another lab's
    found = read(tmp_path / "00_start_here.json").exercises
    assert found == {exercise.id: Attempts(passed=True, tries=4, misconceptions=(misconception,))}
    assert lab.recorder.record.exercises == found


def test_a_record_from_before_exercises_were_kept_still_reads(tmp_path: Path) -> None:
    """A file without the entry is a record without exercises."""
    path = Recorder(LAB, tmp_path, {}, machine=synthetic.machine(), versions={}, seed=0).path
    held = json.loads(path.read_text())
    del held["exercises"]
    path.write_text(json.dumps(held))
    assert read(path).exercises == {}


def _parameters(lab: str) -> dict[str, Any]:
    """Some value for every parameter of a lab."""
    some: dict[str, Any] = {"int": 1, "float": 0.5, "bool": True, "str": "x"}
    return {name: None if one.optional else some[one.scalar] for name, one in labs.LABS[lab].parameters.items()}


# --- where a learner is


def test_a_lab_is_done_when_one_of_its_starts_is() -> None:
    """A lab that is opened again stays done; else the newest start says how it is, whatever the order of reading."""
    done = learners.progress_of([a_record(2, "running"), a_record(1, "done"), a_record(0, "failed")])[LAB]
    assert (done.status, done.starts, done.last) == ("done", 3, MORNING + timedelta(hours=2))
    assert learners.progress_of([a_record(1, "running"), a_record(0, "failed")])[LAB].status == "running"
    assert learners.progress_of([a_record(1, "failed"), a_record(0, "running")])[LAB].status == "failed"


def test_a_copied_record_counts_once() -> None:
    """Of two copies of one start the later one tells how it went, and no try is counted twice."""
    early, started = a_record(0, "running", exercises={"01.tpot": tried(passed=False)})
    late, _ = a_record(0, "done", exercises={"01.tpot": tried(passed=True)})
    (lab,) = learners.progress_of([(late, started + timedelta(hours=1)), (early, started)]).values()
    assert (lab.status, lab.starts) == ("done", 1)
    assert lab.exercises == {"01.tpot": tried(passed=True)}


def test_the_first_guess_counts() -> None:
    """A second guess comes from somebody who knows; a question that was passed over may be answered later."""
    first = a_record(0, predictions=(guessed("a", 1.0, hit=False), guessed("b", None, hit=None)))
    second = a_record(1, predictions=(guessed("a", 2.0, hit=True), guessed("b", 3.0, hit=True)))
    (lab,) = learners.progress_of([second, first]).values()
    assert [(one["id"], one["guess"]) for one in lab.predictions] == [("a", 1.0), ("b", 3.0)]


def test_an_exercise_that_was_passed_stays_passed() -> None:
    """Tries add up over the starts of a lab, and each misconception is named once."""
    first = a_record(0, exercises={"01.tpot": tried(passed=True, misconceptions=("a",))})
    second = a_record(1, exercises={"01.tpot": tried(passed=False, misconceptions=("b", "a"))})
    (lab,) = learners.progress_of([second, first]).values()
    assert lab.exercises == {"01.tpot": Attempts(passed=True, tries=2, misconceptions=("a", "b"))}


def test_hurdles_name_what_most_have_not_passed_first() -> None:
    """Counts are of learners, not of tries."""

    def learner(**exercises: Attempts) -> learners.Learner:
        record = a_record(0, exercises=exercises)
        return learners.Learner(name="x", folder=Path("x"), labs=learners.progress_of([record]))

    room_of_three = [
        learner(easy=tried(passed=True), hard=tried(passed=False, misconceptions=("units",))),
        learner(hard=tried(passed=False, misconceptions=("units", "sign"))),
        learner(hard=tried(passed=True)),
    ]
    hard, easy = learners.hurdles(room_of_three)
    assert (hard.exercise, hard.tried, hard.passed, hard.misconceptions) == ("hard", 3, 1, {"units": 2, "sign": 1})
    assert (easy.exercise, easy.tried, easy.passed) == ("easy", 1, 1)


def test_a_learner_is_read_from_every_folder_below(tmp_path: Path) -> None:
    """Notebook and batch runs count alike; hidden folders and other JSON do not; a broken file is told, not fatal."""
    for where, lab in (("notebook/a", LAB), ("batch", "02_paged_attention"), (".hidden", "03_prefix_caching")):
        Recorder(lab, tmp_path / where, {}, machine=synthetic.machine(), versions={}, seed=0).save("done")
    (tmp_path / "batch" / "run.json").write_text("{}")
    (tmp_path / "batch" / "load.json").write_text("[]")
    (tmp_path / "batch" / "04_chunked_prefill.json").write_text("{")
    found = learners.read_learner(tmp_path, name="ann")
    assert found.labs_that_are("done") == [LAB, "02_paged_attention"]
    assert [("04_chunked_prefill.json is not valid JSON" in line) for line in found.broken] == [True]


def test_an_open_lab_was_last_touched_when_its_file_was(tmp_path: Path) -> None:
    """Each addition writes the record, so the file's time is the last sign of life."""
    path = Recorder(LAB, tmp_path, {}, machine=synthetic.machine(), versions={}, seed=0).path
    os.utime(path, (MORNING.timestamp(), MORNING.timestamp()))
    assert learners.read_learner(tmp_path, name="ann").last == MORNING


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/home/ann/lab/runs", "/home/ben/lab/runs"], ["ann", "ben"]),
        (["/room/ann", "/room/ben/x"], ["ann", "ben/x"]),
        (["/home/ann/lab/runs"], ["runs"]),
        (["/a", "/a/b"], ["/a", "/a/b"]),
    ],
)
def test_learners_are_called_by_what_tells_their_folders_apart(folders: list[str], names: list[str]) -> None:
    """What all paths share, in front and behind, is left out."""
    assert learners.names_of([Path(each) for each in folders]) == names


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=5, unique_by=tuple))
def test_different_folders_have_different_names(parts: list[list[str]]) -> None:
    """Nobody is taken for somebody else, and nobody is nameless."""
    names = learners.names_of([Path("/", *each) for each in parts])
    assert len(set(names)) == len(parts)
    assert all(names)


def test_progress_has_its_keys_and_shows_the_same(labkit: Callable[..., Ended], tmp_path: Path) -> None:
    """A learner's labs, predictions with calibration, exercises and last activity, as an object and as a table."""
    for name, status in (("ann", "done"), ("ben", "failed")):
        made = Recorder(LAB, tmp_path / name, {}, machine=synthetic.machine(), versions={}, seed=0)
        made.prediction(guessed("a", 1.0, hit=name == "ann", confidence=0.8))
        made.exercise("01.tpot", passed=name == "ann", misconceptions=("n tokens, n gaps",))
        made.save(status)  # type: ignore[arg-type]
    folders = (tmp_path / "ann", tmp_path / "ben")
    found = labkit("progress", *folders, "--json").json
    ann, ben = found["learners"]
    assert (ann["name"], ann["done"], ann["labs"]) == ("ann", [LAB], {LAB: "done"})
    assert ann["predictions"]["hits"] == 1
    assert ann["predictions"]["brier"] == pytest.approx(0.04)
    assert (ann["exercises"]["passed"], ben["exercises"]["not_yet"]) == (["01.tpot"], ["01.tpot"])
    assert ben["failed"] == [LAB]
    assert datetime.fromisoformat(ben["last_activity"]) <= datetime.now(UTC)
    assert found["exercises"] == [
        {"exercise": "01.tpot", "tried": 2, "passed": 1, "misconceptions": {"n tokens, n gaps": 2}}
    ]
    shown = labkit("progress", *folders).stdout
    assert all(word in shown for word in ("ann", "1 of 1 close", "80% / 100%", "1 of 2", "n tokens, n gaps (2)"))


def test_a_learner_without_a_record_is_shown(labkit: Callable[..., Ended], tmp_path: Path) -> None:
    """Who has not begun is in the table too."""
    assert "no record" in labkit("progress", tmp_path).stdout


# --- is a machine ready


def test_a_model_in_the_cache_is_verified_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed byte in a file of the right size is a problem here, though doctor's quick look takes it for good."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    folder = models.cached(models.CHAT)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of "{}", from sha256sum
    (folder / "serving-lab.json").write_text(json.dumps({"config.json": {"bytes": 2, "sha256": digest}}))
    assert models.is_intact(folder)
    (folder / "config.json").write_text("[]")
    assert models.is_complete(folder)
    checked = room.intact_check(models.CHAT, stored=True, intact=models.is_intact(folder))
    assert (checked.state, checked.found) == ("problem", "a file is damaged")
    assert room.intact_check("minilm", stored=False, intact=False).state == "problem"


@pytest.mark.parametrize(
    ("check", "state"),
    [
        (room.cores_check(2), "ok"),
        (room.cores_check(1), "note"),
        (room.load_check(0.5, 2), "ok"),
        (room.load_check(0.51, 2), "note"),
        (room.port_check(8888, free=True), "ok"),
        (room.port_check(8888, free=False), "note"),
        (room.browser_check("firefox"), "ok"),
        (room.browser_check(None), "note"),
    ],
)
def test_what_is_not_ok_comes_with_its_cure(check: Check, state: str) -> None:
    """Fewer cores, another load, a taken port and no browser stop nobody, and each says what to do."""
    assert check.state == state
    assert bool(check.fix) == (state != "ok")


def test_memory_that_others_hold_on_a_gpu_is_noted() -> None:
    """A fifth may be used; more than that is named with what is free."""
    full = synthetic.machine(gpu_gib=10, gpu_free_gib=8)
    assert [one.state for one in room.gpu_memory_checks(full)] == ["ok"]
    (used,) = room.gpu_memory_checks(synthetic.machine(gpu_gib=10, gpu_free_gib=7))
    assert (used.state, used.found) == ("note", "7.0 of 10.0 GiB free")
    assert not list(room.gpu_memory_checks(synthetic.machine()))


def test_a_runs_folder_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    """A folder that is not there yet is judged by its parent; a file in its place is told."""
    assert room.writable_check("runs folder", tmp_path / "new" / "runs").state == "ok"
    (tmp_path / "file").write_text("")
    blocked = room.writable_check("runs folder", tmp_path / "file" / "runs")
    assert blocked.state == "problem"
    assert "LABKIT_ROOT" in blocked.fix


def test_a_lab_that_does_not_run_is_a_problem() -> None:
    """Small is well enough; no, and a notebook that is not there, are problems with their cure."""
    good = LabState(name=LAB, title="", runs="small", reason="no GPU", fix="nothing to do")
    assert room.lab_check(good).state == "ok"
    bad = room.lab_check(replace(good, runs="no", reason="no memory", fix="close programs"))
    assert (bad.state, bad.found, bad.fix) == ("problem", "no memory", "close programs")
    assert room.lab_check(replace(good, name="98_none")).found == "its notebook is missing"


def test_a_machine_that_is_too_small_is_not_ready() -> None:
    """Each lab that does not fit is one problem; a workshop without such labs has none of them."""
    small = synthetic.machine(memory_gib=2)
    problems = [one.topic for one in room.check_room(machine=small, labs=["01", "10"]).problems]
    assert f"lab {LAB}" in problems
    assert "lab 10_framework_selector" not in problems
    only = room.check_room(machine=small, labs=["10"])
    assert not [one for one in only.problems if one.topic.startswith("lab ")]


def test_what_the_cuda_build_needs_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor's checks of driver, GPU, compiler, headers, disk and memory are the workshop's too."""
    monkeypatch.setattr(doctor, "versions", lambda: dict.fromkeys(doctor.NEEDED, "1.0") | {"vllm": "0.32.0"})
    machine = synthetic.machine(gpu_gib=80)
    old = replace(machine, gpus=(replace(machine.gpus[0], driver="550.54.15", cuda_driver=12040),))
    found = {check.topic: check for check in room.check_room(machine=old).checks}
    topics = {"GPU", "GPU driver", "GPU capability", "C compiler", "Python headers", "GPU 0 memory"}
    assert topics | {"disk for the 7B model", "memory for the 7B model"} <= found.keys()
    assert "580 or newer" in found["GPU driver"].fix
    assert found[f"lab {LAB}"].found == found["GPU driver"].found


def test_the_first_answer_is_a_check_of_its_own() -> None:
    """Its words, or its error with the cure; without the flag it is not looked at."""

    def fails() -> str:
        raise ServerError("vllm serve died", remedy="free memory")

    assert room.answer_check(lambda: "16 tokens in 2.0 s").found == "16 tokens in 2.0 s"
    failed = room.answer_check(fails)
    assert (failed.state, failed.found, failed.fix) == ("problem", "vllm serve died", "free memory")
    assert not [one for one in room.check_room().checks if one.topic == "first answer"]
    assert room.check_room(answer=lambda: "yes").checks[-1].found == "yes"


def test_an_empty_answer_is_none() -> None:
    """The words hold tokens and times; a request that failed is an error with its outcome."""
    good = RequestRecord(0, 0.0, 0.0, (1.0, 3.0), 3.1, 20, 16, Outcome.OK)
    told = room.in_words(_loaded(good), ready_s=41.2)
    assert told == "16 tokens in 3.0 s; the engine was ready after 41 s"
    bad = replace(good, outcome=Outcome.TIMEOUT, output_tokens=None, error="after 120 s")
    with pytest.raises(LoadError, match="timeout after 120 s"):
        room.in_words(_loaded(bad), ready_s=41.2)


class Started:
    """Stands for a started `vllm serve`: the stub answers, and the end is noted."""

    def __init__(self, command: str, base_url: str) -> None:
        self.command, self.base_url, self.api_key, self.stopped = command, base_url, "secret", False

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True


@pytest.mark.parametrize("status", [None, 500])
def test_the_first_answer_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """The engine's own command is started, asked once over HTTP by its name and key, and stopped, answer or not."""
    model = tmp_path / "a model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    started: list[Started] = []
    with serving(api_key="secret", models=(models.CHAT,), error_status=status) as stub:

        def start(command: str, **_: Any) -> Started:
            started.append(Started(command, stub.base_url))
            return started[0]

        monkeypatch.setattr("labkit.workshop.room.models.resolve", lambda *_, **__: model)
        monkeypatch.setattr("labkit.workshop.room.vllm.start", start)
        found = room.answer_check(room.first_answer)
    assert found.state == ("ok" if status is None else "problem")
    assert f"{room.TOKENS} tokens in" in found.found or "did not answer: http_error" in found.found
    assert started[0].command.startswith(f"vllm serve '{model}' --served-model-name {models.CHAT}")
    assert started[0].stopped
    assert len(stub.bodies) == 1


def test_the_first_answer_takes_a_small_share_of_a_gpu() -> None:
    """Half of what is free, never more than is free, and a share in any case."""
    assert room.small_share(synthetic.machine(gpu_gib=10, gpu_free_gib=8)) == pytest.approx(0.4)
    assert room.small_share(synthetic.machine(gpu_gib=10, gpu_free_gib=0)) == room.LEAST_SHARE
    assert room.small_share(synthetic.machine()) == room.LEAST_SHARE


def _loaded(record: RequestRecord) -> LoadResult:
    return LoadResult(
        records=(record,), duration_s=3.1, client_cpu_s=0.0, concurrency=1, rate=None,
        workload="chat", seed=0, warnings=(),
    )  # fmt: skip


# --- is the room ready


def a_check(*, state: Any = "ok", vllm: str = "0.32.0", commit: str | None = "a" * 40) -> room.RoomCheck:
    """A machine's check with one finding."""
    one = Check(topic="disk", state=state, found="little", fix="" if state == "ok" else "free some")
    return room.RoomCheck(checks=(one,), machine_line="2 CPUs", commit=commit, versions={"vllm": vllm})


def test_a_room_is_what_its_machines_wrote(tmp_path: Path) -> None:
    """Names are the files'; problems keep their cure; a machine with other software than most is named."""
    for name, found in {
        "pc1": a_check(),
        "pc2": a_check(state="problem"),
        "pc3": a_check(state="note", vllm="0.31.0", commit="b" * 40 + "+"),
    }.items():
        assert room.write_check(found, tmp_path, name=name) == tmp_path / f"{name}.json"
    whole = room.read_room(tmp_path)
    first, second, third = whole.machines
    assert (whole.ok, first.ok, second.ok, third.ok) == (False, True, False, False)
    assert (second.problems[0].topic, second.problems[0].fix) == ("disk", "free some")
    assert third.differs == (f"commit {'b' * 10}+, most have {'a' * 10}", "vllm 0.31.0, most have 0.32.0")


def test_a_file_that_is_no_check_spoils_only_itself(tmp_path: Path) -> None:
    """It is told with its name and the room is not ready; the others are read."""
    room.write_check(a_check(), tmp_path, name="pc1")
    (tmp_path / "pc2.json").write_text("{}")
    whole = room.read_room(tmp_path)
    assert [one.ok for one in whole.machines] == [True]
    assert [("pc2.json is no workshop check" in line) for line in whole.broken] == [True]
    assert not whole.ok


def test_a_check_needs_a_folder_to_be_written_to(tmp_path: Path) -> None:
    """A file in the folder's place is an error with a remedy, and an empty folder is no room."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be made"):
        room.write_check(a_check(), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds 0 checks"):
        room.read_room(tmp_path / "empty")


def test_workshop_check_has_its_keys_and_exit_codes(
    labkit: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one machine prints is what the room's summary reads; 0 where all is ready, 1 where something is not."""
    folder = tmp_path / "room"
    folder.mkdir()
    for state, code in (("note", 0), ("problem", 1)):
        monkeypatch.setattr(room, "check_room", lambda state=state, **_: a_check(state=state))
        ended = labkit("workshop-check", "--json")
        assert (ended.code, ended.json["ok"], ended.json["checks"][0]["state"]) == (code, code == 0, state)
        (folder / f"{state}.json").write_text(ended.stdout)
        shown = labkit("workshop-check", "--save", tmp_path / "saved")
        assert shown.code == code
        assert "free some" in shown.stdout
    assert len(room.read_room(tmp_path / "saved").machines) == 1
    summary = labkit("workshop-check", "--summary", folder, "--json")
    assert (summary.code, [one["ok"] for one in summary.json["machines"]]) == (1, [True, False])
    words = labkit("workshop-check", "--summary", folder)
    assert words.code == 1
    assert "1 of 2 machines are ready" in words.stdout
    (folder / "problem.json").unlink()
    assert labkit("workshop-check", "--summary", folder).code == 0


# --- solutions


def test_every_exercise_has_its_solution_in_the_document(labkit: Callable[..., Ended]) -> None:
    """Question, solution and what each wrong answer tells stand there, for every exercise of the course, once."""
    text = labkit("solutions").stdout
    found = labkit("solutions", "--json").json["exercises"]
    assert [one["id"] for one in found] == sorted(teaching.exercises(), key=lambda name: name[:2])
    for one in teaching.exercises().values():
        assert text.count(f"### {one.id}: ") == 1
        assert one.solution_text() in text
    assert all(one["prompt"] and one["solution"] and one["misconceptions"] for one in found)


def test_solutions_of_one_lab_are_its_own() -> None:
    """By name, number or beginning; a lab without exercises cannot be asked for."""
    assert {one.id[:2] for one in solved.solutions(["1"])[LAB]} == {"01"}
    assert list(solved.solutions(["02", "01_first"])) == ["02_paged_attention", LAB]


def test_no_solution_stands_in_a_notebooks_cells() -> None:
    """A learner reads the question and an unsolved starter: the source of no solution is in any notebook's cells."""
    hidden = {
        one.id: one.solution_text()
        for one in teaching.exercises().values()
        if not isinstance(one, teaching.ChoiceExercise)
    }
    files = sorted(notebooks_path().glob("[0-9]*.ipynb"))
    assert files
    for file in files:
        cells = ["".join(cell["source"]) for cell in json.loads(file.read_text())["cells"]]
        found = [name for name, solution in hidden.items() if any(solution in cell for cell in cells)]
        assert not found, file.name
