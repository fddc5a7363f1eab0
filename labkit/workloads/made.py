"""Workloads that are made up, request by request, from a seed.

Request `i` depends on the workload's name and options, the seed and `i` alone: the same seed gives the same requests
bit by bit, and a longer workload begins with the shorter one."""

from random import Random

from labkit.workloads import checks, text
from labkit.workloads.request import Request, Workload


def chat(
    n: int,
    *,
    seed: int = 0,
    prompt_words: int = 30,
    prompt_words_low: int | None = None,
    max_tokens: int = 64,
    max_tokens_low: int | None = None,
    distinct: int | None = None,
) -> Workload:
    """`n` short messages of `prompt_words` words with answers of `max_tokens` tokens.

    With `prompt_words_low` or `max_tokens_low`, lengths are drawn evenly from low to high. All prompts differ, unless
    `distinct` asks for only so many different ones, repeated in turn. UsageError on a value out of range."""
    parameters = dict(locals())
    checks.whole("n", n, at_least=1)
    checks.span("prompt_words", prompt_words_low, prompt_words, at_least=text.SHORTEST_PROMPT_WORDS)
    checks.span("max_tokens", max_tokens_low, max_tokens, at_least=1)
    checks.whole("distinct", n if distinct is None else distinct, at_least=1)

    def request(index: int) -> Request:
        rng = Random(f"chat/{seed}/{index}")
        words, tokens = _draw(rng, prompt_words_low, prompt_words), _draw(rng, max_tokens_low, max_tokens)
        return Request(text.message(rng, seed=seed, index=index, words=words), tokens, group="chat")

    return Workload("chat", tuple(request(i % (distinct or n)) for i in range(n)), parameters)


def _draw(rng: Random, low: int | None, high: int) -> int:
    return high if low is None else rng.randint(low, high)


def shared_prefix(
    n: int, *, seed: int = 0, share: float = 0.5, prompt_words: int = 400, max_tokens: int = 16, prefixes: int = 1
) -> Workload:
    """`n` prompts of `prompt_words` words whose first `share` (0 to 1) is the same in every prompt of one group.

    There are `prefixes` groups, taken in turn. The prefix depends on seed, share and length, so runs with different
    shares never warm each other's cache; the first word after it differs in every request. UsageError on a value out
    of range."""
    parameters = dict(locals())
    checks.whole("n", n, at_least=1)
    checks.number("share", share, high=1.0)
    for name in ("prompt_words", "max_tokens", "prefixes"):
        checks.whole(name, parameters[name], at_least=1)
    common = round(share * prompt_words)
    key = f"shared_prefix/{seed}/{share}/{prompt_words}"

    def request(index: int) -> Request:
        group = index % prefixes
        prefix = [f"{seed}.{group}", *text.passage(Random(f"{key}/prefix/{group}"), prompt_words)]
        own = [f"{index}.{seed}", *text.passage(Random(f"{key}/{index}"), prompt_words)]
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
    """`n` requests, every `long_every`-th with a long prompt and a short answer (group "long"), the others with a short
    prompt and a long answer (group "short"): who waits when a long prompt arrives? UsageError on a value out of
    range."""
    parameters = dict(locals())
    for name in ("n", "long_every", "short_max_tokens", "long_max_tokens"):
        checks.whole(name, parameters[name], at_least=1)
    for name in ("short_words", "long_words"):
        checks.whole(name, parameters[name], at_least=text.SHORTEST_PROMPT_WORDS)

    def request(index: int) -> Request:
        is_long = (index + 1) % long_every == 0
        words, tokens = (long_words, long_max_tokens) if is_long else (short_words, short_max_tokens)
        prompt = text.message(Random(f"interference/{seed}/{index}"), seed=seed, index=index, words=words)
        return Request(prompt, tokens, group="long" if is_long else "short")

    return Workload("interference", tuple(map(request, range(n))), parameters)
