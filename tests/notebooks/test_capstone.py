"""Lab 12 refuses what cannot work in its first cells: before the server is started."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "12_capstone.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"clients": [2, 4]}, "clients is [2, 4]"),
        ({"load_shares": [0.5, 0.9]}, "load_shares is [0.5, 0.9]"),
        ({"slo_share": 1.0}, "from 0.01 to 0.9999"),
        ({"output_tokens_low": 32}, "max_tokens_low is 32, above max_tokens of 16"),
        ({"prompt_words": 3000}, "need 12100 tokens; the model reads 8192"),
        ({"answers": '{"kind": "other"}'}, "this lab deploys vLLM"),
        ({"answers": '{"colour": "red"}'}, "asks nothing called 'colour'"),
        ({"peak_rate": 0.0}, "from 1 to 5000 (requests/s)"),
        ({"guess_keeps": "both"}, "all but the highest"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_cannot_work_is_refused_before_a_server(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message has the numbers, and no server has got as far as a folder of its own."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides, engine="served"), message)
    assert not (tmp_path / "logs").exists()


@pytest.mark.notebook
def test_the_first_cells_run_without_a_server(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and nothing has been started yet."""
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {}, engine="served"))
    assert not (tmp_path / "logs").exists()
