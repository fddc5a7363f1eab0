"""A chart's Vega-Lite specification as an SVG that may stand inside an HTML page.

Several SVGs in one page share its ids, and a specification may come from a record that somebody else wrote: ids are
made unique, and a chart that would run a script or ask another machine is refused.
"""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from labkit.errors import LabkitError

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
PASSIVE = {"svg", "g", "defs", "path", "line", "rect", "circle", "text", "tspan", "clipPath", "style", "title", "desc",
           "image", "a", "linearGradient", "radialGradient", "stop", "mask", "symbol", "use"}  # fmt: skip
HERE = ("#", "data:image/")


def chart_svg(spec: Mapping[str, Any], *, prefix: str) -> str:
    """The chart as one `<svg>` element; its ids begin with `prefix`. LabkitError says why it could not be drawn."""
    from labkit import charts

    try:
        root = ElementTree.fromstring(charts.svg(dict(spec)))
    except Exception as error:  # vl-convert raises what its JavaScript engine raises
        reason = " ".join(str(error).split()).partition(" at ")[0] or type(error).__name__
        raise LabkitError(f"the chart could not be drawn: {reason}") from error
    for element in root.iter():
        _require_passive(element)
    _make_ids_unique(root, prefix)
    root.set("role", "img")  # its hundreds of marks are one picture to a screen reader
    root.set("aria-label", str(spec.get("description") or "chart"))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _require_passive(element: ElementTree.Element) -> None:
    name = element.tag.rpartition("}")[2]
    outside = [value for key, value in element.attrib.items() if key.endswith("href") and not value.startswith(HERE)]
    outside += [url for value in element.attrib.values() for url in _urls(value)] + _urls(element.text or "", name)
    active = [key for key in element.attrib if key.lower().startswith("on")]
    if name not in PASSIVE or active or outside:
        what = f"it would ask {outside[0]}" if outside else f"it holds {active[0] if active else name}"
        raise LabkitError(f"the chart was left out: {what}")


def _urls(text: str, tag: str = "style") -> list[str]:
    """What `url(...)` in an attribute or a style sheet points to, unless it is in this very file."""
    found = re.findall(r"""url\(\s*["']?([^"')]*)""", text) if tag == "style" else []
    return [url for url in found if not url.startswith(HERE)]


def _make_ids_unique(root: ElementTree.Element, prefix: str) -> None:
    """Ids become `prefix` and a number, in the document's order: Vega's own count on from drawing to drawing."""
    found = [element.get("id") for element in root.iter() if element.get("id")]
    names = {old: f"{prefix}{n}" for n, old in enumerate(dict.fromkeys(found))}
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, names[value])
            elif key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{names.get(value[1:], '')}")
            else:
                element.set(key, re.sub(r"url\(#([^)]+)\)", lambda at: f"url(#{names.get(at[1], '')})", value))
