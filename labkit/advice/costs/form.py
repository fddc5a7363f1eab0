"""The cost calculator as a widget: a skin over `costs.calculate`.

    calculator = show_calculator(state)     # `state`: what another calculator exported, or "" for a first question
    calculator.result, calculator.state     # the answer and the question, in Python

Every change is calculated and drawn at once. What cannot be is told in words, and the last good answer stays.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from html import escape
from typing import Any

from labkit import display
from labkit.advice import costs
from labkit.advice.costs import (
    NUMBERS,
    CostResult,
    CostSettings,
    Throughput,
    article_throughput,
    cents,
    measured,
    settings_from,
    show_usd,
)
from labkit.advice.costs.charts import break_even_chart, sensitivity_chart, utilisation_chart
from labkit.advice.costs.prices import OWN, dated_models, instances, known_models, model_name, rounded
from labkit.advice.costs.words import headline, millions, text
from labkit.display import LEAVE_ARROWS
from labkit.errors import UsageError
from labkit.vega import live_bundle

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


# --- cost answer ---


# JupyterLab's own colours, so that it can be read in light and dark; black on white elsewhere.
INK, LINE = "var(--jp-content-font-color1, #000)", "var(--jp-border-color2, #bbb)"
LOOK = f"""<style>
.labkit-costs table.labkit-answer {{width:100%;border-collapse:collapse;margin:2px 0;font-size:12px;line-height:1.25;
  color:{INK};border:0}}
.labkit-costs .labkit-answer th {{text-align:right;font-weight:600;padding:1px 5px;border-bottom:1px solid {LINE};
  background:transparent;white-space:nowrap}}
.labkit-costs .labkit-answer td {{text-align:right;padding:1px 5px;white-space:nowrap;background:transparent}}
.labkit-costs .labkit-answer td:first-child {{text-align:left;white-space:normal;width:40%}}
.labkit-costs .labkit-mine td {{font-weight:700;border-bottom:1px solid {LINE}}}
.labkit-costs .labkit-note {{line-height:1.3;font-size:12px;color:{INK};white-space:normal}}
.labkit-costs .labkit-wrong {{line-height:1.35;white-space:normal;padding:4px 8px;border-left:5px solid #D55E00;
  background:#fff3ea;color:#262626}}
.labkit-costs .labkit-sums li {{line-height:1.35;white-space:normal;margin-bottom:2px;color:{INK}}}
</style>"""


def answer_html(result: CostResult) -> str:
    """Who is cheaper, and by how much; then hosting and each API: a day, a month, 1M tokens, the break-even."""
    heads = ("", "a day", "a month", "1M tokens", "hosting pays from")
    head = "".join(f"<th scope='col'>{one}</th>" for one in heads)
    rows = [_hosting_row(result), *(_api_row(result, n) for n in range(len(result.api)))]
    sentence = f"<div role='status' style='font-size:15px;line-height:1.3;color:{INK}'><b>{_sentence(result)}</b></div>"
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"{sentence}<table class='labkit-answer'>{table}</table>"


def sums_html(result: CostResult) -> str:
    """Every sum on a line of its own."""
    items = "".join(f"<li>{escape(line)}</li>" for line in result.lines)
    return f"<ol class='labkit-sums' style='margin:0;padding-left:24px;font-size:12.5px'>{items}</ol>"


def _sentence(result: CostResult) -> str:
    hosted, other = result.hosted.usd_per_day, result.against.usd_per_day
    name = escape(result.against.price.name)
    if hosted == other:
        return f"The same: {show_usd(hosted)} a day"
    who, less, more = ("Host it", hosted, other) if hosted < other else (f"Take {name}", other, hosted)
    beside = name if hosted < other else "hosting"
    return f"{who}: {show_usd(less)} a day, {beside} {show_usd(more)}"


def _hosting_row(result: CostResult) -> str:
    found = result.hosted
    gpus = f", {found.gpus} GPUs" if found.gpus else ""
    label = f"{found.machines:,} x {escape(result.settings.instance)}{gpus}, {float(found.utilisation):.0%} busy"
    per_million = "-" if found.usd_per_million_tokens is None else show_usd(found.usd_per_million_tokens)
    cells = (label, show_usd(found.usd_per_day), _dollars(found.usd_per_month), f"{per_million}{_interval(result)}", "")
    return f"<tr class='labkit-mine'>{''.join(f'<td>{one}</td>' for one in cells)}</tr>"


def _interval(result: CostResult) -> str:
    """How far the measured throughput's interval moves the price of a million tokens."""
    low, high = result.cheapest.usd_per_million_tokens, result.dearest.usd_per_million_tokens
    if low is None or high is None or low == high:
        return ""
    return f" ({cents(low)} to {cents(high)})"


def _dollars(usd: Fraction) -> str:
    """Whole dollars: the cents of a month would be read as precision."""
    return f"${rounded(usd, 0):,}"


def _api_row(result: CostResult, index: int) -> str:
    one = result.api[index]
    first = one.break_even.first
    pays = "never" if first is None else f"{millions(first)} a day"
    cells = (
        f"<span title='{escape(one.price.source, quote=True)}'>{escape(one.price.name)}</span>",
        show_usd(one.usd_per_day),
        _dollars(one.usd_per_month),
        show_usd(one.usd_per_million_tokens),
        pays,
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


# --- the cost calculator as a widget: a skin over `costs.calculate` ---


VIEWS = ("Break-even", "Busy share", "What matters", "The sums", "Share it")
TOOLTIPS = (
    "From which volume on hosting is cheaper",
    "What idle machines do to the price of a token",
    "Each input, a quarter less and a quarter more of it",
    "Every sum, line by line",
    "This question as text: for a colleague, a batch run, the command line",
)
WIDTH, HEIGHT = 480, 205
PICTURE = "345px"
SHARE = 0.25


class CostCalculator:
    """The widget and what it holds: `settings`, `result`, and `state`, the settings as JSON."""

    def __init__(self, settings: CostSettings) -> None:
        import ipywidgets as widgets

        self.settings, self.result = settings, costs.calculate(settings)
        self._filling = self._wrong = False
        self.fields = build(settings)
        self.message = widgets.HTML()
        self.answer = widgets.HTML()
        self.view = widgets.ToggleButtons(
            options=VIEWS, tooltips=TOOLTIPS, style={"button_width": "110px"}, layout={"margin": "4px 0 2px 0"}
        )
        self.picture = widgets.Output(layout={"height": PICTURE, "overflow": "hidden"})
        self.sums = widgets.HTML(layout={"height": PICTURE, "overflow": "auto"})
        self.exported = widgets.Textarea(
            continuous_update=False,
            layout={"width": "98%", "height": "250px"},
            tooltip="Copy it, or paste another calculator's text and press Tab",
        )
        self.sharing = widgets.VBox([widgets.HTML(SHARING), self.exported], layout={"height": PICTURE})
        self.box = self._arranged(widgets)
        for name, field in self.fields.items():
            field.observe(self._listener(name), names="value")
        self.view.observe(lambda _: self._draw(), names="value")
        self.exported.observe(self._pasted, names="value")
        self._draw()

    @property
    def state(self) -> str:
        """The question as one line of JSON, for the parameter `state`."""
        return self.settings.to_json()

    def _arranged(self, widgets: Any) -> Any:
        left = widgets.VBox(list(self.fields.values()), layout={"width": "338px", "flex": "0 0 auto"})
        shown = [
            widgets.HTML(LOOK + LEAVE_ARROWS, layout={"height": "0", "margin": "0"}),
            self.answer,
            self.view,
            self.picture,
            self.sums,
            self.sharing,
            self.message,
        ]
        right = widgets.VBox(shown, layout={"width": "580px", "flex": "0 0 auto", "margin": "0 0 0 8px"})
        box = widgets.HBox([left, right], layout={"width": "max-content"})
        box.add_class("labkit-costs")
        return box

    def _listener(self, name: str) -> Callable[[dict[str, Any]], None]:
        def changed(change: dict[str, Any]) -> None:
            if not self._filling:
                self._ask(lambda: read(self.settings, self.fields, name, change["new"]))

        return changed

    def _pasted(self, change: dict[str, Any]) -> None:
        if not self._filling and change["new"].strip() != self.state:
            self._ask(lambda: costs.settings_from({"state": change["new"]}, self.settings), refill=True)

    def _ask(self, new: Callable[[], CostSettings], *, refill: bool = False) -> None:
        """Calculates the new question; what cannot be is told, and the last answer stays, marked as the last one."""
        try:
            settings = new()
            result = costs.calculate(settings)
        except UsageError as error:
            self.message.value = _told(f"{error.what}. {error.remedy}." if error.remedy else error.what)
            self._wrong = True
            return
        refill = refill or self._wrong or follows(self.settings, settings)
        self._wrong = False
        self.settings, self.result = settings, result
        if refill:
            self._fill()
        self._draw()

    def _fill(self) -> None:
        self._filling = True
        try:
            fill(self.fields, self.settings)
        finally:
            self._filling = False

    def _draw(self) -> None:
        view, drawn = self.view.value, self._chart()
        if drawn is not None:  # first of all: it takes the browser longest
            data, metadata = live_bundle(drawn)
            # Set at once, instead of clearing and displaying: the picture does not flicker, and one message does it.
            self.picture.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)
        self.answer.value = answer_html(self.result)
        self.message.value = "".join(f"<div class='labkit-note'>{escape(one)}</div>" for one in self.result.warnings)
        self.picture.layout.display = "" if drawn is not None else "none"
        self.sums.layout.display = "" if view == "The sums" else "none"
        self.sharing.layout.display = "" if view == "Share it" else "none"
        if view == "The sums":
            self.sums.value = sums_html(self.result)
        if view == "Share it":
            self._filling = True
            self.exported.value = self.state
            self._filling = False

    def _chart(self) -> dict[str, Any] | None:
        if self.view.value == "Break-even":
            return break_even_chart(self.result, title=None, width=WIDTH, height=HEIGHT)
        if self.view.value == "Busy share":
            return utilisation_chart(self.result, title=None, width=WIDTH, height=HEIGHT)
        if self.view.value == "What matters" and self.result.against.usd_per_day:
            swings = costs.sensitivity(self.settings, share=SHARE)
            return sensitivity_chart(self.result, swings, share=SHARE, title=None, width=WIDTH - 60, height=HEIGHT + 30)
        return None

    def _repr_mimebundle_(self, **options: Any) -> Any:
        # A notebook that is read without a kernel, or on a page that draws no widgets, still has the answer.
        found = dict(self.box._repr_mimebundle_(**options))
        found["text/plain"] = text(self.result)
        found["text/html"] = f"<p>{escape(headline(self.result))}</p>{answer_html(self.result)}"
        return found


def show_calculator(state: str | dict[str, Any] = "", *, settings: CostSettings | None = None) -> CostCalculator:
    """Shows the calculator and returns it. `state`: exported by another one, or by `labkit cost --json` (settings).

    UsageError: a state that cannot be read.
    """
    calculator = CostCalculator(
        costs.settings_from({"state": state}, settings) if state else settings or costs.default()
    )
    display.show(calculator._repr_mimebundle_())
    return calculator


def _told(message: str) -> str:
    return f"<div role='alert' class='labkit-wrong'><b>Not calculated:</b> {escape(message)}</div>"


SHARING = (
    "<p style='line-height:1.4;margin:2px 0'>The same question elsewhere: the lab's parameter <code>state</code>, "
    "or <code>labkit cost --set 'state=...'</code>. Or paste another one here.</p>"
)
