"""Compare two runs: exact values bit by bit, measured ratios within a tolerance."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit.errors import RecordError
from labkit.experiments import mixed_machines
from labkit.records.record import RUN_FILE, Difference, Measured, Record, differences, read_all, read_run

# The record's folder and the learner's guesses do not change what is measured.
IRRELEVANT = frozenset({"out_dir", "confidence"})
GPU_SHARE = "gpu_memory_share"
GUESS = "guess"


@dataclass(frozen=True, kw_only=True)
class RatioPair:
    """A ratio in both runs, named <lab>.<name>; None if a run lacks it. `tolerance`: the stricter of the two."""

    name: str
    a: float | None
    b: float | None
    tolerance: float
    within: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side.

    identical: at least one lab is in both, and those labs have the same parameters and, bit by bit, the same `exact`.
    exact_differences, parameter_differences: otherwise. Exact values are compared only if the parameters are equal.
    only_in_a, only_in_b: labs that one run lacks. unfinished: labs that are not done, as "a: lab (failed)".
    notes: different machines or versions.
    """

    identical: bool
    labs: tuple[str, ...]
    exact_differences: tuple[Difference, ...]
    parameter_differences: tuple[Difference, ...]
    ratios: tuple[RatioPair, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    unfinished: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Identical, every ratio within its tolerance, and both runs complete (exit code 0)."""
        complete = not (self.only_in_a or self.only_in_b or self.unfinished)
        return self.identical and complete and all(pair.within for pair in self.ratios)

    def to_json(self) -> dict[str, Any]:
        """All fields and `agrees`, as plain data."""
        return {"agrees": self.agrees, **asdict(self)}


def compare(dir_a: Path, dir_b: Path) -> Comparison:
    """Compare the records of two runs' folders, paired by lab.

    Raises:
        RecordError: not a folder, a folder without a record, or a record that cannot be read.
    """
    run_a, run_b = _records(dir_a), _records(dir_b)
    both = [(run_a[lab], run_b[lab]) for lab in run_a if lab in run_b]
    parameters = tuple(difference for a, b in both for difference in _parameter_differences(a, b))
    exact = tuple(difference for a, b in both for difference in _exact_differences(a, b))
    return Comparison(
        identical=bool(both) and not exact and not parameters,
        labs=tuple(a.lab for a, _ in both),
        exact_differences=exact,
        parameter_differences=parameters,
        ratios=tuple(pair for a, b in both for pair in _ratio_pairs(a, b)),
        only_in_a=tuple(lab for lab in run_a if lab not in run_b),
        only_in_b=tuple(lab for lab in run_b if lab not in run_a),
        unfinished=(*_unfinished("a", run_a, dir_a), *_unfinished("b", run_b, dir_b)),
        notes=tuple(_notes(both)),
    )


def _records(run_dir: Path) -> dict[str, Record]:
    records = read_all(run_dir)
    if not records:
        raise RecordError(f"{run_dir} holds 0 records", remedy="pass a folder that `labkit run --out DIR` wrote")
    return records


def _parameter_differences(a: Record, b: Record) -> Iterator[Difference]:
    yield from differences(a.lab, relevant(a, b), relevant(b, a), "parameters")
    yield from differences(a.lab, a.seed, b.seed, "seed")


def relevant(record: Record, other: Record) -> dict[str, Any]:
    """Return the parameters that affect measurements: without guesses, and without the GPU share if no machine has
    a GPU."""
    on_gpu = record.machine.get("gpus") or other.machine.get("gpus")
    return {
        name: value
        for name, value in record.parameters.items()
        if name not in IRRELEVANT and not name.startswith(GUESS) and (on_gpu or name != GPU_SHARE)
    }


def _exact_differences(a: Record, b: Record) -> Iterator[Difference]:
    if not any(_parameter_differences(a, b)):
        yield from differences(a.lab, a.exact, b.exact, "exact")


def _ratio_pairs(a: Record, b: Record) -> Iterator[RatioPair]:
    ratios_a, ratios_b = a.ratios, b.ratios
    for name in dict.fromkeys([*ratios_a, *ratios_b]):
        yield _ratio_pair(f"{a.lab}.{name}", ratios_a.get(name), ratios_b.get(name))


def _ratio_pair(name: str, a: Measured | None, b: Measured | None) -> RatioPair:
    tolerance = min(item.tolerance for item in (a, b) if item is not None and item.tolerance is not None)
    return RatioPair(
        name=name,
        a=None if a is None else a.value,
        b=None if b is None else b.value,
        tolerance=tolerance,
        within=a is not None and b is not None and within(a.value, b.value, tolerance=tolerance),
    )


def within(a: float, b: float, *, tolerance: float) -> bool:
    """Whether neither of two ratios is more than (1 + tolerance) times the other."""
    if a <= 0 or b <= 0:
        return a == b
    # One part in 10^9 for the last digit of a division.
    return max(a / b, b / a) <= (1 + tolerance) * (1 + 1e-9)


def _unfinished(run: str, records: Mapping[str, Record], folder: Path) -> Iterator[str]:
    for lab, record in records.items():
        if record.status != "done":
            yield f"{run}: {lab} ({record.status})"
    try:
        planned = read_run(folder).labs if (folder / RUN_FILE).is_file() else ()
    except RecordError:
        yield f"{run}: {RUN_FILE} (cannot be read)"
        return
    for outcome in planned:
        if outcome.name not in records and outcome.status != "skipped":
            yield f"{run}: {outcome.name} ({outcome.status}, without a record)"


def _notes(both: list[tuple[Record, Record]]) -> Iterator[str]:
    mixed = mixed_machines(_machines("a", (a for a, _ in both)) | _machines("b", (b for _, b in both)))
    if mixed is not None:
        yield mixed
    versions = {change.path: change for a, b in both for change in differences(a.lab, {**a.versions}, {**b.versions})}
    for package, change in sorted(versions.items()):
        yield f"Other version: {package} is {change.a or 'absent'} in a and {change.b or 'absent'} in b."


def _machines(run: str, records: Iterable[Record]) -> dict[str, str]:
    """Return the run's machine, or each lab's machine if the run used several."""
    lines = {record.lab: record.machine_line for record in records}
    single = len(set(lines.values())) == 1
    return {run if single else f"{lab} of {run}": line for lab, line in lines.items()}
