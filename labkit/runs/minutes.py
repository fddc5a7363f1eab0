"""Estimate a lab's time on a GPU before it runs: engine starts, and requests at the modelled card's speed.

Pure arithmetic, without an engine or torch. A lab that is not modelled gets its time on two CPU cores, labelled so.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import LabkitError, UsageError
from labkit.labs import Lab, Quantity, Work
from labkit.machine import Gpu
from labkit.modelled.cards import reported_as
from labkit.modelled.engine import OVERHEAD_MS_PER_LAYER, batch_defaults
from labkit.modelled.evidence import errors_in_words
from labkit.modelled.shapes import dense_shape, known_models, model_folder
from labkit.modelled.step_time import Formula, Step

START_S, EAGER_START_S = 60, 35
"""Seconds of an engine's start with and without torch.compile and CUDA graphs. Not modelled: from one public log (vLLM
issue 20264: 59 s in total, 7.5 s and 17 s for these two; warm compile cache, 3.4 GiB of weights in the page cache)."""

MODELLED, RECORDED = "modelled", "two CPU cores with the cpu profile"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A lab's expected seconds, and the basis of the estimate in words."""

    seconds: float
    basis: str


@dataclass(frozen=True, kw_only=True)
class Pace:
    """A model's speed on a card. `overhead_s`: added by engine and host per step; `budget`: most tokens per step."""

    formula: Formula
    overhead_s: float
    budget: int

    def loop_s(self, requests: int, input_tokens: int, output_tokens: int, concurrency: int) -> float:
        """Return the seconds of a closed loop, in waves of `concurrency` requests that start and end together."""
        full, rest = divmod(requests, concurrency)
        waves = ((full, concurrency), (1, rest))
        return sum(count * self._wave_s(size, input_tokens, output_tokens) for count, size in waves if count and size)

    def _wave_s(self, requests: int, input_tokens: int, output_tokens: int) -> float:
        prefill, decode = Step(), Step()
        for _ in range(requests):
            prefill.add(input_tokens, prefix=0, decode=False, sampled=True)
            decode.add(1, prefix=input_tokens + output_tokens // 2, decode=True, sampled=True)
        further = math.ceil(prefill.tokens / self.budget) - 1  # further prefill steps: each reads the weights again
        return self._step_s(prefill) + further * self._step_s(Step()) + (output_tokens - 1) * self._step_s(decode)

    def _step_s(self, step: Step) -> float:
        return self.formula.seconds(step) + self.overhead_s


def estimate(lab: Lab, parameters: Mapping[str, Any], gpu: Gpu | None) -> Estimate:
    """Estimate the time of `lab` with these parameters on `gpu`; without a GPU, by data/labs.yaml for two CPU cores."""
    reason, pace = "", None
    if gpu is not None and not lab.work:
        reason = "TorchServe" if lab.engine in ("torchserve", "all") else "no vLLM engine"
    elif gpu is not None:
        try:
            pace = pace_of(str(parameters["model"]), gpu)
        except LabkitError as error:
            reason = error.what
    if pace is None:
        basis = RECORDED if gpu is None else f"not modelled ({reason}): {RECORDED}"
        return Estimate(seconds=60 * lab.minutes, basis=basis)
    work_s = sum(_work_s(work, parameters, pace) for work in lab.work)
    return Estimate(seconds=60 * lab.host_minutes + work_s, basis=MODELLED)


def lines(estimates: Mapping[str, Estimate], gpu: Gpu) -> list[str]:
    """Return the estimates as a table (minutes, lab, basis), and below it the basis of modelled minutes."""
    rows = [f"{lab.seconds / 60:6.1f}  {name:24} {lab.basis}" for name, lab in estimates.items()]
    total = sum(lab.seconds for lab in estimates.values()) / 60
    modelled = [lab.basis == MODELLED for lab in estimates.values()]
    mixed = ", with modelled and other times added up" if any(modelled) and not all(modelled) else ""
    table = [f"minutes expected on {gpu.name}:", *rows, f"{total:6.1f}  in all{mixed}"]
    card = reported_as(gpu.name)
    if card is None or not any(modelled):
        return table
    errors = errors_in_words(model_folder("llama-3.1-8b"), 1)
    return [
        *table,
        f"{MODELLED}: step times of {card.title} by formula (evidence: {card.evidence}; for 8B models {errors} on the "
        f"cards that were compared); {START_S} s for an engine's start, {EAGER_START_S} s for one without compilation, "
        f"assumed from one public log; work without an engine: {RECORDED}. Downloads and cold disks add to this.",
    ]


def pace_of(model: str, gpu: Gpu) -> Pace:
    """Return the model's pace on the card. UsageError if either has no step times."""
    card = reported_as(gpu.name)
    if card is None or card.efficiency is None:
        raise UsageError(f"no step times for {gpu.name}", remedy="docs/modelled-gpu.md lists the modelled cards")
    published = model.rpartition("/")[2].lower().removesuffix("-instruct")
    folder = model_folder(published if published in known_models() else model)
    shape = dense_shape(folder)
    if shape is None:
        raise UsageError(f"no step times for {model}", remedy="choose a dense 16-bit Llama, Mistral or Qwen2")
    formula = Formula.of(card, shape)
    overhead_s = OVERHEAD_MS_PER_LAYER * shape.layers / 1e3
    return Pace(formula=formula, overhead_s=overhead_s, budget=batch_defaults(card, server=True)[0])


def _work_s(work: Work, parameters: Mapping[str, Any], pace: Pace) -> float:
    """Seconds of a part of a lab, over all combinations of the values that it is repeated for."""
    combinations = itertools.product(*(parameters[name] for name in work.each))
    settings = ({**parameters, **dict(zip(work.each, chosen, strict=True))} for chosen in combinations)
    return sum(_once_s(work, values, pace) for values in settings)


def _once_s(work: Work, values: Mapping[str, Any], pace: Pace) -> float:
    def number(quantity: Quantity) -> float:
        factors = quantity if isinstance(quantity, tuple) else (quantity,)
        numbers = (values[factor] if isinstance(factor, str) else factor for factor in factors)
        return math.prod(max(number) if isinstance(number, list) else number for number in numbers)

    sizes = (work.requests, work.input_tokens, work.output_tokens, work.concurrency)
    closed_s = pace.loop_s(*(math.ceil(number(size)) for size in sizes))
    load_s = max(closed_s / min(1, number(work.load_share)), number(work.requests) / number(work.rate))
    return number(work.times) * (number(work.starts) * (EAGER_START_S if work.eager else START_S) + load_s)
