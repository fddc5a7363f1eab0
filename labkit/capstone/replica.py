"""One replica: what a queueing model of it is made of, measured in a closed loop, and the model beside a real load.

With n clients, each asking again once it is answered, a request takes (output - 1) steps of its own and waits while the
prompts of all n are read, its own among them. So the step is the median gap between tokens (most gaps hold no prompt),
and what a request takes beyond its steps, divided by n, is one prompt's reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from labkit.errors import UsageError
from labkit.load import LoadResult, RequestRecord
from labkit.queueing import Arrival, Served, Service, simulate


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a closed loop with `clients` says of a replica (seconds; `tpot_s` is what a user sees, prompts included)."""

    clients: int
    step_s: float
    prefill_s_per_token: float
    tpot_s: float
    e2e_s: float


def check_plan(clients: Sequence[int], shares: Sequence[float]) -> None:
    """Refuses levels from which no service can be made, and loads that validate nothing. UsageError."""
    if len(clients) < 2 or clients[0] != 1 or list(clients) != sorted(set(clients)):
        raise UsageError(
            f"clients is {list(clients)}: a service is measured alone and with others",
            remedy="begin with 1 and go up, such as [1, 2, 4, 8]",
        )
    if len(shares) != 3 or list(shares) != sorted(set(shares)):
        raise UsageError(
            f"load_shares is {list(shares)}: a model is validated at three loads, the lowest one first",
            remedy="pass shares of the capacity below it, near it and above it, such as [0.5, 0.9, 1.5]",
        )


def room_for(prompt_words: int, output_tokens: int, *, longest: int | None) -> int:
    """Tokens that a request may take: four a word of the prompt, which is ample, and the answer, in whole hundreds.

    UsageError when the model's own limit (`longest`) is lower."""
    room = -(-(4 * prompt_words + output_tokens) // 100) * 100
    if longest is not None and room > longest:
        raise UsageError(
            f"prompts of {prompt_words} words with answers of {output_tokens} tokens need {room} tokens; the model"
            f" reads {longest}",
            remedy="shorten the prompts or the answers",
        )
    return room


def level(result: LoadResult) -> Level:
    """The level that a closed loop measured. UsageError: no streamed answer of two tokens or more, or an open loop."""
    done = [one for one in result.records if one.tpot_s is not None and one.e2e_s is not None]
    gaps = [gap for one in done for gap in one.itl_s]
    if not gaps or result.concurrency is None:
        raise UsageError(
            f"{len(done)} of {len(result.records)} answers of this load have gaps between tokens",
            remedy="stream answers of two tokens or more, in a closed loop",
        )
    step_s, clients = median(gaps), result.concurrency
    beyond_s = fmean((one.e2e_s or 0.0) - ((one.output_tokens or 1) - 1) * step_s for one in done)
    read = fmean(one.input_tokens or 0 for one in done)
    return Level(
        clients=clients,
        step_s=step_s,
        prefill_s_per_token=max(0.0, beyond_s) / clients / read if read else 0.0,
        tpot_s=fmean(one.tpot_s or 0.0 for one in done),
        e2e_s=fmean(one.e2e_s or 0.0 for one in done),
    )


def service_of(levels: Sequence[Level]) -> Service:
    """A replica of the queueing model: the mean of what every round measured. It holds as many requests as the highest
    level had clients, and reads a prompt as fast as it did there, in the company of others."""
    highest = max(one.clients for one in levels)
    of = {n: [one for one in levels if one.clients == n] for n in sorted({one.clients for one in levels})}
    return Service(
        step_s={n: fmean(one.step_s for one in found) for n, found in of.items()},
        prefill_s_per_token=fmean(one.prefill_s_per_token for one in of[highest]),
        places=highest,
    )


def slower(service: Service, factor: float) -> Service:
    """The same replica with every time multiplied."""
    return replace(
        service,
        step_s={n: seconds * factor for n, seconds in service.step_s.items()},
        prefill_s_per_token=service.prefill_s_per_token * factor,
    )


def pace(result: LoadResult, service: Service) -> float:
    """How long a step took in this load, over what `service` says of a step with as many requests: the median over all
    gaps between two chunks, each with the answers that were being written at its end.

    It says what else the machine did meanwhile, and nothing of how long anybody waited for a place. UsageError without
    a gap.
    """
    done = [one for one in result.records if one.itl_s]
    ratios = [
        gap / service.step_of(sum(one.chunk_times_s[0] <= end <= one.chunk_times_s[-1] for one in done))
        for record in done
        for gap, end in zip(record.itl_s, record.chunk_times_s[1:], strict=True)
    ]
    if not ratios:
        raise UsageError(
            f"none of {len(result.records)} answers has gaps between tokens",
            remedy="stream answers of two tokens or more",
        )
    return median(ratios)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The same requests twice: as the server answered them, and as the model does, in the same order.

    Only requests that ended OK; all of them, the failed ones too, were in the model's queue."""

    records: tuple[RequestRecord, ...]
    modelled: tuple[Served, ...]

    @property
    def measured_s(self) -> list[float]:
        """What each request took from the moment at which it was due."""
        return [one.e2e_from_schedule_s or 0.0 for one in self.records]

    @property
    def model_s(self) -> list[float]:
        """The same by the model."""
        return [one.e2e_s for one in self.modelled]


def replay(result: LoadResult, service: Service) -> Replayed:
    """An open loop's requests, at the times at which they were due and with the tokens that they had, in the model.

    UsageError without an answered request: there is nothing to compare."""
    known = [one for one in result.records if one.ok and one.e2e_from_schedule_s]
    if not known:
        raise UsageError(f"none of {len(result.records)} requests was answered", remedy="look into the server's log")
    prompt = round(fmean(one.input_tokens or 0 for one in known))
    output = round(fmean(one.output_tokens or 1 for one in known))
    due = sorted(result.records, key=lambda one: one.scheduled_s)
    arrivals = [
        Arrival(
            at_s=one.scheduled_s,
            prompt_tokens=one.input_tokens or prompt,
            output_tokens=one.output_tokens or output,
        )
        for one in due
    ]
    served = simulate(service, arrivals)
    kept = [(record, one) for record, one in zip(due, served, strict=True) if record.ok and record.e2e_from_schedule_s]
    return Replayed(records=tuple(record for record, _ in kept), modelled=tuple(one for _, one in kept))
