"""Predict a load's latencies on a calibrated machine, or refuse with a reason.

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
"""Largest share of the modelled capacity with a prediction: above it, small errors of step times become large errors of
waiting times."""

BEYOND = 2.0
"""A step is beyond the calibration if a term exceeds this many times the largest calibrated one."""

BEYOND_SHARE = 0.05
"""Largest share of modelled time in steps beyond the calibration with a prediction."""


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """TTFT from when requests were due, and time per output token after the first, in seconds. NaN without values, such
    as the TPOT of answers of one token."""

    ttft_p50_s: float
    ttft_p95_s: float
    tpot_mean_s: float
    tpot_p50_s: float

    @classmethod
    def of(cls, driven: Drive) -> Self:
        """Summarise a load driven through a real or a modelled engine."""
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
    """A load on the calibrated machine. `load_share`: its rate / `capacity_per_s` (requests per second at most). Either
    `latencies` or `cannot_say` (the reason) is None."""

    load_share: float
    capacity_per_s: float
    latencies: Latencies | None
    cannot_say: str | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with None for NaN."""
        data = asdict(self)
        if self.latencies is not None:
            data["latencies"] = {key: None if math.isnan(value) else value for key, value in data["latencies"].items()}
        return data


def predict(
    calibration: Calibration, traffic: Traffic, *, concurrency: int | None = None, engine: Any = None
) -> Prediction:
    """Predict latencies of `traffic` on the calibrated machine: vLLM's scheduler with fitted step times, on a virtual
    clock; a closed loop with `concurrency`, else each request is sent when due.

    Returns a reason instead of latencies above HIGHEST_SHARE of capacity, or if more than BEYOND_SHARE of the time is
    in steps beyond the calibration. `engine`: from `modelled_engine`, to predict many loads (default: start one, in a
    second). UsageError for a request that the engine refuses.
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
    """Start the modelled version of the calibrated engine as an in-process `LLM`; a real engine stays usable."""
    from vllm import LLM

    llm = LLM(calibration.model, **calibration.llm)
    try:
        yield llm
    finally:
        close(llm)


def cannot_say(calibration: Calibration, *, load_share: float, steps: Sequence[tuple[float, Step]]) -> str | None:
    """Return why a load's latencies cannot be predicted, or None. `steps`: modelled seconds and Steps."""
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
