"""nbval executes the notebooks that need no engine and holds every output to the stored one."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from labkit.files import notebooks_path, root
from labkit.labs import LABS
from tests.notebooks import outputs
from tools import notebooks as tool

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(900)]

WITHOUT_ENGINE = [lab.notebook for lab in LABS.values() if lab.engine == "none"]


def nbval(folder: Path, *notebooks: Path) -> "subprocess.CompletedProcess[str]":
    """pytest with nbval on these notebooks, in this environment, with records in a folder of their own."""
    sanitize, settings = folder / "sanitize.cfg", folder / "pytest.ini"
    sanitize.write_text(outputs.for_nbval())
    settings.write_text("[pytest]\n")
    options = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(sanitize), "--nbval-cell-timeout", "300"]
    plugins = ["-p", "tests.notebooks.nbval_plugin", "-p", "no:cacheprovider", "-p", "no:playwright"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-c", str(settings), *plugins, *options]
    env = {**os.environ, "LABKIT_RUNS": str(folder / "runs"), "PYTHONPATH": str(root())}
    return subprocess.run(
        [*command, *map(str, notebooks)], capture_output=True, text=True, check=False, timeout=900, env=env, cwd=root()
    )


def test_what_is_stored_comes_out_again(tmp_path: Path) -> None:
    """Every cell of the labs without an engine ends with the output that is stored, save where it was measured."""
    assert len(WITHOUT_ENGINE) >= 2
    done = nbval(tmp_path, *(notebooks_path() / name for name in WITHOUT_ENGINE))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cells = [cell for name in WITHOUT_ENGINE for cell in nbformat.read(notebooks_path() / name, as_version=4).cells]
    assert f"{sum(cell.cell_type == 'code' for cell in cells)} passed" in done.stdout


@pytest.mark.parametrize(("stored", "tags", "code"), [("4", [], 0), ("5", [], 1), ("5", [tool.TIMED], 0)])
def test_another_output_fails(tmp_path: Path, stored: str, tags: list[str], code: int) -> None:
    """A stored 5 where 4 comes out fails, and says so; a machine's path does not, nor does a cell that is timed."""
    shown = nbformat.v4.new_output("execute_result", data={"text/plain": stored}, execution_count=1)
    path = nbformat.v4.new_output(
        "stream", text="./runs/notebook/2026-01-01T00-00-00 on 2 CPUs (Some), 4 GiB, no GPU\n"
    )
    source = "print('/x/notebook/2027-02-02T11-11-11 on 64 CPUs (Intel(R) Xeon(R) Processor), 9 GiB, no GPU')\n2 + 2"
    cell = nbformat.v4.new_code_cell(source, outputs=[path, shown], execution_count=1, metadata={"tags": tags})
    file = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    done = nbval(tmp_path, file)
    assert done.returncode == code, done.stdout
    assert ("mismatch" in done.stdout) == (code == 1)
