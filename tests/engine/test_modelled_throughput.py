"""The calculator's table of modelled replicas is what `labkit simulate` gives: one of its points, run again."""

import pytest

from labkit import modelled
from labkit.advice.costs.throughput import modelled_replicas
from tools.modelled_throughput import fitted, known_error, point

pytestmark = pytest.mark.engine


def test_a_point_of_the_table_comes_back() -> None:
    """The same engine, card, model and load: the same rate, error and fit as in data/modelled_throughput.json."""
    (row,) = (row for row in modelled_replicas("llama-3.1-8b") if row.card == "h100-sxm")
    stored = next(each for each in row.points if each.input_tokens == 600)
    again = point(row.model, row.card, row.tensor_parallel, (stored.input_tokens, stored.output_tokens))
    assert again["requests_per_s"] == pytest.approx(stored.requests_per_s, rel=0.02)
    seconds, fit_error = fitted([each.model_dump() for each in row.points])
    assert [*seconds, fit_error] == pytest.approx([row.prefill_s, row.decode_s, row.context_s, row.fit_error], rel=1e-2)
    assert known_error(modelled.gpu(row.card, model=row.model)).worst == pytest.approx(row.error, abs=1e-3)
