"""Lab 02 refuses sizes that cannot work in its first cells: before vLLM is imported."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "02_paged_attention.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"block_sizes": [32, 100]}, "block_size is 100; vLLM on a"),
        ({"prompt_tokens": 240}, "a prompt of 240 and an answer of 22 tokens are longer than max_model_len, 256"),
        ({"max_model_len": 9000}, "max_model_len is 9,000; the model was made for 8,192 positions"),
        ({"max_model_len": 32}, "max_model_len is 32, no more than one block of 32"),
        ({"tiny_blocks": 8}, "8 blocks of 32 hold no request of max_model_len 256"),
        ({"tiny_blocks": 64}, "nothing would be preempted"),
        ({"gpu_model": "GPT-5"}, "there is no example model called 'GPT-5'"),
        ({"repeats": 0}, "from 1 to 100 (rounds)"),
        ({"log_file": "nowhere.log"}, "there is no log file nowhere.log"),
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
