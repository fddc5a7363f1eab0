"""Draws without a network: in JupyterLab by its own Vega-Lite 5, elsewhere as a small PNG, in the report as SVG.

Altair 6 writes Vega-Lite 6 and its own renderers fetch a library; JupyterLab 4.6 brings Vega-Lite 5.6.1 and draws a
chart that keeps to what version 5 knows. So charts go out under that mime type, with a PNG for GitHub and exports.
"""

import base64
import io
from html import escape
from typing import Any

from labkit.charts.theme import FONT, config, set_caption
from labkit.errors import UsageError

MIME = "application/vnd.vegalite.v5+json"
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name, never fetched
VEGA_LITE = "5.8"  # the oldest that vl-convert draws with, nearest to JupyterLab's 5.6
SCALE = 2
COLOURS = 32
EMPTY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAAC0lEQVR42mNgAAIAAAUAAen63NgAAAAASUVORK5CYII="


def enable(*, caption: str = "", png: bool = True) -> None:
    """Makes Altair charts show offline in this notebook, in the course's look.

    `caption` is the line under every title, the machine's. `png=False` leaves out the PNG, which costs about a third of
    a second a chart.
    """
    import altair as alt

    def renderer(drawn: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return bundle(drawn, png=png)

    set_caption(caption)
    alt.renderers.register("labkit", renderer)
    alt.renderers.enable("labkit")
    alt.theme.register("labkit", enable=True)(lambda: alt.theme.ThemeConfig({"config": config()}))


def show_live(chart: Any) -> None:
    """Displays a chart from a widget's callback: without a PNG, so that it follows the hand."""
    from IPython.display import display

    data, metadata = live_bundle(chart)
    display(data, raw=True, metadata=metadata)


def spec(chart: Any) -> dict[str, Any]:
    """The Vega-Lite 5 specification of a chart (or of a specification, which is copied)."""
    drawn = dict(chart) if isinstance(chart, dict) else dict(chart.to_dict())
    return {**drawn, "$schema": SCHEMA}


def bundle(chart: Any, *, png: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata by mime type, for IPython. Raises UsageError for a chart without a description or a title."""
    drawn = spec(chart)
    text = describe(drawn)
    data: dict[str, Any] = {MIME: drawn, "text/plain": f"<chart: {text}>"}
    metadata: dict[str, Any] = {MIME: {"embed_options": {"renderer": "svg", "actions": False}}}
    if png:
        data["image/png"], width, height = _png(drawn)
        metadata["image/png"] = {"width": width, "height": height, "alt": text}
    return data, metadata


def live_bundle(chart: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata of a picture that follows the hand, with one empty pixel as its PNG.

    Of a picture without a PNG JupyterLab makes one, and then draws the picture once more: twice the time.
    """
    data, metadata = bundle(chart, png=False)
    return {**data, "image/png": EMPTY_PNG}, {**metadata, "image/png": {"alt": describe(data[MIME])}}


def describe(drawn: dict[str, Any]) -> str:
    """What a chart shows, in words: its description, else its title."""
    title = drawn.get("title") or ""
    text = drawn.get("description") or (title.get("text") if isinstance(title, dict) else title)
    if not text:
        raise UsageError("a chart has no description", remedy="add .properties(description='what it shows')")
    return " ".join(text) if isinstance(text, list) else str(text)


def svg(chart: Any) -> str:
    """The chart (or its specification) as SVG, with the description as its aria-label. Fetches nothing."""
    import vl_convert

    drawn = spec(chart)
    # What the theme cannot give, since a specification out of a record has no theme any more: the ground and the font.
    base = {"background": "white", "font": FONT}
    raw = vl_convert.vegalite_to_svg(drawn, vl_version=VEGA_LITE, config=base, allowed_base_urls=[])
    # In a browser vega-embed names the drawing; vl-convert leaves that to us.
    return str(raw).replace("<svg ", f'<svg role="img" aria-label="{escape(describe(drawn))}" ', 1)


def _png(drawn: dict[str, Any]) -> tuple[str, int, int]:
    """A small PNG as base64, with the width and height at which it is to be shown."""
    import vl_convert
    from PIL import Image

    raw = vl_convert.vegalite_to_png(drawn, vl_version=VEGA_LITE, scale=SCALE, allowed_base_urls=[])
    image = Image.open(io.BytesIO(raw))
    small = io.BytesIO()
    image.convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode(), image.width // SCALE, image.height // SCALE
