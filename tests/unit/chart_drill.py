"""What holds of every chart of the kit."""

import json
import re
from html import unescape
from typing import Any

import pytest

from labkit import charts
from labkit.charts.render import VEGA_LITE

SMALLEST_PX = 13
MOST_BYTES = 30_000  # the drawing's PNG takes about as much again in a notebook


def assert_draws_and_says_what_it_is(chart: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """A valid specification that Vega-Lite 5 compiles without a warning, small, with readable text in its drawing.

    Title and description are in the drawing, and it points nowhere outside.
    """
    vl_convert, alt = pytest.importorskip("vl_convert"), pytest.importorskip("altair")
    spec = charts.spec(chart)
    alt.Chart.from_dict(spec, validate=True)
    vl_convert.vegalite_to_vega(spec, vl_version=VEGA_LITE, show_warnings=True)
    assert "WARN" not in capfd.readouterr().err
    drawn = unescape(charts.svg(spec))
    assert spec["title"]["text"] in drawn
    assert f'aria-label="{spec["description"]}"' in drawn
    assert "NaN" not in drawn
    assert not re.search(r"https?://(?!www\.w3\.org)", drawn)
    assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', drawn)) >= SMALLEST_PX
    assert len(json.dumps(spec)) < MOST_BYTES
