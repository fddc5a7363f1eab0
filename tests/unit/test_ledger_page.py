"""The ledger's page in lab 00: all claims, what was found here, what was recorded, and which cell finds out."""

import json
from pathlib import Path

import nbformat
import pytest

from labkit.files import notebooks_path
from labkit.machine import to_json
from labkit.records import Recorder, ledger_page, read_all, reference
from labkit.records.ledger import ledger, load_claims
from tests.unit import synthetic

HERE = to_json(synthetic.machine())


def record(folder: Path, lab: str = "01_first_deployment", *, uses_http: bool = False, status: str = "done") -> Path:
    """A record with evidence on one claim; the claim's rule says what it means."""
    made = Recorder(lab, folder, {}, machine=synthetic.machine(), versions={}, seed=0)
    made.evidence("C28", uses_http=uses_http, listens=uses_http)
    made.save(status)  # type: ignore[arg-type]
    return folder


def test_every_claim_stands_on_the_page_with_all_that_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All 65: id, what the article says, its figure, what sources say; and before any lab, that nothing is measured."""
    rows = ledger_page.show(tmp_path, machine=HERE)
    text = capsys.readouterr().out
    page = ledger_page.as_html(rows, rows, None)
    assert len(rows) == len(load_claims()) == 65
    assert all(row.id in page and row.id in text for row in rows)
    assert page.count("<details>") == len(ledger_page.SECTIONS)
    assert {row.section for row in rows} == set(ledger_page.SECTIONS)
    assert "Here: not measured yet." in text
    assert "Recorded</th>" not in page


def test_a_notebook_reads_all_runs_and_a_batch_run_only_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner's labs each have a folder of their own under runs/notebook; a run's labs share one. An older record,
    one that failed and a broken file change nothing."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("LABKIT_RUNS", str(runs))
    for name, uses_http, status in (("a", True, "done"), ("b", False, "done"), ("c", True, "failed")):
        record(runs / "notebook" / name, uses_http=uses_http, status=status)
    (runs / "notebook" / "a" / "02_paged_attention.json").write_text("{")
    [newest] = ledger_page.newest_records(runs / "notebook" / "d")
    assert newest.claims["C28"]["uses_http"] is False
    assert ledger_page.newest_records(runs / "2026-01-02T00-00-00-cpu") == []


def test_recorded_verdicts_are_labelled_and_judged_by_the_same_rules() -> None:
    """Beside what was found here stands what the recorded run's evidence says, with place and day."""
    [one, *_] = reference.references()
    here, there = ledger([]), ledger(one.records.values())
    page, text = (make(here, there, one) for make in (ledger_page.as_html, ledger_page.as_text))
    assert one.place in text
    assert one.place in page
    assert text.count("; recorded: ") == sum(row.measured for row in there) > 40
    assert all(row.because.split("<")[0][:30] in page for row in there if row.measured and "'" not in row.because[:30])


def test_the_cell_that_found_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record made in a notebook keeps the cell's number, and the page names lab and cell; without it, the lab."""
    for cell, said in ((None, ""), (13, ", cell 13")):
        monkeypatch.setattr("labkit.display.cell_number", lambda cell=cell: cell)
        row = next(row for row in ledger(read_all(record(tmp_path)).values()) if row.id == "C28")
        assert ledger_page.shown_in(row) == f"lab 01 A first deployment{said}"


def test_the_stored_page_is_that_of_a_fresh_clone() -> None:
    """What lab 12 has stored depends on the repository alone: nothing measured here, all claims, the recorded run."""
    notebook = nbformat.read(notebooks_path() / "12_capstone.ipynb", as_version=4)
    [cell] = [cell for cell in notebook.cells if "lab.ledger()" in cell.source]
    [shown] = [out.data for out in cell.outputs if out.get("data", {}).get("text/plain", "").startswith("65 claims")]
    text = shown["text/plain"]
    assert text.startswith("65 claims. Here: not measured yet. Recorded (")
    assert all(f"\n{claim} sources: " in text for claim in load_claims())
    assert "runs/notebook" not in json.dumps(shown)
