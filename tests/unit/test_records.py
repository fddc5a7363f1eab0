"""Records: written whole, read back bit by bit, compared."""

import enum
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import records
from labkit.errors import RecordError
from labkit.experiments import Interval, Ratio, paired_ratio
from labkit.records import LabRun, Recorder, RunInfo, compare, differences, plain, read, within, write_atomic
from labkit.report.data import load
from tests.unit.refusals import not_refused

MACHINE: dict[str, Any] = {"cpus": 2, "line": "2 CPUs (a test's), 24 GiB, no GPU"}
GPU_MACHINE: dict[str, Any] = {"line": "8 CPUs, 1 GPU", "gpus": [{"name": "NVIDIA L4"}]}
VERSIONS = {"vllm": "0.32.0", "labkit": "0.1.0"}

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | finite | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
quick = settings(max_examples=40, deadline=None)


def recorder(folder: Path, lab: str = "01_lab", *, seed: int = 7, **parameters: Any) -> Recorder:
    """A record in progress. `machine` and `versions` among the parameters replace the usual ones."""
    machine, versions = parameters.pop("machine", MACHINE), parameters.pop("versions", VERSIONS)
    return Recorder(lab, folder, parameters, machine=machine, versions=versions, seed=seed)


def ratio_of(value: float, *, name: str = "speed-up") -> Ratio:
    return Ratio(name=name, value=value, low=value * 0.9, high=value * 1.1, pairs=3, values=(value,) * 3)


def write_run(folder: Path, lab: str = "01_lab", *, exact: Any = 1, ratio: float = 2.0, **options: Any) -> Path:
    writer = recorder(folder, lab, **options)
    writer.exact("value", exact)
    writer.ratio(ratio_of(ratio), tolerance=0.25)
    writer.save("done")
    return folder


@given(json_values)
@quick
def test_a_run_comes_back_bit_by_bit_and_agrees_with_itself(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    """Whatever JSON can hold is read back the same to the last bit; the comparison is JSON with the known keys."""
    run = write_run(tmp_path_factory.mktemp("run"), exact=value)
    assert list(differences("lab", read(run / "01_lab.json").exact, {"value": value})) == []
    found = json.loads(json.dumps(compare(run, run).to_json()))
    assert (found.pop("agrees"), found.pop("identical"), found.pop("labs")) == (True, True, ["01_lab"])
    pair = {"name": "01_lab.speed-up", "a": 2.0, "b": 2.0, "tolerance": 0.25, "within": True}
    assert found.pop("ratios") == [pair]
    assert not any(found.values())


def test_everything_recorded_comes_back(tmp_path: Path) -> None:
    """A record is the same on disk as in memory; a ratio without an interval leaves its warning; a given interval is
    taken as it is, and otherwise that of the mean is computed."""
    writer = recorder(tmp_path, concurrency=(1, 4))
    own = writer.measure("own", "s", [1, 2, 3])
    given_interval = writer.measure("given", "s", [1, 2, 3], Interval(value=2.5, low=2.0, high=3.0, n=3))
    writer.ratio(paired_ratio([2.0], [1.0], name="once"), tolerance=0.5)
    writer.evidence("C01", 2.0, version="5.19", paged=True, static=Interval(value=2.0, low=1.5, high=2.5, n=3))
    for _ in range(2):
        writer.warn("the client was the limit")
    writer.save("done")
    found = read(writer.path)
    assert found == writer.record
    assert own.low < own.value == 2.0 < own.high
    assert (given_interval.value, given_interval.low, given_interval.high) == (2.5, 2.0, 3.0)
    assert "'once' is from 1 pair" in found.warnings[0]
    assert found.warnings[1:] == ("the client was the limit",)
    assert found.ended is not None
    assert (found.status, found.when, found.ended >= found.started) == ("done", found.ended, True)
    assert (found.parameters, found.machine_line) == ({"concurrency": [1, 4]}, MACHINE["line"])
    static = {"static_value": 2.0, "static_low": 1.5, "static_high": 2.5}
    assert found.claims == {"C01": {"value": 2.0, "version": "5.19", "paged": True, **static}}


def test_the_first_guess_counts_and_a_passed_exercise_stays_passed(tmp_path: Path) -> None:
    """A later guess knows the result: within a record, and in the newest record of a folder of starts."""
    for start, guesses, passed in (("a", (None, 2.0, 8.0), True), ("b", (8.1, 8.1), False)):
        writer = recorder(tmp_path / start)
        for n, guess in enumerate(guesses):
            writer.prediction({"id": "p", "guess": guess, "confidence": (n + 5) / 10, "measured": 8.0})
        writer.exercise("01.tpot", passed=passed)
        writer.save("done")
    shutil.copytree(tmp_path / "a", tmp_path / "copy of a")
    first = {"id": "p", "guess": 2.0, "confidence": 0.6, "measured": 8.0}
    assert read(tmp_path / "a" / "01_lab.json").predictions == (first,)
    assert read(tmp_path / "b" / "01_lab.json").predictions == ({**first, "guess": 8.1, "confidence": 0.5},)
    found = load(tmp_path).records["01_lab"]
    assert found.started > read(tmp_path / "a" / "01_lab.json").started
    assert found.predictions == (first,)
    assert (found.exercises["01.tpot"].passed, found.exercises["01.tpot"].tries) == (True, 2)
    other = recorder(tmp_path / "c", concurrency=64)  # its guess belongs to its own measurement
    other.prediction({"id": "p", "guess": 30.0, "measured": 32.0})
    other.save("done")
    assert load(tmp_path).records["01_lab"].predictions == ({"id": "p", "guess": 30.0, "measured": 32.0},)


def test_an_interrupted_run_is_not_complete(tmp_path: Path) -> None:
    """Two runs of which run.json names a lab without a record do not agree."""
    for name in ("a", "b"):
        recorder(tmp_path / name).save("done")
        described = {"machine": MACHINE, "versions": {}, "seed": 0, "started": datetime.now(UTC), "profile": "cpu"}
        labs = (LabRun(name="01_lab", status="done"), LabRun(name="02_lab", status="waiting"))
        RunInfo.model_validate({**described, "labs": labs}).write(tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.unfinished == tuple(f"{run}: 02_lab (waiting, without a record)" for run in ("a", "b"))
    assert not found.agrees
    (tmp_path / "a" / "run.json").write_text("{")
    assert compare(tmp_path / "a", tmp_path / "b").unfinished[0] == "a: run.json (cannot be read)"


def test_each_addition_is_on_disk_at_once_and_repeated_replaces_itself(tmp_path: Path) -> None:
    """After every call the file holds what was added and nothing lies beside it; a cell run twice leaves one entry."""
    writer = recorder(tmp_path)
    additions: list[Callable[[float], object]] = [
        lambda value: writer.exact("a", value),
        lambda value: writer.measure("m", "s", [value]),
        lambda value: writer.ratio(ratio_of(value), tolerance=0.1),
        lambda value: writer.evidence("C07", value),
        lambda value: writer.prediction({"id": "p", "guess": 3.0, "measured": value}),
        lambda value: writer.chart("c", {"v": value}, key=True),
    ]
    seen = [read(writer.path)]
    for value in (1.0, 2.0):
        for add in additions:
            add(value)
            seen.append(read(writer.path))
            assert seen[-1] == writer.record
            assert seen[-1] != seen[-2]
            assert seen[-1].status == "running"
            assert [path.name for path in tmp_path.iterdir()] == ["01_lab.json"]
    assert seen[-1].exact == {"a": 2.0}
    assert [(item.name, item.value) for item in seen[-1].measured] == [("m", 2.0), ("speed-up", 2.0)]
    assert seen[-1].claims == {"C07": {"value": 2.0}}
    assert seen[-1].predictions == ({"id": "p", "guess": 3.0, "measured": 2.0},)
    assert [(chart.spec, chart.key) for chart in seen[-1].charts] == [({"v": 2.0}, True)]


class Colour(enum.StrEnum):
    RED = "red"


def test_numpy_tuples_and_enums_become_plain() -> None:
    """numpy scalars and arrays, tuples and enums come out as JSON's own types."""
    found = plain([np.float32(0.5), np.int64(3), np.bool_(True), Colour.RED, np.eye(2), (1, (2,))], "x")
    assert found == [0.5, 3, True, "red", [[1.0, 0.0], [0.0, 1.0]], [1, [2]]]
    assert isinstance(found, list)
    assert [type(item) for item in found[:4]] == [float, int, bool, str]


def test_misuse_of_the_recorder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """What JSON lacks is named with its position; so are names, tolerances, ids and values that cannot be recorded."""
    writer = recorder(tmp_path)
    before = writer.path.read_text()
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: writer.exact("x", {"a": [1.0, math.nan]}), "exact.x.a[1] is nan"),
        (lambda: writer.exact("x", np.array([np.inf])), "exact.x[0] is inf"),
        (lambda: writer.exact("x", {1: "one"}), "exact.x has the key 1"),
        (lambda: writer.exact("x", {"a b": {1, 2}}), "exact.x['a b'] is of type set"),
        (lambda: writer.ratio(ratio_of(1.0, name=""), tolerance=0.1), "without a name"),
        (lambda: writer.ratio(ratio_of(1.0), tolerance=0), "tolerance of speed-up is 0"),
        (lambda: writer.evidence("X1", 1.0), "'X1' is not a claim's id"),
        (lambda: writer.measure("m", "s", []), "measured.m has 0 values"),
        (lambda: writer.measure("m", "s", [True]), "is True, not a number"),
        (lambda: writer.evidence("C01", math.nan), "claims.C01.value is nan"),
        (lambda: writer.evidence("C01", [1.0]), "claims.C01.value is a list"),  # type: ignore[arg-type]
        (lambda: writer.prediction([1]), "predictions is list, not a dict"),  # type: ignore[arg-type]
        (lambda: writer.prediction({"guess": 1}), "id is None"),
        (lambda: recorder(tmp_path, "../x"), "'../x' cannot name"),
        (lambda: recorder(tmp_path, "run"), "'run' cannot name"),
    ]
    assert not_refused(lambda call: call(), refused) == []
    assert writer.path.read_text() == before
    (tmp_path / "taken").write_text("")
    with pytest.raises(RecordError, match=r"taken cannot be created(.|\n)*--out"):
        recorder(tmp_path / "taken")


def test_a_write_that_fails_or_is_interrupted_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """A full disk is reported with the file's name and Ctrl-C comes through; neither leaves a hidden file."""
    path, plain_file = tmp_path / "a.json", tmp_path / "plain"
    plain_file.write_text("")
    write_atomic(path, "old")
    assert path.stat().st_mode == plain_file.stat().st_mode, "read by whom the umask allows, not by its owner alone"
    plain_file.unlink()
    cases: list[tuple[str, BaseException, type[BaseException], str]] = [
        ("fsync", OSError(28, "No space left"), RecordError, r"a\.json cannot be written: No space left"),
        ("replace", KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ]
    for function, fault, seen, message in cases:
        with patch.object(os, function, side_effect=fault), pytest.raises(seen, match=message):
            write_atomic(path, "new")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


def test_threads_may_share_a_recorder_and_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """While several threads add to one record every read gives a whole one, and in the end nothing is lost."""
    writer = recorder(tmp_path)

    def add(thread: int) -> None:
        for index in range(10):
            writer.exact(f"{thread}-{index}", str(index) * 10_000)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    held = 0
    while any(thread.is_alive() for thread in threads):
        before, held = held, len(read(writer.path).exact)
        assert held >= before
    assert read(writer.path).exact == {f"{k}-{i}": str(i) * 10_000 for k in range(4) for i in range(10)}
    assert [path.name for path in tmp_path.iterdir()] == ["01_lab.json"]


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


def test_what_cannot_be_read_as_a_record_is_named_with_its_position(tmp_path: Path) -> None:
    """Another format, a missing or unknown key, a wrong type and what is not JSON name file, place and remedy."""
    writer = recorder(tmp_path)
    writer.measure("m", "s", [1.0])
    good = json.loads(writer.path.read_text())
    changes: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda r: r.update(format=2), "has format 2; this labkit reads format 1"),
        (lambda r: r["measured"][0].pop("value"), r"measured\[0\]\.value: Field required"),
        (lambda r: r["measured"][0].update(low="1"), r"measured\[0\]\.low"),
        (lambda r: r["measured"][0].update(values=[1, True]), r"measured\[0\]\.values\[1\]"),
        (lambda r: r.update(status="finished"), "status: Input should be"),
        (lambda r: r.update(exakt={}), "exakt: Extra inputs are not permitted"),
        (lambda r: r.update(lab="02_other"), "holds the record of '02_other'"),
        (lambda r: r["claims"].update(C01={"value": [1]}), r"claims\.C01\.value"),
        (
            lambda r: r.update(predictions=[{"id": "01.a"}, {"confidence": []}]),
            r"predictions\[1\]: .*confidence is \[\]",
        ),
        (lambda r: r.update(predictions=[{"high": "4"}]), "high is '4'"),
        (lambda r: r.update(predictions=[{"hit": 1}]), "hit is 1"),
    ]
    contents = [
        (b'{"format": 1,\n "lab": }', "not valid JSON: .* at line 2 column 9"),
        (b"", "not valid JSON: .* at line 1 column 0"),
        (b'{"format": 1, "seed": NaN}', "not valid JSON: .* at line 1 column 2"),
        (b'{"lab": "\xff"}', "not valid JSON: invalid unicode code point at line 1 column 10"),
        (b"[1]", "holds list, not an object"),
        (b"[" * 100_000, "not valid JSON"),
    ]
    for change, message in changes:
        tree = json.loads(json.dumps(good))
        change(tree)
        contents.append((json.dumps(tree).encode(), message))
    for content, message in contents:
        writer.path.write_bytes(content)
        with pytest.raises(RecordError, match=message) as caught:
            read(writer.path)
        assert str(writer.path) in caught.value.what
        assert "02_other" in message or "labkit run 01_lab" in caught.value.remedy
        assert caught.value.exit_code == 2
    with pytest.raises(RecordError, match=r"absent\.json cannot be read: No such file"):
        read(tmp_path / "absent.json")


def test_of_a_folder_of_runs_the_newest_finished_record_of_each_lab_counts(tmp_path: Path) -> None:
    """A run's own folder is read whole; in a folder of runs a later start, if it ended well, replaces an earlier. A
    status set from outside, when a lab's process is gone, keeps all else."""
    for start in (1, 2, 3):
        write_run(tmp_path / "notebook" / str(start), exact=start)
    path, at = tmp_path / "notebook" / "3" / "01_lab.json", datetime(2046, 11, 24, 12, tzinfo=UTC)
    before = read(path)
    records.set_status(path, "failed", at=at)
    assert read(path) == before.model_copy(update={"status": "failed", "ended": at})
    write_run(tmp_path / "cpu", "02_lab")
    (tmp_path / "cpu" / "03_lab.json").write_text("{")
    found = records.read_newest(tmp_path)
    assert {lab: record.exact["value"] for lab, record in found.items()} == {"01_lab": 2, "02_lab": 1}
    assert records.read_newest(path.parent)["01_lab"].status == "failed"
    with pytest.raises(RecordError, match=r"03_lab\.json"):
        records.read_newest(tmp_path / "cpu")


@given(json_values, json_values)
@quick
def test_differences_are_none_exactly_for_equal_json(a: Any, b: Any) -> None:
    """No difference is listed exactly when both values have the same JSON text (keys in order)."""
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (not list(differences("lab", a, b))) == same


def test_exact_differences_are_listed_with_their_path(tmp_path: Path) -> None:
    """One bit, one type, one missing entry: each is a difference at its place, and the runs do not agree."""
    cases: list[tuple[Any, Any, list[tuple[str, str | None]]]] = [
        ({"t": [1, 2, 3]}, {"t": [1, 9, 3]}, [("exact.value.t[1]", None)]),
        ([1, 2], [1], [("exact.value[1]", "a")]),
        ({"a": None}, {"b": 1}, [("exact.value.a", "a"), ("exact.value.b", "b")]),
    ]
    cases += [
        (a, b, [("exact.value", None)]) for a, b in ((1, 1.0), (1, True), (0.0, -0.0), (0.3, 0.1 + 0.2), (None, {}))
    ]
    for number, (a, b, places) in enumerate(cases):
        folder = tmp_path / str(number)
        found = compare(write_run(folder / "a", exact=a), write_run(folder / "b", exact=b))
        assert [(d.path, d.only_in) for d in found.exact_differences] == places
        assert (found.identical, found.agrees) == (False, False)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 3))
def test_within_is_symmetric_and_about_factors(a: float, b: float, tolerance: float) -> None:
    """A factor of exactly 1 + tolerance is within, in either order; what is not above zero agrees with itself only."""
    assert within(a, b, tolerance=tolerance) == within(b, a, tolerance=tolerance)
    assert within(a, a * (1 + tolerance), tolerance=tolerance)
    assert not within(a, a * (1 + tolerance) * 1.001, tolerance=tolerance)
    assert within(0.0, 0.0, tolerance=tolerance)
    assert not within(0.0, a * 1e-9, tolerance=tolerance)
    assert not within(-a, a, tolerance=tolerance)


def test_ratios_apart_and_incomplete_runs_do_not_agree(tmp_path: Path) -> None:
    """A ratio outside its tolerance or in one run only, and labs missing or unfinished, are named: the exact values
    are identical all the same."""
    a, b = write_run(write_run(tmp_path / "a"), "02_lab"), write_run(write_run(tmp_path / "b"), "03_lab")
    found = compare(a, b)
    assert (found.labs, found.only_in_a, found.only_in_b) == (("01_lab",), ("02_lab",), ("03_lab",))
    assert (found.identical, found.agrees) == (True, False)
    apart = recorder(tmp_path / "c")
    apart.exact("value", 1)
    apart.ratio(ratio_of(2.6), tolerance=0.4)
    apart.ratio(ratio_of(1.0, name="new"), tolerance=0.1)
    apart.save("done")
    found = compare(write_run(tmp_path / "d"), tmp_path / "c")
    assert (found.identical, found.agrees) == (True, False)
    pairs = [(pair.a, pair.b, pair.tolerance, pair.within) for pair in found.ratios]
    assert pairs == [(2.0, 2.6, 0.25, False), (None, 1.0, 0.1, False)]
    records.set_status(a / "01_lab.json", "failed", at=datetime.now(UTC))
    found = compare(a, a)
    assert (found.unfinished, found.agrees) == (("a: 01_lab (failed)", "b: 01_lab (failed)"), False)


def test_other_parameters_are_listed_instead_of_their_effects(tmp_path: Path) -> None:
    """With another parameter or seed exact values are not compared. Folders and guesses make no difference, nor does
    a share of a GPU where neither machine has one."""
    here = {"out_dir": "a", "guess_speed": 2.0, "confidence": 0.5, "gpu_memory_share": 0.3}
    there = {"out_dir": "b", "guess_speed": None, "confidence": 0.9, "gpu_memory_share": 0.9}
    cases: list[tuple[list[dict[str, Any]], list[str]]] = [
        ([{"requests": 8}, {"requests": 16, "seed": 8, "exact": 2}], ["parameters.requests", "seed"]),
        ([here, there], []),
        ([{**both, "machine": GPU_MACHINE} for both in (here, there)], ["parameters.gpu_memory_share"]),
    ]
    for number, (both, differing) in enumerate(cases):
        found = compare(*(write_run(tmp_path / f"{number}{run}", **both[run]) for run in (0, 1)))
        assert [d.path for d in found.parameter_differences] == differing
        assert (found.identical, found.exact_differences) == (not differing, ())


def test_other_machines_and_versions_are_noted(tmp_path: Path) -> None:
    """Another machine or version is a note, by lab where a run had several machines, not a failure."""
    here = write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", machine=GPU_MACHINE, versions={"vllm": "0.33.0"})
    found = compare(here, other)
    assert found.agrees
    assert "(a: 2 CPUs (a test's), 24 GiB, no GPU; b: 8 CPUs, 1 GPU)" in found.notes[0]
    assert found.notes[1:] == (
        "Other version: labkit is 0.1.0 in a and absent in b.",
        "Other version: vllm is 0.32.0 in a and 0.33.0 in b.",
    )
    mixed = write_run(write_run(tmp_path / "c"), "02_lab", machine=GPU_MACHINE)
    (note,) = compare(mixed, write_run(write_run(tmp_path / "d"), "02_lab")).notes
    assert "(01_lab of a, b: 2 CPUs (a test's), 24 GiB, no GPU; 02_lab of a: 8 CPUs, 1 GPU)" in note
