"""Runs a lab's first cells, up to the one that starts the engine: wrong sizes have to be refused there."""

import subprocess
import sys
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import nbformat

from tools import notebooks as tool

STARTS = {
    "vllm": "from vllm import",
    "served": "serving.start(",
    "ray": "ray_serve.start(",
    "ts": "lab_07.pack(",
    "torchserve": "torchserve.start(",
    "servers": "background.submit(serving.start",
}


def run_first_cells(
    notebook: str, out_dir: Path, overrides: Mapping[str, object], *, engine: str = "vllm"
) -> "subprocess.CompletedProcess[str]":
    """The cells in a process of their own, with other parameters; its last line says whether the engine was imported.

    `engine`: a key of STARTS.
    """
    cells = [one for one in nbformat.read(tool.NOTEBOOKS / notebook, as_version=4).cells if one.cell_type == "code"]
    parts = ["import sys"]
    for cell in takewhile(lambda cell: STARTS[engine] not in cell.source, cells):
        parts.append(cell.source)
        if "parameters" in tool.tags(cell):
            parts += [f"{name} = {value!r}" for name, value in {**overrides, "out_dir": str(out_dir)}.items()]
    code = "\n".join(["try:", *(f"    {line}" for part in parts for line in part.splitlines()), "finally:"])
    code += f"\n    print('engine imported:', {engine!r} in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def assert_refused(done: "subprocess.CompletedProcess[str]", message: str) -> None:
    """A UsageError with the numbers in it, and the engine has not even been imported."""
    assert done.returncode == 1
    assert "UsageError" in done.stderr
    assert message in done.stderr
    assert "engine imported: False" in done.stdout


def assert_ready(done: "subprocess.CompletedProcess[str]") -> None:
    """The cells ended well, and the engine is not loaded yet."""
    assert done.returncode == 0, done.stderr
    assert "engine imported: False" in done.stdout
