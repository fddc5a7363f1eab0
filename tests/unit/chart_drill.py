"""What holds of every chart of the kit."""

import re
from html import unescape
from typing import Any

import pytest

from labkit import charts
from labkit.charts.render import VEGA_LITE

SMALLEST_PX = 13


def assert_draws_and_says_what_it_is(chart: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Vega-Lite 5 compiles it without a warning; title and description are in the drawing, no text is small."""
    vl_convert = pytest.importorskip("vl_convert")
    spec = charts.spec(chart)
    vl_convert.vegalite_to_vega(spec, vl_version=VEGA_LITE, show_warnings=True)
    assert "WARN" not in capfd.readouterr().err
    drawn = unescape(charts.svg(spec))
    assert spec["title"]["text"] in drawn
    assert f'aria-label="{spec["description"]}"' in drawn
    assert "NaN" not in drawn
    assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', drawn)) >= SMALLEST_PX
