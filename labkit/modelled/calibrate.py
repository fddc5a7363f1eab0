"""Step times of the engine on this machine: measured in a short run and fitted.

    calibration = calibrate(llm)  # a real LLM in this process; about half a minute

`predict` (beside this file) says what another load would see.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from random import Random
from typing import Any

import numpy as np

from labkit.errors import require
from labkit.load.metrics import percentile
from labkit.machine import inspect
from labkit.modelled import settings as modelled_settings
from labkit.modelled.engine import EXECUTOR
from labkit.modelled.replica import exactly
from labkit.modelled.step_time import TERMS, Fitted, Step, terms
from labkit.modelled.tracking import Tracker
from labkit.modelled.traffic import prompt_tokens

UNDISTURBED = 0.95
"""Least CPU time of a step over its wall time, relative to the median of all steps, for the step to be used: in the
others the thread had to wait for a core."""

Array = np.ndarray[Any, np.dtype[np.float64]]

ROUNDS = 3  # at least: the median of two repeats is disturbed if one of them is
SCENE_TOKENS = 4000  # prompt tokens of a scene at most, to keep a round short


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One step of a real engine: what it computed, its seconds on the wall clock, and this process's CPU seconds."""

    step: Step
    seconds: float
    cpu_s: float


@contextmanager
def recording(llm: Any) -> Iterator[list[TimedStep]]:
    """Record the steps of an in-process `LLM` in this block, whole: scheduler, execution and output processing.

    Steps that schedule nothing are left out. UsageError for an engine in a process of its own, with requests under way,
    or with asynchronous scheduling, where a step's duration is another step's execution.
    """
    from labkit.serving.vllm_steps import scheduler as scheduler_of

    scheduler, engine = scheduler_of(llm), llm.llm_engine
    _require_idle(engine)
    tracker = Tracker()
    scheduled: list[Step] = []
    timed: list[TimedStep] = []
    schedule, step = scheduler.schedule, engine.step

    def noted_schedule(*arguments: Any, **options: Any) -> Any:
        output = schedule(*arguments, **options)
        scheduled.append(step_of(tracker, output))
        return output

    def timed_step() -> Any:
        scheduled.clear()
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        outputs = step()
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
        if scheduled and scheduled[-1].tokens:
            timed.append(TimedStep(scheduled[-1], seconds, cpu_s))
        return outputs

    scheduler.schedule, engine.step = noted_schedule, timed_step
    try:
        yield timed
    finally:
        scheduler.schedule, engine.step = schedule, step


def step_of(tracker: Tracker, scheduled: Any) -> Step:
    """What a step computes, from the scheduler's output. The same `tracker` must follow every step of the engine."""
    step = Step()
    for _, request, tokens, due in tracker.follow(scheduled):
        step.add(tokens, prefix=request.computed, decode=due and tokens == 1 and request.written > 0, sampled=due)
        request.written += due
    return step


def _require_idle(engine: Any) -> None:
    idle = not engine.has_unfinished_requests()
    require(idle, "the engine has requests under way", fix="wait until they end, or abort them")
    require(
        not engine.vllm_config.scheduler_config.async_scheduling,
        "the engine uses asynchronous scheduling: a step's duration is not that of what it scheduled",
        fix="start it with async_scheduling=False",
    )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A short load: prompts of `prompts` tokens, of which `together` arrive at a time, with `between` decode steps
    between arrivals and `decodes` after the last. `chunk`: token budget of a step, or None for the engine's."""

    prompts: tuple[int, ...]
    together: int = 1
    between: int = 0
    decodes: int = 0
    chunk: int | None = None

    @property
    def output_tokens(self) -> int:
        """Of each request, enough to run until the scene ends."""
        return len(self.prompts) * (1 + self.between) + self.decodes + 1


LENGTHS = (40, 100, 16, 160, 64, 24, 128, 48, 300, 80)
DECODES = 4
PROBE = Scene(prompts=(40, 100, 60, 100), between=1, decodes=DECODES)


def scenes(*, max_num_seqs: int, max_model_len: int, kv_tokens: int) -> list[Scene]:
    """The loads of one round: sequences that join until max_num_seqs run, decodes of 1, 2, 4 ... sequences with short
    and long contexts, prefills of 8 to 1,000 tokens, and a chunked prefill; without those too large for the engine."""
    widths = [2**power for power in range(max_num_seqs.bit_length())]
    lengths = LENGTHS * (1 + max_num_seqs // len(LENGTHS))
    found = [
        Scene(prompts=lengths[:max_num_seqs], between=1, decodes=DECODES),
        Scene(prompts=lengths[5 : 5 + max_num_seqs], between=1, decodes=DECODES),
        *(Scene(prompts=(40,) * width, together=width, decodes=DECODES) for width in widths),
        *(Scene(prompts=(tokens,) * width, decodes=DECODES) for width, tokens in ((1, 1000), (8, 400), (16, 150))),
        *(Scene(prompts=(tokens,)) for tokens in (8, 16, 32, 64, 96, 128, 256, 512)),
        *(Scene(prompts=(tokens,) * 4, together=4) for tokens in (64, 120)),
        Scene(prompts=(600,), chunk=200),
    ]
    return [
        scene
        for scene in dict.fromkeys(found)
        if len(scene.prompts) <= max_num_seqs
        and max(scene.prompts) + scene.output_tokens <= max_model_len
        and sum(scene.prompts) <= SCENE_TOKENS
        and sum(scene.prompts) + len(scene.prompts) * scene.output_tokens <= kv_tokens // 2
    ]


class _Player:
    """Plays scenes on a real engine, each with prompts that no other one had."""

    def __init__(self, llm: Any) -> None:
        from labkit.serving.vllm_steps import scheduler

        self._llm, self._engine, self._scheduler = llm, llm.llm_engine, scheduler(llm)
        self._names = count()
        self._key = f"calibrate/{time.time_ns()}"

    def play(self, scene: Scene) -> list[TimedStep]:
        """The scene's steps, timed. The engine is idle afterwards."""
        names: list[str] = []
        budget = self._scheduler.max_num_scheduled_tokens
        self._scheduler.max_num_scheduled_tokens = min(budget, scene.chunk or budget)
        try:
            with recording(self._llm) as timed:
                for first in range(0, len(scene.prompts), scene.together):
                    arriving = scene.prompts[first : first + scene.together]
                    names += [self._add(tokens, scene.output_tokens) for tokens in arriving]
                    for _ in range(1 + scene.between):
                        self._engine.step()
                while sum(done.step.prefill_tokens for done in timed) < sum(scene.prompts):
                    self._engine.step()
                for _ in range(scene.decodes):
                    self._engine.step()
                return list(timed)
        finally:
            self._scheduler.max_num_scheduled_tokens = budget
            self._engine.abort_request(names)

    def _add(self, prompt: int, output_tokens: int) -> str:
        name = f"calibrate-{next(self._names)}"
        token_ids = prompt_tokens(prompt, key=f"{self._key}/{name}")
        self._engine.add_request(name, {"prompt_token_ids": token_ids}, exactly(output_tokens))
        return name


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted step times.

    `coefficients`: seconds, by the names of step_time.TERMS. `error_median`, `error_p90`: of the absolute errors of
    the fitted step times, relative to the measured ones. `largest`: the largest value of each term in the calibration.
    """

    coefficients: Mapping[str, float]
    error_median: float
    error_p90: float
    steps: int
    largest: Mapping[str, float]

    @property
    def step_time(self) -> Fitted:
        return Fitted(coefficients=self.coefficients)


@dataclass(frozen=True, kw_only=True)
class Calibration(Fit):
    """Fitted step times of one engine on one machine. `LLM(calibration.model, **calibration.llm)` is vLLM on both,
    modelled: the same scheduler options and KV blocks, and a virtual clock."""

    machine: str
    vllm: str
    model: str
    llm: Mapping[str, Any]


FIT_ITERATIONS = 20
NORMAL_MEDIAN = 0.6745  # of the absolute value, in standard deviations of a normal distribution
HUBER = 1.345
"""Errors of more than this many standard deviations count less (Huber's constant: 95% efficient on normal errors)."""


def fit(steps: Sequence[TimedStep]) -> Fit:
    """Coefficients of step_time.TERMS, none of them negative, with the least relative errors.

    Steps in which the process waited for a core are left out, repeats of a step count as their median, and errors far
    beyond the usual ones count less. UsageError for fewer different steps than twice the number of terms.
    """
    used = _undisturbed(steps)
    rows, seconds = _medians(used)
    require(
        len(rows) >= 2 * len(TERMS),
        f"{len(rows)} different steps are too few to fit {len(TERMS)} coefficients",
        fix="calibrate an engine with a larger max_model_len, max_num_seqs or KV cache",
    )
    found = _robust(rows, seconds)
    errors = [abs(sum(found * terms(timed.step)) / timed.seconds - 1) for timed in used]
    return Fit(
        coefficients=dict(zip(TERMS, map(float, found), strict=True)),
        error_median=percentile(errors, 50),
        error_p90=percentile(errors, 90),
        steps=len(used),
        largest=dict(zip(TERMS, map(float, rows.max(axis=0)), strict=True)),
    )


def _undisturbed(steps: Sequence[TimedStep]) -> list[TimedStep]:
    """The steps in which the thread had a core all the time, where the engine computes in one thread; else all."""
    shares = [timed.cpu_s / timed.seconds for timed in steps]
    usual = percentile(shares, 50)
    if not 0.9 < usual < 1.1:
        return list(steps)
    return [timed for timed, share in zip(steps, shares, strict=True) if share >= UNDISTURBED * usual]


def _medians(steps: Sequence[TimedStep]) -> tuple[Array, Array]:
    """Terms of each different step, a row each, and the median seconds of its repeats."""
    repeats: dict[tuple[float, ...], list[float]] = {}
    for timed in steps:
        repeats.setdefault(terms(timed.step), []).append(timed.seconds)
    return np.array([*repeats], dtype=float), np.array([percentile(seconds, 50) for seconds in repeats.values()])


def _robust(rows: Array, seconds: Array) -> Array:
    """Non-negative coefficients with the least relative errors, by least squares with Huber's weights."""
    from scipy.optimize import nnls

    scale, weights = seconds, np.ones_like(seconds)
    for _ in range(FIT_ITERATIONS):
        weighted = rows * (weights / scale)[:, None]
        sizes = np.maximum(np.linalg.norm(weighted, axis=0), 1e-300)
        found = nnls(weighted / sizes, seconds * weights / scale)[0] / sizes
        fitted = rows @ found
        errors = np.abs(seconds / fitted - 1)
        spread = max(percentile(errors, 50) / NORMAL_MEDIAN, 1e-9)
        weights = np.sqrt(np.minimum(1.0, HUBER * spread / np.maximum(errors, 1e-12)))
        scale = fitted  # errors relative to the measured time would prefer coefficients that are too small
    return np.asarray(found)


def calibrate(llm: Any, *, seconds: float = 35.0, progress: Callable[[str], None] = lambda _: None) -> Calibration:
    """Measure and fit the step times of a real in-process `LLM`, in about `seconds` and at least ROUNDS rounds.

    Empties nothing and changes no option of the engine; its prefix cache holds calibration prompts afterwards.
    UsageError: see `recording` and `fit`, and for an engine on a modelled GPU.
    """
    import vllm

    config = llm.llm_engine.vllm_config
    real = config.parallel_config.distributed_executor_backend != EXECUTOR
    require(real, "this engine runs on a modelled GPU", fix="calibrate a real one")
    fitted = fit(measure(llm, seconds=seconds, progress=progress))
    return Calibration(
        **asdict(fitted),
        machine=inspect().line(),
        vllm=vllm.__version__.split("+")[0],
        model=str(config.model_config.model),
        llm=modelled_llm(config, fitted.coefficients),
    )


def measure(llm: Any, *, seconds: float, progress: Callable[[str], None] = lambda _: None) -> list[TimedStep]:
    """Rounds of all scenes in a new order each, until `seconds` have passed and ROUNDS are complete."""
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    todo = scenes(
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_model_len=config.model_config.max_model_len,
        kv_tokens=cache.num_gpu_blocks * cache.block_size,
    )
    player, rng, steps = _Player(llm), Random(0), list[TimedStep]()
    for scene in todo[-2:]:  # the first steps of an engine are slow
        player.play(scene)
    began_s = time.perf_counter()
    for number in count(1):
        for scene in rng.sample(todo, len(todo)):
            steps += player.play(scene)
            if number > ROUNDS and time.perf_counter() - began_s > seconds:
                return steps
        progress(f"calibration: round {number}, {len(steps)} steps, {time.perf_counter() - began_s:.0f} s")
        if number >= ROUNDS and time.perf_counter() - began_s > seconds:
            return steps
    raise AssertionError("unreachable")


def speed(llm: Any, calibration: Calibration) -> float:
    """Seconds of a few fixed steps now over their fitted seconds: 1.1 says that the machine is 10% slower than when it
    was calibrated. Takes about two seconds."""
    player = _Player(llm)
    return slowdown([timed for _ in range(2) for timed in player.play(PROBE)], calibration)


def slowdown(steps: Sequence[TimedStep], calibration: Calibration) -> float:
    """Measured seconds of all `steps` over fitted ones."""
    return sum(timed.seconds for timed in steps) / sum(calibration.step_time.seconds(timed.step) for timed in steps)


KV_CACHE_BYTES = 2**30
"""For vLLM's check of the memory alone: num_gpu_blocks_override decides how many blocks there are."""


def modelled_llm(config: Any, coefficients: Mapping[str, float]) -> dict[str, Any]:
    """Arguments of `LLM(...)` for the modelled version of the engine with vLLM's configuration `config`."""
    scheduler, cache = config.scheduler_config, config.cache_config
    return {
        "distributed_executor_backend": EXECUTOR,
        "additional_config": {modelled_settings.KEY: {"source": "fitted", "coefficients": dict(coefficients)}},
        "skip_tokenizer_init": True,
        "max_model_len": config.model_config.max_model_len,
        "block_size": cache.block_size,
        "num_gpu_blocks_override": cache.num_gpu_blocks,
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "enable_prefix_caching": cache.enable_prefix_caching,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_chunked_prefill": scheduler.enable_chunked_prefill,
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold,
        "scheduling_policy": scheduler.policy,
    }
