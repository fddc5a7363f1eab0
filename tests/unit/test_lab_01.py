"""Lab 01: when goodput falls although throughput grows."""

import pytest

from course.lab_01 import goodput_falls_first
from labkit.load import LoadResult
from tests.unit.test_charts import record


def answered(n: int, duration_s: float) -> LoadResult:
    """A load with `n` requests that took `duration_s`."""
    return LoadResult(tuple(map(record, range(n))), duration_s, 0.0, concurrency=None, rate=1.0, workload="", seed=None)


@pytest.mark.parametrize(
    ("kept", "duration_s", "falls"),
    [
        ({10: 1.0, 20: 0.3}, 10.0, True),  # 10 and then 6 good requests per second, of 10 and 20
        ({10: 1.0, 20: 0.6}, 10.0, False),  # goodput grows, too
        ({10: 1.0, 20: 0.6}, 18.0, True),  # the same share of a load that took longer to answer
        ({10: 1.0, 20: 0.9}, 25.0, False),  # throughput fell as well
    ],
)
def test_goodput_is_counted_per_second_of_the_whole_run(kept: dict[int, float], duration_s: float, falls: bool) -> None:
    """A run that ends late has less goodput, as it has less throughput."""
    loads = {10: answered(100, 10.0), 20: answered(200, duration_s)}
    assert goodput_falls_first(kept, loads) is falls
