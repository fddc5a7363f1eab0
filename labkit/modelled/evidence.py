"""Errors of the modelled GPU against real ones (data/modelled_errors.json), and what a modelled answer may state."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from labkit.files import data_path
from labkit.modelled.cards import Card
from labkit.modelled.shapes import EXPERT_COUNTS, dense_shape, read_config, shape_of
from labkit.models import architecture

ERRORS = data_path() / "modelled_errors.json"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One quantity of one load, measured on a real card and modelled, in ms or tokens per second."""

    kind: str
    card: str
    vllm: str
    load: str
    region: str
    quantity: str
    measured: float
    modelled: float

    @property
    def error(self) -> float:
        """Modelled / measured - 1."""
        return self.modelled / self.measured - 1


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Mean and worst absolute error of one kind of model in one region of load."""

    kind: str
    region: str
    quantity: str
    mean: float
    worst: float
    points: int
    cards: tuple[str, ...]
    versions: tuple[str, ...]


@cache
def compared() -> tuple[Compared, ...]:
    """Return all stored comparisons (`make modelled-errors`)."""
    return tuple(Compared(**row) for row in json.loads(ERRORS.read_text(encoding="utf-8")))


def summary_rows(rows: Sequence[Compared]) -> list[Errors]:
    """Summarise errors by kind, region and quantity, in stored order, without rates that only follow the load."""
    groups: dict[tuple[str, str, str], list[Compared]] = {}
    for row in rows:
        if row.region != "follows the rate":
            groups.setdefault((row.kind, row.quantity, row.region), []).append(row)
    return [_errors(*key, members) for key, members in groups.items()]


def _errors(kind: str, quantity: str, region: str, rows: Sequence[Compared]) -> Errors:
    sizes = [abs(row.error) for row in rows]
    return Errors(
        kind=kind,
        region=region,
        quantity=quantity,
        mean=statistics.fmean(sizes),
        worst=max(sizes),
        points=len(rows),
        cards=tuple(sorted({row.card for row in rows})),
        versions=tuple(sorted({row.vllm for row in rows})),
    )


# Kinds of models in the comparisons.
ONE_GPU, TENSOR_PARALLEL, EIGHT_GPUS = "dense 8B, one GPU", "dense 32B, tensor parallel", "dense 32B, 8 GPUs"
FP8, SMALL_FP8, EXPERTS = "dense 70B in fp8", "dense 8B in fp8", "experts in fp8 (229B-A10B, 235B-A22B)"
SMALL = 20e9
"""Parameters below which a model in fp8 counts as an 8B."""

TOO_FAR = 0.25
"""Mean TPOT error above which answers show a direction only."""

CAPACITY_MARGIN = 1.1
"""Modelled capacities are up to about 1.1 times the real ones, so a load's share of capacity is multiplied by this."""

KNEE = 0.9
"""Share of capacity above which queues determine the TTFT, and step times cannot predict it."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The known errors of an answer. `direction_only`: why its numbers are unreliable, or ""."""

    region: str
    errors: tuple[Errors, ...]
    direction_only: str = ""

    @property
    def shows_ttft(self) -> bool:
        """Whether a TTFT may be shown: not near the knee, and only if one was compared."""
        compared_here = self.of("ttft_ms") is not None or bool(self.direction_only)
        return self.region in ("below 50%", "50-90%") and compared_here

    def of(self, quantity: str) -> Errors | None:
        """Return the error of a quantity, or None."""
        return next((errors for errors in self.errors if errors.quantity == quantity), None)

    def text(self) -> str:
        names = {"TPOT": "tpot_ms", "TTFT": "ttft_ms", "capacity": "output_per_s"}
        known = {name: errors for name, quantity in names.items() if (errors := self.of(quantity)) is not None}
        if not self.shows_ttft:
            known.pop("TTFT", None)
        if not known:
            return "no served load to compare with"
        words = (
            f"{name} {errors.mean:.0%} (worst {errors.worst:.0%}, {errors.points} points on {', '.join(errors.cards)})"
            for name, errors in known.items()
        )
        return f"{', '.join(words)}; compared: {next(iter(known.values())).kind}"


def promise(card: Card, folder: Path, *, tensor_parallel: int, load_share: float) -> Promise:
    """Return the known errors for a model on a card at a load (a share of its modelled capacity)."""
    kind = kind_of(folder, tensor_parallel)
    share = load_share * CAPACITY_MARGIN
    region = "below 50%" if share <= 0.5 else "50-90%" if share <= KNEE else "90-100%" if share <= 1 else "overload"
    errors = [row for row in _known(kind, card.name) if row.region in (region, ANY_LOAD, "capacity")]
    return Promise(region=region, errors=tuple(errors), direction_only=_missing(card, folder, kind))


ANY_LOAD = "any load"


def _known(kind: str, card: str) -> list[Errors]:
    """Return a kind's errors: for one GPU by region; else over all loads, of the card itself if it was compared."""
    rows = [row for row in compared() if row.kind == kind]
    if kind != ONE_GPU:
        own = [row for row in rows if row.card == card]
        rows = [replace(row, region=ANY_LOAD) for row in own or rows]
    return summary_rows(rows)


def kind_of(folder: Path, tensor_parallel: int) -> str:
    """Return the kind of model whose serving measurements apply."""
    config = read_config(folder)
    if any(config.get(name) for name in EXPERT_COUNTS):
        return EXPERTS
    if config.get("quantization_config"):
        return SMALL_FP8 if _parameters(folder) < SMALL else FP8
    return ONE_GPU if tensor_parallel == 1 else TENSOR_PARALLEL if tensor_parallel <= 4 else EIGHT_GPUS


def errors_in_words(folder: Path, tensor_parallel: int, card: Card | None = None) -> str:
    """Return the mean TPOT error of the model's kind up to 90% of capacity, for a chart's label.

    "direction only" for a `card` whose answers with this model show no more."""
    kind = kind_of(folder, tensor_parallel)
    if card is not None and _missing(card, folder, kind):
        return "direction only"
    rows = [row for row in _known(kind, card.name if card else "") if row.quantity == "tpot_ms"]
    means = [row.mean for row in rows if row.region in ("below 50%", "50-90%", ANY_LOAD)]
    if not means:
        return "not compared with real cards"
    low, high = f"{min(means):.0%}", f"{max(means):.0%}"
    served = {name for row in rows for name in row.cards}
    where = " on other cards" if card is not None and card.name not in served else ""
    return f"mean TPOT error {low if low == high else low.rstrip('%') + ' to ' + high}{where}; no tail compared"


def _parameters(folder: Path) -> int:
    return (dense_shape(folder) or shape_of(folder)).parameters  # without torch where possible


def _missing(card: Card, folder: Path, kind: str) -> str:
    if card.evidence == "borrowed":
        return f"{card.title}'s efficiencies are borrowed from another card and were not compared with served loads"
    if any(layers.window is not None for layers in architecture(folder).storing_layers):
        return "some layers attend to a window, and step times count the whole context"
    if kind == ONE_GPU:
        billions = _parameters(folder) / 1e9
        if not 4 <= billions <= 16:
            return f"the model has {billions:.2g}B parameters; on one GPU only 8B models were compared"
    elif kind in (FP8, SMALL_FP8) and read_config(folder)["quantization_config"].get("weight_block_size"):
        return "fp8 scales by block: of dense models in fp8, only those with one scale per tensor were compared"
    else:
        tpot = next((row for row in _known(kind, card.name) if row.quantity == "tpot_ms"), None)
        if tpot is not None and tpot.mean > TOO_FAR:
            return f"compared with {kind} on {', '.join(tpot.cards)}, the TPOT was off by {tpot.mean:.0%} on average"
    return ""
