"""Lab 04's scene and rules on the modelled card: the directions that its prose names, and its exercises' solutions."""

import os
from collections.abc import Mapping
from typing import Any

import pytest

from course import lab_04
from labkit import modelled

pytestmark = pytest.mark.engine
STREAMS, LONG_TOKENS, SERVER = 32, 12_000, 8192
NEWCOMER = f"TTFT, {lab_04.NEWCOMER}"
RULES: Mapping[str, Mapping[str, Any]] = {
    "512": {"max_num_batched_tokens": 512},
    "8192": {"max_num_batched_tokens": SERVER},
    "threshold": {"max_num_batched_tokens": SERVER, "long_prefill_token_threshold": 1024},
}


def on_card(requests: modelled.Traffic, **options: Any) -> lab_04.Played:
    """The lab's own function: a served 8B on a modelled H100."""
    gpu = modelled.gpu("h100-sxm", model="llama-3.1-8b")
    os.environ.update(gpu.env)
    from vllm import LLM

    engine = LLM(gpu.model, **gpu.served_llm | {"max_model_len": 16384, "max_num_seqs": 256} | options)
    try:
        return lab_04.play(engine, requests)
    finally:
        modelled.close(engine)


@pytest.fixture(scope="module")
def played() -> dict[str, lab_04.Played]:
    """The scene with two budgets, and with a threshold."""
    scene = lab_04.scene(STREAMS, LONG_TOKENS, at_s=[1.0, 2.0], answer_tokens=400)
    return {name: on_card(scene, **options) for name, options in RULES.items()}


def test_the_scheduler_cuts_a_prompt_as_the_rule_says(played: dict[str, lab_04.Played]) -> None:
    """Budget, streams and threshold give the chunks, to the token."""
    for name, options in RULES.items():
        by_rule = lab_04.chunk_sizes(LONG_TOKENS, *_limits(options))
        assert played[name].chunks() == by_rule


def _limits(options: Mapping[str, int]) -> tuple[int, int, int]:
    return options["max_num_batched_tokens"], STREAMS, options.get("long_prefill_token_threshold", 0)


def test_the_longest_gap_is_the_longest_step_and_grows_with_the_budget(played: dict[str, lab_04.Played]) -> None:
    """No median shows it; and the newcomer waits least with a threshold."""
    rows = {name: lab_04.figures(run) for name, run in played.items()}
    gaps, newcomers = ({name: row[f"{key} (ms)"] for name, row in rows.items()} for key in ("longest gap", NEWCOMER))
    assert gaps["8192"] > 4 * gaps["512"]
    assert newcomers["512"] > newcomers["8192"]
    assert rows["512"]["TTFT, long prompt (ms)"] > 1.25 * rows["8192"]["TTFT, long prompt (ms)"]
    assert newcomers["threshold"] < min(newcomers["512"], newcomers["8192"]) / 2
    for run in played.values():
        steps = [moment for moment in run.driven.moments[0] if moment.end_s > 0.5]
        assert max(run.stalls_s) == pytest.approx(max(step.duration_s for step in steps), abs=1e-6)
    medians = [row["gap p50 (ms)"] for row in rows.values()]
    assert max(medians) < 1.1 * min(medians)


def test_more_chats_freeze_than_the_median_shows() -> None:
    """A long prompt now and then: the longest gap and the share of chats tell, the median does not."""
    quiet, loaded = (
        lab_04.tail(on_card(lab_04.chats_and_reports(n, report_tokens=LONG_TOKENS, seed=0)), 0.1) for n in (0, 6)
    )
    assert quiet["chats that froze (%)"] == 0 < loaded["chats that froze (%)"]
    assert loaded["gap p50 (ms)"] < 1.1 * quiet["gap p50 (ms)"]
    assert loaded["chats that froze (%)"] > 10 * loaded["gaps above the SLO (%)"]
    assert loaded["frozen per long prompt"] > 1


def test_a_rule_of_ones_own_runs_in_the_scheduler() -> None:
    """Without a rule it is vLLM's own to the last digit; with the solution short prompts no longer wait."""
    from vllm.v1.core.sched.scheduler import Scheduler

    def with_rule(rule: Any) -> type[Scheduler]:
        class MyScheduler(Scheduler):  # type: ignore[misc]  # vLLM is untyped here
            def schedule(self, *args: Any, **kwargs: Any) -> Any:
                queue: list[Any] = list(self.waiting)
                order = rule(queue) or queue
                self.waiting.clear()
                self.waiting.extend(order)
                return super().schedule(*args, **kwargs)

        return MyScheduler

    burst = lab_04.burst(seed=0)
    own = lab_04.mean_ttfts(on_card(burst))
    assert lab_04.mean_ttfts(on_card(burst, scheduler_cls=with_rule(lambda _: None))) == own
    shortest = lab_04.mean_ttfts(on_card(burst, scheduler_cls=with_rule(lab_04.next_up)))
    assert shortest["mean TTFT, short (s)"] < own["mean TTFT, short (s)"] / 2
    assert shortest["mean TTFT, long (s)"] > own["mean TTFT, long (s)"]
