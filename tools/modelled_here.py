"""Compare predictions of a calibrated step-time formula with measured loads: python tools/modelled_here.py

Starts vLLM with the embedded chat model in this process, calibrates its step times, and sends open loops at shares of
the predicted capacity, in random order, each at least REPEATS times. Prints predictions and measurements; the exit
status is always 0. About three minutes on two cores.

Two columns separate machine noise from the formula's error. "speed": seconds of a few fixed steps just before and after
a load, over the seconds at calibration. "waited": share of the load's step time in which the process had no core.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import geometric_mean
from typing import Any

from labkit import modelled
from labkit.load.workloads import poisson_arrivals_s
from labkit.machine import inspect
from labkit.modelled.calibrate import Calibration, calibrate, recording, slowdown, speed
from labkit.modelled.predict import Latencies, Prediction, modelled_engine, predict
from labkit.modelled.step_time import Fitted
from labkit.modelled.traffic import TokenRequest, Traffic, arriving, prompt_tokens

ENGINE = {"max_model_len": 2048, "max_num_seqs": 16}
REPEATS, SECONDS = 2, 7.0
LEAST_REQUESTS = 8
LOADS = (("chat", 0.2), ("chat", 0.4), ("chat", 0.6), ("chat", 0.8), ("mixed", 0.4), ("mixed", 0.8), ("chat", 0.95))
QUANTITIES = {"ttft_p50_s": "TTFT p50", "ttft_p95_s": "TTFT p95", "tpot_mean_s": "TPOT mean"}
BOUND = 0.15  # for the count in the last lines


@dataclass(frozen=True, kw_only=True)
class Load:
    """An open loop at a share of capacity, with its prediction."""

    kind: str
    share: float
    traffic: Traffic
    prediction: Prediction

    @property
    def name(self) -> str:
        return f"{self.kind} {self.share:.0%}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement of a load. `predicted_now`: prediction with the machine's speed around the run.

    `steps`: measured over fitted seconds of the run's steps. `speed` and `waited`: see the module's docstring.
    """

    measured: Latencies
    predicted_now: Latencies
    speed: float
    steps: float
    waited: float


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="measurements of each load (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of a load (default: %(default)s)")
    parser.add_argument("--model", default="", help="a model folder or hub id (default: the embedded chat model)")
    options = parser.parse_args(arguments)
    llm = start(options.model)
    calibration = calibrate(llm, progress=say)
    with modelled_engine(calibration) as engine:
        loads = [
            planned(calibration, kind, share, seconds=options.seconds, engine=engine, seed=number)
            for number, (kind, share) in enumerate(LOADS)
        ]
        runs = measured(llm, calibration, loads, repeats=max(REPEATS, options.repeats), engine=engine)
    print("\n".join(report(calibration, loads, runs)))
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def start(model: str) -> Any:
    """Start an engine in this process, with labkit's settings for this machine."""
    from labkit import models
    from labkit.serving import vllm as serving

    settings = serving.settings(inspect())
    settings.apply()
    folder = models.resolve(model or models.CHAT)
    from vllm import LLM

    return LLM(str(folder), **ENGINE, **settings.llm, async_scheduling=False)


# --- the loads ---


def planned(calibration: Calibration, kind: str, share: float, *, seconds: float, engine: Any, seed: int) -> Load:
    """Return Poisson arrivals for `seconds`, at exactly `share` of the predicted capacity for these requests."""
    sample = requests(kind, 100, seed=seed)
    rate = share * predict(calibration, sample, engine=engine).capacity_per_s
    n = max(LEAST_REQUESTS, round(rate * seconds))
    sent, times_s = (
        sample[:n] if n <= 100 else requests(kind, n, seed=seed),
        poisson_arrivals_s(n, rate=rate, seed=seed),
    )
    prediction = predict(calibration, arriving(sent, times_s), engine=engine)
    traffic = arriving(sent, [time_s * prediction.load_share / share for time_s in times_s])
    return Load(kind=kind, share=share, traffic=traffic, prediction=predict(calibration, traffic, engine=engine))


def requests(kind: str, n: int, *, seed: int) -> list[TokenRequest]:
    """Return requests. Chat: 40 to 160 prompt and 16 to 48 output tokens. Mixed: each fourth prompt has 300 to 800."""
    rng = Random(f"here/{kind}/{seed}")
    sent = []
    for number in range(n):
        long = kind == "mixed" and number % 4 == 3
        prompt = rng.randint(300, 800) if long else rng.randint(40, 160)
        ids = prompt_tokens(prompt, key=f"here/{kind}/{seed}/{number}")
        sent.append(TokenRequest(token_ids=ids, output_tokens=rng.randint(16, 48)))
    return sent


# --- the measurements ---


def measured(
    llm: Any, calibration: Calibration, loads: Sequence[Load], *, repeats: int, engine: Any
) -> dict[str, list[Run]]:
    """Return each load's runs. Each repeat measures all loads in random order."""
    rng = Random(0)
    todo = [load for load in loads if load.prediction.latencies is not None]
    runs: dict[str, list[Run]] = {load.name: [] for load in todo}
    before = speed(llm, calibration)
    for repeat in range(repeats):
        for load in rng.sample(todo, len(todo)):
            say(f"repeat {repeat + 1} of {repeats}: {load.name}, {len(load.traffic)} requests")
            with recording(llm) as steps:
                driven = modelled.drive(llm, load.traffic)
            after = speed(llm, calibration)
            now = (before + after) / 2
            before = after
            step_s = sum(timed.seconds for timed in steps)
            runs[load.name].append(
                Run(
                    measured=Latencies.of(driven),
                    predicted_now=at_speed(calibration, now, load.traffic, engine=engine),
                    speed=now,
                    steps=slowdown(steps, calibration),
                    waited=max(0.0, 1 - sum(timed.cpu_s for timed in steps) / step_s),
                )
            )
    return runs


def at_speed(calibration: Calibration, slowness: float, traffic: Traffic, *, engine: Any) -> Latencies:
    """Return the prediction if each step takes `slowness` times as long as at calibration."""
    coefficients = {name: slowness * value for name, value in calibration.coefficients.items()}
    engine.llm_engine.model_executor.step_time = Fitted(coefficients=coefficients)
    return Latencies.of(modelled.drive(engine, traffic))


# --- the report ---


def report(calibration: Calibration, loads: Sequence[Load], runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return the tables as Markdown, and the number of quantities that were predicted within BOUND."""
    fitted = ", ".join(f"{name} {1e6 * value:.3g}" for name, value in calibration.coefficients.items())
    lines = [
        f"{calibration.machine}; vLLM {calibration.vllm}; {Path(calibration.model).name}",
        f"{calibration.steps} steps; error of a step: median {calibration.error_median:.1%},"
        f" 90th percentile {calibration.error_p90:.1%}",
        f"coefficients, microseconds: {fitted}",
        "",
        "Predicted / measured in ms (ratio of each repeat)",
        f"| load | requests | {' | '.join(QUANTITIES.values())} | speed | steps | waited |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(load, runs.get(load.name, ())) for load in loads]
    lines += ["", *_counts(loads, runs)]
    return lines


def _row(load: Load, runs: Sequence[Run]) -> str:
    prediction = load.prediction
    if prediction.latencies is None:
        return f"| {load.name} | {len(load.traffic)} | {prediction.cannot_say} | | | | | |"
    cells = [
        _cell(getattr(prediction.latencies, name), [getattr(run.measured, name) for run in runs]) for name in QUANTITIES
    ]
    noise = [
        " ".join(f"{run.speed:.2f}" for run in runs),
        " ".join(f"{run.steps:.2f}" for run in runs),
        " ".join(f"{run.waited:.0%}" for run in runs),
    ]
    return f"| {' | '.join([load.name, str(len(load.traffic)), *cells, *noise])} |"


def _cell(predicted_s: float, measured_s: Sequence[float]) -> str:
    ratios = " ".join(f"{predicted_s / value:.2f}" for value in measured_s)
    return f"{1e3 * predicted_s:.0f} / {1e3 * geometric_mean(measured_s):.0f} ({ratios})"


def _counts(loads: Sequence[Load], runs: Mapping[str, Sequence[Run]]) -> list[str]:
    ratios, ratios_now = [], []
    for load in loads:
        for name in QUANTITIES:
            load_runs = runs.get(load.name, ())
            if load.prediction.latencies is None:
                continue
            real_s = geometric_mean([getattr(run.measured, name) for run in load_runs])
            ratios.append(getattr(load.prediction.latencies, name) / real_s)
            ratios_now.append(geometric_mean([getattr(run.predicted_now, name) for run in load_runs]) / real_s)
    return [
        f"{_within(ratios)}: predicted from the calibration alone",
        f"{_within(ratios_now)}: predicted with the machine's speed around each run",
    ]


def _within(ratios: Sequence[float]) -> str:
    close = sum(abs(ratio - 1) <= BOUND for ratio in ratios)
    worst = max(ratios, key=lambda ratio: abs(ratio - 1), default=math.nan)
    return f"{close} of {len(ratios)} within {BOUND:.0%} (worst ratio {worst:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
