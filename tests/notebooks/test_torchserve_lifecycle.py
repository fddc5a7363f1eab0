"""Lab 08 refuses what cannot work in its first cells: before TorchServe, Ray or vLLM is started."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "08_torchserve_lifecycle.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rate": 110.0}, "110 requests/s are too many for one worker, which answers 114 in batches of 8"),
        ({"fixed_s": 1.0}, "50 requests/s are too many for one worker, which answers 8"),
        ({"canary_share": 0.01}, "leaves one side 4"),
        ({"canary_requests": 100}, "of 100 requests a share of 0.03 leaves one side 3"),
        ({"answer_tokens": 65}, "from 2 to 64 (tokens)"),
        ({"clients": 0}, "from 1 to 16 (requests)"),
        ({"guess_canary": "bad"}, "cannot tell"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_cannot_work_is_refused_before_a_server(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message has the numbers, and no server has got as far as a folder of its own."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides, engine="torchserve"), message)
    assert not (tmp_path / "logs").exists()


@pytest.mark.notebook
def test_the_first_cells_run_without_a_server(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and nothing has been started yet."""
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {}, engine="torchserve"))
    assert not (tmp_path / "logs").exists()
