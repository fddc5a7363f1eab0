"""The cost calculator as a widget around `costs.calculate`.

calculator = show_calculator(state)     # `state`: exported by another calculator; default: a first question
calculator.result, calculator.state     # the answer and the question, in Python
"""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import partial
from html import escape
from typing import Any

from labkit.advice.costs.calculate import ApiCost, CostResult, calculate, span
from labkit.advice.costs.charts import break_even_chart, sensitivity_chart, utilisation_chart
from labkit.advice.costs.prices import (
    OWN,
    PURCHASES,
    dated_models,
    known_models,
    machine_choices,
    millions,
    model_name,
    rounded,
    show_gpus,
    show_usd,
)
from labkit.advice.costs.settings import LOADS, NUMBERS, CostSettings, default, settings_from
from labkit.advice.costs.throughput import Throughput, modelled_models
from labkit.advice.form import Form, labelled
from labkit.display import LEAVE_ARROWS
from labkit.files import Frozen, data_path, read_yaml
from labkit.vega import Spec, live_bundle

REQUESTS, TOKENS = "requests per second", "tokens per day"
MODELLED, MEASURED, ENTERED = "modelled GPU", "measured here", "entered"
OWN_LOAD = "your own hours"
COUNTS = {"output only": "output", "input and output": "total"}
STYLE = {"description_width": "128px"}
LAYOUT = {"width": "334px", "height": "28px", "margin": "1px 0"}
SUMS, SHARING = "The sums", "Share it"
VIEWS = {
    "Break-even": "The volume from which hosting is cheaper",
    "Busy share": "How idle machines raise the price of a token",
    "What matters": "The effect of each input, a quarter less and a quarter more",
    SUMS: "The calculation, line by line",
    SHARING: "This question as text, for a colleague, a batch run or the command line",
}
CHARTS: Mapping[str, Callable[[CostResult], Spec]] = {
    "Break-even": break_even_chart,
    "Busy share": utilisation_chart,
    "What matters": sensitivity_chart,
}
WIDTH, HEIGHT = 480, 205
INK = "var(--jp-content-font-color1, #000)"  # as in cost_form.css
PICTURE = "345px"
HOW_TO_SHARE = (
    "<p style='line-height:1.4;margin:2px 0'>Copy the question for the lab's parameter <code>state</code> or for "
    "<code>labkit cost --set 'state=...'</code>. Or paste another one here.</p>"
)


class _Field(Frozen):
    label: str
    tip: str = ""
    slider: tuple[float, float, float, str] | None = None


class CostCalculator(Form[CostResult]):
    """The widget: `settings`, `result`, and `state`, the settings as JSON."""

    refused = "Not calculated"

    def __init__(self, settings: CostSettings) -> None:
        super().__init__(calculate(settings))

    @property
    def result(self) -> CostResult:
        return self.answer

    @property
    def settings(self) -> CostSettings:
        return self.answer.settings

    @property
    def state(self) -> str:
        return self.settings.to_json()

    def answer_to(self, text: str) -> CostResult:
        return calculate(settings_from({"state": text}, self.settings))

    def plain(self) -> str:
        return self.result.headline

    def html(self) -> str:
        return f"<p>{escape(self.result.headline)}</p>{answer_html(self.result)}"

    def build(self) -> Any:
        import ipywidgets as widgets

        tabs = read_yaml(data_path("cost_form.yaml"), dict[str, dict[str, _Field]])
        self.fields = {
            name: _widget(name, field, self.settings) for fields in tabs.values() for name, field in fields.items()
        }
        for name, field in self.fields.items():
            field.observe(partial(self._changed, name), names="value")
        self.view = widgets.ToggleButtons(
            options=list(VIEWS),
            tooltips=list(VIEWS.values()),
            style={"button_width": "110px"},
            layout={"margin": "4px 0 2px 0"},
        )
        self.view.observe(lambda _: self.draw(), names="value")
        self.table = widgets.HTML()
        self.picture = widgets.Output(layout={"height": PICTURE, "overflow": "hidden"})
        self.sums = widgets.HTML(layout={"height": PICTURE, "overflow": "auto"})
        self.exported = widgets.Textarea(
            continuous_update=False,
            layout={"width": "98%", "height": "250px"},
            tooltip="Copy it, or paste another calculator's text and press Tab",
        )
        self.sharing = widgets.VBox([widgets.HTML(HOW_TO_SHARE), self.exported], layout={"height": PICTURE})
        look = f"<style>{data_path('cost_form.css').read_text(encoding='utf-8')}</style>"
        style = widgets.HTML(look + LEAVE_ARROWS, layout={"height": "0", "margin": "0"})
        shown = [style, self.table, self.view, self.picture, self.sums, self.sharing, self.message]
        columns = [widgets.VBox([self.fields[name] for name in fields]) for fields in tabs.values()]
        left = widgets.Tab(columns, titles=list(tabs), layout={"width": "376px", "flex": "0 0 auto"})
        right = widgets.VBox(shown, layout={"width": "580px", "flex": "0 0 auto", "margin": "0 0 0 8px"})
        box = widgets.HBox([left, right], layout={"width": "max-content"})
        box.add_class("labkit-costs")
        return box

    def fill(self) -> None:
        settings = self.settings
        by_tokens, used = settings.tokens_per_day is not None, settings.used_throughput
        values = {name: getattr(settings, name) for name in self.fields if name in CostSettings.model_fields}
        values |= {
            "traffic": TOKENS if by_tokens else REQUESTS,
            "volume": settings.tokens_per_day if by_tokens else settings.requests_per_s,
            "hourly_load": next((name for name, load in LOADS.items() if load == settings.hourly_load), OWN_LOAD),
            "source": MODELLED if settings.throughput is None else MEASURED if used.measured else ENTERED,
            "tokens_per_s": round(used.tokens_per_s, 2),
            "counts": next(word for word, kind in COUNTS.items() if kind == used.counts),
            "usd_per_hour": "" if settings.usd_per_hour is None else f"{settings.usd_per_hour:g}",
            "tensor_parallel": str(settings.tensor_parallel or ""),
            "against": settings.api[0],
        }
        for name, value in values.items():
            self.fields[name].value = value

    def draw(self) -> None:
        view, chart = self.view.value, self._chart()
        if chart is not None:  # first, since the browser takes longest for it
            data, metadata = live_bundle(chart)
            # One assignment instead of clear and display avoids flicker and a second message.
            self.picture.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)
        self.table.value = answer_html(self.result)
        self.picture.layout.display = "" if chart is not None else "none"
        self.sums.layout.display = "" if view == SUMS else "none"
        self.sharing.layout.display = "" if view == SHARING else "none"
        if view == SUMS:
            from labkit.advice.costs.explain import explain

            items = "".join(f"<li>{escape(line)}</li>" for line in explain(self.result))
            style = "margin:0;padding-left:24px;font-size:12.5px"
            self.sums.value = f"<ol class='labkit-sums' style='{style}'>{items}</ol>"

    def notes(self) -> str:
        notes = filter(None, (self.result.compared, *self.result.warnings))
        return "".join(f"<div class='labkit-note'>{escape(note)}</div>" for note in notes)

    def _chart(self) -> Spec | None:
        """Return the view's chart in the form's size, without a title: the chosen button is one."""
        view, size = self.view.value, {"width": WIDTH, "height": HEIGHT}
        is_swings = view == "What matters"
        if view not in CHARTS or (is_swings and not self.result.against.usd_per_day):
            return None
        if is_swings:
            size = {"width": WIDTH - 60, "height": HEIGHT + 30}
        return {name: value for name, value in CHARTS[view](self.result).items() if name != "title"} | size

    def _changed(self, name: str, change: dict[str, Any]) -> None:
        self.ask(lambda: calculate(self._with_field(name, change["new"])))

    def _with_field(self, name: str, value: Any) -> CostSettings:
        settings = self.settings
        if name in ("traffic", "volume"):
            return self._with_traffic(settings)
        if name == "source":
            if value == ENTERED:
                used = settings.used_throughput
                return settings.changed(throughput=Throughput(tokens_per_s=used.tokens_per_s, counts=used.counts))
            return settings_from({"throughput_from": "" if value == MEASURED else "modelled"}, settings)
        if name in ("tokens_per_s", "counts"):
            rate = value if name == "tokens_per_s" else settings.used_throughput.tokens_per_s
            counts = COUNTS[self.fields["counts"].value]
            return settings_from({"throughput_tokens_per_s": rate, "throughput_counts": counts}, settings)
        if name == "hourly_load" and value == OWN_LOAD:
            return settings
        if name == "against":
            others = (model for model in settings.api if model != OWN)  # prices of your own stay in the table
            replaced = value if value in settings.api else next(others, None)
            return settings.changed(api=(value, *(model for model in settings.api if model != replaced)))
        return settings_from({name: value}, settings)

    def _with_traffic(self, settings: CostSettings) -> CostSettings:
        """Convert the volume when the kind of traffic changes, requests per second to tokens per day or back."""
        by_tokens = settings.tokens_per_day is not None
        amount, factor = self.fields["volume"].value, 3600 * settings.hours_per_day * settings.tokens_per_request
        if self.fields["traffic"].value == TOKENS:
            return settings.changed(tokens_per_day=amount if by_tokens else amount * factor, requests_per_s=None)
        return settings.changed(requests_per_s=round(amount / factor, 6) if by_tokens else amount, tokens_per_day=None)


def show_calculator(state: str | Mapping[str, Any] = "", *, settings: CostSettings | None = None) -> CostCalculator:
    """Show the calculator and return it. `state`: exported by another one, or the settings of `labkit cost --json`.

    UsageError: a state that cannot be read.
    """
    return CostCalculator(settings_from({"state": state}, settings) if state else settings or default()).show()


def _widget(name: str, field: _Field, settings: CostSettings) -> Any:
    import ipywidgets as widgets

    models = dict.fromkeys([*settings.api, *known_models(), *dated_models()])
    choices: dict[str, Any] = {
        "traffic": [REQUESTS, TOKENS],
        "source": [MODELLED, MEASURED, ENTERED],
        "counts": list(COUNTS),
        "batch": [("at once", False), ("in a batch", True)],
        "hourly_load": [*LOADS, OWN_LOAD],
        "purchase": [(purchase.replace("_", " "), purchase) for purchase in PURCHASES],
        "model": list(dict.fromkeys([*modelled_models(), settings.model])),
        "instance": [(words, name) for name, words in machine_choices(settings.prices_on).items()],
        "against": [(model_name(model), model) for model in models],
    }
    kind, options = widgets.FloatText, {}
    if field.slider:
        low, high, step, form = field.slider
        kind, options = widgets.FloatSlider, {"min": low, "max": high, "step": step, "readout_format": form}
    elif name in choices:
        kind, options = widgets.Dropdown, {"options": choices[name]}
    elif name in ("usd_per_hour", "tensor_parallel"):
        kind, options = widgets.Text, {"placeholder": "price list" if name == "usd_per_hour" else "the fewest"}
    elif name in NUMBERS and isinstance(getattr(settings, name), int):
        kind = widgets.IntText
    if kind not in (widgets.FloatSlider, widgets.Dropdown):
        options["continuous_update"] = False  # wait until the number is complete
    tip = field.tip
    if not tip:
        meaning = str(NUMBERS[name].description)
        tip = f"{meaning[:1].upper()}{meaning[1:]} ({NUMBERS[name].title})"
    return labelled(kind, field.label, tip, style=STYLE, layout=LAYOUT, **options)


def answer_html(result: CostResult) -> str:
    """Return which side is cheaper, and a table of hosting and each API: per day, per month, 1M tokens, break-even."""
    heads = ("", "a day", "a month", "1M tokens", "hosting pays from")
    head = "".join(f"<th scope='col'>{text}</th>" for text in heads)
    rows = [_row("labkit-mine", _hosting(result)), *(_row("", _api(api)) for api in result.api)]
    sentence = f"<div role='status' style='font-size:15px;line-height:1.3;color:{INK}'><b>{_sentence(result)}</b></div>"
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"{sentence}<table class='labkit-answer'>{table}</table>"


def _sentence(result: CostResult) -> str:
    hosting, api = result.hosted.usd_per_day, result.against.usd_per_day
    name = escape(result.against.price.name)
    if hosting == api:
        return f"The same: {show_usd(hosting)} a day"
    if hosting < api:
        return f"Host it: {show_usd(hosting)} a day, {name} {show_usd(api)}"
    return f"Take {name}: {show_usd(api)} a day, hosting {show_usd(hosting)}"


def _row(kind: str, cells: Iterable[str]) -> str:
    return f"<tr class='{kind}'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _hosting(result: CostResult) -> Iterable[str]:
    fleet, low, high = result.hosted, result.cheapest, result.dearest
    gpus = f", {show_gpus(fleet.gpus)}" if fleet.gpus else ""
    per_million = "-" if fleet.usd_per_million_tokens is None else show_usd(fleet.usd_per_million_tokens)
    yield f"{fleet.machines:,} x {escape(result.settings.instance)}{gpus}, {float(fleet.utilisation):.0%} busy"
    yield f"{show_usd(fleet.usd_per_day)}{span(low.usd_per_day, high.usd_per_day)}"
    yield _whole_usd(fleet.usd_per_month)
    yield f"{per_million}{span(low.usd_per_million_tokens, high.usd_per_million_tokens)}"
    yield ""


def _api(api: ApiCost) -> Iterable[str]:
    ends = " to ".join("never" if end is None else millions(end) for end in api.break_even_bounds)
    yield f"<span title='{escape(api.price.source, quote=True)}'>{escape(api.price.name)}</span>"
    yield show_usd(api.usd_per_day)
    yield _whole_usd(api.usd_per_month)
    yield show_usd(api.usd_per_million_tokens)
    yield f"<span title='{ends}'>{api.break_even_words}</span>"


def _whole_usd(usd: Fraction) -> str:
    """Format without cents, which would suggest a precision that a month's bill does not have."""
    return f"${rounded(usd, 0):,}"
