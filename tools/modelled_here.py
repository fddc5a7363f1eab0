"""How well a calibrated model of this machine's engine predicts loads on it: python tools/modelled_here.py

Starts vLLM with the embedded chat model in this process, calibrates its step times, and then sends open loops at
shares of the modelled capacity through it, in random order and each of them REPEATS times or more. Prints what was
predicted beside what was measured, and never judges: the exit status is 0. About three minutes on two cores.

On a machine with other load, --clock cpu measures in this process's CPU time and skips idle time. That shows what the
machine would do without the other load, except for shared caches and memory.

Two columns tell the machine's noise from the model's error. "speed": seconds of a few fixed steps just before and after
a load, over the seconds at calibration. "waited": share of the load's step time in which the process had no core.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import geometric_mean
from typing import Any

from labkit import modelled
from labkit.load.workloads import poisson_arrivals_s
from labkit.machine import inspect
from labkit.modelled import calibrate as calibrate_module
from labkit.modelled import replica
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
    """An open loop at a share of capacity, and what the calibration predicts for it."""

    kind: str
    share: float
    traffic: Traffic
    prediction: Prediction

    @property
    def name(self) -> str:
        return f"{self.kind} {self.share:.0%}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement of a load. `predicted_now`: with the machine's speed around the run instead of the calibration's.

    `steps`: measured over fitted seconds of the run's own steps. `speed` and `waited`: see this module.
    """

    measured: Latencies
    predicted_now: Latencies
    speed: float
    steps: float
    waited: float


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="store calibration, predictions and measurements")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="measurements of each load (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of a load (default: %(default)s)")
    parser.add_argument("--model", default="", help="a model folder or hub id (default: the embedded chat model)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="see above (default: %(default)s)")
    options = parser.parse_args(arguments)
    llm = start(options.model)
    if options.clock == "cpu":
        vars(replica)["time"] = vars(calibrate_module)["time"] = CpuClock()
    calibration = calibrate(llm, progress=say)
    with modelled_engine(calibration) as engine:
        loads = [
            planned(calibration, kind, share, seconds=options.seconds, engine=engine, seed=number)
            for number, (kind, share) in enumerate(LOADS)
        ]
        runs = measured(llm, calibration, loads, repeats=max(REPEATS, options.repeats), engine=engine)
    print("\n".join(report(calibration, loads, runs)))
    if options.json:
        options.json.write_text(json.dumps(as_json(calibration, loads, runs), indent=1) + "\n", encoding="utf-8")
    return 0


class CpuClock:
    """Stands in for the module `time` where real engines are driven and timed: it stops while the process waits for a
    core, and jumps over idle time. For engines that compute in this process's threads, one at a time."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def perf_counter(self) -> float:
        return time.process_time() + self._skipped_s

    def sleep(self, seconds: float) -> None:
        self._skipped_s += seconds

    process_time = staticmethod(time.process_time)
    time_ns = staticmethod(time.time_ns)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def start(model: str) -> Any:
    """A real engine in this process, with the settings that labkit gives it here."""
    from labkit import models
    from labkit.serving import vllm as serving

    settings = serving.settings(inspect())
    settings.apply()
    folder = models.resolve(model or models.CHAT)
    from vllm import LLM

    return LLM(str(folder), **ENGINE, **settings.llm, async_scheduling=False)


# --- the loads ---


def planned(calibration: Calibration, kind: str, share: float, *, seconds: float, engine: Any, seed: int) -> Load:
    """Poisson arrivals for `seconds` whose rate is exactly `share` of the capacity modelled for these requests."""
    sample = requests(kind, 100, seed=seed)
    rate = share * predict(calibration, sample, engine=engine).capacity_per_s
    n = max(LEAST_REQUESTS, round(rate * seconds))
    sent, times_s = (
        sample[:n] if n <= 100 else requests(kind, n, seed=seed),
        poisson_arrivals_s(n, rate=rate, seed=seed),
    )
    found = predict(calibration, arriving(sent, times_s), engine=engine)
    traffic = arriving(sent, [time_s * found.load_share / share for time_s in times_s])
    return Load(kind=kind, share=share, traffic=traffic, prediction=predict(calibration, traffic, engine=engine))


def requests(kind: str, n: int, *, seed: int) -> list[TokenRequest]:
    """Chat: 40 to 160 prompt tokens and 16 to 48 output tokens. Mixed: every fourth prompt has 300 to 800."""
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
    """Each load's runs. All loads are measured once, in random order, before any is measured again."""
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
    """What is predicted where every step takes `slowness` times as long as when the machine was calibrated."""
    coefficients = {name: slowness * value for name, value in calibration.coefficients.items()}
    engine.llm_engine.model_executor.step_time = Fitted(coefficients=coefficients)
    return Latencies.of(modelled.drive(engine, traffic))


# --- the report ---


def report(calibration: Calibration, loads: Sequence[Load], runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """The tables as Markdown, and how many quantities were predicted within BOUND."""
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
    found = load.prediction
    if found.latencies is None:
        return f"| {load.name} | {len(load.traffic)} | {found.cannot_say} | | | | | |"
    cells = [
        _cell(getattr(found.latencies, name), [getattr(run.measured, name) for run in runs]) for name in QUANTITIES
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
            found = runs.get(load.name, ())
            if load.prediction.latencies is None:
                continue
            real_s = geometric_mean([getattr(run.measured, name) for run in found])
            ratios.append(getattr(load.prediction.latencies, name) / real_s)
            ratios_now.append(geometric_mean([getattr(run.predicted_now, name) for run in found]) / real_s)
    return [
        f"{_within(ratios)}: predicted from the calibration alone",
        f"{_within(ratios_now)}: predicted with the machine's speed around each run",
    ]


def _within(ratios: Sequence[float]) -> str:
    close = sum(abs(ratio - 1) <= BOUND for ratio in ratios)
    worst = max(ratios, key=lambda ratio: abs(ratio - 1), default=math.nan)
    return f"{close} of {len(ratios)} within {BOUND:.0%} (worst ratio {worst:.2f})"


def as_json(calibration: Calibration, loads: Sequence[Load], runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "calibration": asdict(calibration),
        "loads": [
            {
                "kind": load.kind,
                "share": load.share,
                "requests": len(load.traffic),
                "prediction": load.prediction.to_json(),
                "runs": [asdict(run) for run in runs.get(load.name, ())],
            }
            for load in loads
        ],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
