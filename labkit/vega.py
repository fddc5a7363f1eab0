"""Vega-Lite specifications: the style of the course's figures, and how a notebook shows them. Without Altair.

JupyterLab 4.6 includes Vega-Lite 5.6.1 and draws specifications of version 5 without a network.
Colours: Okabe and Ito, "Color Universal Design", 2008. Grey text on white has a contrast of at least 7:1.
"""

from collections.abc import Mapping
from typing import Any

from labkit.errors import UsageError

Spec = dict[str, Any]

MIME = "application/vnd.vegalite.v5+json"
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name, never fetched
EMPTY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAAC0lEQVR42mNgAAIAAAUAAen63NgAAAAASUVORK5CYII="

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
INK, GREY, FAINT = "#262626", "#8c8c8c", "#e3e3e3"
PALETTE = [BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK]
"""The colours of series, in order. Yellow is left out: it cannot be seen on white."""
WIDTH = 640
FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"


def config() -> Spec:
    """Return the course's Vega-Lite configuration, limited to what Vega-Lite 5.6 (in JupyterLab 4.6) supports."""
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
        "range": {"category": PALETTE},
        "text": {"fontSize": 13, "color": INK},
    }


def captioned(spec: Mapping[str, Any], *lines: str) -> Spec:
    """Return a specification with `lines` below its title."""
    title = spec.get("title") or ""
    title = title if isinstance(title, dict) else {"text": title}
    above = title.get("subtitle") or []
    above = above if isinstance(above, list) else [above]
    return {**spec, "title": {**title, "subtitle": [*above, *lines]}}


def describe(drawn: Spec) -> str:
    """Return in words what a chart shows: its description, or else its title."""
    title = drawn.get("title") or ""
    text = drawn.get("description") or (title.get("text") if isinstance(title, dict) else title)
    if not text:
        raise UsageError("a chart has no description", remedy="add .properties(description='what it shows')")
    return " ".join(text) if isinstance(text, list) else str(text)


def bundle(drawn: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return data and metadata by mime type, for IPython. UsageError: a chart without a description or a title."""
    data: dict[str, Any] = {MIME: drawn, "text/plain": f"<chart: {describe(drawn)}>"}
    return data, {MIME: {"embed_options": {"renderer": "svg", "actions": False}}}


def live_bundle(drawn: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return data and metadata of a picture that changes live, with an empty pixel as its PNG.

    Without a PNG, JupyterLab makes one and draws the picture again, which doubles the time.
    """
    data, metadata = bundle(drawn)
    return {**data, "image/png": EMPTY_PNG}, {**metadata, "image/png": {"alt": describe(drawn)}}
