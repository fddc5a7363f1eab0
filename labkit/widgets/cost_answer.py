"""The calculator's answer as HTML: the decision in one sentence, a table of what each way costs, the sums."""

from fractions import Fraction
from html import escape

from labkit.costs import CostResult, cents, show_usd
from labkit.costs.command import millions
from labkit.costs.money import rounded

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
