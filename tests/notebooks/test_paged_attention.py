"""Lab 02 refuses sizes that cannot work in its first cells: before vLLM is imported."""

import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import nbformat
import pytest

from tools import notebooks as tool

ENGINE = "from vllm import"


def run_first_cells(out_dir: Path, overrides: dict[str, object]) -> "subprocess.CompletedProcess[str]":
    """Runs the lab's code up to the cell that imports the engine, with other parameters."""
    notebook = nbformat.read(tool.NOTEBOOKS / "02_paged_attention.ipynb", as_version=4)
    parts = ["import sys"]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in takewhile(lambda cell: ENGINE not in cell.source, cells):
        parts.append(cell.source)
        if "parameters" in tool.tags(cell):
            parts += [f"{name} = {value!r}" for name, value in {**overrides, "out_dir": str(out_dir)}.items()]
    code = "\n".join(["try:", *(f"    {line}" for part in parts for line in part.splitlines()), "finally:"])
    code += "\n    print('engine imported:', 'vllm' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"block_sizes": [32, 100]}, "block_size is 100; vLLM on a"),
        ({"prompt_tokens": 240}, "a prompt of 240 and an answer of 22 tokens are longer than max_model_len, 256"),
        ({"max_model_len": 9000}, "max_model_len is 9,000; the model was made for 8,192 positions"),
        ({"max_model_len": 32}, "max_model_len is 32, no more than one block of 32"),
        ({"tiny_blocks": 8}, "8 blocks of 32 hold no request of max_model_len 256"),
        ({"tiny_blocks": 64}, "nothing would be preempted"),
        ({"gpu_model": "GPT-5"}, "there is no example model called 'GPT-5'"),
        ({"repeats": 0}, "from 1 to 100 (rounds)"),
        ({"log_file": "nowhere.log"}, "there is no log file nowhere.log"),
    ],
)
def test_sizes_that_cannot_work_are_refused_before_the_engine(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message has the numbers; the engine has not even been imported."""
    done = run_first_cells(tmp_path, overrides)
    assert done.returncode == 1
    assert "UsageError" in done.stderr
    assert message in done.stderr
    assert "engine imported: False" in done.stdout


@pytest.mark.notebook
def test_the_first_cells_run_without_an_engine(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and vLLM is not loaded yet."""
    done = run_first_cells(tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert "engine imported: False" in done.stdout
