"""One request and its answer.

This is the part that runs while measuring, so it does as little as it can: a chunk is decoded straight into the few
fields that are read, after its arrival time was taken.
"""

import asyncio
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
import msgspec

from labkit.load.results import Outcome, RequestRecord
from labkit.load.wire import Chunk, EventLines, Usage, choice_text, decode_chunk, error_text

_NO_USAGE = Usage()


@dataclass(slots=True)
class Exchange:
    """A request under way. Times are on the clock `time.perf_counter`; `record` moves them to the load's start."""

    index: int
    warmup: bool = False
    group: str = ""
    scheduled: float | None = None  # None: no schedule, it is due when it starts
    started: float = 0.0
    finished: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: Usage = _NO_USAGE
    ended: bool = False  # the server said that the answer is complete
    outcome: Outcome = Outcome.OK
    status: int | None = None
    error: str = ""

    def end(self, outcome: Outcome, error: str) -> None:
        self.outcome, self.error = outcome, error

    def record(self, zero: float) -> RequestRecord:
        """The finished record, on a clock that is 0 at `zero`."""
        return RequestRecord(
            index=self.index,
            scheduled_s=(self.started if self.scheduled is None else self.scheduled) - zero,
            started_s=self.started - zero,
            chunk_times_s=tuple(time - zero for time in self.chunk_times),
            finished_s=self.finished - zero,
            input_tokens=self.usage.prompt_tokens,
            output_tokens=self.usage.completion_tokens,
            outcome=self.outcome,
            status=self.status,
            error=self.error,
            text="".join(self.texts),
            warmup=self.warmup,
            group=self.group,
        )


async def carry_out(
    exchange: Exchange, session: aiohttp.ClientSession, *, url: str, body: bytes, stream: bool, timeout_s: float
) -> None:
    """Sends `body` and fills `exchange`. Whatever happens becomes its outcome; only a cancellation goes on, once
    noted."""
    exchange.started = perf_counter()
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.post(url, data=body, allow_redirects=False) as response,
        ):
            exchange.status = response.status
            if response.status != 200:
                exchange.end(Outcome.HTTP_ERROR, f"{response.status}: {error_text(await response.read())}")
            elif stream:
                await _read_stream(exchange, response)
            else:
                _take(exchange, decode_chunk(await response.read()))
                _check_whole_answer(exchange)
    except TimeoutError:
        exchange.end(Outcome.TIMEOUT, f"no complete answer within {timeout_s:g} s")
    except asyncio.CancelledError:
        exchange.end(Outcome.CANCELLED, "the load was stopped")
        raise
    except (msgspec.DecodeError, aiohttp.ClientResponseError) as error:
        exchange.end(Outcome.MALFORMED, f"the answer cannot be read: {error}")
    except (aiohttp.ClientError, OSError) as error:
        exchange.end(Outcome.CONNECTION, str(error) or type(error).__name__)
    finally:
        exchange.finished = perf_counter()


async def _read_stream(exchange: Exchange, response: aiohttp.ClientResponse) -> None:
    lines = EventLines()
    async for received in response.content.iter_any():
        now = perf_counter()
        for payload in lines.feed(received):
            if payload == b"[DONE]":
                exchange.ended = True
                continue
            chunk = decode_chunk(payload)
            # vLLM's rule: content is what has choices, even with an empty text; the usage chunk has none.
            if chunk.choices:
                exchange.chunk_times.append(now)
            _take(exchange, chunk)
    _check_stream(exchange, response)


def _take(exchange: Exchange, chunk: Chunk) -> None:
    if chunk.choices:
        choice = chunk.choices[0]
        exchange.texts.append(choice_text(choice))
        if choice.finish_reason is not None:
            exchange.ended = True
    if chunk.response is not None:
        exchange.texts.append(chunk.response)
    if chunk.usage is not None:
        exchange.usage = chunk.usage
    if chunk.error is not None:
        exchange.end(
            Outcome.HTTP_ERROR, f"the server reported in its answer: {error_text(msgspec.json.encode(chunk.error))}"
        )


def _check_stream(exchange: Exchange, response: aiohttp.ClientResponse) -> None:
    """A stream that ended without an error of its own: did it hold an answer, and all of it?"""
    if exchange.outcome is not Outcome.OK:
        return
    if not exchange.chunk_times:
        exchange.end(Outcome.MALFORMED, f"no content chunk in an answer of type {response.content_type}")
    elif not exchange.ended:
        exchange.end(Outcome.MALFORMED, f"the stream ended after {len(exchange.chunk_times)} chunks without [DONE]")


def _check_whole_answer(exchange: Exchange) -> None:
    if exchange.outcome is Outcome.OK and not exchange.texts:
        exchange.end(Outcome.MALFORMED, "the answer has no choices")
