"""Lab 04 refuses sizes that cannot work in its first cells: before vLLM is imported."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "04_chunked_prefill.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"budgets": [64, 2048], "max_num_seqs": 128}, "the budget 64 is below max_num_seqs, 128"),
        ({"long_prompt_tokens": 4000}, "a prompt of 4000 tokens and its answer are longer than max_model_len, 2048"),
        ({"max_model_len": 9000}, "max_model_len is 9000; the model was made for 8192 positions"),
        ({"chunked_prefill": False}, "chunked prefill is off and the budget 128 is below max_model_len, 2048"),
        ({"budgets": [256]}, "budgets is [256]: nothing to compare"),
        ({"budgets": [4, 256]}, "from 8 to 131072 (tokens)"),
        ({"long_prefill_token_threshold": 2048}, "the threshold 2048 does not lie below"),
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
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {}))
