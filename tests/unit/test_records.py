"""Records: written whole, read back bit by bit, compared."""

import enum
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import records
from labkit.errors import RecordError, UsageError
from labkit.experiments import Interval, Ratio, closed_loop, paired_ratio
from labkit.records import LabRun, Recorder, RunInfo, compare, differences, plain, read, read_all, within, write_atomic

MACHINE: dict[str, Any] = {"cpus": 2, "line": "2 CPUs (a test's), 24 GiB, no GPU"}
VERSIONS = {"vllm": "0.32.0", "labkit": "0.1.0"}

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | finite | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
quick = settings(max_examples=40, deadline=None)


def recorder(
    folder: Path,
    lab: str = "01_lab",
    *,
    seed: int = 7,
    machine: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    **parameters: Any,
) -> Recorder:
    return Recorder(lab, folder, parameters, machine=machine or MACHINE, versions=versions or VERSIONS, seed=seed)


def ratio_of(value: float, *, name: str = "speed-up") -> Ratio:
    return Ratio(name=name, value=value, low=value * 0.9, high=value * 1.1, pairs=3, values=(value,) * 3)


# --- round trip


@given(st.dictionaries(st.text(), json_values, max_size=4))
@quick
def test_exact_values_come_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    """Whatever JSON can hold is read back equal, floats to the last bit, and int, float and bool stay apart."""
    writer = recorder(tmp_path_factory.mktemp("record"))
    for name, value in values.items():
        writer.exact(name, value)
    assert read(writer.path) == writer.record
    assert list(differences("lab", read(writer.path).exact, values)) == []


def test_everything_recorded_comes_back(tmp_path: Path) -> None:
    """A record with one of everything is the same on disk as in memory, and has the keys that others rely on."""
    writer = recorder(tmp_path, concurrency=(1, 4))
    writer.exact("tokens", [1, 2])
    writer.measure("ttft", "s", [0.1, 0.2, 0.3])
    writer.ratio(paired_ratio([2.0, 4.2, 6.0], [1.0, 2.0, 3.0], name="speed-up"), tolerance=0.25)
    writer.evidence("C01", 2.0, version="5.19", paged=True, static=Interval(value=2.0, low=1.5, high=2.5, n=3))
    writer.prediction({"id": "p1", "guess": 3})
    writer.chart("timeline", {"mark": "bar", "data": {"values": [{"x": 1}]}}, key=True)
    writer.warn("careful")
    writer.save("done")
    found = read(writer.path)
    assert found == writer.record
    assert found.status == "done"
    assert found.ended is not None
    assert found.started <= found.ended == found.when
    assert found.parameters == {"concurrency": [1, 4]}
    assert found.machine_line == MACHINE["line"]
    assert found.claims["C01"] == {
        "value": 2.0,
        "version": "5.19",
        "paged": True,
        "static_value": 2.0,
        "static_low": 1.5,
        "static_high": 2.5,
    }
    assert set(json.loads(writer.path.read_text())) >= {
        *("format", "lab", "status", "machine", "versions", "parameters", "seed", "started", "ended"),
        *("exact", "measured", "claims", "predictions", "charts", "warnings"),
    }


def test_each_addition_is_on_disk_at_once(tmp_path: Path) -> None:
    """After every call the file holds what was added, with the status "running", and nothing else lies beside it."""
    writer = recorder(tmp_path)
    steps: list[Callable[[], object]] = [
        lambda: writer.exact("a", 1),
        lambda: writer.measure("m", "s", 1.5),
        lambda: writer.ratio(ratio_of(2.0), tolerance=0.1),
        lambda: writer.evidence("C07", low=1.0),
        lambda: writer.prediction({"id": "x"}),
        lambda: writer.chart("c", {}),
        lambda: writer.warn("w"),
    ]
    seen = [read(writer.path)]
    for step in steps:
        step()
        seen.append(read(writer.path))
        assert seen[-1] == writer.record
        assert seen[-1] != seen[-2]
        assert seen[-1].status == "running"
        assert [path.name for path in tmp_path.iterdir()] == ["01_lab.json"]


def test_recording_a_name_again_replaces_it(tmp_path: Path) -> None:
    """A cell that is run twice leaves one entry, the newer one, in the old one's place."""
    writer = recorder(tmp_path)
    for value in (1.0, 2.0):
        writer.exact("a", value)
        writer.measure("m", "s", [value])
        writer.ratio(ratio_of(value), tolerance=0.1)
        writer.evidence("C01", value)
        writer.prediction({"id": "p", "guess": value})
        writer.chart("c", {"v": value})
        writer.warn("same")
    found = read(writer.path)
    assert found.exact == {"a": 2.0}
    assert [(item.name, item.value) for item in found.measured] == [("m", 2.0), ("speed-up", 2.0)]
    assert found.claims == {"C01": {"value": 2.0}}
    assert found.predictions == ({"id": "p", "guess": 2.0},)
    assert [chart.spec for chart in found.charts] == [{"v": 2.0}]
    assert found.warnings == ("same",)


def test_measure_computes_the_interval_that_is_not_given(tmp_path: Path) -> None:
    """Without an interval the mean's own stands in the record; a given one is taken as it is."""
    writer = recorder(tmp_path)
    own = writer.measure("own", "s", [1, 2, 3])
    assert own.value == 2.0
    assert own.low < 2.0 < own.high
    given = writer.measure("given", "s", [1, 2, 3], Interval(value=2.5, low=2.0, high=3.0, n=3))
    assert (given.value, given.low, given.high) == (2.5, 2.0, 3.0)


def test_one_pair_is_recorded_with_its_warning(tmp_path: Path) -> None:
    """A ratio without an interval leaves its warning in the record; cautions are recorded as text."""
    writer = recorder(tmp_path)
    writer.ratio(paired_ratio([2.0], [1.0], name="once"), tolerance=0.5)
    caution = closed_loop(concurrency=4, rate=None)
    assert caution is not None
    writer.warn(caution)
    assert "'once' rests on 1 pair" in read(writer.path).warnings[0]
    assert read(writer.path).warnings[1] == str(caution)


# --- what a record may hold


class Colour(enum.StrEnum):
    RED = "red"


def test_numpy_tuples_and_enums_become_plain() -> None:
    """numpy scalars and arrays, tuples and enums come out as JSON's own types."""
    given = {
        "f": np.float32(0.5),
        "i": np.int64(3),
        "b": np.bool_(True),
        "a": np.eye(2),
        "t": (1, (2,)),
        "e": Colour.RED,
    }
    found = plain(given, "x")
    assert found == {"f": 0.5, "i": 3, "b": True, "a": [[1.0, 0.0], [0.0, 1.0]], "t": [1, [2]], "e": "red"}
    assert isinstance(found, dict)
    assert [type(found[key]) for key in "fibe"] == [float, int, bool, str]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1.0, math.nan]}, r"exact\.x\.a\[1\] is nan"),
        (np.array([np.inf]), r"exact\.x\[0\] is inf"),
        ({1: "one"}, r"exact\.x has the key 1"),
        ({"a b": {1, 2}}, r"exact\.x\['a b'\] is of type set"),
        (Path("/x"), r"exact\.x is of type PosixPath"),
    ],
)
def test_what_json_lacks_is_refused_with_its_position(tmp_path: Path, value: Any, message: str) -> None:
    """NaN, infinity, keys that are not text and other types are refused, and the record stays as it was."""
    writer = recorder(tmp_path)
    before = writer.path.read_text()
    with pytest.raises(UsageError, match=message):
        writer.exact("x", value)
    assert writer.path.read_text() == before


def test_misuse_of_the_recorder_is_refused(tmp_path: Path) -> None:
    """Nameless ratios, zero tolerances, unknown claim ids, empty measurements and odd lab names are usage errors."""
    writer = recorder(tmp_path)
    refused: list[tuple[str, Callable[[], object]]] = [
        ("without a name", lambda: writer.ratio(ratio_of(1.0, name=""), tolerance=0.1)),
        ("tolerance of speed-up is 0", lambda: writer.ratio(ratio_of(1.0), tolerance=0)),
        ("'X1' is not a claim's id", lambda: writer.evidence("X1", 1.0)),
        ("measured.m has 0 values", lambda: writer.measure("m", "s", [])),
        ("is True, not a number", lambda: writer.measure("m", "s", [True])),
        ("claims.C01.value is nan", lambda: writer.evidence("C01", math.nan)),
        ("claims.C01.value is a list", lambda: writer.evidence("C01", [1.0])),  # type: ignore[arg-type]
        ("predictions is list, not a dict", lambda: writer.prediction([1])),  # type: ignore[arg-type]
        ("id is None", lambda: writer.prediction({"guess": 1})),
        ("'../x' cannot name", lambda: recorder(tmp_path, "../x")),
        ("'run' cannot name", lambda: recorder(tmp_path, "run")),
    ]
    for message, call in refused:
        with pytest.raises(UsageError, match=message.replace(".", r"\.")):
            call()


# --- files


def test_a_folder_that_cannot_be_made_is_a_record_error(tmp_path: Path) -> None:
    """A file in the place of the run's folder is named, with the remedy."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(RecordError, match=r"taken cannot be made(.|\n)*--out"):
        recorder(tmp_path / "taken")


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is reported with the file's name; the old content stays and no hidden file is left."""
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"a\.json cannot be written: No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a write comes through, the old content stays and no hidden file is left."""
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    """A record can be read by whom the umask allows, not by its owner alone."""
    plain_file = tmp_path / "plain"
    plain_file.write_text("")
    write_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == plain_file.stat().st_mode


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """While threads overwrite one file with texts of different lengths, every read gives one of them, whole."""
    path = tmp_path / "shared.json"
    texts = {str(n) * 20_000 * (n + 1) for n in range(4)}
    write_atomic(path, next(iter(texts)))

    def write(text: str) -> None:
        for _ in range(10):
            write_atomic(path, text)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers) or not reads:
        assert path.read_text() in texts
        reads += 1
    assert [found.name for found in tmp_path.iterdir()] == ["shared.json"]


def test_threads_may_share_a_recorder(tmp_path: Path) -> None:
    """Nothing is lost when several threads add to one record at a time."""
    writer = recorder(tmp_path)

    def add(thread: int) -> None:
        for index in range(10):
            writer.exact(f"{thread}-{index}", index)

    threads = [threading.Thread(target=add, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(writer.path).exact == {f"{k}-{i}": i for k in range(4) for i in range(10)}


KILLED = """
import itertools, sys
from pathlib import Path
from labkit.records import Recorder
writer = Recorder("01_lab", Path(sys.argv[1]), {}, machine={}, versions={}, seed=0)
for index in itertools.count():
    writer.exact(str(index), "x" * 10_000)
    print(index, flush=True)
"""


def test_a_killed_lab_keeps_what_it_had(tmp_path: Path) -> None:
    """SIGKILL at any moment leaves a valid record that holds everything whose recording had returned."""
    for delay_s in (0.0, 0.013, 0.031):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(5):
            assert child.stdout.readline()
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        returned = 5 + len(child.communicate()[0].splitlines())
        found = read(tmp_path / "01_lab.json")
        assert found.status == "running"
        assert list(found.exact)[:returned] == [str(index) for index in range(returned)]
        assert len(found.exact) <= returned + 1
    recorder(tmp_path)  # the next run of the lab sweeps up what a killed write left
    assert [path.name for path in tmp_path.iterdir()] == ["01_lab.json"]


# --- reading what is broken


def spoil(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=2), "has format 2; this labkit reads format 1"),
        (lambda r: r.pop("format"), "has format None"),
        (lambda r: r.pop("machine"), "machine: Field required"),
        (lambda r: r["measured"][0].pop("value"), r"measured\[0\]\.value: Field required"),
        (lambda r: r["measured"][0].update(low="1"), r"measured\[0\]\.low"),
        (lambda r: r["measured"][0].update(values=[1, True]), r"measured\[0\]\.values\[1\]"),
        (lambda r: r.update(status="finished"), "status: Input should be"),
        (lambda r: r.update(started="yesterday"), "started"),
        (lambda r: r.update(exakt={}), "exakt: Extra inputs are not permitted"),
        (lambda r: r.update(lab="02_other"), "holds the record of '02_other'"),
        (lambda r: r["claims"].update(C01={"value": [1]}), r"claims\.C01\.value"),
    ],
)
def test_an_invalid_record_is_named_with_position(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Another format, a missing or unknown key and a wrong type name the file, the place and a remedy."""
    writer = recorder(tmp_path)
    writer.measure("m", "s", [1.0])
    spoil(writer.path, change)
    with pytest.raises(RecordError, match=message) as caught:
        read(writer.path)
    assert str(writer.path) in caught.value.what
    assert caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1,\n "lab": }', "not valid JSON: .* at line 2 column 9"),
        (b"", "not valid JSON: .* at line 1 column 0"),
        (b'{"format": 1, "seed": NaN}', "not valid JSON: .* at line 1 column 2"),
        (b'{"lab": "\xff"}', "not valid JSON: invalid unicode code point at line 1 column 10"),
        (b"[1]", "holds list, not an object"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_corrupt_file_is_named_with_position(tmp_path: Path, content: bytes, message: str) -> None:
    """What is not JSON at all names the file, line and column, and how to get a good one."""
    path = tmp_path / "01_lab.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as caught:
        read(path)
    assert str(path) in caught.value.what
    assert "labkit run 01_lab" in caught.value.remedy


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    """A path without a file says so."""
    with pytest.raises(RecordError, match=r"01_lab\.json cannot be read: No such file"):
        read(tmp_path / "01_lab.json")


def test_status_can_be_set_from_outside(tmp_path: Path) -> None:
    """When a lab's process is gone, its record can still be marked as failed, and keeps all else."""
    writer = recorder(tmp_path)
    writer.exact("a", 1)
    at = datetime(2026, 11, 24, 12, tzinfo=UTC)
    records.set_status(writer.path, "failed", at=at)
    assert read(writer.path) == writer.record.model_copy(update={"status": "failed", "ended": at})


def test_a_run_is_described_and_updated(tmp_path: Path) -> None:
    """run.json comes back as written; a lab's entry is replaced by name; it is no record."""
    run = RunInfo(machine=MACHINE, versions=VERSIONS, seed=1, profile="cpu", started=datetime.now(UTC))
    run = run.with_lab(LabRun(name="a", status="running")).with_lab(LabRun(name="b", status="waiting"))
    run = run.with_lab(LabRun(name="a", status="done", seconds=1.5))
    run.write(tmp_path)
    assert records.read_run(tmp_path) == run
    assert [(lab.name, lab.status) for lab in run.labs] == [("a", "done"), ("b", "waiting")]
    assert read_all(tmp_path) == {}


def test_of_a_folder_of_runs_the_newest_finished_record_of_each_lab_counts(tmp_path: Path) -> None:
    """A run's own folder is read whole; in a folder of runs a later start, if it ended well, replaces an earlier."""
    statuses: list[records.Status] = ["done", "done", "failed"]
    for start, status in enumerate(statuses, start=1):
        writer = recorder(tmp_path / "notebook" / str(start), "01_lab")
        writer.exact("value", start)
        writer.save(status)
    write_run(tmp_path / "cpu", lab="02_lab")
    (tmp_path / "cpu" / "03_lab.json").write_text("{")
    found = records.read_newest(tmp_path)
    assert {lab: record.exact["value"] for lab, record in found.items()} == {"01_lab": 2, "02_lab": 1}
    assert records.read_newest(tmp_path / "notebook" / "3")["01_lab"].status == "failed"
    with pytest.raises(RecordError, match=r"03_lab\.json"):
        records.read_newest(tmp_path / "cpu")


# --- comparing


def write_run(folder: Path, *, exact: Any = 1, ratio: float = 2.0, lab: str = "01_lab", **options: Any) -> Path:
    writer = recorder(folder, lab, **options)
    writer.exact("value", exact)
    writer.ratio(ratio_of(ratio), tolerance=0.25)
    writer.save("done")
    return folder


@given(json_values)
@quick
def test_a_run_agrees_with_itself(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    """compare(x, x) is identical, within every tolerance and without differences."""
    run = write_run(tmp_path_factory.mktemp("run"), exact=value)
    found = compare(run, run)
    assert found.identical
    assert found.agrees
    assert found.exact_differences == found.parameter_differences == ()
    assert found.notes == found.unfinished == ()
    assert [(pair.name, pair.a, pair.b, pair.within) for pair in found.ratios] == [("01_lab.speed-up", 2.0, 2.0, True)]


@pytest.mark.parametrize(
    ("a", "b", "path"),
    [
        ({"t": [1, 2, 3]}, {"t": [1, 9, 3]}, "exact.value.t[1]"),
        ([1, 2], [1], "exact.value[1]"),
        ({"a": 1}, {"b": 1}, "exact.value.a"),
        (1, 1.0, "exact.value"),
        (1, True, "exact.value"),
        (0.0, -0.0, "exact.value"),
        (0.1 + 0.2, 0.3, "exact.value"),
        (None, {}, "exact.value"),
    ],
)
def test_exact_differences_are_listed_with_their_path(tmp_path: Path, a: Any, b: Any, path: str) -> None:
    """One bit, one type, one missing entry: each is a difference, at its place, and the runs do not agree."""
    found = compare(write_run(tmp_path / "a", exact=a), write_run(tmp_path / "b", exact=b))
    assert not found.identical
    assert not found.agrees
    assert found.exact_differences[0].path == path
    assert found.exact_differences[0].lab == "01_lab"


@given(json_values, json_values)
@quick
def test_differences_are_none_exactly_for_equal_json(a: Any, b: Any) -> None:
    """No difference is listed exactly when both values have the same JSON text (keys in order)."""
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (not list(differences("lab", a, b))) == same


def test_an_entry_in_one_run_only_says_which(tmp_path: Path) -> None:
    """A missing exact entry and a missing ratio are told apart from a null and fail the comparison."""
    a, b = recorder(tmp_path / "a"), recorder(tmp_path / "b")
    a.exact("x", None)
    b.ratio(ratio_of(3.0), tolerance=0.1)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [(d.path, d.only_in) for d in found.exact_differences] == [("exact.x", "a")]
    assert [(pair.a, pair.b, pair.within) for pair in found.ratios] == [(None, 3.0, False)]


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 3))
def test_within_is_symmetric_and_about_factors(a: float, b: float, tolerance: float) -> None:
    """The order of the runs does not matter, and a factor of exactly 1 + tolerance is still within."""
    assert within(a, b, tolerance=tolerance) == within(b, a, tolerance=tolerance)
    assert within(a, a * (1 + tolerance), tolerance=tolerance)
    assert not within(a, a * (1 + tolerance) * 1.001, tolerance=tolerance)


def test_what_is_not_above_zero_has_no_factor() -> None:
    """Zero and negative values agree only with themselves, whatever the tolerance."""
    assert within(0.0, 0.0, tolerance=0.1)
    assert not within(0.0, 1e-9, tolerance=10)
    assert not within(-1.0, 1.0, tolerance=10)


def test_a_ratio_outside_its_tolerance_fails(tmp_path: Path) -> None:
    """Ratios further apart than the stated tolerance are listed as not within; exact values are unaffected."""
    found = compare(write_run(tmp_path / "a", ratio=2.0), write_run(tmp_path / "b", ratio=2.6))
    assert found.identical
    assert not found.agrees
    assert [pair.within for pair in found.ratios] == [False]


def test_labs_of_one_run_only_and_unfinished_labs_fail(tmp_path: Path) -> None:
    """Labs that one run lacks and labs that did not end well are named; the runs are identical but do not agree."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "a", lab="02_lab")
    write_run(tmp_path / "b")
    write_run(tmp_path / "b", lab="03_lab")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.labs, found.only_in_a, found.only_in_b) == (("01_lab",), ("02_lab",), ("03_lab",))
    assert found.identical
    assert not found.agrees
    records.set_status(tmp_path / "b" / "01_lab.json", "failed", at=datetime.now(UTC))
    assert compare(tmp_path / "b", tmp_path / "b").unfinished == ("a: 01_lab (failed)", "b: 01_lab (failed)")


def test_other_parameters_are_listed_instead_of_their_effects(tmp_path: Path) -> None:
    """With other parameters or another seed exact values are not compared, and the runs are not identical."""
    a = write_run(tmp_path / "a", exact=1, requests=8)
    b = write_run(tmp_path / "b", exact=2, requests=16, seed=8)
    found = compare(a, b)
    assert not found.identical
    assert found.exact_differences == ()
    assert [(d.path, d.a, d.b) for d in found.parameter_differences] == [("parameters.requests", 8, 16), ("seed", 7, 8)]


def test_guesses_and_folders_are_no_parameters_of_the_result(tmp_path: Path) -> None:
    """Where a record goes and what a learner guessed, and how surely, does not stop a comparison."""
    a = write_run(tmp_path / "a", out_dir="a", guess_speed=2.0, confidence=0.5)
    b = write_run(tmp_path / "b", out_dir="b", guess_speed=None, confidence=0.9)
    assert compare(a, b).agrees


def test_other_machines_and_versions_are_noted(tmp_path: Path) -> None:
    """Another machine or version is a note with both sides, not a failure."""
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", machine={"line": "8 CPUs, 1 GPU"}, versions={"vllm": "0.33.0"})
    found = compare(a, b)
    assert found.agrees
    assert "(a: 2 CPUs (a test's), 24 GiB, no GPU; b: 8 CPUs, 1 GPU)" in found.notes[0]
    assert "Other version: labkit is 0.1.0 in a and absent in b." in found.notes
    assert "Other version: vllm is 0.32.0 in a and 0.33.0 in b." in found.notes


def test_a_run_of_several_machines_is_noted_by_lab(tmp_path: Path) -> None:
    """Where a run's labs had different machines, the note tells which lab had which."""
    a = write_run(write_run(tmp_path / "a"), lab="02_lab", machine={"line": "8 CPUs, 1 GPU"})
    b = write_run(write_run(tmp_path / "b"), lab="02_lab")
    (note,) = compare(a, b).notes
    assert "(01_lab of a, b: 2 CPUs (a test's), 24 GiB, no GPU; 02_lab of a: 8 CPUs, 1 GPU)" in note


def test_a_share_of_a_gpu_makes_a_difference_where_there_is_one(tmp_path: Path) -> None:
    """A CPU ignores `gpu_memory_share`: two runs without a GPU compare with different ones; on a GPU they do not."""
    for machine, agrees in ((MACHINE, True), (MACHINE | {"gpus": [{"name": "NVIDIA L4"}]}, False)):
        folders = [tmp_path / str(agrees) / str(share) for share in (0.3, 0.9)]
        for folder, share in zip(folders, (0.3, 0.9), strict=True):
            recorder(folder, machine=machine, gpu_memory_share=share).save("done")
        assert compare(*folders).agrees is agrees


def test_a_comparison_is_plain_json(tmp_path: Path) -> None:
    """to_json gives what scripts rely on: identical, and ratios with name, a, b and within."""
    run = write_run(tmp_path / "a")
    found = json.loads(json.dumps(compare(run, run).to_json()))
    assert found["identical"] is True
    assert {"name", "a", "b", "within"} <= set(found["ratios"][0])


def test_folders_without_records_are_refused(tmp_path: Path) -> None:
    """Nothing to compare is an error that names the folder, never agreement."""
    run = write_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="empty holds 0 records"):
        compare(run, tmp_path / "empty")
    with pytest.raises(RecordError, match="missing is not a folder"):
        compare(run, tmp_path / "missing")
