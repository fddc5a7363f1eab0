"""Calibration without an engine: the fit recovers known step times, and predictions refuse what they cannot support."""

import json
import math
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
from labkit.modelled.step_time import TERMS, Fitted, Step
from labkit.modelled.traffic import TokenRequest

COEFFICIENTS = dict(zip(TERMS, (50e-3, 5e-3, 0.4e-3, 0.3e-3, 3e-6, 0.2e-6), strict=True))
TRUTH = Fitted(coefficients=COEFFICIENTS)
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
    work = Step()
    for _ in range(decodes):
        work.add(1, prefix=context - 1, decode=True, sampled=True)
    for tokens in prefills:
        work.add(tokens, prefix=0, decode=False, sampled=True)
    return work


def timed(rounds: int, *, noise: float = 0.0, disturbed: float = 0.0, visible: bool = True, seed: int = 0) -> Any:
    """Steps of `rounds` whose times follow COEFFICIENTS: noise as a standard deviation, and a share of `disturbed`
    steps that took 1.2 to 3 times as long, which the CPU time shows if `visible`."""
    rng, steps = Random(seed), []
    for work in [step(*shape) for shape in SCENE_STEPS] * rounds:
        alone_s = TRUTH.seconds(work) * rng.lognormvariate(0, noise)
        factor = rng.uniform(1.2, 3) if rng.random() < disturbed else 1.0
        steps.append(TimedStep(work, factor * alone_s, alone_s if visible else factor * alone_s))
    return steps


def errors(coefficients: Mapping[str, float]) -> list[float]:
    """Absolute relative errors of calibrated steps and of steps in between."""
    fitted, steps = Fitted(coefficients=coefficients), [step(*shape) for shape in (*SCENE_STEPS, *UNSEEN)]
    return [abs(fitted.seconds(work) / TRUTH.seconds(work) - 1) for work in steps]


def test_exact_step_times_give_their_coefficients() -> None:
    """Without noise the fit recovers every coefficient; a machine that is 10% slower has a slowdown of 1.1."""
    result = fit(timed(1))
    assert result.coefficients == pytest.approx(COEFFICIENTS, rel=1e-6)
    assert result.error_p90 < 1e-9
    assert result.steps == len(SCENE_STEPS)
    slower = [replace(work, seconds=1.1 * work.seconds) for work in timed(1)]
    assert slowdown(slower, CALIBRATION) == pytest.approx(1.1)


def test_noise_and_disturbed_steps_barely_change_step_times() -> None:
    """3% noise, and 15% of steps that waited for a core, visible in their CPU time: errors within 1.5% on average and
    7% at worst. 10% of invisible outliers: within 3% on average, without a bound for the worst step, since two of three
    repeats of a large prefill may be outliers."""
    for seed in range(20):
        seen = fit(timed(3, noise=0.03, disturbed=0.15, seed=seed))
        assert (fmean(errors(seen.coefficients)) < 0.015, max(errors(seen.coefficients)) < 0.07) == (True, True), seed
        assert 0.01 < seen.error_median < 0.03, seed
        assert seen.steps < 3 * len(SCENE_STEPS), seed
        unseen = fit(timed(3, noise=0.03, disturbed=0.1, visible=False, seed=seed))
        assert fmean(errors(unseen.coefficients)) < 0.03, seed


def test_a_coefficient_is_never_negative() -> None:
    """Sequences without cost get a coefficient of about 0, although noise suggests a negative one."""
    steps = timed(2, noise=0.05)
    free = [replace(timed, seconds=timed.seconds - COEFFICIENTS["sequences"] * timed.step.sequences) for timed in steps]
    assert min(fit(free).coefficients.values()) >= 0


def test_which_steps_are_fitted() -> None:
    """All steps of a multi-threaded engine, whose CPU time does not show waiting; nine distinct steps are too few."""
    steps = [replace(work, cpu_s=work.seconds * (2.5 if index % 2 else 1)) for index, work in enumerate(timed(1))]
    assert fit(steps).steps == len(steps)
    with pytest.raises(UsageError, match="9 different steps"):
        fit(timed(3)[:9])


@given(max_num_seqs=st.integers(1, 300), max_model_len=st.integers(64, 8192), kv_tokens=st.integers(1024, 200_000))
def test_scenes_fit_the_engine(max_num_seqs: int, max_model_len: int, kv_tokens: int) -> None:
    """No scene exceeds the engine's request length, sequences or KV cache."""
    for scene in scenes(max_num_seqs=max_num_seqs, max_model_len=max_model_len, kv_tokens=kv_tokens):
        assert len(scene.prompts) <= max_num_seqs
        assert max(scene.prompts) + scene.output_tokens <= max_model_len
        assert sum(scene.prompts) + len(scene.prompts) * scene.output_tokens <= kv_tokens


def test_scenes_of_an_ordinary_engine_cover_decodes_prefills_and_mixed_steps() -> None:
    """Scenes have up to max_num_seqs sequences, joining one by one or together, single prefills, and chunks."""
    result = scenes(max_num_seqs=16, max_model_len=2048, kv_tokens=46_592)
    assert {2, 4, 8, 16} <= {len(scene.prompts) for scene in result if scene.decodes and scene.together > 1}
    assert any(len(scene.prompts) == 16 and scene.together == 1 and scene.between for scene in result)
    assert any(scene.chunk for scene in result)
    assert {scene.prompts for scene in result} >= {(8,), (512,)}


class FakeEngine:
    """An engine that computes nothing; `outputs` are its scheduler's."""

    def __init__(self, outputs: Sequence[Any] = (), *, busy: bool = False, ahead: bool = False) -> None:
        self._outputs, self._busy = list(outputs), busy
        self.scheduler = SimpleNamespace(schedule=lambda: self._outputs.pop(0))
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=self.scheduler))
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=ahead))
        self.llm = SimpleNamespace(llm_engine=self)

    def has_unfinished_requests(self) -> bool:
        return self._busy

    def step(self) -> list[Any]:
        self.scheduler.schedule()
        return []


def output(tokens: int, *, prompt: int = 0, computed: int = 0) -> Any:
    """A SchedulerOutput with `tokens` of request "a", which is new with a `prompt` or has `computed` tokens."""
    new = SimpleNamespace(req_id="a", prompt_len=prompt, num_computed_tokens=0, sampling_params=None)
    known = {"a": computed} if computed else {}
    return SimpleNamespace(
        preempted_req_ids=None,
        finished_req_ids=(),
        scheduled_new_reqs=[new] if prompt else [],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[*known], num_computed_tokens=[*known.values()]),
        num_scheduled_tokens={"a": tokens} if tokens else {},
    )


def test_recording_tells_chunks_from_decodes() -> None:
    """A prompt of 10 tokens in chunks of 6 and 4, then a decode; an empty step is skipped."""
    engine = FakeEngine([output(6, prompt=10), output(4, computed=6), output(0), output(1, computed=10)])
    with recording(engine.llm) as steps:
        for _ in range(4):
            engine.step()
    first, second, third = (timed.step for timed in steps)
    assert (first.prefill_tokens, first.sampled, first.attention_pairs) == (6, 0, 18)
    assert (second.prefill_tokens, second.sampled, second.prefill_times_prefix) == (4, 1, 24)
    assert (third.decodes, third.context, third.prefill_tokens) == (1, 11, 0)
    assert all(timed.seconds > 0 for timed in steps)


def test_recording_leaves_an_engine_as_it_was() -> None:
    """Even if the block fails; one whose steps it would misread, busy or with asynchronous scheduling, is refused."""
    engine = FakeEngine()
    schedule, stepping = engine.scheduler.schedule, engine.step
    with pytest.raises(ZeroDivisionError), recording(engine.llm):
        raise ZeroDivisionError
    assert (engine.scheduler.schedule, engine.step) == (schedule, stepping)
    for misread, says in ((FakeEngine(busy=True), "in flight"), (FakeEngine(ahead=True), "asynchronous")):
        with pytest.raises(UsageError, match=says), recording(misread.llm):
            pass


CALIBRATION = Calibration(**asdict(fit(timed(1))), machine="a test", vllm="0.32.0", model="small", llm={})
ENGINE = SimpleNamespace(
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


def test_the_modelled_engine_has_the_real_ones_options() -> None:
    """Scheduler limits and KV blocks are copied; the coefficients are JSON in vLLM's additional_config."""
    result = json.loads(json.dumps(modelled_llm(ENGINE, COEFFICIENTS)))
    names = ("num_gpu_blocks_override", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
    assert [result[name] for name in names] == [364, 128, 16, 4096, 2048]
    assert result["additional_config"]["modelled_gpu"] == {"source": "fitted", "coefficients": COEFFICIENTS}


def predicted_at(rate: float, monkeypatch: pytest.MonkeyPatch, work: Step | None = None) -> Any:
    """`predict` on a fake engine that drove 40 requests of 100 + 32 tokens at `rate`, each with a TTFT of 0.1 s and a
    TPOT of 0.05 s, in steps of `work`."""
    sent = [TokenRequest(token_ids=[1], output_tokens=32, due_s=index / rate) for index in range(40)]
    records = []
    for index, due_s in enumerate(request.due_s for request in sent):
        times = tuple(due_s + 0.1 + 0.05 * token for token in range(32))
        records.append(RequestRecord(index, due_s, due_s, times, times[-1], 100, 32, Outcome.OK))
    result = LoadResult(tuple(records), 40 / rate + 2, 0.0, None, None, "token ids", None)
    executor = SimpleNamespace(step_time=None, settings=SimpleNamespace(overhead_s=0.0), windows=[math.inf], steps=[])

    def drive(*_: Any, **__: Any) -> Drive:
        executor.steps.append((0.06, 0.06, work or step(8, 100, ())))
        return Drive(result=result, moments=[[]], replica_of=[0] * 40, preemptions=0, cached_by_record=[])

    monkeypatch.setattr(module, "drive", drive)
    engine = SimpleNamespace(llm_engine=SimpleNamespace(model_executor=executor, vllm_config=ENGINE))
    return predict(CALIBRATION, sent, engine=engine)


def test_a_prediction_holds_latencies_up_to_80_percent_of_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capacity follows from full steps, and latencies are the driven load's; slightly above there is a reason."""
    result = predicted_at(3.0, monkeypatch)
    assert result.cannot_say is None
    assert result.load_share == pytest.approx(3.0 / result.capacity_per_s)
    assert [*asdict(result.latencies).values()] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    assert predicted_at(HIGHEST_SHARE * result.capacity_per_s, monkeypatch).latencies is not None
    above = predicted_at(0.82 * result.capacity_per_s, monkeypatch)
    assert above.to_json()["latencies"] is above.latencies is None
    assert "82% of the modelled capacity" in above.cannot_say


def test_steps_far_beyond_the_calibration_get_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 10,000 tokens, where the calibration had 2,000, are refused; 1 in 100 is acceptable."""
    far = step(0, 0, (2000,) * 5)
    result = predicted_at(3.0, monkeypatch, far)
    assert result.latencies is None
    assert "as any in the calibration" in result.cannot_say
    steps = [(0.05, step(8, 100, ()))] * 990 + [(0.5, far)]
    assert cannot_say(CALIBRATION, load_share=0.5, steps=steps) is None
    assert cannot_say(CALIBRATION, load_share=0.5, steps=steps[900:]) is not None


def test_answers_of_one_token_have_no_tpot_in_json() -> None:
    """NaN becomes null."""
    none = Latencies(ttft_p50_s=0.1, ttft_p95_s=0.2, tpot_mean_s=float("nan"), tpot_p50_s=float("nan"))
    result = module.Prediction(load_share=0.1, capacity_per_s=5.0, latencies=none, cannot_say=None)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["latencies"]["tpot_mean_s"] is None
