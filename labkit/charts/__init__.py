"""Charts that need no network, name the machine that was measured, and can be read without colour vision.

Every function takes plain data and returns a `Chart`: a Vega-Lite specification that a notebook shows offline and
`svg` draws for the report. Empty data raise UsageError. Submodules are imported on first use.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "bars": ("Bar", "bars_with_intervals", "dots", "stacked_bars"),
    "curves": ("LinePoint", "LoadPoint", "Tradeoff", "computed_and_measured", "lines",
               "throughput_latency", "tradeoff"),
    "panels": ("Moment", "StepPanel", "scaling_timeline", "step_panels",
               "in_flight"),
    "render": ("Chart", "bundle", "finish", "spec", "svg"),
    "spans": ("Lane", "anatomy", "batch_grid", "memory_map", "prefix_blocks", "token_streams"),
}  # fmt: skip
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
