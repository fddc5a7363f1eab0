"""Lab 07 refuses what cannot work in its first cells: before anything is packed and Java is started."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "07_torchserve_handlers.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_sizes": [4, 8]}, "batch_sizes is [4, 8], long_delay_batch is 8"),
        ({"batch_sizes": [1], "long_delay_batch": 8}, "batch_sizes is [1], long_delay_batch is 8"),
        ({"long_delay_batch": 6}, "long_delay_batch is 6"),
        ({"long_delay_batch": 1}, "from 2 to 64 (rows)"),
        ({"many_clients": 65}, "from 2 to 64 (clients)"),
        ({"timeout_s": 0}, "from 1 to 60 (s)"),
        ({"guess_together": "all of them"}, "all four get an answer"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_cannot_work_is_refused_before_java(overrides: dict[str, object], message: str, tmp_path: Path) -> None:
    """The message has the numbers; nothing has been packed or started."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides, engine="ts"), message)
    assert not (tmp_path / "archives").exists()


@pytest.mark.notebook
def test_the_first_cells_run_without_java(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and TorchServe is not there yet."""
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {}, engine="ts"))
