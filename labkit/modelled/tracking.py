"""Follow the requests of vLLM's scheduler step by step, in a modelled or a real engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labkit.modelled.step_time import Step


@dataclass(slots=True)
class Tracked:
    """A scheduled request: tokens of its prompt, computed before this step, and generated."""

    prompt: int
    computed: int = 0
    written: int = 0
    sampling_params: Any = None


class Tracker:
    """Follow requests through vLLM 0.32's SchedulerOutput, including preempted and resumed ones."""

    def __init__(self) -> None:
        self.requests: dict[str, Tracked] = {}
        self.preemptions = 0

    def follow(self, scheduled: Any, step: Step) -> Iterator[tuple[str, Tracked, bool]]:
        """Add each request to `step`, and yield its id, its state, and whether it generates a token in this step.

        It does if the step reaches the end of its prompt and generated tokens. The caller then increments `written`."""
        requests = self.requests
        self.preemptions += len(scheduled.preempted_req_ids or ())
        for finished in scheduled.finished_req_ids:
            requests.pop(finished, None)
        for new in scheduled.scheduled_new_reqs:
            if new.req_id not in requests:  # a resumed request keeps its generated tokens
                requests[new.req_id] = Tracked(new.prompt_len, sampling_params=new.sampling_params)
            requests[new.req_id].computed = new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            requests[name].computed = computed
        for name, tokens in scheduled.num_scheduled_tokens.items():
            request = requests[name]
            due = request.computed + tokens >= request.prompt + request.written
            decode = due and tokens == 1 and request.written > 0
            step.add(tokens, prefix=request.computed, decode=decode, sampled=due)
            yield name, request, due
