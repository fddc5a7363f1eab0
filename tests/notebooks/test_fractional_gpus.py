"""Lab 06 refuses sizes that cannot work in its first cells: before Ray is imported."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "06_fractional_gpus.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"fractions": [0.6, 0.6, 0.6, 0.6, 0.6]}, "do not all find room: 0.6 would wait"),
        ({"late_fraction": 0.4}, "late_fraction is 0.4, and GPU 2 of 4 has so much left"),
        ({"fractions": [0.9, 0.9], "gpus": 2}, "late_fraction is 0.5; when one of the fractions [] leaves"),
        ({"fractions": [0.5, 1.5, 0.6]}, "from 0.01 to 1 (GPUs)"),
        ({"taken_mib": 100}, "taken_mib is 100, promised_mib 100: no promise is broken"),
        ({"models": ["a", "b"]}, "2 names, 4 memories and 4 loads"),
        ({"models_gib": [96.0, 20.0, 16.0, 14.0]}, "chat needs 96 GiB and a load of 0.42; a GPU has 80 GiB"),
        ({"most_load": 0.4}, "chat needs 24 GiB and a load of 0.42; a GPU has 80 GiB and takes a load of 0.4"),
    ],
)
def test_sizes_that_cannot_work_are_refused_before_ray(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message has the numbers; Ray has not even been imported."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides, engine="ray"), message)


@pytest.mark.notebook
def test_the_first_cells_run_without_ray(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and Ray is not loaded yet."""
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {}, engine="ray"))
