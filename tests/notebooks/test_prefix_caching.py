"""Lab 03 refuses sizes that cannot work in its first cells: before vLLM is imported."""

import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import nbformat
import pytest

from tools import notebooks as tool

ENGINE = "from vllm import"


def first_cells(out_dir: Path, overrides: dict[str, object]) -> str:
    """The lab's code up to the cell that imports the engine, with other parameters."""
    notebook = nbformat.read(tool.NOTEBOOKS / "03_prefix_caching.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parts = []
    for cell in takewhile(lambda cell: ENGINE not in cell.source, code):
        parts.append(cell.source)
        if "parameters" in tool.tags(cell):
            parts += [f"{name} = {value!r}" for name, value in {**overrides, "out_dir": str(out_dir)}.items()]
    return "\n".join([*parts, "import sys; print('vllm' in sys.modules)"])


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"shared_tokens": [0, 160]}, "160 tokens of a prompt are to be shared, but it has 160"),
        ({"prompt_tokens": 8190}, "make 8214; the model takes 8192"),
        ({"block_size": 20}, "block_size is 20; vLLM on a"),
        ({"shared_tokens": [0, 20]}, "not a full block of 32"),
        ({"page_tokens": 20}, "page_tokens is 20: a page does not fill a block of 32"),
        ({"cached_pages": 1}, "cached_pages is 1"),
    ],
)
def test_sizes_that_cannot_work_are_refused_before_the_engine(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message has the number; the engine has not even been imported."""
    done = run(first_cells(tmp_path, overrides))
    assert done.returncode == 1
    assert message in done.stderr
    assert "UsageError" in done.stderr


@pytest.mark.notebook
def test_the_first_cells_run_without_an_engine(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and vLLM is not loaded yet."""
    done = run(first_cells(tmp_path, {"guess_short_prefix": "nothing"}))
    assert (done.returncode, done.stdout.split()[-1]) == (0, "False"), done.stderr
