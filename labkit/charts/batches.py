"""The same answers in static batches and with continuous batching, place by place: what is computed, and for whom."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.charts.theme import BLUE, ORANGE, WIDTH, finish
from labkit.errors import UsageError

ANSWER, PADDING = "a token of an answer", "padding: computed for nobody"
STATIC, CONTINUOUS = "static batches", "continuous batching"


@dataclass(frozen=True)
class Span:
    """A stretch of steps on one place of the batch, spent on one request's answer or on padding."""

    policy: str
    place: int
    request: int
    start: int
    end: int
    kind: str = ANSWER


def static_spans(lengths: Sequence[int], *, batch: int) -> Iterator[Span]:
    """Batches of `batch` rows, each as long as its longest answer (in tokens); the next starts when one is done."""
    start = 0
    for first in range(0, len(lengths), batch):
        rows = lengths[first : first + batch]
        end = start + max(rows)
        for place, length in enumerate(rows, start=1):
            yield Span(STATIC, place, first + place, start, start + length)
            if start + length < end:
                yield Span(STATIC, place, first + place, start + length, end, PADDING)
        start = end


def continuous_spans(lengths: Sequence[int], *, batch: int) -> Iterator[Span]:
    """A place that becomes free goes to the next request at once (first come, first served)."""
    free = [(0, place) for place in range(1, batch + 1)]
    for request, length in enumerate(lengths, start=1):
        start, place = heapq.heappop(free)
        yield Span(CONTINUOUS, place, request, start, start + length)
        heapq.heappush(free, (start + length, place))


def batch_grid(lengths: Sequence[int], *, batch: int, title: str, caption: str | None = None) -> Any:
    """Both policies for answers of `lengths` tokens on `batch` places, one step for each token. UsageError if empty.

    A model, not a measurement: every step is drawn equally long and the prompts' prefill is left out.
    """
    if not lengths or min(lengths) < 1 or batch < 1:
        raise UsageError(
            f"{len(lengths)} answers on {batch} places",
            remedy="give at least one answer of one token or more, one place",
        )
    import altair as alt

    policies = {
        STATIC: list(static_spans(lengths, batch=batch)),
        CONTINUOUS: list(continuous_spans(lengths, batch=batch)),
    }
    steps = {name: max(span.end for span in spans) for name, spans in policies.items()}
    scale = alt.Scale(domain=[0, max(steps.values())], nice=False)
    panels = [_panel(name, spans, steps[name], scale) for name, spans in policies.items()]
    drawn = alt.vconcat(*panels, spacing=22).resolve_scale(color="shared")
    wasted = sum(span.end - span.start for span in policies[STATIC] if span.kind == PADDING)
    text = (
        f"{len(lengths)} answers on {batch} places. Static batches take {steps[STATIC]} steps and compute {wasted} "
        f"tokens of padding; continuous batching takes {steps[CONTINUOUS]} steps and computes none."
    )
    return finish(drawn, title=title, description=text, caption=caption)


def _panel(name: str, spans: Sequence[Span], steps: int, scale: Any) -> Any:
    import altair as alt

    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=[ANSWER, PADDING], range=[BLUE, ORANGE]))
    x = alt.X("start:Q", title="decode steps", scale=scale, axis=alt.Axis(tickCount=8))
    y = alt.Y("place:O", title="place", axis=alt.Axis(grid=False, domain=False, ticks=False))
    base = alt.Chart(alt.Data(values=[asdict(span) for span in spans])).encode(x=x, x2="end:Q", y=y)
    heading = alt.TitleParams(f"{name}: done after {steps} steps", fontSize=14, fontWeight="normal", offset=6)
    bars = base.mark_bar(height=15, stroke="white", strokeWidth=1.5).encode(color=colour)
    return bars.properties(width=WIDTH, height=alt.Step(19), title=heading)
