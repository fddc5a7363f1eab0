"""The result record: parameters, machine, versions, what is exact, what was measured. Write, read, compare.

One lab writes one file, <lab>.json, whole at every moment; run.json describes the run. `exact` is compared bit by bit,
ratios within the tolerance that stands beside them.
"""

from labkit.records.comparison import Comparison, RatioPair, compare, within
from labkit.records.files import FORMAT, write_atomic
from labkit.records.newest import newest, read_newest
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
    read,
    read_all,
    read_run,
    set_status,
)
from labkit.records.recorder import Recorder
from labkit.records.values import Difference, differences, plain

__all__ = [
    "FORMAT",
    "RUN_FILE",
    "Attempts",
    "Chart",
    "Comparison",
    "Difference",
    "LabRun",
    "Measured",
    "RatioPair",
    "Record",
    "Recorder",
    "RunInfo",
    "Scalar",
    "Status",
    "compare",
    "differences",
    "newest",
    "plain",
    "read",
    "read_all",
    "read_newest",
    "read_run",
    "set_status",
    "within",
    "write_atomic",
]
