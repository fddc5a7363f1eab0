"""Figures that need no network, say on which machine they were measured, and can be read without seeing colours.

Every function takes plain data and returns an Altair chart; `enable` makes a notebook draw it offline, `svg` draws it
for the report.
"""

from labkit.charts.bars import Bar, bars_with_intervals, stacked_bars
from labkit.charts.curves import (
    LinePoint,
    LoadPoint,
    Tradeoff,
    ecdf,
    lines,
    model_and_measured,
    tail,
    throughput_latency,
    tradeoff,
)
from labkit.charts.panels import Moment, StepPanel, scaling_timeline, step_panels
from labkit.charts.render import bundle, enable, show_live, spec, svg
from labkit.charts.spans import (
    Beside,
    Lane,
    anatomy,
    article_beside,
    batch_grid,
    gpu_packing,
    memory_map,
    prefix_blocks,
    request_timeline,
    token_streams,
)
from labkit.charts.theme import finish
from labkit.vega import config, palette

__all__ = [
    "Bar",
    "Beside",
    "Lane",
    "LinePoint",
    "LoadPoint",
    "Moment",
    "StepPanel",
    "Tradeoff",
    "anatomy",
    "article_beside",
    "bars_with_intervals",
    "batch_grid",
    "bundle",
    "config",
    "ecdf",
    "enable",
    "finish",
    "gpu_packing",
    "lines",
    "memory_map",
    "model_and_measured",
    "palette",
    "prefix_blocks",
    "request_timeline",
    "scaling_timeline",
    "show_live",
    "spec",
    "stacked_bars",
    "step_panels",
    "svg",
    "tail",
    "throughput_latency",
    "token_streams",
    "tradeoff",
]
