"""Measure and fit the step times of the engine on this machine.

    calibration = calibrate(llm)  # a real LLM in this process; about half a minute

`labkit.modelled.predict` predicts other loads from it.
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
"""Minimum CPU time / wall time of a used step, relative to the median of all steps: in others the thread waited for a
core."""

Array = np.ndarray[Any, np.dtype[np.float64]]

ROUNDS = 3  # minimum: a median of two repeats does not resist a disturbed one
SCENE_TOKENS = 4000  # limit of a scene's prompt tokens, to keep a round short


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One step of a real engine, its wall-clock seconds, and this process's CPU seconds."""

    step: Step
    seconds: float
    cpu_s: float


@contextmanager
def recording(llm: Any) -> Iterator[list[TimedStep]]:
    """Record the steps of an in-process `LLM` in this block: scheduling, execution and output processing.

    Empty steps are skipped. UsageError for an engine in another process, with requests in flight, or with asynchronous
    scheduling, where a step's duration includes another step's execution.
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
    """Build the Step of a scheduler's output. One `tracker` must follow every step of the engine."""
    step = Step()
    for _, request, due in tracker.follow(scheduled, step):
        request.written += due
    return step


def _require_idle(engine: Any) -> None:
    idle = not engine.has_unfinished_requests()
    require(idle, "the engine has requests in flight", fix="wait until they end, or abort them")
    synchronous = not engine.vllm_config.scheduler_config.async_scheduling
    what = "the engine uses asynchronous scheduling: a step's duration includes another step's execution"
    require(synchronous, what, fix="start it with async_scheduling=False")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A short load: prompts of `prompts` tokens, `together` arriving at a time, with `between` decode steps between
    arrivals and `decodes` after the last. `chunk`: token budget of a step; None for the engine's."""

    prompts: tuple[int, ...]
    together: int = 1
    between: int = 0
    decodes: int = 0
    chunk: int | None = None

    @property
    def output_tokens(self) -> int:
        """Per request, enough to run until the scene ends."""
        return len(self.prompts) * (1 + self.between) + self.decodes + 1


LENGTHS = (40, 100, 16, 160, 64, 24, 128, 48, 300, 80)
DECODES = 4
PROBE = Scene(prompts=(40, 100, 60, 100), between=1, decodes=DECODES)


def scenes(*, max_num_seqs: int, max_model_len: int, kv_tokens: int) -> list[Scene]:
    """Return the scenes of one round that fit the engine: sequences joining until max_num_seqs run, decodes of 1, 2,
    4 ... sequences with short and long contexts, prefills of 8 to 1,000 tokens, and a chunked prefill."""
    widths = [2**power for power in range(max_num_seqs.bit_length())]
    lengths = LENGTHS * (1 + max_num_seqs // len(LENGTHS))
    candidates = [
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
        for scene in dict.fromkeys(candidates)
        if len(scene.prompts) <= max_num_seqs
        and max(scene.prompts) + scene.output_tokens <= max_model_len
        and sum(scene.prompts) <= SCENE_TOKENS
        and sum(scene.prompts) + len(scene.prompts) * scene.output_tokens <= kv_tokens // 2
    ]


class _Player:
    """Play scenes on a real engine, each with new prompts."""

    def __init__(self, llm: Any) -> None:
        from labkit.serving.vllm_steps import scheduler

        self._llm, self._engine, self._scheduler = llm, llm.llm_engine, scheduler(llm)
        self._names = count()
        self._key = f"calibrate/{time.time_ns()}"

    def play(self, scene: Scene) -> list[TimedStep]:
        """Return the scene's timed steps; leave the engine idle."""
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

    `coefficients`: seconds, by the names in step_time.TERMS. `error_median`, `error_p90`: absolute relative errors of
    the fitted step times. `largest`: the largest value of each term in the calibration.
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
    """Fitted step times of one engine on one machine. `LLM(calibration.model, **calibration.llm)` is its modelled
    version: the same scheduler options and KV blocks, on a virtual clock."""

    machine: str
    vllm: str
    model: str
    llm: Mapping[str, Any]


FIT_ITERATIONS = 20
NORMAL_MEDIAN = 0.6745  # of the absolute value, in standard deviations of a normal distribution
HUBER = 1.345
"""Errors beyond this many standard deviations get less weight (Huber's constant: 95% efficient on normal errors)."""


def fit(steps: Sequence[TimedStep]) -> Fit:
    """Fit non-negative coefficients of step_time.TERMS with the least relative errors.

    Steps that waited for a core are dropped, repeats count as their median, and outliers get less weight. UsageError
    for fewer distinct steps than twice the number of terms.
    """
    used = _undisturbed(steps)
    rows, seconds = _medians(used)
    what = f"{len(rows)} different steps are too few to fit {len(TERMS)} coefficients"
    fix = "calibrate an engine with a larger max_model_len, max_num_seqs or KV cache"
    require(len(rows) >= 2 * len(TERMS), what, fix=fix)
    coefficients = _robust(rows, seconds)
    errors = [abs(sum(coefficients * terms(timed.step)) / timed.seconds - 1) for timed in used]
    return Fit(
        coefficients=dict(zip(TERMS, map(float, coefficients), strict=True)),
        error_median=percentile(errors, 50),
        error_p90=percentile(errors, 90),
        steps=len(used),
        largest=dict(zip(TERMS, map(float, rows.max(axis=0)), strict=True)),
    )


def _undisturbed(steps: Sequence[TimedStep]) -> list[TimedStep]:
    """Return the steps during which a single-threaded engine always had a core; all steps of other engines."""
    shares = [timed.cpu_s / timed.seconds for timed in steps]
    usual = percentile(shares, 50)
    if not 0.9 < usual < 1.1:
        return list(steps)
    return [timed for timed, share in zip(steps, shares, strict=True) if share >= UNDISTURBED * usual]


def _medians(steps: Sequence[TimedStep]) -> tuple[Array, Array]:
    """Return a row of terms for each distinct step, and the median seconds of its repeats."""
    repeats: dict[tuple[float, ...], list[float]] = {}
    for timed in steps:
        repeats.setdefault(terms(timed.step), []).append(timed.seconds)
    return np.array([*repeats], dtype=float), np.array([percentile(seconds, 50) for seconds in repeats.values()])


def _robust(rows: Array, seconds: Array) -> Array:
    """Fit non-negative coefficients of relative errors by least squares with Huber's weights."""
    from scipy.optimize import nnls

    scale, weights = seconds, np.ones_like(seconds)
    for _ in range(FIT_ITERATIONS):
        weighted = rows * (weights / scale)[:, None]
        sizes = np.maximum(np.linalg.norm(weighted, axis=0), 1e-300)
        coefficients = nnls(weighted / sizes, seconds * weights / scale)[0] / sizes
        fitted = rows @ coefficients
        errors = np.abs(seconds / fitted - 1)
        spread = max(percentile(errors, 50) / NORMAL_MEDIAN, 1e-9)
        weights = np.sqrt(np.minimum(1.0, HUBER * spread / np.maximum(errors, 1e-12)))
        scale = fitted  # errors relative to the measured time would bias coefficients downwards
    return np.asarray(coefficients)


def calibrate(llm: Any, *, seconds: float = 35.0, progress: Callable[[str], None] = lambda _: None) -> Calibration:
    """Measure and fit the step times of a real in-process `LLM`, in about `seconds` and at least ROUNDS rounds.

    Afterwards its prefix cache contains calibration prompts. UsageError as `recording` and `fit`, and for an engine on
    a modelled GPU.
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
    """Play rounds of all scenes in random order until `seconds` have passed and ROUNDS are complete."""
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    round_scenes = scenes(
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_model_len=config.model_config.max_model_len,
        kv_tokens=cache.num_gpu_blocks * cache.block_size,
    )
    player, rng, steps = _Player(llm), Random(0), list[TimedStep]()
    for scene in round_scenes[-2:]:  # warm-up: an engine's first steps are slow
        player.play(scene)
    began_s = time.perf_counter()
    for number in count(1):
        for scene in rng.sample(round_scenes, len(round_scenes)):
            steps += player.play(scene)
            if number > ROUNDS and time.perf_counter() - began_s > seconds:
                return steps
        progress(f"calibration: round {number}, {len(steps)} steps, {time.perf_counter() - began_s:.0f} s")
        if number >= ROUNDS and time.perf_counter() - began_s > seconds:
            return steps
    raise AssertionError("unreachable")


def speed(llm: Any, calibration: Calibration) -> float:
    """Return measured / fitted seconds of a few fixed steps, in about two seconds: 1.1 means 10% slower than during the
    calibration."""
    player = _Player(llm)
    return slowdown([timed for _ in range(2) for timed in player.play(PROBE)], calibration)


def slowdown(steps: Sequence[TimedStep], calibration: Calibration) -> float:
    """Measured seconds of all `steps` over fitted ones."""
    return sum(timed.seconds for timed in steps) / sum(calibration.step_time.seconds(timed.step) for timed in steps)


KV_CACHE_BYTES = 2**30
"""Only for vLLM's memory check: num_gpu_blocks_override sets the number of blocks."""


def modelled_llm(config: Any, coefficients: Mapping[str, float]) -> dict[str, Any]:
    """Return the arguments of `LLM(...)` for the modelled version of an engine with vLLM's configuration `config`."""
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
