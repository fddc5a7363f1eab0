"""Lab 05 refuses what cannot work in its first cells: before Ray is imported."""

from pathlib import Path

import pytest

from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "05_ray_serve_pipelines.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"short_s": 1.0}, "8 requests/s of 1 s ask for 4 replicas before the step"),
        ({"long_s": 0.1}, "8 requests/s of 0.1 s ask for one replica: nothing would happen"),
        ({"step_rate": 30.0}, "the step asks for 11 replicas and max_replicas is 3"),
        ({"reply_tokens": 512, "short_tokens": 200}, "answers of 800 tokens leave no room for prompts"),
        ({"max_replicas": 1}, "from 2 to 64 (replicas)"),
        ({"batch_clients": 65}, "from 2 to 64 (clients)"),
        ({"guess_lost": "all"}, "none of them"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_cannot_work_is_refused_before_ray(overrides: dict[str, object], message: str, tmp_path: Path) -> None:
    """The message has the numbers; Ray has not even been imported."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides, engine="ray"), message)


@pytest.mark.notebook
def test_the_first_cells_run_without_ray(tmp_path: Path) -> None:
    """With the lab's own parameters they end well, and Ray is not loaded yet."""
    assert_ready(run_first_cells(NOTEBOOK, tmp_path, {}, engine="ray"))
