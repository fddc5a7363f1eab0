"""Vega-Lite specifications: the look of the course's figures, and how a notebook shows one. Needs no Altair.

JupyterLab 4.6 brings Vega-Lite 5.6.1 and draws a specification that keeps to what version 5 knows, without a network.
Colours: Okabe and Ito, "Color Universal Design", 2008. Grey text on white has a contrast of at least 7:1.
"""

from typing import Any

from labkit.errors import UsageError

Spec = dict[str, Any]

MIME = "application/vnd.vegalite.v5+json"
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name, never fetched
EMPTY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAAC0lEQVR42mNgAAIAAAUAAen63NgAAAAASUVORK5CYII="

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
INK, GREY, FAINT = "#262626", "#8c8c8c", "#e3e3e3"
WIDTH = 640
FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"


def palette() -> list[str]:
    """The colours of series, in order. Yellow is left out: on white it cannot be seen."""
    return [BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK]


def config() -> Spec:
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


def describe(drawn: Spec) -> str:
    """What a chart shows, in words: its description, else its title."""
    title = drawn.get("title") or ""
    text = drawn.get("description") or (title.get("text") if isinstance(title, dict) else title)
    if not text:
        raise UsageError("a chart has no description", remedy="add .properties(description='what it shows')")
    return " ".join(text) if isinstance(text, list) else str(text)


def bundle(drawn: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata by mime type, for IPython. Raises UsageError for a chart without a description or a title."""
    data: dict[str, Any] = {MIME: drawn, "text/plain": f"<chart: {describe(drawn)}>"}
    return data, {MIME: {"embed_options": {"renderer": "svg", "actions": False}}}


def live_bundle(drawn: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata of a picture that follows the hand, with one empty pixel as its PNG.

    Of a picture without a PNG JupyterLab makes one, and then draws the picture once more: twice the time.
    """
    data, metadata = bundle(drawn)
    return {**data, "image/png": EMPTY_PNG}, {**metadata, "image/png": {"alt": describe(drawn)}}
