"""Where a run's time went: labs and their longest cells."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from labkit.labs import LABS
from labkit.machine import to_json
from labkit.records import LabRun, Recorder, RunInfo
from labkit.report.data import load
from labkit.report.page import build
from labkit.report.view import longest_cells, times
from tests.unit import synthetic

LAB = "01_first_deployment"


def cell(source: str, seconds: float | None, number: int, kind: str = "code") -> dict[str, Any]:
    """A cell as papermill leaves it."""
    metadata = {} if seconds is None else {"papermill": {"duration": seconds}}
    return {"cell_type": kind, "source": source.splitlines(keepends=True), "metadata": metadata,
            "execution_count": number}  # fmt: skip


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of one lab that took five minutes, and one minute more for the whole."""
    Recorder(LAB, tmp_path, {}, machine=synthetic.machine(), versions={}, seed=0).save("done")
    (tmp_path / f"{LAB}.ipynb").write_text(json.dumps({"cells": CELLS}))
    started = datetime.now(UTC)
    labs = (LabRun(name=LAB, status="done", seconds=300.0), LabRun(name="77_unknown", status="waiting"))
    machine = to_json(synthetic.machine())
    info = RunInfo(machine=machine, versions={}, seed=0, started=started, ended=started + timedelta(minutes=6),
                   profile="cpu", labs=labs)  # fmt: skip
    info.write(tmp_path)
    return tmp_path


def test_the_longest_cells_are_named_by_what_they_do(folder: Path) -> None:
    """Longest first, with Jupyter's number and the first line that is no import; text and short cells are left out."""
    found = longest_cells(folder / f"{LAB}.ipynb")
    assert found == [(90.4, 3, "serve()"), (60.0, 1, "time.sleep(60)"), (2.0, 7, "c = 3")]


def test_the_table_adds_up(folder: Path) -> None:
    """Each lab that ended has its time and what was planned; the sum and the whole run stand below."""
    found = times(load(folder))
    [row] = found["rows"]
    assert (row["time"], row["share"]) == ("5:00", 100)
    planned = LABS[LAB].minutes * 60
    assert row["planned"] == f"{int(planned // 60)}:{int(planned % 60):02d}"
    assert (found["total"], found["whole"]) == ("5:00", "6:00")
    text = build(folder).read_text(encoding="utf-8")
    assert "serve()" in text
    assert "the whole run: 6:00 min" in text


@pytest.mark.parametrize("content", [None, "{", "[]", '{"cells": [{}]}'])
def test_without_an_executed_notebook_the_times_still_stand(folder: Path, content: str | None) -> None:
    """A missing or broken notebook leaves the list of cells empty."""
    path = folder / f"{LAB}.ipynb"
    path.unlink()
    if content is not None:
        path.write_text(content)
    [row] = times(load(folder))["rows"]
    assert row["cells"] == []
    assert row["time"] == "5:00"
