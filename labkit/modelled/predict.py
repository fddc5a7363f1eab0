"""What another load would see on a machine that was calibrated, or that nobody can say.

prediction = predict(calibration, traffic.at_rate(traffic.fixed(60, input_tokens=100, output_tokens=32), rate=1.5))
prediction.latencies, prediction.cannot_say
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from labkit.load.metrics import percentile, summarise
from labkit.modelled.calibrate import Calibration
from labkit.modelled.driver import Drive, drive
from labkit.modelled.replica import close
from labkit.modelled.simulate import capacity_per_s, offered_rate
from labkit.modelled.step_time import TERMS, Step, terms
from labkit.modelled.traffic import Traffic

HIGHEST_SHARE = 0.8
"""Share of the modelled capacity up to which a prediction gives latencies. Above it a small error in step times becomes
a large one in waiting times."""

BEYOND = 2.0
"""A step is beyond the calibration if one of its terms is larger than this many times the largest one calibrated."""

BEYOND_SHARE = 0.05
"""Share of modelled time in steps beyond the calibration up to which a prediction gives latencies."""


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Of a load's requests, in seconds: TTFT from the moment a request was due, and time per output token after the
    first. NaN where there is none, such as a TPOT of answers of one token."""

    ttft_p50_s: float
    ttft_p95_s: float
    tpot_mean_s: float
    tpot_p50_s: float

    @classmethod
    def of(cls, driven: Drive) -> Self:
        """The latencies of a load that was driven through a real or a modelled engine."""
        tpot_s = summarise(driven.result).tpot_s
        ttft_s = [record.ttft_s for record in driven.result.records if record.ok and record.ttft_s is not None]
        return cls(
            ttft_p50_s=percentile(ttft_s, 50),
            ttft_p95_s=percentile(ttft_s, 95),
            tpot_mean_s=tpot_s.mean,
            tpot_p50_s=tpot_s.p50,
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A load on the calibrated machine. `load_share`: its rate over `capacity_per_s`, the requests per second that the
    machine could finish. Either `latencies` or `cannot_say`, a sentence with the reason, is None."""

    load_share: float
    capacity_per_s: float
    latencies: Latencies | None
    cannot_say: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts; NaN becomes null."""
        found = asdict(self)
        if self.latencies is not None:
            found["latencies"] = {
                name: None if math.isnan(value) else value for name, value in found["latencies"].items()
            }
        return found


def predict(
    calibration: Calibration, traffic: Traffic, *, concurrency: int | None = None, engine: Any = None
) -> Prediction:
    """Latencies of `traffic` on the calibrated machine: vLLM's own scheduler with the fitted step times, on a virtual
    clock. With `concurrency` a closed loop, else each request comes when it is due.

    Above HIGHEST_SHARE of capacity, and where more than BEYOND_SHARE of the time is in steps larger than the
    calibration's, it gives a reason instead of latencies. `engine`: one of `modelled_engine`, to predict many loads;
    default: one is started, in a second. UsageError for a request that the engine refuses.
    """
    if engine is None:
        with modelled_engine(calibration) as started:
            return predict(calibration, traffic, concurrency=concurrency, engine=started)
    executor, config = engine.llm_engine.model_executor, engine.llm_engine.vllm_config
    executor.step_time = calibration.step_time
    executor.steps.clear()
    driven = drive(engine, traffic, concurrency=concurrency)
    capacity = capacity_per_s(executor, config, driven)
    share = offered_rate(traffic, driven, concurrency) / capacity
    steps = [(seconds, step) for _, seconds, step in executor.steps]
    reason = cannot_say(calibration, load_share=share, steps=steps)
    return Prediction(
        load_share=share,
        capacity_per_s=capacity,
        latencies=None if reason else Latencies.of(driven),
        cannot_say=reason,
    )


@contextmanager
def modelled_engine(calibration: Calibration) -> Iterator[Any]:
    """The modelled version of the calibrated engine, as an in-process `LLM`. A real engine beside it stays usable."""
    from vllm import LLM

    llm = LLM(calibration.model, **calibration.llm)
    try:
        yield llm
    finally:
        close(llm)


def cannot_say(calibration: Calibration, *, load_share: float, steps: Sequence[tuple[float, Step]]) -> str | None:
    """Why a load's latencies cannot be told, or None. `steps`: modelled seconds and what was computed."""
    if load_share > HIGHEST_SHARE * (1 + 1e-9):
        return (
            f"cannot say: the load is {load_share:.0%} of the modelled capacity; above {HIGHEST_SHARE:.0%} waiting "
            "times depend more on small errors of the step times than on the load"
        )
    largest = np.array([calibration.largest[name] for name in TERMS])
    beyond_s = sum(seconds for seconds, step in steps if np.any(np.array(terms(step)) > BEYOND * largest))
    share = beyond_s / sum(seconds for seconds, _ in steps)
    if share > BEYOND_SHARE:
        return (
            f"cannot say: {share:.0%} of the time is in steps more than {BEYOND:g} times as large as any in the "
            "calibration"
        )
    return None
