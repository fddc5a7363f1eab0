"""What vLLM's scheduler gives in each step, request by request: for the modelled card, and to watch a real engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Tracked:
    """A request the scheduler knows: tokens of its prompt, tokens computed before this step, tokens written."""

    prompt: int
    computed: int = 0
    written: int = 0
    sampling_params: Any = None


class Tracker:
    """Follows requests through vLLM 0.32's SchedulerOutput, also those that are preempted and come back."""

    def __init__(self) -> None:
        self.requests: dict[str, Tracked] = {}
        self.preemptions = 0

    def follow(self, scheduled: Any) -> Iterator[tuple[str, Tracked, int, bool]]:
        """Each request of a step: its id, what is known of it, the tokens scheduled, and whether a token is due.

        A token is due in the step that reaches the end of the prompt and of all that was written. The caller adds it
        to `written`."""
        requests = self.requests
        self.preemptions += len(scheduled.preempted_req_ids or ())
        for finished in scheduled.finished_req_ids:
            requests.pop(finished, None)
        for new in scheduled.scheduled_new_reqs:
            known = requests.get(new.req_id)
            if known is None:  # else a preempted one: what it has written stays
                requests[new.req_id] = known = Tracked(new.prompt_len, sampling_params=new.sampling_params)
            known.computed = new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            requests[name].computed = computed
        for name, tokens in scheduled.num_scheduled_tokens.items():
            request = requests[name]
            yield name, request, tokens, request.computed + tokens >= request.prompt + request.written
