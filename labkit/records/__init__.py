"""Result records: write, read and compare parameters, machine, versions, exact values and measurements.

Each lab writes <lab>.json, complete at every moment; run.json describes the run. `exact` is compared bit by bit, ratios
within their tolerance.
"""

from labkit.files import write_atomic
from labkit.records.comparison import Comparison, compare, within
from labkit.records.record import (
    RUN_FILE,
    Attempts,
    Chart,
    LabRun,
    Measured,
    Record,
    RunInfo,
    Scalar,
    Status,
    differences,
    plain,
    read,
    read_all,
    read_newest,
    read_run,
    set_status,
)
from labkit.records.recorder import Recorder

__all__ = [
    "RUN_FILE",
    "Attempts",
    "Chart",
    "Comparison",
    "LabRun",
    "Measured",
    "Record",
    "Recorder",
    "RunInfo",
    "Scalar",
    "Status",
    "compare",
    "differences",
    "plain",
    "read",
    "read_all",
    "read_newest",
    "read_run",
    "set_status",
    "within",
    "write_atomic",
]
