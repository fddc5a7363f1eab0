"""Labs 10 and 11 and the calculator's page run to their end with nobody clicking and with no engine installed."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from labkit.advice import costs
from labkit.labs import find_lab
from labkit.records import read
from labkit.records.ledger import ledger
from labkit.records.record import Record

pytestmark = pytest.mark.notebook


def run(notebook: str, out_dir: Path, **parameters: Any) -> Record | None:
    """All cells with other parameters, in a process of its own; the record, where there is one."""
    command = [sys.executable, "-m", "tests.notebooks.first_cells", f"{notebook}.ipynb", "", str(out_dir)]
    given = json.dumps([parameters])
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {"refusal": "", "imported": []}
    path = out_dir / "0" / f"{notebook}.json"
    return read(path) if path.exists() else None


def test_lab_11_ends_with_verdicts_without_a_click_or_an_engine(tmp_path: Path) -> None:
    """Predictions as parameters and a measurement as `labkit load --json` prints it: verdicts on all its claims."""
    (tmp_path / "load.json").write_text('{"completed": 64, "failed": 0, "output_throughput": 812.5}')
    guesses = {"guess_break_even": 18.0, "guess_wait": 3.0, "guess_matters": "throughput"}
    record = run(
        "11_cost_calculator", tmp_path, throughput_from=str(tmp_path / "load.json"), instance="m7g.large", **guesses
    )
    assert record is not None
    assert record.status == "done"
    assert {str(guess["id"]) for guess in record.predictions} == {"11.break_even", "11.wait", "11.matters"}
    verdicts = {row.id: row.verdict for row in ledger([record])}
    claims = find_lab("11_cost_calculator").claims
    assert {verdicts[claim] for claim in claims if claim in verdicts} <= {"refuted", "depends", "supported"}
    assert verdicts["C59"] == verdicts["C60"] == verdicts["C58"] == "refuted"


def test_what_the_calculator_exported_leads_to_the_same_price(tmp_path: Path) -> None:
    """A state, given as lab 11's parameter, is the question that is answered."""
    given = costs.settings_from(
        {"requests_per_s": 20, "instance": "p5.48xlarge", "throughput_tokens_per_s": 9000},
        costs.default(prices_on=date(2026, 11, 24)),
    )
    record = run("11_cost_calculator", tmp_path, state=given.to_json())
    price = costs.calculate(given).hosted.usd_per_million_tokens
    assert record is not None
    assert price is not None
    found = {measured.name: measured.value for measured in record.measured}
    assert found["usd_per_million_tokens_hosted"] == float(price)


def test_the_calculators_page_runs_alone(tmp_path: Path) -> None:
    """With its defaults, also where nothing has been measured."""
    assert run("widgets/cost_calculator", tmp_path) is None


def test_lab_10_ends_with_a_colleagues_answers(tmp_path: Path) -> None:
    """The record has the colleague's recommendation and the verdict's evidence."""
    answers = '{"pattern": "pipeline", "kind": "both", "complexity": "features", "model": "org/mine"}'
    record = run("10_framework_selector", tmp_path, answers=answers, guess_instances=4)
    assert record is not None
    assert record.status == "done"
    assert record.exact["recommended"] == "vllm-ray-serve"
    assert record.exact["instances"] == record.claims["C14"]["instances"] == 36
    assert set(record.claims) == {"C14"}
