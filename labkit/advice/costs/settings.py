"""What the calculator is asked: traffic, machine, throughput, prices. Checked here for everyone who asks."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self

from labkit.advice.costs.prices import OWN, figures, find_instance, instances
from labkit.errors import LabkitError, UsageError, did_you_mean
from labkit.files import runs_path
from labkit.models.examples import example_models
from labkit.records import Record, read

Counts = Literal["output", "total"]
ENTERED = "entered, not measured"
UNITS = ("tokens/s", "tok/s")
CAPACITY, MANY_USERS, ONE_USER = 3, 2, 1  # how good a measurement is as a machine's capacity


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Tokens a second of `gpus` GPUs (0: of a whole machine, whatever is in it), with their interval where measured.

    `counts`: only the tokens that are written ("output"), or those that are read as well ("total"); the same machine
    has two very different figures. `label` says where it is from, `machine` on what it was measured.
    """

    tokens_per_s: float
    low: float | None = None
    high: float | None = None
    counts: Counts = "output"
    gpus: int = 0
    label: str = ENTERED
    measured: bool = False
    machine: str = ""

    def __post_init__(self) -> None:
        for name, value in (
            ("throughput", self.tokens_per_s),
            ("throughput_low", self.low),
            ("throughput_high", self.high),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(
                    f"the {name} is {value:g} tokens/s; it must be above 0",
                    remedy="measure it (labkit load URL --model NAME --json) or enter what you expect",
                )
        if self.counts not in ("output", "total"):
            raise UsageError(f"throughput_counts is {self.counts!r}", remedy="use output or total")
        if not 0 <= self.gpus <= 1024:
            raise UsageError(f"throughput_gpus is {self.gpus}", remedy="use the number of GPUs, or 0: a whole machine")

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval's ends; twice the value where there is no interval."""
        low = self.tokens_per_s if self.low is None else min(self.low, self.tokens_per_s)
        return low, self.tokens_per_s if self.high is None else max(self.high, self.tokens_per_s)


def measured(where: str | Path = "") -> Throughput:
    """The newest measured throughput of a file, a run's folder, or a folder of runs (default: runs/).

    What was measured under load and repeatedly comes first, a single user's speed last, whatever is newer.
    UsageError: nothing to read there.
    """
    path = Path(where).expanduser() if where else runs_path()
    found = find(path)
    if found is None:
        raise UsageError(
            f"{path} holds no measured throughput",
            remedy="run a lab that measures one (labkit run 01), keep what labkit load --json prints, or enter it",
        )
    return found


def find(path: Path) -> Throughput | None:
    """As `measured`, but None where nothing is found."""
    best: tuple[Throughput | None, int] = (None, 0)
    for file in _newest_first(path):
        for throughput, rank in _read_any(file, strict=path.is_file()):
            if rank == CAPACITY:
                return throughput
            best = best if best[1] >= rank else (throughput, rank)
    return best[0]


def _newest_first(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    # A run's folder, runs/, and runs/notebook/: files lie at most three levels down.
    files = {file for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}[!.]*.json")}
    return sorted(files, key=lambda file: (file.stat().st_mtime, file.name), reverse=True)


def _read_any(file: Path, *, strict: bool) -> list[tuple[Throughput, int]]:
    """The file's throughputs, best first, each with its rank."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(tree, dict) and "output_throughput" in tree:
            return [_of_load(tree, file)]
        found = list(_of_record(read(file))) if isinstance(tree, dict) and "lab" in tree else []
    except (OSError, ValueError, LabkitError) as error:
        if strict:
            raise UsageError(f"{file} cannot be read: {error}", remedy="pass a record or labkit load's JSON") from error
        return []
    return sorted(found, key=lambda one: (one[1], one[0].tokens_per_s), reverse=True)


def _of_load(tree: Mapping[str, Any], file: Path) -> tuple[Throughput, int]:
    value = tree["output_throughput"]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{file}: output_throughput is {value!r}", remedy="pass what labkit load --json printed")
    label = f"measured by labkit load ({file.name}: {tree.get('completed', '?')} requests)"
    return Throughput(tokens_per_s=float(value), label=label, measured=True), CAPACITY


def _of_record(record: Record) -> Iterator[tuple[Throughput, int]]:
    """What a lab measured: quantities in tokens/s, and the levels of the closed loop in lab 01's chart."""
    gpus = record.machine.get("gpus") or []
    common = {
        "gpus": len(gpus) if isinstance(gpus, list) else 0,
        "measured": True,
        "machine": f"{record.machine_line}, {record.parameters.get('model', 'model unknown')}",
    }
    for item in record.measured:
        if item.unit in UNITS:
            repeated = CAPACITY if len(item.values) > 1 else MANY_USERS
            rank = ONE_USER if "one_user" in item.name else repeated
            label = f"measured by lab {record.lab} on {record.when:%Y-%m-%d} ({item.name.replace('_', ' ')})"
            yield Throughput(tokens_per_s=item.value, low=item.low, high=item.high, label=label, **common), rank  # type: ignore[arg-type]
    for point in _closed_loop(record):
        label = f"measured by lab {record.lab} on {record.when:%Y-%m-%d} with {point['x']:g} requests under way"
        rank = ONE_USER if point["x"] <= 1 else CAPACITY
        yield Throughput(tokens_per_s=point["y"], low=point["low"], high=point["high"], label=label, **common), rank  # type: ignore[arg-type]


def _closed_loop(record: Record) -> Iterator[dict[str, Any]]:
    charts = [one.spec for one in record.charts if one.name == "closed_loop"]
    panels = [panel for spec in charts for panel in _list(spec.get("vconcat"))[:1]]
    for panel in panels:
        values = _list(panel.get("data", {}).get("values")) if isinstance(panel, dict) else []
        yield from (one for one in values if {"x", "y", "low", "high"} <= one.keys() and one["y"] > 0)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# --- what the calculator is asked: traffic, machine, throughput, prices ---


HOURS = 24.0
# Name: unit, smallest, largest, and what it means. `above` zero where a zero would divide.
NUMBERS: dict[str, tuple[str, float, float, str]] = {
    "requests_per_s": ("requests/s", 0, 1e7, "mean arrivals a second in the hours in which requests come"),
    "tokens_per_day": ("tokens", 0, 1e15, "tokens a day, read and written together; needs the mix"),
    "input_tokens": ("tokens a request", 0, 1e7, "tokens that a request brings: prompt, documents, history"),
    "output_tokens": ("tokens a request", 0, 1e7, "tokens that a request has written for it: the answer"),
    "hours_per_day": ("h", 0.01, HOURS, "hours a day in which requests come"),
    "peak_factor": ("x", 1, 1000, "arrivals in the busiest minutes, as a multiple of the mean"),
    "buffer": ("share of the peak", 0, 100, "capacity held in reserve above the peak, for bursts and failures"),
    "usd_per_hour": ("$/h of one machine", 0, 1e6, "your own price of an hour; without it the price list's"),
    "paid_hours_per_day": ("h", 0.01, HOURS, "hours a day in which the machines are switched on, and paid"),
    "min_instances": ("machines", 1, 1e6, "machines at least: two survive the loss of one"),
    "model_gb": ("GB", 0, 1e6, "size of the weights, which every machine stores: 2 bytes a parameter in 16 bits"),
    "storage_usd_per_gb_month": ("$/GB and month", 0, 1000, "price of storing a gigabyte; an assumption"),
    "engineering_hours_per_month": ("h a month", 0, 1e6, "people's time to keep it running; an assumption"),
    "engineer_usd_per_hour": ("$/h", 0, 1e5, "what an hour of theirs costs; an assumption"),
}
WHOLE = ("input_tokens", "output_tokens", "min_instances")
THROUGHPUT = {
    "throughput_tokens_per_s": "tokens_per_s",
    "throughput_low": "low",
    "throughput_high": "high",
    "throughput_counts": "counts",
    "throughput_gpus": "gpus",
    "throughput_label": "label",
    "throughput_measured": "measured",
    "throughput_machine": "machine",
}
TEXTS = ("instance", "api", "prices_on")
DEFAULT_API = (
    "anthropic/claude-sonnet-5-5",
    "openai/gpt-5.4-nano",
    "huggingface_nebius/meta-llama/Llama-3.1-8B-Instruct",
    "aws/meta.llama3-1-8b-instruct-v1:0",
    "article/claude-3.5-sonnet",
)


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """One question to the calculator. NUMBERS has each number's unit, range and meaning.

    Traffic is `requests_per_s` or `tokens_per_day`, one of the two. `api`: models to compare with, the first one for
    the break-even. `prices_on`: the day whose prices count. UsageError: what cannot be, with number and remedy.
    """

    requests_per_s: float | None = None
    tokens_per_day: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    hours_per_day: float = HOURS
    peak_factor: float = 1.0
    buffer: float = 0.0
    instance: str
    usd_per_hour: float | None = None
    paid_hours_per_day: float = HOURS
    min_instances: int = 1
    throughput: Throughput
    model_gb: float = 0.0
    storage_usd_per_gb_month: float = 0.0
    engineering_hours_per_month: float = 0.0
    engineer_usd_per_hour: float = 0.0
    api: tuple[str, ...] = DEFAULT_API
    prices_on: date

    def __post_init__(self) -> None:
        for name in NUMBERS:
            _check_number(name, getattr(self, name))
        self._check_traffic()
        if self.paid_hours_per_day < self.hours_per_day:
            raise UsageError(
                f"requests come in {self.hours_per_day:g} hours a day and the machines are paid for only "
                f"{self.paid_hours_per_day:g}",
                remedy="raise paid_hours_per_day, or lower hours_per_day",
            )
        if find_instance(self.instance).price(self.prices_on) is None and self.usd_per_hour is None:
            raise UsageError(f"the price of {self.instance!r} is not known", remedy="set usd_per_hour")
        if not self.api:
            raise UsageError("there is no API to compare with", remedy="set api to one model or more")

    @property
    def tokens_per_request(self) -> int:
        """Tokens of a request, read and written."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All settings flat, as the command line and a notebook's `state` take them; what is not set is left out."""
        flat = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "throughput"}
        flat |= {name: asdict(self.throughput)[field] for name, field in THROUGHPUT.items()}
        flat |= {"api": list(self.api), "prices_on": self.prices_on.isoformat()}
        return {name: value for name, value in flat.items() if value not in (None, "")}

    def to_json(self) -> str:
        """The settings as one line of JSON: paste it as the parameter `state`, or give it to a colleague."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def _check_traffic(self) -> None:
        if (self.requests_per_s is None) == (self.tokens_per_day is None):
            given = "neither" if self.requests_per_s is None else "both"
            raise UsageError(
                f"{given} of requests_per_s and tokens_per_day is set", remedy="set one of them: the traffic"
            )
        if self.input_tokens is None or self.output_tokens is None:
            missing = " and ".join(n for n in ("input_tokens", "output_tokens") if getattr(self, n) is None)
            raise UsageError(
                f"the mix is missing ({missing}): a token that is read and one that is written cost different money",
                remedy="set input_tokens and output_tokens of a request, such as 3 and 1 for a mix of 3:1",
            )
        if not self.tokens_per_request:
            raise UsageError("a request has 0 tokens", remedy="set input_tokens or output_tokens above 0")
        if not self.output_tokens and self.throughput.counts == "output":
            raise UsageError(
                "output_tokens is 0, and the throughput counts only tokens that are written",
                remedy="give the throughput as a total (throughput_counts=total)",
            )


def article() -> CostSettings:
    """The article's own example: a p4d at its price and its throughput, all tokens of one mix, nothing added."""
    found = figures()
    return CostSettings(
        tokens_per_day=float(found.break_even_claude[0]),
        input_tokens=1,
        output_tokens=1,
        instance=found.instance,
        usd_per_hour=float(found.usd_per_hour),
        throughput=article_throughput(),
        api=("article/claude-3.5-sonnet", "article/gpt-4o", "article/gpt-4o-mini"),
        prices_on=date.today(),
    )


def article_throughput() -> Throughput:
    """What the article says of a p4d, for whoever has measured nothing yet."""
    found = figures()
    label = f"the article's figure ({found.tokens_per_hour:,} tokens an hour on {found.gpus} GPUs), not measured"
    return Throughput(tokens_per_s=found.tokens_per_hour / 3600, counts="total", gpus=found.gpus, label=label)


def default(*, prices_on: date | None = None, throughput: Throughput | None = None) -> CostSettings:
    """A small service to begin with, on the newest throughput that was measured under runs/, or the article's."""
    known = throughput or find(runs_path()) or article_throughput()
    return CostSettings(
        requests_per_s=2.0,
        input_tokens=600,
        output_tokens=200,
        peak_factor=2.0,
        buffer=0.2,
        instance=like(known),
        throughput=known,
        model_gb=_model_gb(known),
        storage_usd_per_gb_month=0.08,
        engineering_hours_per_month=10.0,
        engineer_usd_per_hour=100.0,
        prices_on=prices_on or date.today(),
    )


def _model_gb(throughput: Throughput) -> float:
    """The weights in 16 bits of the model that was measured, if it is a known one, or else of the article's 8B."""
    known = example_models()
    name = next((one for one in known if one.lower() in throughput.machine.lower()), "Llama-3.1-8B")
    return round(2 * (known[name].parameters or 0) / 1e9, 2)


def like(throughput: Throughput) -> str:
    """The instance that is nearest to the machine on which a throughput was measured."""
    if not throughput.measured:
        return figures().instance
    if throughput.gpus == 0:
        return next(name for name, one in instances().items() if not one.gpus and name != OWN)
    fitting = [name for name, one in instances().items() if one.gpu and one.gpu in throughput.machine.split()]
    same_number = [name for name in fitting if instances()[name].gpus == throughput.gpus]
    return (same_number or fitting or list(instances()))[0]


def settings_from(given: Mapping[str, Any], start: CostSettings | None = None) -> CostSettings:
    """`start` (by default `default()`) with the values of `given`: settings by name, `state` (JSON or a mapping) first.

    `throughput_from` reads a record or folder. UsageError: an unknown name, a wrong type, what cannot be.
    """
    state = _state(given.get("state"))
    if state:  # what an exported question does not set, such as a price of its own, it has not
        start = settings_from({"usd_per_hour": None, **state}, start)
    values = {name: value for name, value in given.items() if name != "state"}
    known = [*NUMBERS, *TEXTS, *THROUGHPUT, "throughput_from"]
    for name in values:
        if name not in known:
            raise UsageError(f"the cost calculator has no setting {name!r}", remedy=did_you_mean(name, known))
    throughput = _throughput(values, start)
    base = start or default(throughput=throughput)
    changes: dict[str, Any] = {name: _number(name, values[name]) for name in NUMBERS if name in values}
    changes |= {name: _text(name, values[name]) for name in TEXTS if name in values}
    if throughput is not None:
        changes["throughput"] = throughput
    return base.changed(**_one_traffic(changes))


def _one_traffic(changes: dict[str, Any]) -> dict[str, Any]:
    """Setting one kind of traffic takes the other one back; tokens a day need a mix of their own."""
    tokens, requests = changes.get("tokens_per_day"), changes.get("requests_per_s")
    if tokens is not None and requests is None:
        return {"requests_per_s": None, "input_tokens": None, "output_tokens": None, **changes}
    if requests is not None and tokens is None:
        return {"tokens_per_day": None, **changes}
    return changes


def _throughput(values: Mapping[str, Any], start: CostSettings | None) -> Throughput | None:
    """The throughput that is asked for; None to keep what there is."""
    given = {field: values[name] for name, field in THROUGHPUT.items() if name in values}
    if not given:
        return measured(str(values["throughput_from"])) if "throughput_from" in values else None
    for name in ("tokens_per_s", "low", "high", "gpus"):
        if name in given:
            given[name] = _number(f"throughput_{name}", given[name])
    if "tokens_per_s" in given:  # a new figure: nothing of the old one holds any more
        return Throughput(**{**given, "gpus": int(given.get("gpus", 0))})
    base = start.throughput if start else measured(str(values.get("throughput_from", "")))
    changes: dict[str, Any] = {name: int(value) if name == "gpus" else value for name, value in given.items()}
    return replace(base, **changes)


def _state(state: Any) -> dict[str, Any]:
    if isinstance(state, str):
        if not state.strip():
            return {}
        try:
            state = json.loads(state)
        except ValueError as error:
            raise UsageError(f"the state is no JSON: {error}", remedy="paste what the calculator exported") from error
    if state is None:
        return {}
    if not isinstance(state, Mapping):
        raise UsageError(f"the state is a {type(state).__name__}", remedy="paste what the calculator exported")
    return dict(state)


def _number(name: str, value: Any) -> float | int | None:
    if value is None or value == "":
        return None
    try:
        number = float(str(value).replace(",", "").replace("_", ""))
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UsageError(f"{name} is {value!r}, not a number", remedy=f"give it {_range(name)}")
    return int(number) if name in WHOLE and number.is_integer() else number


def _text(name: str, value: Any) -> Any:
    if name == "api":
        parts = value.split(",") if isinstance(value, str) else list(value)
        return tuple(str(one).strip() for one in parts if str(one).strip())
    if name != "prices_on":
        return str(value)
    try:
        return value if isinstance(value, date) else date.fromisoformat(str(value))
    except ValueError:
        raise UsageError(f"prices_on is {value!r}, not a day", remedy="write it as 2026-11-24") from None


def _check_number(name: str, value: float | None) -> None:
    if value is None:
        if name in ("requests_per_s", "tokens_per_day", "usd_per_hour", "input_tokens", "output_tokens"):
            return
        raise UsageError(f"{name} is not set", remedy=f"give it {_range(name)}")
    _, low, high, _ = NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # nan fails, too
        raise UsageError(f"{name} is {_shown(value)}; it must be {_span(name)}", remedy=f"it means: {NUMBERS[name][3]}")
    if name in WHOLE and int(value) != value:
        raise UsageError(f"{name} is {value!r}; it must be a whole number", remedy=f"it means: {NUMBERS[name][3]}")


def _range(name: str) -> str:
    if name not in NUMBERS:
        return "a number above 0"
    return f"a number {_span(name)}: {NUMBERS[name][3]}"


def _span(name: str) -> str:
    unit, low, high, _ = NUMBERS[name]
    return f"from {low:g} to {high:,.0f} ({unit})"


def _shown(value: object) -> str:
    return f"{value:,g}" if isinstance(value, int | float) else repr(value)
