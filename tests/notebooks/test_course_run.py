"""Every lab, run for real on the engine by the command that users run: papermill, records, verdicts, report."""

import contextlib
import html
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from labkit.files import notebooks_path
from labkit.labs import LABS
from labkit.records import Record, read
from tests.notebooks import outputs

pytestmark = [pytest.mark.notebook, pytest.mark.engine, pytest.mark.timeout(4200)]
MARK = f"LABKIT_TEST_RUN={uuid.uuid4().hex}"  # in the environment of all that a run starts, Ray's processes too
IN_A_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
GUESSES = {"float": 2.0, "int": 2}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of the whole course, with a guess for every numeric prediction; the optional labs run only
    when they are named, so all are named."""
    folder = tmp_path_factory.mktemp("run")
    options = [option for lab in LABS.values() for option in guesses(lab.name)]
    done = labkit("run", *LABS, "--profile", "cpu", "--out", str(folder), *options)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


def guesses(lab: str) -> list[str]:
    """A guess for each of the lab's predictions that asks for a number."""
    asked = LABS[lab].parameters.items()
    values = {name: GUESSES[one.type] for name, one in asked if name.startswith("guess_") and one.type in GUESSES}
    return [word for name, value in values.items() for word in ("-p", f"{lab}.{name}={value}")]


def labkit(*arguments: str, variables: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """The command line, as a user runs it."""
    command = [sys.executable, "-m", "labkit", *arguments]
    env = {**os.environ, **dict([MARK.split("=")]), **(variables or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, env=env)


def environment(process: psutil.Process) -> dict[str, str]:
    """The environment that a process was started with; empty where it cannot be read."""
    with contextlib.suppress(psutil.Error):
        found: dict[str, str] = process.environ()
        return found
    return {}


def record(run_dir: Path, lab: str) -> Record:
    """A lab's record of the run."""
    return read(run_dir / f"{lab}.json")


@pytest.mark.parametrize("lab", LABS)
def test_a_lab_runs_to_its_end_and_records_what_it_found(lab: str, run_dir: Path) -> None:
    """The record is complete, holds a result, and evidence on each claim that the lab tests; and no sentence of the
    lab is contradicted by it."""
    found = record(run_dir, lab)
    assert found.status == "done"
    assert found.measured or found.exact
    assert [name for name, holds in found.exact.items() if name.startswith("says: ") and not holds] == []
    assert set(found.claims) >= set(LABS[lab].claims)
    charts = json.loads((run_dir / f"{lab}.json").read_text())["charts"]
    assert any(chart["key"] for chart in charts) or not charts


@pytest.mark.parametrize("lab", [lab.name for lab in LABS.values() if lab.engine != "none"])
def test_what_is_not_timed_comes_out_as_it_is_stored(lab: str, run_dir: Path) -> None:
    """Every cell of a lab with an engine that is not tagged `timed` shows what it shows in the stored notebook."""
    folders = (notebooks_path(), run_dir)
    stored, executed = (nbformat.read(folder / LABS[lab].notebook, as_version=4) for folder in folders)
    found = list(outputs.differences(lab, stored, executed))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("lab", [lab for lab in LABS if guesses(lab)])
def test_a_batch_run_takes_the_guesses_from_its_parameters(lab: str, run_dir: Path) -> None:
    """What was passed as a guess stands in the record, beside a measurement."""
    predictions: list[dict[str, Any]] = json.loads((run_dir / f"{lab}.json").read_text())["predictions"]
    given = [one for one in predictions if one["source"] == "parameter"]
    assert given
    assert all(one["measured"] is not None for one in given)


def test_every_tested_claim_has_a_verdict_by_its_rule(run_dir: Path) -> None:
    """`labkit claims` says of each claim that a lab tests what was found here, and of the others who could tell."""
    rows = json.loads(labkit("claims", str(run_dir), "--json").stdout)["claims"]
    verdicts = {row["id"]: row["verdict"] for row in rows}
    assert len(rows) == 65
    tested = {claim for lab in LABS.values() for claim in lab.claims}
    assert {verdicts[claim] for claim in tested} <= {"supported", "refuted", "depends", "inconclusive", "unsourced"}


def test_a_run_agrees_with_itself(run_dir: Path) -> None:
    """`labkit compare A A` is identical and ends with 0."""
    done = labkit("compare", str(run_dir), str(run_dir), "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["identical"] is True


def test_the_report_is_one_file_that_asks_for_nothing(run_dir: Path) -> None:
    """No script, style, picture or font comes from elsewhere, and every lab is in it."""
    text = (run_dir / "report.html").read_text()
    assert 'src="http' not in text
    assert "url(http" not in text
    assert "@import" not in text
    readable = html.unescape(text)
    assert [lab.title for lab in LABS.values() if lab.title not in readable] == []


def test_engines_in_processes_of_their_own(run_dir: Path, tmp_path: Path) -> None:
    """As on every GPU: labs 00 and 03 end well, and what does not follow timing is what it was in this process.

    Lab 01 is left out for time: its `LLM` only generates, as here, and its server is a process of its own anyway.
    """
    labs = ("00_start_here", "03_prefix_caching")
    done = labkit("run", *labs, "--profile", "cpu", "--out", str(tmp_path), variables=IN_A_PROCESS)
    assert done.returncode == 0, done.stderr[-6000:]
    for lab in labs:
        found, normal = record(tmp_path, lab), record(run_dir, lab)
        assert found.status == "done"
        assert found.exact == normal.exact


def test_a_run_leaves_no_process(run_dir: Path) -> None:
    """Nothing that the run started is alive: none names its folder, none was started with its environment."""
    here, (name, value) = str(run_dir), MARK.split("=")
    running = list(psutil.process_iter(["pid", "cmdline"]))
    assert [one.info for one in running if here in " ".join(one.info["cmdline"] or [])] == []
    assert [one.info for one in running if environment(one).get(name) == value] == []
