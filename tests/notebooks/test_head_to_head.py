"""Lab 09 refuses what cannot be compared in its first cells: before one of its servers is started."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "09_head_to_head.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tokens_low": 13}, "answers of 13 to 12 tokens"),
        ({"requests": 6}, "6 requests for 5 clients"),
        ({"prompt_words": 12}, "from 16 to 300 (words)"),
        ({"dtype": "int8"}, "float32, bfloat16"),
        ({"usd_per_hour": -1.0}, "from 0 to 1000"),
        ({"guess_memory": "Java"}, "TorchServe naive"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_server(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message has the numbers, and no server has got as far as a folder of its own."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides, engine="servers"), message)
    assert not (tmp_path / "logs").exists()


@pytest.mark.notebook
def test_the_first_cells_run_without_a_server(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and nothing has been started yet."""
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {}, engine="servers"))
    assert not (tmp_path / "logs").exists()
