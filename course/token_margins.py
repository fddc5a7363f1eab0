"""Compare two servers' answers token by token, with the log-probabilities of the server that reports them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labkit import charts

END = "(end)"


@dataclass(frozen=True)
class Token:
    """A token that a server chose, and the log-probabilities (natural logarithm) of the most likely ones there."""

    text: str
    likely: Mapping[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        """By how much the chosen token is more likely than the next one, in nats."""
        others = [value for text, value in self.likely.items() if text != self.text]
        return self.likely[self.text] - max(others)


@dataclass(frozen=True)
class Difference:
    """The first token that differs: its position, both tokens, and how much more likely the chosen one was, in nats.

    `margin` is None if the other server's token is not among the most likely ones, or if one of the answers ended.
    """

    place: int
    chosen: str
    other: str
    margin: float | None


def client(base_url: str, api_key: str) -> Any:
    """Return an OpenAI client that bypasses proxies, for a server on this machine."""
    from openai import DefaultHttpxClient, OpenAI

    straight = DefaultHttpxClient(trust_env=False)  # no proxy
    return OpenAI(base_url=base_url, api_key=api_key, http_client=straight, max_retries=0, timeout=120)


def tokens(completion: Any) -> list[Token]:
    """The tokens of a chat completion that was asked for with logprobs; the one that ends an answer has no text."""
    choice = completion.choices[0]
    found = [Token(one.token, {top.token: top.logprob for top in one.top_logprobs}) for one in choice.logprobs.content]
    if choice.finish_reason == "stop":
        end = found[-1].text
        found[-1] = Token("", {"" if text == end else text: value for text, value in found[-1].likely.items()})
    return found


def first_difference(chosen: Sequence[Token], other: str) -> Difference | None:
    """Return where the text `other` departs from the tokens `chosen`; None if they are the same text.

    No tokeniser is needed: a token is the same as long as the text continues with it.
    """
    rest = other
    for place, token in enumerate(chosen):
        same = rest.startswith(token.text) if token.text else not rest
        if not same:
            candidates = [text for text in token.likely if text and rest.startswith(text)]
            theirs = max(candidates, key=len, default=None)
            margin = token.likely[token.text] - token.likely[theirs] if theirs else None
            return Difference(place, token.text or END, theirs or rest[:12] or END, margin)
        rest = rest[len(token.text) :]
    return Difference(len(chosen), END, rest[:12], None) if rest else None


@dataclass(frozen=True)
class Comparison:
    """The answers of several servers to the same prompts: `texts` by server, and the `tokens` that vLLM chose."""

    texts: Mapping[str, Sequence[str]]
    tokens: Sequence[Sequence[Token]]

    @property
    def same_percent(self) -> float:
        """Share of the prompts with the same text from all servers."""
        same = [len(set(answers)) == 1 for answers in zip(*self.texts.values(), strict=True)]
        return 100 * sum(same) / len(same)

    def same_as(self, name: str, other: str) -> int:
        """How many answers of two servers are the same text."""
        return sum(ours == theirs for ours, theirs in zip(self.texts[name], self.texts[other], strict=True))

    def differences(self, other: str) -> list[Difference | None]:
        """For each prompt the first token of vLLM's that another server did not choose; None for the same text."""
        return [first_difference(*pair) for pair in zip(self.tokens, self.texts[other], strict=True)]

    def table(self, other: str) -> Any:
        """Return the answers that differ: at which token, both tokens, the margin; or a sentence if none does."""
        import pandas as pd

        rows = {number: vars(found) for number, found in enumerate(self.differences(other)) if found is not None}
        if not rows:
            return f"none of {len(self.tokens)} answers differs"
        heads = {"place": "token", "chosen": "vLLM", "other": other, "margin": "margin (nats)"}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=list(heads)).rename(columns=heads)
        return table.rename_axis("answer")

    def chart(self, other: str) -> charts.Chart:
        """Draw the margins of all tokens up to the first difference, and of each first token that differs."""
        differences = self.differences(other)
        shared = zip(self.tokens, differences, strict=True)
        common = [token for chosen, found in shared for token in (chosen[: found.place] if found else chosen)]
        same = [token.margin for token in common if len(token.likely) > 1]
        near = [found.margin for found in differences if found is not None and found.margin is not None]
        differ = len(differences) - differences.count(None)
        title = f"{differ} of {len(differences)} answers {'differs' if differ == 1 else 'differ'} from {other}'s"
        if near and len(near) == differ:
            ties = "an exact tie" if differ == 1 else "exact ties"
            title += f", at margins of up to {max(near):.2g} nats" if max(near) else f", at {ties}"
        title += "" if differ else f"; the closest choice had a margin of {min(same):.2g} nats"
        rows = {"the same token": (same, ())} | ({"another token": (near, ())} if near else {})
        return charts.dots(rows, title=title, x_title="margin of vLLM's token (nats)", unit="nats")
