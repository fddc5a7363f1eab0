"""The pages of the calculator and the selector stay small, so that they can run in a browser (Pyodide)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_LINES = 2_500
HEAVY = {"torch", "psutil", "vllm", "ray", "pandas", "numpy", "scipy", "altair", "transformers", "labkit.machine"}
PAGES = {
    "cost_calculator": "from labkit.advice.costs.form import show_calculator as show",
    "selector": "from labkit.advice.selector.form import show",
}
LIST = "import json, sys; print(json.dumps({n: getattr(m, '__file__', None) for n, m in sys.modules.items()}))"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_imports_little_and_nothing_heavy(page: str, tmp_path: Path) -> None:
    """Shown in a fresh process without runs, as in a browser, it loads at most 2,500 lines and no heavy package."""
    environment = {**os.environ, "LABKIT_RUNS": str(tmp_path / "none")}
    command = [sys.executable, "-c", f"{PAGES[page]}; show(''); print(); {LIST}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    modules: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    heavy = sorted(HEAVY.intersection(modules))
    own = {name: file for name, file in modules.items() if file and name.split(".")[0] in ("labkit", "course")}
    lines = {name: len(Path(file).read_text(encoding="utf-8").splitlines()) for name, file in own.items()}
    assert heavy == [], f"{page} loads {heavy}"
    longest = "\n".join(f"{count:6} {name}" for name, count in sorted(lines.items(), key=lambda item: -item[1]))
    assert sum(lines.values()) <= MOST_LINES, f"{page} loads {sum(lines.values())} lines of labkit:\n{longest}"
