"""The calculator's fields: one row each, with label, unit and a tooltip that says what the term means."""

from collections.abc import Mapping
from html import escape
from typing import Any

from labkit.costs import NUMBERS, CostSettings, Throughput, article_throughput, measured, settings_from
from labkit.costs.catalogue import OWN, dated_models, instances, known_models, model_name
from labkit.costs.money import show_usd

REQUESTS, TOKENS = "requests a second", "tokens a day"
MEASURED, ARTICLE, ENTERED = "measured here", "the article's figure", "entered"
COUNTS = {"written only": "output", "read and written": "total"}
STYLE = {"description_width": "128px"}
LAYOUT = {"width": "334px", "height": "28px", "margin": "1px 0"}
SLIDERS = {  # smallest, largest, step; a state may hold what lies outside, and then the slider stands at its end
    "hours_per_day": ("Traffic (h a day)", 1, 24, 1),
    "peak_factor": ("Peak over mean", 1, 10, 0.1),
    "buffer": ("Buffer above peak", 0, 1, 0.05),
    "paid_hours_per_day": ("Paid (h a day)", 1, 24, 1),
}
WHOLE = {"input_tokens": "Tokens in a request", "output_tokens": "Tokens out", "min_instances": "Machines at least"}
FLOATS = {
    "model_gb": "Weights (GB)",
    "engineering_hours_per_month": "People, h a month",
    "engineer_usd_per_hour": "People, USD/h",
}
TIPS = {
    "traffic": "How the traffic is given: mean arrivals a second, or tokens a day of the mix below",
    "volume": "How much of it",
    "source": "Where the throughput is from: your newest record under runs/, the article, or what you enter",
    "tokens_per_s": "Tokens a second of one machine when it is fully loaded",
    "counts": "Whether the throughput counts only tokens that are written, or those that are read as well",
    "instance": "The machine that is rented, with its GPUs and its dated price",
    "usd_per_hour": "Your own price of an hour; empty: the price list's",
    "against": "The API that the break-even and the picture are for",
}


def build(settings: CostSettings) -> dict[str, Any]:
    """The fields by name, in the order in which they stand, filled with the settings."""
    import ipywidgets as widgets

    found: dict[str, Any] = {
        "traffic": _made(widgets.Dropdown, "Traffic in", TIPS["traffic"], options=[REQUESTS, TOKENS]),
        "volume": _made(widgets.FloatText, "How many", TIPS["volume"]),
        **{name: _made(widgets.IntText, WHOLE[name], tip(name)) for name in ("input_tokens", "output_tokens")},
        **{name: _slider(widgets, name) for name in ("hours_per_day", "peak_factor", "buffer")},
        "source": _made(widgets.Dropdown, "Throughput", TIPS["source"], options=_sources()),
        "tokens_per_s": _made(widgets.FloatText, "Tokens a second", TIPS["tokens_per_s"]),
        "counts": _made(widgets.Dropdown, "It counts tokens", TIPS["counts"], options=list(COUNTS)),
        "instance": _made(widgets.Dropdown, "Machine", TIPS["instance"], options=_machines(settings)),
        "usd_per_hour": _made(widgets.Text, "Price, USD/h", TIPS["usd_per_hour"], placeholder="of the price list"),
        "paid_hours_per_day": _slider(widgets, "paid_hours_per_day"),
        "min_instances": _made(widgets.IntText, WHOLE["min_instances"], tip("min_instances")),
        **{name: _made(widgets.FloatText, label, tip(name)) for name, label in FLOATS.items()},
        "against": _made(widgets.Dropdown, "Compare with", TIPS["against"], options=_models(settings)),
    }
    fill(found, settings)
    return found


def fill(fields: Mapping[str, Any], settings: CostSettings) -> None:
    """Gives every field the settings' value."""
    by_tokens = settings.tokens_per_day is not None
    fields["traffic"].value = TOKENS if by_tokens else REQUESTS
    fields["volume"].value = settings.tokens_per_day if by_tokens else settings.requests_per_s
    for name in (*SLIDERS, *WHOLE, *FLOATS):
        fields[name].value = getattr(settings, name)
    fields["source"].value = _source(settings.throughput)
    fields["tokens_per_s"].value = round(settings.throughput.tokens_per_s, 2)
    fields["counts"].value = next(word for word, kind in COUNTS.items() if kind == settings.throughput.counts)
    fields["instance"].value = settings.instance
    fields["usd_per_hour"].value = "" if settings.usd_per_hour is None else f"{settings.usd_per_hour:g}"
    fields["against"].value = settings.api[0]


def read(settings: CostSettings, fields: Mapping[str, Any], name: str, value: Any) -> CostSettings:
    """The settings with one field changed. UsageError: what cannot be."""
    if name in ("traffic", "volume"):
        return _traffic(settings, fields)
    if name == "source":
        return settings.changed(throughput=_throughput(value, settings.throughput))
    if name in ("tokens_per_s", "counts"):
        given = {
            "throughput_tokens_per_s": fields["tokens_per_s"].value,
            "throughput_counts": COUNTS[fields["counts"].value],
        }
        return settings_from(given, settings)
    if name == "against":
        others = settings.api if value in settings.api else settings.api[1:]
        return settings.changed(api=(value, *(one for one in others if one != value)))
    return settings_from({name: value if value != "" else None}, settings)


def follows(old: CostSettings, new: CostSettings) -> bool:
    """Whether a change moves other fields, too: the throughput's source and its figure go together."""
    return old.throughput != new.throughput or (old.tokens_per_day is None) != (new.tokens_per_day is None)


def tip(name: str) -> str:
    """What a number means, with its unit."""
    unit, _, _, meaning = NUMBERS[name]
    return f"{meaning[:1].upper()}{meaning[1:]} ({unit})"


def _traffic(settings: CostSettings, fields: Mapping[str, Any]) -> CostSettings:
    """Another kind of traffic keeps its amount: requests a second become the tokens a day that they are."""
    asked, value = fields["traffic"].value, float(fields["volume"].value)
    by_tokens = settings.tokens_per_day is not None
    factor = 3600 * settings.hours_per_day * settings.tokens_per_request
    if asked == TOKENS:
        amount = value if by_tokens else value * factor
        return settings.changed(tokens_per_day=amount, requests_per_s=None)
    amount = round(value / factor, 6) if by_tokens else value
    return settings.changed(requests_per_s=amount, tokens_per_day=None)


def _throughput(source: str, now: Throughput) -> Throughput:
    if source == MEASURED:
        return measured()
    if source == ARTICLE:
        return article_throughput()
    return Throughput(tokens_per_s=now.tokens_per_s, counts=now.counts)


def _source(throughput: Throughput) -> str:
    if throughput.measured:
        return MEASURED
    return ARTICLE if throughput == article_throughput() else ENTERED


def _sources() -> list[str]:
    return [MEASURED, ARTICLE, ENTERED]


def _machines(settings: CostSettings) -> list[tuple[str, str]]:
    found = []
    for name, one in instances().items():
        price = one.price(settings.prices_on)
        gpus = f"{one.gpus} x {one.gpu}" if one.gpus else "no GPU"
        words = f"{gpus}, {show_usd(price.usd_per_hour)}/h" if price else "enter its price"
        found.append((f"{name if name != OWN else 'a machine of yours'}: {words}", name))
    return found


def _models(settings: CostSettings) -> list[tuple[str, str]]:
    names = dict.fromkeys([*settings.api, *known_models(), *dated_models()])
    return [(model_name(name), name) for name in names]


def _slider(widgets: Any, name: str) -> Any:
    label, low, high, step = SLIDERS[name]
    form = {"buffer": ".0%", "peak_factor": ".1f"}.get(name, ".0f")
    return _made(widgets.FloatSlider, label, tip(name), min=low, max=high, step=step, readout_format=form)


def _made(kind: Any, label: str, tooltip: str, **options: Any) -> Any:
    # ipywidgets 8 shows a text field's tooltip only where there is no description, so it goes into the description.
    # No dollar sign in it: two of them would be set as a formula.
    tooltip = tooltip.replace("$", "USD")
    named = f'<span title="{escape(tooltip, quote=True)}">{escape(label)}</span>'
    field = kind(description=named, description_allow_html=True, tooltip=tooltip, style=STYLE, layout=LAYOUT, **options)
    if hasattr(field, "continuous_update") and "Slider" not in kind.__name__:
        field.continuous_update = False  # a number that is half typed is no number
    return field
