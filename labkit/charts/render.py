"""Render charts offline: by JupyterLab's Vega-Lite 5, as a small PNG elsewhere, as SVG in the report.

JupyterLab 4.6 bundles Vega-Lite 5.6.1. So charts use only features of version 5 and its mime type, with a PNG for
GitHub and exports. Altair 6 writes Vega-Lite 6, and its own renderers fetch a library.
"""

import base64
import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any
from xml.etree import ElementTree

from labkit import vega
from labkit.errors import LabkitError, require
from labkit.vega import FONT, SCHEMA, Spec, config, describe

VEGA_LITE = "5.8"  # the oldest version in vl-convert, nearest to JupyterLab's 5.6
SCALE = 2
COLOURS = 256  # fewer would merge the colours of thin lines


class Chart(Spec):
    """A Vega-Lite specification that a notebook shows as a picture."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[Spec, Spec]:
        return bundle(self)


def finish(chart: Spec, *, title: str, description: str) -> Chart:
    """Add title, theme and description (the drawing's aria-label) to a chart. UsageError without a description."""
    require(
        bool(description.strip()), f"the chart {title!r} has no description", fix="describe in a sentence what it shows"
    )
    return Chart({"$schema": SCHEMA, "config": config(), "title": {"text": title}, "description": description, **chart})


def spec(chart: Any) -> Spec:
    """Return a copy of the Vega-Lite 5 specification of a `Chart` or an Altair chart."""
    return {**(chart if isinstance(chart, dict) else chart.to_dict()), "$schema": SCHEMA}


def bundle(chart: Any, *, png: bool = True) -> tuple[Spec, Spec]:
    """Return data and metadata by mime type, for IPython. UsageError for a chart without description or title."""
    drawn = spec(chart)
    data, metadata = vega.bundle(drawn)
    if png:
        data["image/png"], width, height = _png(drawn)
        metadata["image/png"] = {"width": width, "height": height, "alt": describe(drawn)}
    return data, metadata


def svg(chart: Any) -> str:
    """Return the chart (or specification) as SVG, with the description as its aria-label. Fetches nothing."""
    import vl_convert

    drawn = spec(chart)
    # A specification from a record has no theme, so background and font are set here.
    base = {"background": "white", "font": FONT}
    raw = vl_convert.vegalite_to_svg(drawn, vl_version=VEGA_LITE, config=base, allowed_base_urls=[])
    # vega-embed sets the aria-label in a browser; vl-convert does not.
    return str(raw).replace("<svg ", f'<svg role="img" aria-label="{escape(describe(drawn))}" ', 1)


def _png(drawn: Spec) -> tuple[str, int, int]:
    """A small PNG as base64, with its display width and height."""
    import vl_convert
    from PIL import Image

    raw = vl_convert.vegalite_to_png(drawn, vl_version=VEGA_LITE, scale=SCALE, allowed_base_urls=[])
    image = Image.open(io.BytesIO(raw))
    small = io.BytesIO()
    image.convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode(), image.width // SCALE, image.height // SCALE


SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
PASSIVE = {"svg", "g", "defs", "path", "line", "rect", "circle", "text", "tspan", "clipPath", "style", "title", "desc",
           "image", "a", "linearGradient", "radialGradient", "stop", "mask", "symbol", "use"}  # fmt: skip
INTERNAL = ("#", "data:image/")


def chart_svg(chart: Mapping[str, Any], *, prefix: str) -> str:
    """Return the chart as one `<svg>` element whose ids begin with `prefix`. LabkitError if it cannot be drawn."""
    try:
        root = ElementTree.fromstring(svg(dict(chart)))
    except Exception as error:  # vl-convert raises what its JavaScript engine raises
        reason = " ".join(str(error).split()).partition(" at ")[0] or type(error).__name__
        raise LabkitError(f"the chart could not be drawn: {reason}") from error
    for element in root.iter():
        _require_passive(element)
    _make_ids_unique(root, prefix)
    root.set("aria-label", str(chart.get("description") or "chart"))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _require_passive(element: ElementTree.Element) -> None:
    name = element.tag.rpartition("}")[2]
    outside = [
        value for key, value in element.attrib.items() if key.endswith("href") and not value.startswith(INTERNAL)
    ]
    outside += [url for value in element.attrib.values() for url in _urls(value)]
    outside += _urls(element.text or "") if name == "style" else []
    active = [key for key in element.attrib if key.lower().startswith("on")]
    if name not in PASSIVE or active or outside:
        what = f"it would fetch {outside[0]}" if outside else f"it contains {active[0] if active else name}"
        raise LabkitError(f"the chart was left out: {what}")


def _urls(text: str) -> list[str]:
    """External targets of `url(...)` in an attribute or a style sheet."""
    return [url for url in re.findall(r"""url\(\s*["']?([^"')]*)""", text) if not url.startswith(INTERNAL)]


def _make_ids_unique(root: ElementTree.Element, prefix: str) -> None:
    """Replace ids by `prefix` and a number in document order: Vega's counters continue from drawing to drawing."""
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    names = {old: f"{prefix}{n}" for n, old in enumerate(dict.fromkeys(ids))}
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, names[value])
            elif key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{names.get(value[1:], '')}")
            else:
                element.set(key, re.sub(r"url\(#([^)]+)\)", lambda at: f"url(#{names.get(at[1], '')})", value))
