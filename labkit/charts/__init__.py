"""Figures that need no network, say on which machine they were measured, and can be read without seeing colours.

Every function takes plain data and returns an Altair chart; `enable` makes a notebook draw it offline, `svg` draws it
for the report.
"""

from labkit.charts.bars import Bar, bars_with_intervals
from labkit.charts.batches import batch_grid
from labkit.charts.curves import LinePoint, LoadPoint, lines, throughput_latency
from labkit.charts.distributions import ecdf, tail
from labkit.charts.memory import memory_map
from labkit.charts.models import model_and_measured
from labkit.charts.packing import Beside, article_beside, gpu_packing
from labkit.charts.prefixes import prefix_blocks
from labkit.charts.render import bundle, enable, show_live, spec, svg
from labkit.charts.requests import anatomy, request_timeline
from labkit.charts.scaling import Moment, scaling_timeline
from labkit.charts.stacked import stacked_bars
from labkit.charts.steps import StepPanel, step_panels
from labkit.charts.streams import Lane, token_streams
from labkit.charts.theme import config, finish, palette
from labkit.charts.tradeoff import Tradeoff, tradeoff

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
