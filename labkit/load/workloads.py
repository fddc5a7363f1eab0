"""Workloads: synthetic from a seed, or read from a file.

A synthetic request depends only on the workload's name and options, the seed and its index: equal seeds give identical
requests, and a longer workload begins with the shorter one."""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import Annotated, Any

import msgspec

from labkit import errors
from labkit.errors import UsageError, require
from labkit.load import traces
from labkit.load.traces import read_lines


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words(
    "Ada Bruno Chiara Dmitri Elif Farid Greta Hana Ivo Jamila Kofi Lena Mateo Nora Omar Priya Quentin Rosa Tariq"
)
_CITIES = _words(
    "Accra Bergen Cusco Dakar Essen Fukuoka Galway Hanoi Izmir Jaipur Kyoto Lisbon Malmo Nantes Oslo Porto Riga"
)
_ADJECTIVES = _words(
    "amber brittle careful distant early faded gentle hollow idle jagged keen lively modest narrow old patient quiet "
    "rapid silver tall uneven vivid warm young"
)
_NOUNS = _words(
    "archive bridge canal depot engine ferry garden harbour island journal kitchen ledger market notebook orchard pump "
    "quarry railway signal theatre umbrella valley workshop yard"
)
_VERBS = _words(
    "answers borrows carries delays empties follows guards heats inspects joins keeps lifts moves needs opens passes "
    "questions repairs shelters tests unlocks visits warns"
)
_TIMES = _words("today tonight yesterday daily weekly monthly sometimes often rarely twice again later soon")
_QUESTIONS = (
    "What should be done first, and why?",
    "Summarise this for a new colleague in three sentences.",
    "Which of these matters most, and to whom?",
    "Write a short and friendly reply to this message.",
    "List the open questions and who could answer them.",
    "Explain the likely cause to somebody without any background.",
)
ONE_TOKEN_WORDS = _words(
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information"
)
"""Common words, each a single token in the vocabularies of language models."""
MOST_WORDS = 50_000_000
"""Limit for all prompts of a workload: hundreds of megabytes of text, generated before the first request."""
_OPENER_WORDS = 6
SHORTEST_PROMPT_WORDS = _OPENER_WORDS + 1 + max(len(question.split()) for question in _QUESTIONS)


def _sentences(rng: Random) -> Iterator[str]:
    while True:
        subject = f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
        yield f"{subject} {rng.choice(_VERBS)} the {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} {rng.choice(_TIMES)}."


def passage(rng: Random, words: int) -> list[str]:
    """Return exactly `words` words of plain sentences; the last may be cut."""
    return list(islice((word for sentence in _sentences(rng) for word in sentence.split()), words))


def message(rng: Random, *, seed: int, index: int, words: int) -> str:
    """Return a message of exactly `words` words (SHORTEST_PROMPT_WORDS or more): opener, passage, question.

    The opener has seed and index, so that messages differ within their first few tokens and share no prefix."""
    tag = f"{seed}-{index}-{rng.randrange(10_000)}"
    opener = ["Message", tag, "from", rng.choice(_NAMES), "in", f"{rng.choice(_CITIES)}:"]
    question = rng.choice(_QUESTIONS).split()
    middle = passage(rng, words - len(opener) - len(question))
    middle[-1] = f"{middle[-1].rstrip('.')}..."
    return " ".join(opener + middle + question)


# --- requests and workloads ---


Messages = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Request:
    """One request: a `prompt`, or chat `messages` instead.

    `max_tokens` limits the answer; with `ignore_eos` (a vLLM extension) it is exactly that long. `group` labels
    requests in results."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = True
    messages: Messages | None = None
    group: str = ""

    @property
    def chat_messages(self) -> Messages:
        """The messages, or the prompt as a user's message."""
        return self.messages or ({"role": "user", "content": self.prompt},)


@dataclass(frozen=True)
class Turn(Request):
    """A later turn of a conversation: sent `think_s` seconds after the answer to the request with index `follows`,
    preceded by the conversation so far."""

    follows: int = 0
    think_s: float = 0.0


@dataclass(frozen=True)
class Workload:
    """Requests in sending order, and the parameters that produced them. `due_s`: recorded arrival times in seconds;
    `notes`: changed or omitted lines."""

    name: str
    requests: tuple[Request, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    due_s: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def chains(self) -> int:
        """Conversations, and requests outside of any: what concurrency and rate count."""
        return sum(not isinstance(request, Turn) for request in self.requests)

    @property
    def digest(self) -> str:
        """SHA-256 of the requests."""
        return hashlib.sha256(msgspec.json.encode(self.requests)).hexdigest()


# --- arrival times of an open loop ---


def poisson_arrivals_s(n: int, *, rate: float, seed: int) -> tuple[float, ...]:
    """Return `n` arrival times in seconds of a Poisson process of `rate` requests per second.

    Unlike `vllm bench serve`, it does not stretch them to end at n/rate."""
    _check(n, rate)
    rng = Random(f"poisson/{seed}")
    return tuple(accumulate(rng.expovariate(rate) for _ in range(n)))


def constant_arrivals_s(n: int, *, rate: float) -> tuple[float, ...]:
    """Return `n` arrival times in seconds, 1/rate apart, the first at 0."""
    _check(n, rate)
    return tuple(index / rate for index in range(n))


def rising_arrivals_s(steady_s: Sequence[float], *, low: float, high: float) -> tuple[float, ...]:
    """Transform arrivals at 1 per second, `steady_s`, to a rate that rises linearly from `low` to `high` per second.

    It reaches `high` at T = 2n / (low + high), when n arrivals are expected, and stays there. An arrival at s moves to
    the t at which the integral of the rate is s."""
    n = len(steady_s)
    end_s = 2 * n / (low + high)
    slope = (high - low) / end_s

    def moved(s: float) -> float:
        return end_s + (s - n) / high if s > n else 2 * s / (low + math.sqrt(low**2 + 2 * slope * s))

    return tuple(map(moved, steady_s))


def arrivals_s(n: int, *, rate: float, ramp_from: float | None, arrival: str, seed: int) -> tuple[float, ...]:
    """Return `n` arrival times, "poisson" or "constant", at `rate` or rising to it from `ramp_from`."""
    average = rate if ramp_from is None else 1.0
    constant = arrival == "constant"
    due_s = constant_arrivals_s(n, rate=average) if constant else poisson_arrivals_s(n, rate=average, seed=seed)
    return due_s if ramp_from is None else rising_arrivals_s(due_s, low=ramp_from, high=rate)


def _check(n: int, rate: float) -> None:
    errors.whole("n", n, at_least=0)
    errors.above_zero("rate", rate, unit="requests per second")


# --- JSONL files ---


_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line; `output_tokens` is `vllm bench`'s name for `max_tokens`."""

    prompt: str | None = None
    messages: Messages | None = None
    max_tokens: _AtLeastOne | None = None
    output_tokens: _AtLeastOne | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    seed: int | None = None
    ignore_eos: bool = True
    group: str = ""

    def __post_init__(self) -> None:
        if not self.prompt and not self.messages:
            raise ValueError("both `prompt` and `messages` are missing or empty")
        if self.prompt and self.messages:
            raise ValueError("both `prompt` and `messages` are given; only one is allowed")
        if self.max_tokens and self.output_tokens:
            raise ValueError("both `max_tokens` and `output_tokens` are given; they mean the same")


def from_file(path: str | Path, *, n: int | None = None, max_tokens: int = 64, seed: int = 0) -> Workload:
    """Read the first `n` requests of a JSONL file, or all; `seed` affects only arrival times.

    A line is an object with `prompt` or `messages`, and optionally `max_tokens` or `output_tokens` (default: the
    argument), `temperature`, `seed`, `ignore_eos`, `group`. Empty lines are skipped. UsageError with file and line."""
    errors.whole("max_tokens", max_tokens, at_least=1)
    errors.whole("n", 1 if n is None else n, at_least=1)
    requests = [
        Request(
            line.prompt or "",
            line.max_tokens or line.output_tokens or max_tokens,
            line.temperature,
            line.seed,
            line.ignore_eos,
            line.messages or None,
            line.group,
        )
        for _, line in islice(read_lines(path, _Line), n)
    ]
    enough = len(requests) >= (n or 1)
    fix = "add lines to it or ask for fewer"
    require(enough, f"{path} holds {len(requests)} requests; {n or 1} are needed", fix=fix)
    parameters = {"file": Path(path).name, "n": len(requests), "max_tokens": max_tokens, "seed": seed}
    return Workload("file", tuple(requests), parameters)


def to_file(workload: Workload, path: str | Path) -> Path:
    """Write the requests as JSONL for `from_file` (same digest) and `vllm bench serve --dataset-name custom`."""
    lines = [_line(request) for request in workload.requests]
    Path(path).write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return Path(path)


def _line(request: Request) -> dict[str, Any]:
    content = {"messages": request.messages} if request.messages else {"prompt": request.prompt}
    seed = {} if request.seed is None else {"seed": request.seed}
    more = {"temperature": request.temperature, **seed, "ignore_eos": request.ignore_eos, "group": request.group}
    return {**content, "output_tokens": request.max_tokens, **more}


def build(name: str, /, *, n: int | None, seed: int = 0, **options: Any) -> Workload:
    """Build the workload `name` of WORKLOADS (hyphens allowed); n=None reads a whole file or trace.

    UsageError for an unknown name or option, a bad value, or more than MOST_WORDS words of prompts."""
    builder = WORKLOADS.get(name.replace("-", "_"))
    if builder is None:
        raise UsageError(f"there is no workload {name!r}", remedy=f"choose one of {', '.join(WORKLOADS)}")
    parameters = inspect.signature(builder).parameters
    choices = {key: parameter for key, parameter in parameters.items() if key not in ("n", "seed")}
    for option in options:
        fix = f"choose among {', '.join(choices)}"
        require(option in choices, f"workload {name!r} has no option {option!r}", fix=fix)
    for option, parameter in choices.items():
        given = parameter.default is not parameter.empty or option in options
        require(given, f"workload {name!r} needs the option {option!r}", fix=f"pass {option}=...")
    for option, value in options.items():
        words = value if option.endswith("_words") and isinstance(value, int) else 0
        fix = "pass fewer or shorter requests: all are generated before the first is sent"
        require((n or 1) * words <= MOST_WORDS, f"{n or 1} prompts of {words} words are too many", fix=fix)
    return builder(n=n, seed=seed, **options)


# --- synthetic workloads; each raises UsageError for a value out of range ---


def chat(
    n: int,
    *,
    seed: int = 0,
    prompt_words: int = 30,
    prompt_words_low: int | None = None,
    max_tokens: int = 64,
    max_tokens_low: int | None = None,
) -> Workload:
    """`n` distinct messages of `prompt_words` words with answers of `max_tokens` tokens.

    With `prompt_words_low` or `max_tokens_low`, lengths are uniform from low to high."""
    parameters = dict(locals())
    errors.whole("n", n, at_least=1)
    errors.span("prompt_words", prompt_words_low, prompt_words, at_least=SHORTEST_PROMPT_WORDS)
    errors.span("max_tokens", max_tokens_low, max_tokens, at_least=1)

    def request(index: int) -> Request:
        rng = Random(f"chat/{seed}/{index}")
        words, tokens = _draw(rng, prompt_words_low, prompt_words), _draw(rng, max_tokens_low, max_tokens)
        return Request(message(rng, seed=seed, index=index, words=words), tokens, group="chat")

    return Workload("chat", tuple(map(request, range(n))), parameters)


def _draw(rng: Random, low: int | None, high: int) -> int:
    return high if low is None else rng.randint(low, high)


def shared_prefix(
    n: int, *, seed: int = 0, share: float = 0.5, prompt_words: int = 400, max_tokens: int = 16, prefixes: int = 1
) -> Workload:
    """`n` prompts of `prompt_words` words whose first `share` (0 to 1) is the same within each of `prefixes` groups.

    Groups take turns. The prefix depends on seed, share and length, so runs with different shares do not warm each
    other's cache; the first word after it differs in every request."""
    parameters = dict(locals())
    errors.whole("n", n, at_least=1)
    errors.number("share", share, high=1.0)
    for name in ("prompt_words", "max_tokens", "prefixes"):
        errors.whole(name, parameters[name], at_least=1)
    common = round(share * prompt_words)
    key = f"shared_prefix/{seed}/{share}/{prompt_words}"

    def request(index: int) -> Request:
        group = index % prefixes
        prefix = [f"{seed}.{group}", *passage(Random(f"{key}/prefix/{group}"), prompt_words)]
        own = [f"{index}.{seed}", *passage(Random(f"{key}/{index}"), prompt_words)]
        prompt = " ".join(prefix[:common] + own[: prompt_words - common])
        return Request(prompt, max_tokens, group=f"prefix-{group}")

    return Workload("shared_prefix", tuple(map(request, range(n))), parameters)


def interference(
    n: int,
    *,
    seed: int = 0,
    long_every: int = 8,
    short_words: int = 30,
    short_max_tokens: int = 128,
    long_words: int = 1000,
    long_max_tokens: int = 8,
) -> Workload:
    """`n` requests: every `long_every`-th has a long prompt and a short answer (group "long"), the others a short
    prompt and a long answer (group "short")."""
    parameters = dict(locals())
    for name in ("n", "long_every", "short_max_tokens", "long_max_tokens"):
        errors.whole(name, parameters[name], at_least=1)
    for name in ("short_words", "long_words"):
        errors.whole(name, parameters[name], at_least=SHORTEST_PROMPT_WORDS)

    def request(index: int) -> Request:
        is_long = (index + 1) % long_every == 0
        words, tokens = (long_words, long_max_tokens) if is_long else (short_words, short_max_tokens)
        prompt = message(Random(f"interference/{seed}/{index}"), seed=seed, index=index, words=words)
        return Request(prompt, tokens, group="long" if is_long else "short")

    return Workload("interference", tuple(map(request, range(n))), parameters)


def conversations(
    n: int,
    *,
    seed: int = 0,
    turns: int = 4,
    system_words: int = 100,
    user_words: int = 30,
    max_tokens: int = 64,
    think_s: float = 1.0,
) -> Workload:
    """`n` chats of `turns` turns with one system prompt. Each adds `user_words` words to the conversation so far, with
    the server's answers; it is sent an exponential time of mean `think_s` after the last answer."""
    parameters = dict(locals())
    for name in ("n", "turns", "max_tokens"):
        errors.whole(name, parameters[name], at_least=1)
    errors.whole("system_words", system_words, at_least=0)
    errors.whole("user_words", user_words, at_least=SHORTEST_PROMPT_WORDS)
    errors.number("think_s", think_s)
    system = {"role": "system", "content": " ".join(passage(Random(f"system/{seed}"), system_words))}
    requests: list[Request] = []
    for conversation in range(n):
        rng = Random(f"conversations/{seed}/{conversation}")
        for turn in range(turns):
            user = {"role": "user", "content": message(rng, seed=seed, index=len(requests), words=user_words)}
            common: dict[str, Any] = {"prompt": "", "max_tokens": max_tokens, "group": f"turn-{turn + 1}"}
            if turn:
                wait_s = rng.expovariate(1 / think_s) if think_s else 0.0
                requests.append(Turn(**common, messages=(user,), follows=len(requests) - 1, think_s=wait_s))
            else:
                requests.append(Request(**common, messages=(system, user) if system_words else (user,)))
    return Workload("conversations", tuple(requests), parameters)


def mooncake(
    path: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    speed: float = 1.0,
    block_tokens: int = 512,
    longest: int | None = None,
) -> Workload:
    """A recorded trace in the Mooncake format, with arrival times divided by `speed`; errors as `traces.read`.

    A trace has no text: each block becomes words of about one token each, equal for equal `hash_ids`. The server's
    usage has the actual token counts."""
    trace = traces.read(path, n=n, speed=speed, block_tokens=block_tokens, longest=longest)
    tokens = sum(line.input_length for line in trace.lines)
    fix = "ask for fewer requests (n), or leave long ones out (longest)"
    require(tokens <= MOST_WORDS, f"{path} asks for {tokens:,} input tokens, more than {MOST_WORDS:,}", fix=fix)
    words: dict[int, list[str]] = {}

    def prompt(line: traces.Line) -> str:
        text: list[str] = []
        for block in line.hash_ids:
            if block not in words:
                words[block] = Random(f"block/{seed}/{block}").choices(ONE_TOKEN_WORDS, k=block_tokens)
            text += words[block]
        return " ".join(text[: line.input_length])

    requests = tuple(Request(prompt(line), max(line.output_length, 1), group="trace") for line in trace.lines)
    parameters = {"file": Path(path).name, "n": len(requests), "speed": speed, "seed": seed}
    return Workload("mooncake", requests, parameters, due_s=trace.due_s, notes=trace.notes)


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "chat": chat,
    "shared_prefix": shared_prefix,
    "interference": interference,
    "conversations": conversations,
    "file": from_file,
    "mooncake": mooncake,
}
