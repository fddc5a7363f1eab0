"""Measure the course's reliability by repeated runs: `make reliability N=10 OUT=runs/reliability`.

The runs are in OUT/01, OUT/02, ... A second call continues after the finished ones. No lab is retried: a failure
counts. The summary is printed and written to OUT/reliability.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from labkit.files import write_atomic
from labkit.records import RunInfo, compare, read_run

SUMMARY = "reliability.json"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A summary of complete runs. `passed`: runs in which all labs are done; `executed`: of all code `cells`;
    `differing`: runs whose exact results differ from the first run's."""

    machine: str
    commits: tuple[str, ...]
    runs: int
    passed: int
    labs: int
    labs_done: int
    cells: int
    executed: int
    differing: tuple[str, ...]
    median_s: float
    p90_s: float
    failures: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield the summary as a Markdown table."""
        yield f"| {self.runs} runs in a row | {self.machine}, commit {', '.join(self.commits)} |"
        yield "|---|---|"
        yield f"| runs in which every lab passed | {self.passed} of {self.runs} |"
        yield f"| labs that passed | {self.labs_done} of {self.labs} |"
        yield f"| cells executed | {self.executed} of {self.cells} |"
        same = self.runs - len(self.differing)
        yield f"| exact results equal to those of the first run | {same} of {self.runs} |"
        ratio = self.p90_s / self.median_s
        yield f"| duration | median {self.median_s / 60:.1f} min, p90 {ratio:.2f} times that |"


def repeat(times: int, out: Path) -> None:
    """Run the course until `out` contains `times` runs. The next call resumes a run that Ctrl-C ended."""
    for number in range(1, times + 1):
        folder = out / f"{number:02d}"
        if folder.exists() and _ended(read_run(folder)):
            continue
        print(f"run {number} of {times}", flush=True)
        resume = ["--resume"] if folder.exists() else []
        command = [sys.executable, "-m", "labkit", "run", "--out", str(folder), *resume]
        if subprocess.run(command, check=False).returncode not in (0, 1):  # 1: a lab failed, which counts
            sys.exit(2)


def summarise(folders: Sequence[Path]) -> Summary:
    """Summarise one or more complete runs."""
    runs = [read_run(folder) for folder in folders]
    labs = [lab for run in runs for lab in run.labs]
    cells = [cell for folder in folders for cell in _code_cells(folder)]
    durations_s = [sum(lab.seconds or 0 for lab in run.labs) for run in runs]
    compared = {folder: compare(folders[0], folder) for folder in folders[1:]}
    return Summary(
        machine=runs[0].machine_line,
        commits=tuple(dict.fromkeys((run.git_commit or "unknown")[:7] for run in runs)),
        runs=len(runs),
        passed=sum(all(lab.status == "done" for lab in run.labs) for run in runs),
        labs=len(labs),
        labs_done=sum(lab.status == "done" for lab in labs),
        cells=len(cells),
        executed=sum(cell["execution_count"] is not None for cell in cells),
        differing=tuple(folder.name for folder, comparison in compared.items() if not comparison.identical),
        median_s=statistics.median(durations_s),
        p90_s=float(np.percentile(durations_s, 90)),
        failures=tuple(f"{lab.name}: {lab.error}" for lab in labs if lab.status == "failed"),
    )


def _code_cells(folder: Path) -> Iterator[dict[str, object]]:
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield from (cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip())


def _ended(run: RunInfo) -> bool:
    return run.ended is not None and all(lab.status in ("done", "failed", "skipped") for lab in run.labs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Repeat and summarise; return 0 if all runs passed with the same exact results, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("times", type=int, help="number of runs")
    parser.add_argument("out", type=Path, help="folder for the runs")
    given = parser.parse_args(arguments)
    if given.times < 1:
        parser.error("times must be at least 1")
    repeat(given.times, given.out)
    summary = summarise(sorted(folder for folder in given.out.iterdir() if (folder / "run.json").is_file()))
    write_atomic(given.out / SUMMARY, json.dumps(asdict(summary), indent=1) + "\n")
    print(*summary.lines(), *summary.failures, sep="\n")
    return int(summary.passed < summary.runs or bool(summary.differing))


if __name__ == "__main__":
    sys.exit(main())
