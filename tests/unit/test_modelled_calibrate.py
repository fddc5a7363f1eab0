"""Calibration without an engine: the fit recovers known step times, and a prediction knows what it cannot say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from random import Random
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.modelled import predict as module
from labkit.modelled.calibrate import Calibration, TimedStep, fit, modelled_llm, recording, scenes, slowdown
from labkit.modelled.driver import Drive
from labkit.modelled.predict import HIGHEST_SHARE, Latencies, cannot_say, predict
from labkit.modelled.step_time import TERMS, Fitted, Step, terms
from labkit.modelled.traffic import TokenRequest

COEFFICIENTS = {
    "constant": 50e-3,
    "prefilling": 5e-3,
    "tokens": 0.4e-3,
    "sequences": 0.3e-3,
    "context": 3e-6,
    "attention_pairs": 0.2e-6,
}
SCENE_STEPS = [
    *((width, context, ()) for width in (1, 2, 4, 8, 15, 16) for context in (41, 45, 150)),
    *((width, 45, (tokens,)) for width in (1, 4, 15) for tokens in (16, 48, 100, 160, 300)),
    *((0, 0, (tokens,)) for tokens in (8, 32, 64, 128, 256, 512, 1000)),
    *((0, 0, (250,) * prompts) for prompts in (2, 4, 8)),
    (4, 250, ()),
    (1, 1000, ()),
]
UNSEEN = [(6, 90, ()), (12, 70, (120,)), (3, 300, (80, 60)), (0, 0, (700,))]


def step(decodes: int, context: int, prefills: Sequence[int]) -> Step:
    found = Step()
    for _ in range(decodes):
        found.add(1, prefix=context - 1, decode=True, sampled=True)
    for tokens in prefills:
        found.add(tokens, prefix=0, decode=False, sampled=True)
    return found


def timed(rounds: int, *, noise: float = 0.0, disturbed: float = 0.0, visible: bool = True, seed: int = 0) -> Any:
    """Steps of `rounds` whose times follow COEFFICIENTS: noise as a standard deviation, and a share of `disturbed`
    steps that took 1.2 to 3 times as long, which the CPU time shows if `visible`."""
    rng, truth = Random(seed), Fitted(coefficients=COEFFICIENTS)
    steps = []
    for _ in range(rounds):
        for shape in SCENE_STEPS:
            made = step(*shape)
            alone_s = truth.seconds(made) * rng.lognormvariate(0, noise)
            factor = rng.uniform(1.2, 3) if rng.random() < disturbed else 1.0
            steps.append(TimedStep(made, factor * alone_s, alone_s if visible else factor * alone_s))
    return steps


def errors(coefficients: Mapping[str, float]) -> list[float]:
    """Of steps that were calibrated and of steps in between, relative, without sign."""
    truth, fitted = Fitted(coefficients=COEFFICIENTS), Fitted(coefficients=coefficients)
    made = [step(*shape) for shape in (*SCENE_STEPS, *UNSEEN)]
    return [abs(fitted.seconds(one) / truth.seconds(one) - 1) for one in made]


def test_exact_step_times_give_their_coefficients() -> None:
    """Without noise the fit recovers every coefficient."""
    found = fit(timed(1))
    assert found.coefficients == pytest.approx(COEFFICIENTS, rel=1e-6)
    assert found.error_p90 < 1e-9
    assert found.steps == len(SCENE_STEPS)


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_waits_for_a_core_barely_change_step_times(seed: int) -> None:
    """3% of noise, and 15% of the steps waited for a core, which their CPU time shows: fitted step times are within
    1.5% on average and 7% at worst."""
    found = fit(timed(3, noise=0.03, disturbed=0.15, seed=seed))
    assert fmean(errors(found.coefficients)) < 0.015
    assert max(errors(found.coefficients)) < 0.07
    assert 0.01 < found.error_median < 0.03
    assert found.steps < 3 * len(SCENE_STEPS)


@pytest.mark.parametrize("seed", range(20))
def test_outliers_that_the_cpu_time_does_not_show_change_step_times_little(seed: int) -> None:
    """10% of the steps take 1.2 to 3 times as long and look like the others: within 3% on average. There is no bound
    for the worst step: two of three repeats of a large prefill may be outliers."""
    found = fit(timed(3, noise=0.03, disturbed=0.1, visible=False, seed=seed))
    assert fmean(errors(found.coefficients)) < 0.03


def test_a_coefficient_is_never_negative() -> None:
    """Sequences that cost nothing get a coefficient of about 0, not a negative one that noise would suggest."""
    steps = timed(2, noise=0.05)
    free = [replace(one, seconds=one.seconds - COEFFICIENTS["sequences"] * one.step.sequences) for one in steps]
    found = fit(free)
    assert all(value >= 0 for value in found.coefficients.values())


def test_an_engine_of_several_threads_keeps_all_steps() -> None:
    """Its CPU time says nothing about waiting."""
    steps = [replace(one, cpu_s=2.5 * one.seconds if index % 2 else one.seconds) for index, one in enumerate(timed(1))]
    assert fit(steps).steps == len(steps)


def test_too_few_steps_are_refused() -> None:
    """Six coefficients from nine different steps would be a guess."""
    with pytest.raises(UsageError, match="9 different steps"):
        fit(timed(3)[:9])


@given(max_num_seqs=st.integers(1, 300), max_model_len=st.integers(64, 8192), kv_tokens=st.integers(1024, 200_000))
def test_scenes_fit_the_engine(max_num_seqs: int, max_model_len: int, kv_tokens: int) -> None:
    """No scene has a request that is too long, more sequences than may run, or more tokens than the KV cache."""
    for scene in scenes(max_num_seqs=max_num_seqs, max_model_len=max_model_len, kv_tokens=kv_tokens):
        assert len(scene.prompts) <= max_num_seqs
        assert max(scene.prompts) + scene.output_tokens <= max_model_len
        assert sum(scene.prompts) + len(scene.prompts) * scene.output_tokens <= kv_tokens


def test_scenes_of_an_ordinary_engine_cover_decodes_prefills_and_mixed_steps() -> None:
    """Up to max_num_seqs sequences that join one by one or together, lone prefills, and chunks."""
    found = scenes(max_num_seqs=16, max_model_len=2048, kv_tokens=46_592)
    assert {1, 2, 4, 8, 16} <= {len(scene.prompts) for scene in found if scene.decodes and scene.together > 1} | {1}
    assert any(len(scene.prompts) == 16 and scene.together == 1 and scene.between for scene in found)
    assert any(scene.chunk for scene in found)
    assert {scene.prompts for scene in found} >= {(8,), (512,)}


# --- recording ---


class FakeEngine:
    """An engine that computes nothing: `outputs` are what its scheduler gives, step by step."""

    def __init__(self, outputs: Sequence[Any], *, busy: bool = False, ahead: bool = False) -> None:
        self._outputs, self._busy = list(outputs), busy
        self.scheduler = SimpleNamespace(schedule=lambda: self._outputs.pop(0))
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=self.scheduler))
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=ahead))

    def has_unfinished_requests(self) -> bool:
        return self._busy

    def step(self) -> list[Any]:
        if self._outputs:
            self.scheduler.schedule()
        return []


def output(scheduled: Mapping[str, int], *, new: Mapping[str, int] | None = None, computed: Any = None) -> Any:
    """A SchedulerOutput: tokens by request, prompt lengths of new ones, and computed tokens of the known ones."""
    return SimpleNamespace(
        preempted_req_ids=None,
        finished_req_ids=(),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prompt_len=length, num_computed_tokens=0, sampling_params=None)
            for name, length in (new or {}).items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[*(computed or {})], num_computed_tokens=[*(computed or {}).values()]
        ),
        num_scheduled_tokens=scheduled,
    )


def llm(engine: FakeEngine) -> Any:
    return SimpleNamespace(llm_engine=engine)


def test_recording_tells_chunks_from_decodes() -> None:
    """A prompt of 10 tokens in chunks of 6 and 4, then a decode; a step without tokens is left out."""
    engine = FakeEngine(
        [
            output({"a": 6}, new={"a": 10}),
            output({"a": 4}, computed={"a": 6}),
            output({}),
            output({"a": 1}, computed={"a": 10}),
        ]
    )
    with recording(llm(engine)) as steps:
        for _ in range(4):
            engine.step()
    first, second, third = (one.step for one in steps)
    assert (first.prefill_tokens, first.sampled, first.attention_pairs) == (6, 0, 18)
    assert (second.prefill_tokens, second.sampled, second.prefill_times_prefix) == (4, 1, 24)
    assert (third.decodes, third.context, third.prefill_tokens) == (1, 11, 0)
    assert all(one.seconds > 0 for one in steps)


def test_recording_gives_the_engine_its_methods_back() -> None:
    """Also when the block fails."""
    engine = FakeEngine([])
    schedule, stepping = engine.scheduler.schedule, engine.step
    with pytest.raises(ZeroDivisionError), recording(llm(engine)):
        raise ZeroDivisionError
    assert engine.scheduler.schedule is schedule
    assert engine.step == stepping


def test_recording_refuses_engines_whose_steps_it_would_misread() -> None:
    """One with requests under way, whose prompts it has not seen, and one that schedules ahead."""
    with pytest.raises(UsageError, match="under way"), recording(llm(FakeEngine([], busy=True))):
        pass
    with pytest.raises(UsageError, match="asynchronous"), recording(llm(FakeEngine([], ahead=True))):
        pass


# --- predictions ---


def calibration() -> Calibration:
    found = fit(timed(1))
    return Calibration(
        coefficients=found.coefficients,
        error_median=0.02,
        error_p90=0.05,
        steps=found.steps,
        largest=found.largest,
        machine="2 CPUs (a test), 24 GiB, no GPU",
        vllm="0.32.0",
        model="/models/small",
        llm={"block_size": 128, "additional_config": {"modelled_gpu": {"source": "fitted"}}},
    )


def test_the_modelled_engine_has_the_real_ones_options() -> None:
    """Scheduler limits and KV blocks are copied; the coefficients are in vLLM's additional_config, ready for JSON."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=2048),
        cache_config=SimpleNamespace(block_size=128, num_gpu_blocks=364, enable_prefix_caching=True),
        scheduler_config=SimpleNamespace(
            max_num_seqs=16,
            max_num_batched_tokens=4096,
            enable_chunked_prefill=True,
            long_prefill_token_threshold=0,
            policy="fcfs",
        ),
    )
    found = json.loads(json.dumps(modelled_llm(config, COEFFICIENTS)))
    assert found["num_gpu_blocks_override"] == 364
    assert found["block_size"] == 128
    assert found["max_num_seqs"] == 16
    assert found["max_num_batched_tokens"] == 4096
    assert found["additional_config"]["modelled_gpu"] == {"source": "fitted", "coefficients": COEFFICIENTS}


def driven(n: int, *, rate: float) -> Drive:
    """`n` requests of 100 + 32 tokens at a constant rate, each with a TTFT of 0.1 s and a TPOT of 0.05 s."""
    records = tuple(
        RequestRecord(
            index=index,
            scheduled_s=index / rate,
            started_s=index / rate,
            chunk_times_s=tuple(index / rate + 0.1 + 0.05 * token for token in range(32)),
            finished_s=index / rate + 0.1 + 0.05 * 31,
            input_tokens=100,
            output_tokens=32,
            outcome=Outcome.OK,
        )
        for index in range(n)
    )
    result = LoadResult(
        records=records,
        duration_s=n / rate + 2,
        client_cpu_s=0.0,
        concurrency=None,
        rate=None,
        workload="token ids",
        seed=None,
    )
    return Drive(result=result, moments=[[]], replica_of=[0] * n, preemptions=0, cached_tokens=0)


def predicted_at(rate: float, monkeypatch: pytest.MonkeyPatch, made: Step | None = None) -> Any:
    """`predict` on a stand-in engine that drove 40 requests at `rate`, all its steps like `made`."""
    executor = SimpleNamespace(step_time=None, settings=SimpleNamespace(overhead_s=0.0), steps=[])
    config = SimpleNamespace(
        cache_config=SimpleNamespace(num_gpu_blocks=364, block_size=128),
        scheduler_config=SimpleNamespace(max_num_seqs=16, max_num_batched_tokens=4096),
    )

    def drive(*_: Any, **__: Any) -> Drive:
        executor.steps.append((0.06, 0.06, made or step(8, 100, ())))
        return driven(40, rate=rate)

    monkeypatch.setattr(module, "drive", drive)
    sent = [TokenRequest(token_ids=[1], output_tokens=32, due_s=index / rate) for index in range(40)]
    engine = SimpleNamespace(llm_engine=SimpleNamespace(model_executor=executor, vllm_config=config))
    return predict(calibration(), sent, engine=engine)


def test_a_prediction_below_80_percent_holds_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The capacity is that of full steps, and the latencies are those of the load that was driven."""
    found = predicted_at(3.0, monkeypatch)
    assert found.cannot_say is None
    assert found.load_share == pytest.approx(3.0 / found.capacity_per_s)
    assert asdict(found.latencies) == pytest.approx(
        {"ttft_p50_s": 0.1, "ttft_p95_s": 0.1, "tpot_mean_s": 0.05, "tpot_p50_s": 0.05}
    )


def test_a_prediction_above_80_percent_says_so_and_holds_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80% of capacity there are latencies; a little above there is a reason instead."""
    capacity_per_s = predicted_at(3.0, monkeypatch).capacity_per_s
    assert predicted_at(HIGHEST_SHARE * capacity_per_s, monkeypatch).latencies is not None
    above = predicted_at(0.82 * capacity_per_s, monkeypatch)
    assert above.latencies is None
    assert "82% of the modelled capacity" in above.cannot_say
    assert above.to_json()["latencies"] is None


def test_steps_far_beyond_the_calibration_get_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration had up to 2,000 tokens in a step; nothing is known of 10,000."""
    found = predicted_at(3.0, monkeypatch, step(0, 0, (2000,) * 5))
    assert found.latencies is None
    assert "as any in the calibration" in found.cannot_say


def test_a_few_large_steps_do_not_spoil_a_prediction() -> None:
    """One in a hundred, by time."""
    steps = [(0.05, step(8, 100, ()))] * 990 + [(0.5, step(0, 0, (2000,) * 5))]
    assert cannot_say(calibration(), load_share=0.5, steps=steps) is None
    assert cannot_say(calibration(), load_share=0.5, steps=steps[900:]) is not None


def test_answers_of_one_token_have_no_tpot_in_json() -> None:
    """JSON has no NaN."""
    found = module.Prediction(
        load_share=0.1,
        capacity_per_s=5.0,
        latencies=Latencies(ttft_p50_s=0.1, ttft_p95_s=0.2, tpot_mean_s=float("nan"), tpot_p50_s=float("nan")),
        cannot_say=None,
    )
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["latencies"]["tpot_mean_s"] is None


def test_slowdown_compares_all_steps_with_their_fitted_times() -> None:
    """A machine that is 10% slower has a slowdown of 1.1."""
    slower = [replace(one, seconds=1.1 * one.seconds) for one in timed(1)]
    assert slowdown(slower, calibration()) == pytest.approx(1.1)


def test_terms_have_names() -> None:
    """Each term of a step has a coefficient by name."""
    assert len(terms(Step())) == len(TERMS)
