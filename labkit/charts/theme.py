"""How every chart looks: white ground, colours that the colour-blind can tell apart, text to be read from a back row.

Colours: Okabe and Ito, "Color Universal Design", 2008. Grey text on white has a contrast of at least 7:1.
"""

from typing import Any

from labkit.errors import UsageError

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
INK, GREY, FAINT = "#262626", "#8c8c8c", "#e3e3e3"
WIDTH = 640
FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"

_caption = {"text": ""}


def palette() -> list[str]:
    """The colours of series, in order. Yellow is left out: on white it cannot be seen."""
    return [BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK]


def set_caption(text: str) -> None:
    """The line under every title from now on: the machine on which the numbers were measured."""
    _caption["text"] = text


def config() -> dict[str, Any]:
    """The Vega-Lite configuration of the course, kept to what Vega-Lite 5.6 (in JupyterLab 4.6) knows."""
    axis = {"labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK}
    lines = {
        "gridColor": FAINT,
        "domainColor": GREY,
        "tickColor": GREY,
        "titlePadding": 10,
        "labelPadding": 6,
        "labelFlush": False,
    }
    legend = {"labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal", "labelLimit": 0, "symbolSize": 120}
    symbol = {"symbolOpacity": 1, "symbolStrokeWidth": 2.5}
    title = {"fontSize": 16, "subtitleFontSize": 13, "subtitleColor": "#4d4d4d", "color": INK, "anchor": "start"}
    return {
        "background": "white",
        "font": FONT,
        "padding": 12,
        "view": {"stroke": None, "continuousWidth": WIDTH, "continuousHeight": 280},
        "axis": {**axis, **lines},
        "legend": {**legend, **symbol, "orient": "top", "labelColor": INK, "titleColor": INK, "offset": 12},
        "title": {**title, "offset": 14, "subtitlePadding": 6, "frame": "bounds"},
        "range": {"category": palette()},
        "text": {"fontSize": 13, "color": INK},
    }


def finish(chart: Any, *, title: str, description: str, caption: str | None = None) -> Any:
    """Gives an Altair chart title, caption, look and description (which becomes the drawing's aria-label).

    Without `caption` the one that `enable` was given is used. Raises UsageError without a description: whoever cannot
    see the chart has nothing else.
    """
    if not description.strip():
        raise UsageError(f"the chart {title!r} has no description", remedy="say in a sentence what it shows")
    import altair as alt

    below = _caption["text"] if caption is None else caption
    heading = alt.TitleParams(title, subtitle=below) if below else alt.TitleParams(title)
    return chart.properties(title=heading, description=description).configure(**config())


def labelled(chart: Any, **text: Any) -> Any:
    """Text with a white halo, so that it can be read where it crosses a line. Takes what `mark_text` takes."""
    halo = chart.mark_text(aria=False, stroke="white", strokeWidth=7, strokeJoin="round", **text)
    return halo + chart.mark_text(**text)
