"""The report: whole without any other machine, safe whatever a record holds, honest about what is missing."""

import json
import os
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.charts.render import chart_svg
from labkit.errors import LabkitError, RecordError
from labkit.experiments import paired_ratio
from labkit.labs import LABS
from labkit.machine import to_json
from labkit.records import LabRun, Recorder, RunInfo
from labkit.report.data import load
from labkit.report.page import build
from labkit.report.view import SCALE_ENDS, guess_scale, longest_cells, times, view
from tests.unit import synthetic

FIRST, SECOND = "00_start_here", "01_first_deployment"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 1234567 * 3 }}"
SPEC = {
    "description": "points",
    "title": "Points",
    "data": {"values": [{"a": 1, "b": 2}, {"a": 2, "b": 4}]},
    "mark": {"type": "line", "clip": True},
    "encoding": {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "b", "type": "quantitative"}},
}


def recorder(folder: Path, lab: str = FIRST, **parameters: Any) -> Recorder:
    """A record in progress on a machine without a GPU."""
    facts = synthetic.machine()
    return Recorder(lab, folder, parameters, machine=facts, versions={"vllm": "0.0.1"}, seed=1)


def run_info(folder: Path, *labs: LabRun, **changes: Any) -> None:
    """A run.json beside the records."""
    now = datetime.now(UTC)
    facts: dict[str, Any] = {"machine": to_json(synthetic.machine()), "versions": {"vllm": "0.0.1"}, "seed": 1}
    RunInfo(**{**facts, "started": now, "ended": now, "profile": "cpu", "labs": labs, **changes}).write(folder)


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path) -> tuple[str, Page]:
    """The folder's report, as text and as elements."""
    html = build(folder).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A run with everything: two labs, one failed, figures, charts, predictions, claims and a warning."""
    first = recorder(tmp_path, FIRST, model="smollm2-135m", levels=[1, 2])
    first.measure("tokens_per_second", "tok/s", [40.0, 42.0, 41.0])
    first.chart("key", SPEC, key=True)
    first.chart("other", {**SPEC, "description": "the other one"})
    first.prediction(
        {"id": "a", "question": "How fast?", "unit": "tok/s", "guess": 20.0, "confidence": 0.6, "measured": 41.0,
         "low": 40.0, "high": 42.0, "hit": False}
    )  # fmt: skip
    first.save("done")
    second = recorder(tmp_path, SECOND)
    second.measure("ttft_s_warm", "s", [2.0, 2.0])
    second.ratio(paired_ratio([4.0, 4.2, 4.1], [2.0, 2.0, 2.0], name="gain"), tolerance=0.3)
    second.evidence("C29", article_formula_over_true=0.25, batch_size=4)
    second.warn("the client was the limit")
    second.save("failed")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{SECOND}.log").write_text("INFO all well\nValueError: no memory\n")
    failed = LabRun(name=SECOND, status="failed", seconds=7.0, error="ValueError: no memory (in cell 3: go())")
    run_info(tmp_path, LabRun(name=FIRST, status="done", seconds=63.0), failed)
    return tmp_path


def test_a_report_asks_nothing_of_any_other_machine(full: Path) -> None:
    """No element loads anything, no style sheet has an address, and a policy in the page forbids what we overlooked."""
    html, found = page(full)
    loading = [
        (tag, attributes) for tag, attributes in found.elements
        if tag in ("script", "link", "iframe", "img", "object", "embed", "base")
        or any(name in ("src", "srcset", "data", "action", "background") for name in attributes)
        or not str(attributes.get("href") or attributes.get("xlink:href") or "#").startswith("#")
    ]  # fmt: skip
    assert loading == []
    assert not re.search(r"@import|url\((?!#)", html)
    policy = next(each for _, each in found.elements if each.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_every_result_is_told(full: Path) -> None:
    """Question, figure with interval, status, time, claim, warning, failure with its log, machine and versions."""
    _, found = page(full)
    words = " ".join(found.text.split())
    expected = (
        *("What can this machine serve, and how fast?", "tokens per second: 41 tok/s (", "1:03", "gain: 2.05x ("),
        *("2.05 times too low", "C29", "refuted", "the client was the limit", "INFO all well", "0.0.1", "1 of 2"),
        *("ValueError: no memory (in cell 3: go())", "Test CPU", synthetic.NO_GPU, "TTFT warm: 2 s"),
    )
    assert [text for text in expected if text not in words] == []


def test_key_charts_are_open_the_others_folded_and_none_cuts_another(full: Path) -> None:
    """Each chart is an SVG with its description; every id is there once and every reference has its target."""
    html, found = page(full)
    drawings = re.findall(r'<svg [^>]*aria-label="([^"]*)"', html)
    assert [label for label in drawings if "times" not in label] == ["points", "the other one"]
    assert html.index('aria-label="points"') < html.index("1 more chart") < html.index('aria-label="the other one"')
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r"url\(#([^)]+)\)", html))
    assert references
    assert references <= set(ids)


def test_what_a_record_holds_is_text_and_nothing_else(tmp_path: Path) -> None:
    """Hostile names, questions, warnings, errors, parameters and chart texts come out as the characters they are."""
    made = recorder(tmp_path, FIRST, model=EVIL)
    made.measure(EVIL, EVIL, [1.0, 2.0])
    made.prediction({"id": "x", "question": EVIL, "options": [EVIL], "guess": EVIL, "measured": EVIL, "hit": True})
    made.warn(EVIL)
    values = [{"a": 1, "b": 2, "t": EVIL}]
    encoding = {**SPEC["encoding"], "text": {"field": "t"}, "tooltip": {"field": "t"}}  # type: ignore[dict-item]
    spec = {**SPEC, "mark": "text", "data": {"values": values}, "title": EVIL, "encoding": encoding}
    made.chart("evil", spec, key=True)
    made.save("failed")
    run_info(tmp_path, LabRun(name=FIRST, status="failed", error=EVIL), git_commit=EVIL, profile=EVIL)
    _, found = page(tmp_path)
    assert [tag for tag, _ in found.elements if tag in ("script", "img")] == []
    assert [name for _, attributes in found.elements for name in attributes if name.startswith("on")] == []
    assert found.text.count(EVIL) >= 7
    assert str(1234567 * 3) not in found.text


def test_a_chart_that_cannot_stand_in_the_page_becomes_a_message(tmp_path: Path) -> None:
    """A picture or data from elsewhere, or a broken specification, is named; the rest of the report is there."""
    picture = {"data": {"values": [{"u": "http://x.example/a.png"}]}, "encoding": {"url": {"field": "u"}}}
    refused: dict[str, dict[str, Any]] = {
        "it would fetch http://x.example": {"mark": "image", **picture},
        "not allowed": {"mark": "point", "data": {"url": "http://x.example/a.csv"}},
        "could not be drawn": {"mark": "no such mark"},
    }
    made = recorder(tmp_path)
    for why, spec in refused.items():
        with pytest.raises(LabkitError, match=re.escape(why)):
            chart_svg({"description": "d", **spec}, prefix="a")
        made.chart(why, {"description": "d", **spec}, key=True)
    made.chart("whole", SPEC, key=True)
    made.save("done")
    html, found = page(tmp_path)
    assert [why for why in refused if why not in found.text] == []
    assert 'aria-label="points"' in html


def test_what_is_broken_or_does_not_fit_is_told_and_the_rest_is_there(full: Path) -> None:
    """A broken record, evidence on an unknown claim, figures of two machines, and a run.json that is missing or broken:
    the other lab's figures and the machine, from its record, are in the report all the same."""
    record, run_json = (full / f"{SECOND}.json", full / "run.json")
    good = json.loads(record.read_text())
    changes: list[tuple[Path, str | None, str]] = [
        (record, "{", "is not valid JSON"),
        (record, json.dumps({**good, "claims": {"C99": {"value": 1.0}}}), "evidence on C99"),
        (record, json.dumps({**good, "machine": {"line": "64 CPUs (Other)"}}), "64 CPUs (Other)"),
        (run_json, None, "1 of 2"),
        (run_json, "{", "run.json"),
    ]
    for file, content, told in changes:
        before = file.read_text()
        assert told == "1 of 2" or told not in page(full)[1].text
        file.unlink()
        if content is not None:
            file.write_text(content)
        _, found = page(full)
        assert [text for text in (told, "tokens per second", "Test CPU") if text not in found.text] == []
        file.write_text(before)


def test_few_predictions_are_not_called_a_calibration(tmp_path: Path) -> None:
    """Below ten predictions the page says that they are too few to judge calibration; without any it says that, too."""
    guess = {"question": "q", "unit": "s", "guess": 1.0, "confidence": 0.5, "measured": 1.0, "hit": True}
    for count in (0, 1, 9, 10):
        made = recorder(tmp_path)
        for n in range(count):
            made.prediction({**guess, "id": str(n)})
        made.save("done")
        _, found = page(tmp_path)
        assert ("too few to judge calibration" in found.text) == (0 < count < 10)
        assert ("No lab of this run asked for a prediction" in found.text) == (count == 0)
        assert ("Brier score 0.25" in found.text) == (count > 0)
        assert ("50% to 70%" in found.text) == (count > 0)


def test_exercises_are_listed_with_their_misconceptions(tmp_path: Path) -> None:
    """Each exercise that was answered, with its outcome, tries and misconceptions; without any there is no section."""
    made = recorder(tmp_path)
    made.save("done")
    assert "Misconceptions" not in page(tmp_path)[1].text
    for passed in (False, True):
        made.exercise("01.tpot", passed=passed, misconceptions=() if passed else ("n gaps for n tokens",))
    made.save("done")
    text = page(tmp_path)[1].text
    assert [words for words in ("passed (2 tries)", "n gaps for n tokens") if words not in text] == []


@given(guess=st.floats(1e-6, 1e6), measured=st.floats(1e-6, 1e6))
def test_a_guess_is_drawn_on_its_side_of_the_measurement(guess: float, measured: float) -> None:
    """Too high is right, too low left, exact in the middle, and further off than the scale an arrow at its end."""
    found = guess_scale(guess, measured)
    assert found is not None
    ratio = guess / measured
    assert -100 <= found["at"] <= 100
    assert (found["at"] > 0) == (ratio > 1.002) or abs(ratio - 1) < 0.003
    assert found["beyond"] == (max(ratio, 1 / ratio) > SCALE_ENDS) or abs(max(ratio, 1 / ratio) - SCALE_ENDS) < 1e-6


def test_labs_that_did_not_run_are_told_with_the_reason(tmp_path: Path) -> None:
    """A skipped lab and one that an interrupted run never reached are warnings, not silence."""
    recorder(tmp_path).save("done")
    skipped = LabRun(name=SECOND, status="skipped", error="java not found: run make setup again")
    run_info(tmp_path, LabRun(name=FIRST, status="done", seconds=1.0), skipped, LabRun(name="77_x", status="waiting"))
    texts = [warning["text"] for warning in view(load(tmp_path))["warnings"]]
    assert texts == ["did not run: java not found: run make setup again", "did not run: the run was stopped first"]


def test_the_report_goes_where_it_is_asked_to(full: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By default into the run's folder, else to the named file; built twice it differs in nothing but its time. A path
    without a folder, what is not a regular file and the run's own files are refused, and stay as they are."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(RecordError, match="nowhere is not a folder"):
        build(full, elsewhere / "nowhere" / "report.html")
    os.mkfifo(elsewhere / "pipe")  # as /dev/null: a rename would replace it
    with pytest.raises(RecordError, match="not a regular file"):
        build(full, elsewhere / "pipe")
    assert (elsewhere / "pipe").is_fifo()
    run, record = full / "run.json", (full / "run.json").read_bytes()
    with pytest.raises(RecordError, match="could be a record"):
        build(full, run)
    assert run.read_bytes() == record
    both = (build(full), build(full, elsewhere / "page.html"))
    assert both == (full / "report.html", elsewhere / "page.html")
    one, two = (re.sub(r"on \d{4}-[^.]*UTC", "", file.read_text()) for file in both)
    assert one == two


def cell(source: str, seconds: float | None, number: int, kind: str = "code") -> dict[str, Any]:
    """A cell as papermill leaves it."""
    metadata = {} if seconds is None else {"papermill": {"duration": seconds}}
    return {"cell_type": kind, "source": source.splitlines(True), "metadata": metadata, "execution_count": number}


CELLS = [
    cell("import time\n# a pause\n\ntime.sleep(60)", 60.0, 1),
    cell("a = 1", 0.2, 2),
    cell("serve()\nmore()", 90.4, 3),
    cell("text", 500.0, 4, kind="markdown"),
    cell("import os", 30.0, 5),
    cell("b = 2", None, 6),
    cell("c = 3", 2.0, 7),
    cell("d = 4", 1.5, 8),
]


def test_the_report_tells_where_the_time_went(tmp_path: Path) -> None:
    """Each lab that ended has its time, what was planned and its longest cells: longest first, Jupyter's number, the
    first line that is no import; below are the sum and the whole run. Without a notebook only the cells are missing."""
    labs = (LabRun(name=FIRST, status="done", seconds=300.0), LabRun(name="77_unknown", status="waiting"))
    run_info(tmp_path, *labs, ended=datetime.now(UTC) + timedelta(minutes=6))
    recorder(tmp_path).save("done")
    notebook = tmp_path / f"{FIRST}.ipynb"
    notebook.write_text(json.dumps({"cells": CELLS}))
    assert longest_cells(notebook) == [(90.4, 3, "serve()"), (60.0, 1, "time.sleep(60)"), (2.0, 7, "c = 3")]
    found = times(load(tmp_path))
    [row] = found["rows"]
    planned = LABS[FIRST].minutes * 60
    assert row["planned"] == f"{int(planned // 60)}:{int(planned % 60):02d}"
    assert (row["time"], row["share"], found["total"], found["whole"]) == ("5:00", 100, "5:00", "6:00")
    text = build(tmp_path).read_text(encoding="utf-8")
    assert "serve()" in text
    assert "the whole run: 6:00 min" in text
    run_info(tmp_path, *labs, ended=datetime.now(UTC))  # resumed: the labs began before it
    assert times(load(tmp_path))["whole"] == ""
    for content in ("{", "[]", '{"cells": [{}]}', None):
        notebook.write_text(content) if content else notebook.unlink()
        [row] = times(load(tmp_path))["rows"]
        assert (row["cells"], row["time"]) == ([], "5:00")
