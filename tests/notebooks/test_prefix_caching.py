"""Lab 03 refuses sizes that cannot work in its first cells: before vLLM is imported."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "03_prefix_caching.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"shared_tokens": [0, 160]}, "160 tokens of a prompt are to be shared, but it has 160"),
        ({"prompt_tokens": 8190}, "make 8214; the model takes 8192"),
        ({"block_size": 20}, "block_size is 20; vLLM on a"),
        ({"shared_tokens": [0, 20]}, "not a full block of 32"),
        ({"page_tokens": 20}, "page_tokens is 20: a page does not fill a block of 32"),
        ({"cached_pages": 1}, "cached_pages is 1"),
    ],
)
def test_sizes_that_cannot_work_are_refused_before_the_engine(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message has the numbers; the engine has not even been imported."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides), message)


@pytest.mark.notebook
def test_the_first_cells_run_without_an_engine(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and vLLM is not loaded yet."""
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {"guess_short_prefix": "nothing"}))
