"""Recorded results: what is kept of a run, what is refused, and how they stand beside what is measured here."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from labkit import charts, labs
from labkit.charts.render import chart_svg, spec
from labkit.errors import RecordError
from labkit.machine import to_json
from labkit.records import LabRun, Recorder, RunInfo, compare, read_all, reference
from labkit.records.recorded import marks, with_recorded
from labkit.report.page import build
from labkit.session import LabSession
from labkit.teaching import Prediction
from tests.unit import synthetic
from tools import reference as tool

LAB = "01_first_deployment"
OWN = reference.references()


def chart(value: float = 3.0, *, guess: float | None = None) -> dict[str, Any]:
    """A bar chart with two bars."""
    rows = [charts.Bar("one", value), charts.Bar("many", 10.0, 9.0, 11.0)]
    return spec(charts.bars_with_intervals(rows, title="Speed", unit="tok/s", guess=guess))


def curve(y: float = 2.0) -> dict[str, Any]:
    """A computed line with one measured point over it."""
    line = [charts.LinePoint(1, 1.0, "a"), charts.LinePoint(2, 2.0, "a")]
    drawn = charts.computed_and_measured(line, [charts.LinePoint(2, y, "a")], title="Law", x_title="n", y_title="s")
    return spec(drawn)


def run(folder: Path, *, status: str = "done", cpu_model: str | None = None, **parameters: Any) -> Path:
    """A run's folder with one lab: guesses, a chart, ratios, all that a learner leaves."""
    machine = to_json(synthetic.machine())
    machine = json.loads(json.dumps(machine).replace(machine["cpu_model"], cpu_model or machine["cpu_model"]))
    facts: dict[str, Any] = {"machine": machine, "versions": {"vllm": "0.0.1"}, "seed": 1}
    made = Recorder(LAB, folder, {"n": 4, "guess_speed": 2.0, **parameters}, **facts)
    made.exact("tokens", [1, 2, 3])
    made.measure("speed", "tok/s", [3.0, 3.2, 3.1])
    made.evidence("C28", uses_http=False)
    made.prediction({"id": "01.speed", "question": "?", "unit": "tok/s", "guess": 2.0, "measured": 3.1})
    made.exercise("01.tpot", passed=True)
    made.chart("bars", chart(), key=True)
    made.chart("other", chart())
    made.save("done")
    now, lab = datetime.now(UTC), LabRun(name=LAB, status=status, seconds=2.0)  # type: ignore[arg-type]
    RunInfo(**facts, profile="cpu", started=now, ended=now, git_commit="abcdef0123456", labs=(lab,)).write(folder)
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of recorded results with one machine in it."""
    tool.keep(run(tmp_path / "run"), tmp_path / "kept")
    return tmp_path / "kept"


def test_the_courses_own_results_are_small_and_read_like_any_run(tmp_path: Path) -> None:
    """At least one machine is recorded, with most labs, evidence on claims, and less than the limit in bytes.
    `labkit report` draws each chart that was kept, and `compare` finds it equal to itself."""
    assert OWN
    for one in OWN:
        folder = tool.REFERENCE / one.name
        assert sum(file.stat().st_size for file in folder.iterdir()) <= tool.MAX_BYTES
        assert set(one.records) <= set(labs.LABS)
        assert one.name == tool.machine_name(one.info.machine)
        assert one.info.git_commit
        assert sum(len(record.claims) for record in one.records.values()) > 40
        assert compare(folder, folder).agrees
        html = build(shutil.copytree(folder, tmp_path / one.name)).read_text(encoding="utf-8")
        assert html.count("<svg ") >= sum(len(record.charts) for record in one.records.values()) > 5
        assert "could not be drawn" not in html


def test_a_kept_run_has_the_results_and_nothing_personal(kept: Path, tmp_path: Path) -> None:
    """Exact parts, ratios, evidence and provenance stay, so that it still compares with the run that it is of; guesses,
    answers, host name and other charts are gone. Keeping again replaces it."""
    [one] = reference.references(kept)
    text = " ".join(file.read_text() for file in (kept / one.name).iterdir())
    record, original = one.records[LAB], read_all(tmp_path / "run")[LAB]
    assert (record.exact, record.measured) == (original.exact, original.measured)
    assert record.claims == {"C28": {"uses_http": False}}
    assert [kept_chart.name for kept_chart in record.charts] == ["bars"]
    assert (record.parameters, record.exercises) == ({"n": 4}, {})
    assert "hostname_hash" not in text
    assert record.predictions[0]["guess"] is None
    assert "Test CPU" in one.label
    assert "labkit run --profile cpu · commit abcdef0123" in one.provenance
    resumed = replace(one, info=one.info.model_copy(update={"earlier_commits": ("9876543210fed",)}))
    assert "commit abcdef0123, some labs at 9876543210" in resumed.provenance
    assert compare(tmp_path / "run", kept / one.name).agrees
    tool.keep(run(tmp_path / "again", n=5), kept)
    assert [read_all(folder)[LAB].parameters for folder in kept.iterdir()] == [{"n": 5}]


def test_a_run_that_cannot_be_kept_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    """A run that did not end well (exit code 2 in the shell), or a home folder in a record's parameter, is named."""
    refused: list[tuple[dict[str, Any], str]] = [
        *(({"status": status}, "did not end well") for status in ("failed", "skipped", "running")),
        ({"model": "/home/somebody/model"}, "/home/somebody/model"),
    ]
    for number, (fault, message) in enumerate(refused):
        folder = run(tmp_path / str(number), **fault)
        with pytest.raises(RecordError, match=message):
            tool.keep(folder, tmp_path / "kept")
        assert tool.main([str(folder)]) == 2
    assert not (tmp_path / "kept").exists()


def test_a_broken_reference_is_refused_by_name(kept: Path) -> None:
    """Reading names the folder or file and what is wrong with it."""
    [folder] = kept.iterdir()
    file = folder / f"{LAB}.json"
    good = json.loads(file.read_text())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"status": "failed"}, "is failed, not done"),
        ({"machine": {"line": "64 CPUs"}}, "from another machine"),
        ({"predictions": [{"id": "x", "guess": 1.0}]}, "a learner's guess for x"),
        ({"machine": {"line": good["machine"]["line"], "hostname_hash": "0"}}, "hostname_hash"),
        ({"lab": "02_other"}, "holds the record of"),
        ({"measured": "many"}, "not a valid Record"),
    ]
    for change, told in refused:
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(RecordError, match=told):
            reference.load(folder)


def test_the_nearest_machine_of_the_same_kind_is_set_beside(tmp_path: Path) -> None:
    """Of machines with as many CPUs the one of the same processor is taken, and for a third processor the newest.
    Where only the other kind was recorded there is none: no GPU is set beside a CPU."""
    for model in ("AMD EPYC", "Intel Xeon"):
        tool.keep(run(tmp_path / model, cpu_model=model), tmp_path / "kept")
    facts, taken = to_json(synthetic.machine()), {}
    for model in ("AMD EPYC", "Intel Xeon", "another"):
        found = reference.reference_for({**facts, "cpu_model": model}, tmp_path / "kept")
        taken[model] = found and found.info.machine["cpu_model"]
    assert taken == {"AMD EPYC": "AMD EPYC", "Intel Xeon": "Intel Xeon", "another": "Intel Xeon"}
    assert reference.reference_for(to_json(synthetic.machine(gpu_gib=80)), tmp_path / "kept") is None
    assert reference.reference_for(facts, tmp_path / "nowhere") is None


def added(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of recorded values in a chart."""
    return [layer for layer in drawn["layer"] if layer.get("name") == "recorded"]


def test_recorded_values_become_diamonds_in_a_bar_chart() -> None:
    """Each bar that both have gets one, at the recorded value, on the bars' own axis, which is widened where it must
    be, and the chart says whose. What `marks` keeps is the bars: no guess is among them."""
    kept_rows = marks(chart(5.0, guess=77.0))
    assert kept_rows is not None
    assert "77" not in json.dumps(kept_rows["data"])
    assert marks({"mark": "line", "description": "d"}) is None
    rows = [*kept_rows["data"]["values"], {"label": "unknown", "value": 1.0}]
    drawn = with_recorded(chart(3.0), rows, label="recorded: X")
    [layer] = added(drawn)
    assert layer["data"]["values"] == rows[:2]
    assert layer["encoding"]["y"] == drawn["layer"][0]["encoding"]["y"]
    assert drawn["title"]["subtitle"][-1] == "\u25c7 recorded: X"
    assert "Diamonds, recorded: X: one 5" in drawn["description"]
    assert "<path" in chart_svg(drawn, prefix="a")
    wide = with_recorded(chart(), [{"label": "one", "value": 400.0}], label="recorded: X")
    [end] = set(re.findall(r'"domain": \[[^,]+, ([\d.]+)\]', json.dumps(wide)))
    assert float(end) >= 400


def test_only_a_counterpart_is_drawn() -> None:
    """A measured point of the same series at the same x gets its counterpart. Without any, or where all values are the
    same, as in a computed chart, nothing is drawn, said or widened."""
    row: dict[str, Any] = {"x": 2, "y": 1.5, "series": "a"}
    drawn = with_recorded(curve(), [row, {**row, "x": 3}, {**row, "series": "b"}], label="recorded: X")
    assert [layer["data"]["values"] for layer in added(drawn)] == [[row]]
    computed = [{"label": "one", "value": 3.0}, {"label": "many", "value": 10.0}]
    for rows in ([], computed, [{"label": "unknown", "value": 1.0}], [row]):
        assert with_recorded(chart(), rows, label="recorded: X") == chart()


@pytest.fixture
def recorded(kept: Path, monkeypatch: pytest.MonkeyPatch) -> reference.Reference:
    """The kept run as the course's own."""
    [one] = reference.references(kept)
    monkeypatch.setattr(reference, "references", lambda folder=None: (one,))  # noqa: ARG005
    return one


def new_session(folder: Path, *, n: int = 4) -> LabSession:
    """A lab's session on the machine of the tests, whatever machine runs them."""
    return LabSession(labs.LABS[LAB], {"n": n}, folder, machine=synthetic.machine())


def test_a_reveal_shows_what_was_recorded_and_does_not_record_it(
    recorded: reference.Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card has the other machine's figure with place and day; the record has only what was measured here. Of
    another prediction, or with other parameters, nothing was recorded."""
    lab = new_session(tmp_path / "here")
    shown = lab.reveal(Prediction(id="01.speed", question="?", unit="tok/s"), 6.0)
    assert ("Recorded", "3.1 tok/s", recorded.place) in shown.rows()
    assert recorded.place in capsys.readouterr().out
    assert not any(name.startswith("recorded") for name in lab.recorder.record.predictions[0])
    for session, name in ((lab, "01.other"), (new_session(tmp_path / "there", n=5), "01.speed")):
        assert "Recorded" not in str(session.reveal(Prediction(id=name, question="?", unit="tok/s"), 6.0).rows())


def test_a_chart_shows_the_recorded_marks_and_records_its_own(recorded: reference.Reference, tmp_path: Path) -> None:
    """What goes into the record is this run alone; the report of the run sets the other beside it, by name, but not
    one with other parameters, nor the recorded run itself, whose marks at each bar would say nothing."""
    lab = new_session(tmp_path / "here")
    lab.chart(chart(4.0), "bars", key=True)
    lab.finish()
    [held] = lab.recorder.record.charts
    assert "recorded" not in json.dumps(held.spec)
    shown = reference.beside_recorded(lab.recorder.record, "bars", held.spec)
    assert recorded.label in json.dumps(shown["title"], ensure_ascii=False)
    assert recorded.label in build(tmp_path / "here").read_text(encoding="utf-8")
    other = lab.recorder.record.model_copy(update={"parameters": {"n": 5}})
    assert reference.beside_recorded(other, "bars", held.spec) == held.spec, "measured with other parameters"
    assert reference.reference_beside(read_all(tmp_path / "run")[LAB]) is None
