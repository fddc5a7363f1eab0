"""Request traces for a modelled GPU: read from a file in the Mooncake format (labkit.load.traces), or generated.

A trace has no text: token ids are synthetic, and share prefixes as recorded."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Any

from labkit import errors
from labkit.errors import require
from labkit.load.traces import Line, counted, read
from labkit.modelled.traffic import FIRST_TOKEN, TOKENS, TokenRequest, Traffic, bursty_arrivals_s, prompt_tokens

P90_SIGMAS = NormalDist().inv_cdf(0.9)
"""Standard deviations from the median of a normal distribution to its 90th percentile: 1.28."""
MOST_TEMPLATES = 100_000
GENERATED_BLOCK_TOKENS = 16
"""Tokens per block of a generated trace: vLLM's block size."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Requests with their times; `notes` list changed or omitted lines.

    `shared_tokens`: prompt tokens that repeat a prefix of an earlier prompt, in whole blocks (and the last, partial
    block of equal prompts). An unlimited prefix cache would hit them.
    """

    requests: Traffic
    shared_tokens: int
    notes: tuple[str, ...] = ()


def from_mooncake(
    path: str | Path,
    *,
    n: int | None = None,
    speed: float = 1.0,
    block_tokens: int = 512,
    longest: int | None = None,
) -> Trace:
    """Read a trace in the Mooncake format: the first `n` requests in order of time, or all.

    Arguments, notes and errors as `labkit.load.traces.read`. A request without output gets 1 token, the minimum of an
    engine. Prompts take 8 bytes per token."""
    recorded = read(path, n=n, speed=speed, block_tokens=block_tokens, longest=longest)
    return _trace(recorded.lines, recorded.due_s, block_tokens, recorded.notes)


def _trace(lines: Sequence[Line], due_s: Iterable[float], block_tokens: int, notes: tuple[str, ...]) -> Trace:
    filler = prompt_tokens(block_tokens - 2, key="block")
    requests = [
        TokenRequest(token_ids=_token_ids(line, filler), output_tokens=max(line.output_length, 1), due_s=time_s)
        for line, time_s in zip(lines, due_s, strict=True)
    ]
    return Trace(requests=requests, shared_tokens=_shared_tokens(lines, block_tokens), notes=notes)


def _token_ids(line: Line, filler: Sequence[int]) -> list[int]:
    """Encode a block as its id in two tokens and a constant filler: prefix caches hash whole prefixes, so blocks that
    begin differently share nothing."""
    token_ids: list[int] = []
    for hash_id in line.hash_ids:
        high, low = divmod(hash_id, TOKENS)
        token_ids += (FIRST_TOKEN + low, FIRST_TOKEN + high)
        token_ids += filler
    del token_ids[line.input_length :]
    return token_ids


def _shared_tokens(lines: Iterable[Line], block_tokens: int) -> int:
    seen: set[int] = set()
    shared = 0
    for line in lines:
        repeated = next((i for i, hash_id in enumerate(line.hash_ids) if hash_id not in seen), len(line.hash_ids))
        shared += min(repeated * block_tokens, line.input_length)
        seen.update(line.hash_ids[repeated:])
    return shared


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Log-normal lengths in tokens with this median and 90th percentile, cut to `longest`."""

    median: int
    p90: int
    longest: int

    def __post_init__(self) -> None:
        errors.whole("median", self.median, at_least=1)
        errors.whole("p90", self.p90, at_least=self.median)
        errors.whole("longest", self.longest, at_least=self.p90)

    def draw(self, rng: Random) -> int:
        """Draw a length from 1 to `longest`."""
        sigma = math.log(self.p90 / self.median) / P90_SIGMAS
        return min(max(round(self.median * math.exp(sigma * rng.gauss())), 1), self.longest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """The statistics of a kind of traffic.

    `templates`: number of system prompts, each of `template_tokens`; the k-th has a weight of 1 / k ** `zipf`.
    `burstiness`: squared coefficient of variation of the gaps between requests."""

    inputs: Lengths
    outputs: Lengths
    templates: int = 8
    template_tokens: int = 512
    zipf: float = 1.0
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):
            fix = "pass Lengths(median=..., p90=..., longest=...) in Python, or choose another kind"
            require(isinstance(getattr(self, name), Lengths), f"{name} are {getattr(self, name)!r}", fix=fix)
        errors.whole("templates", self.templates, at_least=1)
        fix = f"pass {MOST_TEMPLATES} or fewer"
        require(self.templates <= MOST_TEMPLATES, f"templates is {self.templates}", fix=fix)
        errors.whole("template_tokens", self.template_tokens, at_least=0)
        errors.number("zipf", self.zipf)


KINDS = {
    "conversation": Kind(
        inputs=Lengths(median=1020, p90=2735, longest=14_050),
        outputs=Lengths(median=129, p90=424, longest=1000),
        burstiness=1.2,
    ),
    "code": Kind(
        inputs=Lengths(median=1469, p90=5194, longest=7437),
        outputs=Lengths(median=13, p90=55, longest=1899),
        burstiness=13.0,
    ),
    "long_conversation": Kind(
        inputs=Lengths(median=6909, p90=27_367, longest=126_195),
        outputs=Lengths(median=350, p90=597, longest=2000),
        templates=1,
        burstiness=1.1,
    ),
}
"""Kinds of traffic for `generated`. The percentiles and longest lengths were computed from the published traces.

conversation, code: the Azure LLM inference traces of 2023 (github.com/Azure/AzurePublicDataset, 19,366 and 8,819
requests; the Splitwise paper, arXiv 2311.18677, gives medians of 1,020 and 129, and of 1,500 and 13). The gaps of
"conversation" have a squared coefficient of variation of 1.2. Those of "code" have 173, because of pauses of minutes
that a gamma distribution does not reproduce; 13 is the variance over the mean of its requests in each second.

long_conversation: Mooncake's conversation trace (FAST25-release of github.com/kvcache-ai/Mooncake, 12,031 requests).
All prompts begin with the same block of 512 tokens, 4% of all prompt tokens. Longer prefixes bring its shared share to
37%; they are not generated here. Its clock has steps of 3 s; 1.1 is the variance over the mean of its requests in each
step.

Assumed, not published: log-normal lengths; that input and output are independent; the templates of the Azure kinds,
whose traces do not record what is shared; and Zipf's law. Gamma-distributed gaps follow BurstGPT (arXiv 2401.17644)."""


OPTIONS = [field.name for field in fields(Kind)]


def generated(
    n: int,
    *,
    rate: float,
    kind: str = "conversation",
    seed: int = 0,
    inputs: Lengths | None = None,
    outputs: Lengths | None = None,
    templates: int | None = None,
    template_tokens: int | None = None,
    zipf: float | None = None,
    burstiness: float | None = None,
) -> Trace:
    """Generate `n` requests at `rate` per second with the statistics of a `kind` in KINDS; arguments override them.

    `inputs` are the lengths of whole prompts. Prompts longer than a template begin with one; shorter ones share nothing
    and are counted in `notes`. Templates are rounded down to whole blocks of 16 tokens. A longer trace begins with a
    shorter one. UsageError for an unknown kind or a value out of range."""
    given = dict(locals())
    errors.whole("n", n, at_least=1)
    require(kind in KINDS, f"there is no kind of traffic {kind!r}", fix=f"choose one of {', '.join(KINDS)}")
    options: dict[str, Any] = {name: value for name, value in given.items() if name in OPTIONS and value is not None}
    model = replace(KINDS[kind], **options)
    due_s = bursty_arrivals_s(n, rate=rate, burstiness=model.burstiness, seed=seed)
    lines = list(_lines(n, model, Random(f"trace/{seed}")))
    plain = sum(line.input_length <= model.template_tokens for line in lines)
    notes = counted((plain, f"of {n} prompts have at most {model.template_tokens} tokens: without a template"))
    return _trace(lines, due_s, GENERATED_BLOCK_TOKENS, notes)


def _lines(n: int, model: Kind, rng: Random) -> Iterable[Line]:
    template_blocks = model.template_tokens // GENERATED_BLOCK_TOKENS
    numbers = count(model.templates * template_blocks)
    weights = [rank**-model.zipf for rank in range(1, model.templates + 1)]
    for _ in range(n):
        input_length, output_length = model.inputs.draw(rng), model.outputs.draw(rng)
        template = rng.choices(range(model.templates), weights)[0]
        first = template * template_blocks
        shared = range(first, first + template_blocks) if input_length > model.template_tokens else range(0)
        own = math.ceil(input_length / GENERATED_BLOCK_TOKENS) - len(shared)
        yield Line(0.0, input_length, output_length, [*shared, *(next(numbers) for _ in range(own))])
