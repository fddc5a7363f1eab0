"""A workshop's tools: is a machine ready, is a room, how far each learner is, and the solutions apart."""

import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import models, session, teaching
from labkit.errors import RecordError
from labkit.files import notebooks_path
from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.records import Attempts, Record, Recorder, read
from labkit.workshop import doctor, learners, room
from labkit.workshop.doctor import Check
from tests.unit import synthetic
from tests.unit.command import Labkit
from tests.unit.refusals import not_refused
from tests.unit.stub_server import serving
from tests.unit.test_cli import CONFIG
from tests.unit.test_course import parameters_of

LAB = "01_first_deployment"
MORNING = datetime(2026, 11, 24, 9, tzinfo=UTC)


def a_record(hour: int, status: Any = "running", lab: str = LAB, **more: Any) -> tuple[Record, datetime]:
    """A record that was started this many hours after the morning, and its last sign of life."""
    started = MORNING + timedelta(hours=hour)
    record = Record(lab=lab, status=status, parameters={}, machine={}, versions={}, seed=0, started=started, **more)
    return record, started


def guessed(name: str, guess: float | None, hit: bool | None, confidence: float | None = None) -> dict[str, Any]:
    """A prediction as a record holds it."""
    return {"id": name, "guess": guess, "hit": hit, "confidence": confidence}


def tried(*, passed: bool, misconceptions: tuple[str, ...] = ()) -> Attempts:
    """An exercise after one answer."""
    return Attempts(passed=passed, tries=1, misconceptions=misconceptions)


def test_an_answer_to_an_exercise_is_recorded_by_the_lab(tmp_path: Path) -> None:
    """The starter leaves no trace; wrong answers count with their misconception; what was passed stays passed."""
    lab = session.start("00_start_here", {**parameters_of("00_start_here"), "out_dir": str(tmp_path)})
    exercise = teaching.find("00.weight_bytes")
    facts = exercise.context(exercise.needs)
    misconception, wrong = next(iter(exercise.wrong_answers(facts)))
    for given_answer in (..., wrong, wrong, exercise.reference(facts), wrong):
        teaching.check(exercise.id, given_answer, facts)
    teaching.check("01.tpot", 1.0)  # another lab's
    kept = read(tmp_path / "00_start_here.json").exercises
    assert kept == {exercise.id: Attempts(passed=True, tries=4, misconceptions=(misconception,))}
    assert lab.recorder.record.exercises == kept


def test_a_lab_is_done_when_one_of_its_starts_is() -> None:
    """A lab that is opened again stays done; else the newest start says how it is, whatever the order of reading."""
    done = learners.progress_of([a_record(2, "running"), a_record(1, "done"), a_record(0, "failed")])[LAB]
    assert (done.status, done.starts, done.last) == ("done", 3, MORNING + timedelta(hours=2))
    assert learners.progress_of([a_record(1, "running"), a_record(0, "failed")])[LAB].status == "running"
    assert learners.progress_of([a_record(1, "failed"), a_record(0, "running")])[LAB].status == "failed"


def test_starts_of_a_lab_add_up() -> None:
    """The first guess counts; an exercise that was passed stays passed, and each misconception is named once. Of two
    copies of one start the later one decides, and no try is counted twice."""
    first, started = a_record(
        0,
        predictions=(guessed("a", 1.0, hit=False), guessed("b", None, hit=None)),
        exercises={"01.tpot": tried(passed=True, misconceptions=("a",))},
    )
    second = a_record(
        1,
        predictions=(guessed("a", 2.0, hit=True), guessed("b", 3.0, hit=True)),
        exercises={"01.tpot": tried(passed=False, misconceptions=("b", "a"))},
    )
    early, _ = a_record(0, exercises={"01.tpot": tried(passed=False)})
    copies = [(first, started + timedelta(minutes=9)), second, (early, started)]
    (lab,) = learners.progress_of(copies).values()
    assert [(guess["id"], guess["guess"]) for guess in lab.predictions] == [("a", 1.0), ("b", 3.0)]
    assert lab.exercises == {"01.tpot": Attempts(passed=True, tries=2, misconceptions=("a", "b"))}
    assert lab.starts == 2


def test_a_learner_is_read_from_every_folder_below(tmp_path: Path) -> None:
    """Notebook and batch runs count alike; hidden folders and other JSON do not; a broken file is named, not fatal; an
    open lab was last touched when its file was."""
    for where, lab in (("notebook/a", LAB), ("batch", "02_paged_attention"), (".hidden", "03_prefix_caching")):
        Recorder(lab, tmp_path / where, {}, machine=synthetic.machine(), versions={}, seed=0).save("done")
    opened = Recorder("05_ray_serve_pipelines", tmp_path, {}, machine=synthetic.machine(), versions={}, seed=0).path
    os.utime(opened, (MORNING.timestamp(), MORNING.timestamp()))
    (tmp_path / "batch" / "run.json").write_text("{}")
    (tmp_path / "batch" / "load.json").write_text("[]")
    (tmp_path / "batch" / "04_chunked_prefill.json").write_text("{")
    ann = learners.read_learner(tmp_path, name="ann")
    assert ann.labs_that_are("done") == [LAB, "02_paged_attention"]
    assert ann.labs["05_ray_serve_pipelines"].last == MORNING
    assert [("04_chunked_prefill.json is not valid JSON" in line) for line in ann.broken] == [True]


def test_learners_are_called_by_what_tells_their_folders_apart() -> None:
    """What all paths share, in front and behind, is left out."""
    for folders, names in (
        (["/home/ann/lab/runs", "/home/ben/lab/runs"], ["ann", "ben"]),
        (["/room/ann", "/room/ben/x"], ["ann", "ben/x"]),
        (["/home/ann/lab/runs"], ["runs"]),
        (["/a", "/a/b"], ["/a", "/a/b"]),
    ):
        assert learners.names_of([Path(folder) for folder in folders]) == names


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=5, unique_by=tuple))
def test_different_folders_have_different_names(parts: list[list[str]]) -> None:
    """No learner is taken for another, and none is nameless."""
    names = learners.names_of([Path("/", *part) for part in parts])
    assert len(set(names)) == len(parts)
    assert all(names)


def test_of_copies_of_a_start_the_most_complete_counts(tmp_path: Path) -> None:
    """An older copy, whatever its file's time, does not hide a finished lab or a passed exercise."""
    made = Recorder(LAB, tmp_path / "ann" / "runs", {}, machine=synthetic.machine(), versions={}, seed=0)
    shutil.copytree(tmp_path / "ann" / "runs", tmp_path / "ann" / "z_running")
    made.save("done")
    shutil.copytree(tmp_path / "ann" / "runs", tmp_path / "ann" / "z_untried")
    made.exercise("01.tpot", passed=True)
    for older in ("z_running", "z_untried"):
        (tmp_path / "ann" / older / f"{LAB}.json").touch()
    learner = learners.read_learner(tmp_path / "ann", name="ann")
    assert (learner.labs_that_are("done"), learner.exercises["01.tpot"].passed) == ([LAB], True)


def test_progress_has_its_keys_and_shows_the_same(labkit: Labkit, tmp_path: Path) -> None:
    """A learner's labs, predictions with calibration, exercises and last activity, as an object and as a table; for
    the projector without names. What most have not passed comes first; counts are of learners, not of tries."""
    for name, status in (("ann", "done"), ("ben", "failed")):
        made = Recorder(LAB, tmp_path / name, {}, machine=synthetic.machine(), versions={}, seed=0)
        made.prediction(guessed("a", 1.0, hit=name == "ann", confidence=0.8))
        made.exercise("00.weight_bytes", passed=True)
        for _ in range(2):
            made.exercise("01.tpot", passed=name == "ann", misconceptions=("n gaps for n tokens",))
        made.save(status)  # type: ignore[arg-type]
    (tmp_path / "cy").mkdir()
    folders = [tmp_path / name for name in ("ann", "ben", "cy")]
    shown = labkit("progress", *folders, "--json").json
    ann, ben, _ = shown["learners"]
    assert (ann["name"], ann["done"], ann["labs"]) == ("ann", [LAB], {LAB: "done"})
    assert ann["predictions"]["hits"] == 1
    assert ann["predictions"]["brier"] == pytest.approx(0.04)
    assert (ann["exercises"]["not_yet"], ben["exercises"]["not_yet"]) == ([], ["01.tpot"])
    assert ben["failed"] == [LAB]
    assert datetime.fromisoformat(ben["last_activity"]) <= datetime.now(UTC)
    assert shown["exercises"] == [
        {"exercise": "01.tpot", "tried": 2, "passed": 1, "misconceptions": {"n gaps for n tokens": 2}},
        {"exercise": "00.weight_bytes", "tried": 2, "passed": 2, "misconceptions": {}},
    ]
    (bucket,) = shown["calibration"]["buckets"]
    assert bucket == {"low": 0.7, "high": 0.9, "predictions": 2, "hits": 1}
    text = labkit("progress", *folders).stdout
    words = ("ann", "1 of 1 close", "80% / 100%", "1 of 2", "n gaps for n tokens (2)", "no record", "70% to 90%")
    assert [word for word in words if word not in text] == []
    on_the_wall = labkit("progress", "--room", *folders).stdout
    assert ("70% to 90%" in on_the_wall, "ann" in on_the_wall) == (True, False)
    assert labkit("progress", "--room", *folders, "--json").json["learners"] == []


def by_topic(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.topic: check for check in checks}


def test_a_model_in_the_cache_is_verified_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed byte in a file of the right size is a problem here, though doctor's quick look takes it for good."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    folder = models.cached(models.CHAT)
    folder.mkdir(parents=True)
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of "{}", from sha256sum
    (folder / "serving-lab.json").write_text(json.dumps({"config.json": {"bytes": 2, "sha256": digest}}))
    topic = f"model {models.CHAT}"
    for content, state, found in (("{}", "ok", "every file verified"), ("[]", "problem", "a file is damaged")):
        (folder / "config.json").write_text(content)
        checks = by_topic(room.check_room(labs=["10"]).checks)
        assert (checks[topic].state, found in checks[topic].found) == (state, True)
        assert checks[f"model {models.EMBEDDING}"].state == "problem"  # not fetched
        assert by_topic(doctor.examine(labs=["10"]).checks)[topic].state == "ok"


NOTES = ("cores", "load", "port 8888", "browser", "GPU 0 memory")


def test_what_a_room_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound machine has no notes. Few cores, other load, a taken port, no browser and used GPU memory stop nobody; a
    runs folder that cannot be made and a missing notebook do; each says what to do."""
    monkeypatch.setattr(doctor, "versions", lambda: dict.fromkeys(doctor.NEEDED, "1.0") | {"vllm": "0.32.0"})
    monkeypatch.setattr(doctor, "port_is_free", lambda _: True)
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.0, 0.0))
    monkeypatch.setattr("shutil.which", lambda name, *_: name)
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "new" / "runs"))
    sound = by_topic(room.check_room(machine=synthetic.machine(gpu_gib=10, gpu_free_gib=8)).checks)
    assert {sound[topic].state for topic in (*NOTES, "runs folder", f"lab {LAB}")} == {"ok"}
    monkeypatch.setattr(doctor, "port_is_free", lambda _: False)
    monkeypatch.setattr(doctor, "notebooks_path", lambda: tmp_path)
    monkeypatch.setattr("shutil.which", lambda *_: None)
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 0.0, 0.0))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "file" / "runs"))
    machine = replace(synthetic.machine(gpu_gib=10, gpu_free_gib=7), cpus=1)
    checks = by_topic(room.check_room(machine=machine).checks)
    assert {checks[topic].state for topic in NOTES} == {"note"}
    assert {checks[topic].state for topic in ("runs folder", f"lab {LAB}")} == {"problem"}
    assert [topic for topic, check in checks.items() if check.state != "ok" and not check.fix] == []
    assert checks["GPU 0 memory"].found == "7.0 of 10.0 GiB free"
    assert checks[f"lab {LAB}"].found == "its notebook is missing"


def test_a_machine_that_is_too_small_is_not_ready() -> None:
    """Each lab that does not fit is one problem; a workshop without such labs has none of them."""
    small = synthetic.machine(memory_gib=2)
    problems = [check.topic for check in room.check_room(machine=small, labs=["01", "10"]).problems]
    assert f"lab {LAB}" in problems
    assert "lab 10_framework_selector" not in problems


def test_the_first_answer_is_a_check_of_its_own() -> None:
    """Its words are tokens and times; without the flag it is not looked at."""
    good = RequestRecord(0, 0.0, 0.0, (1.0, 3.0), 3.1, 20, 16, Outcome.OK)
    load = LoadResult((good,), 3.1, 0.0, concurrency=1, rate=None, workload="chat", seed=0, warnings=())
    assert room.in_words(load, ready_s=41.2) == "16 tokens in 3.0 s; the engine was ready after 41 s"
    assert "first answer" not in by_topic(room.check_room(labs=["10"]).checks)
    assert room.check_room(labs=["10"], answer=lambda: "yes").checks[-1].found == "yes"


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
        check = room.answer_check(room.first_answer)
    assert (check.state, bool(check.fix)) == (("ok", False) if status is None else ("problem", True))
    assert (f"{room.TOKENS} tokens in" if status is None else "did not answer: http_error 500") in check.found
    assert started[0].command.startswith(f"vllm serve '{model}' --served-model-name {models.CHAT}")
    assert started[0].stopped
    assert len(stub.bodies) == 1


def test_the_first_answer_takes_a_small_share_of_a_gpu() -> None:
    """Half of what is free, never more than is free, and a share in any case."""
    assert room.small_share(synthetic.machine(gpu_gib=10, gpu_free_gib=8)) == pytest.approx(0.4)
    assert room.small_share(synthetic.machine(gpu_gib=10, gpu_free_gib=0)) == room.LEAST_SHARE
    assert room.small_share(synthetic.machine()) == room.LEAST_SHARE


def a_check(*, state: Any = "ok", vllm: str = "0.32.0", commit: str | None = "a" * 40) -> room.RoomCheck:
    """A machine's check with one finding."""
    check = Check(topic="disk", state=state, found="little", fix="" if state == "ok" else "free some")
    return room.RoomCheck(machine="2 CPUs", commit=commit, versions={"vllm": vllm}, checks=(check,))


def test_a_room_is_what_its_machines_wrote(tmp_path: Path) -> None:
    """Names are the files'; problems keep their fix; a machine with other software than most is named; a file that is
    not a check is named and spoils only itself."""
    for name, check in {
        "pc1": a_check(),
        "pc2": a_check(state="problem"),
        "pc3": a_check(state="note", vllm="0.31.0", commit="b" * 40 + "+"),
    }.items():
        assert room.write_check(check, tmp_path, name=name) == tmp_path / f"{name}.json"
    (tmp_path / "pc4.json").write_text("{}")
    (tmp_path / "pc5.json").write_text(json.dumps(a_check().to_json() | {"checks": []}))
    whole = room.read_room(tmp_path)
    first, second, third = whole.machines
    assert (whole.ok, first.ok, second.ok, third.ok) == (False, True, False, False)
    assert (second.check.problems[0].topic, second.check.problems[0].fix) == ("disk", "free some")
    assert third.differs == (f"commit {'b' * 10}+, most have {'a' * 10}", "vllm 0.31.0, most have 0.32.0")
    assert "pc4.json is not a workshop check" in whole.broken[0]
    assert "pc5.json has an empty list of checks" in whole.broken[1]


def test_a_check_needs_a_folder_to_be_written_to(tmp_path: Path) -> None:
    """A file in the folder's place is an error with a remedy."""
    (file := tmp_path / "file").write_text("")
    bad = [(file, "cannot be created")]
    assert not_refused(lambda folder: room.write_check(a_check(), folder), bad, RecordError) == []


def test_workshop_check_has_its_keys_and_exit_codes(
    labkit: Labkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one machine prints is what the room's summary reads; 0 where all is ready, 1 where something is not."""
    folder = tmp_path / "room"
    folder.mkdir()
    for state, code in (("note", 0), ("problem", 1)):
        monkeypatch.setattr(room, "check_room", lambda state=state, **_: a_check(state=state))
        ended = labkit("workshop-check", "--json")
        assert (ended.code, ended.json["ok"], ended.json["checks"][0]["state"]) == (code, code == 0, state)
        assert {"workshop_check", "machine", "commit", "versions"} <= ended.json.keys()
        (folder / f"{state}.json").write_text(ended.stdout)
        shown = labkit("workshop-check", "--save", tmp_path / "saved")
        assert shown.code == code
        assert "free some" in shown.stdout
    assert len(room.read_room(tmp_path / "saved").machines) == 1
    summary = labkit("workshop-check", "--summary", folder, "--json")
    assert (summary.code, [machine["ok"] for machine in summary.json["machines"]]) == (1, [True, False])
    assert summary.json["machines"][1]["problems"] == [{"topic": "disk", "found": "little", "fix": "free some"}]
    words = labkit("workshop-check", "--summary", folder)
    assert words.code == 1
    assert "1 of 2 machines are ready" in words.stdout
    (folder / "problem.json").unlink()
    assert labkit("workshop-check", "--summary", folder).code == 0


def test_every_exercise_has_its_solution_in_the_document(labkit: Labkit) -> None:
    """Question, solution and what each wrong answer shows are there, for every exercise of the course, once."""
    text = labkit("solutions").stdout
    listed = labkit("solutions", "--json").json["exercises"]
    assert [one["id"] for one in listed] == sorted(teaching.exercises(), key=lambda name: name[:2])
    for exercise in teaching.exercises().values():
        assert text.count(f"### {exercise.id}: ") == 1
        assert exercise.solution_text() in text
    assert all(one["prompt"] and one["solution"] and one["misconceptions"] for one in listed)
    assert {one.id[:2] for one in learners.solutions(["1"])[LAB]} == {"01"}
    assert list(learners.solutions(["02", "01_first"])) == ["02_paged_attention", LAB]


def test_no_solution_stands_in_a_notebooks_cells() -> None:
    """A learner reads the question and an unsolved starter: the source of no solution is in any notebook's cells."""
    hidden = {
        exercise.id: exercise.solution_text()
        for exercise in teaching.exercises().values()
        if not isinstance(exercise, teaching.ChoiceExercise)
    }
    files = sorted(notebooks_path().glob("[0-9]*.ipynb"))
    cells = [(file.name, "".join(cell["source"])) for file in files for cell in json.loads(file.read_text())["cells"]]
    assert cells
    assert [(file, name) for file, cell in cells for name, solution in hidden.items() if solution in cell] == []
