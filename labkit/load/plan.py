"""What a load is to do, checked before anything is sent."""

from dataclasses import dataclass, replace
from typing import Any

from labkit.errors import UsageError
from labkit.load.wire import PATHS, Api, body
from labkit.workloads import Request, Workload, checks, constant_arrivals_s, poisson_arrivals_s

ARRIVALS = ("poisson", "constant")


@dataclass(frozen=True)
class Plan:
    """The arguments of a load run; see `labkit.load.run`."""

    model: str
    workload: Workload
    concurrency: int | None
    rate: float | None
    arrival: str
    api: Api
    stream: bool
    warmup: int
    timeout_s: float
    stop_after_s: float | None
    arrival_seed: int | None

    def check(self) -> None:
        """UsageError with the value and the remedy on the first argument that is wrong."""
        if not self.workload.requests:
            raise UsageError(f"workload {self.workload.name!r} has 0 requests", remedy="build it with n=1 or more")
        self._check_loop()
        checks.whole("warmup", self.warmup, at_least=0)
        checks.above_zero("timeout_s", self.timeout_s, unit="seconds")
        if self.stop_after_s is not None:
            checks.above_zero("stop_after_s", self.stop_after_s, unit="seconds")
        self._check_api()

    def _check_loop(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise UsageError(
                f"concurrency is {self.concurrency} and rate is {self.rate}; exactly one of them drives a load",
                remedy="pass concurrency=N (closed loop) or rate=R in requests per second (open loop)",
            )
        if self.concurrency is not None:
            checks.whole("concurrency", self.concurrency, at_least=1)
        if self.rate is not None:
            checks.above_zero("rate", self.rate, unit="requests per second")
        if self.arrival not in ARRIVALS:
            raise UsageError(f"arrival is {self.arrival!r}", remedy=f"choose one of {', '.join(ARRIVALS)}")

    def _check_api(self) -> None:
        if self.api not in PATHS:
            raise UsageError(f"api is {self.api!r}", remedy=f"choose one of {', '.join(PATHS)}")
        if self.api == "plain" and self.stream:
            raise UsageError("a plain answer comes whole", remedy="pass stream=False")
        if self.api != "chat" and any(request.messages for request in self.workload.requests):
            raise UsageError(f"the workload holds chat messages; {self.api} takes none", remedy='pass api="chat"')

    @property
    def seed(self) -> int | None:
        """The seed of the arrival times: as given, else the workload's."""
        return self.workload.parameters.get("seed") if self.arrival_seed is None else self.arrival_seed

    def arrivals_s(self) -> tuple[float, ...]:
        """When each request of an open loop is due, in seconds since the start."""
        n = len(self.workload.requests)
        if self.rate is None:
            return ()
        if self.arrival == "constant":
            return constant_arrivals_s(n, rate=self.rate)
        return poisson_arrivals_s(n, rate=self.rate, seed=self.seed or 0)

    def body(self, request: Request) -> bytes:
        """The JSON of `request`."""
        return body(request, model=self.model, api=self.api, stream=self.stream)

    def warmup_requests(self) -> list[Request]:
        """The first requests with their words in reverse: as long as what is measured, but sharing no prefix with it,
        or a prefix cache would answer the measured ones."""
        requests = self.workload.requests
        return [_reversed(requests[index % len(requests)]) for index in range(self.warmup)]


def _reversed(request: Request) -> Request:
    messages = request.messages and tuple(_reversed_message(message) for message in request.messages)
    return replace(request, prompt=_reversed_words(request.prompt), messages=messages)


def _reversed_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": _reversed_words(content)} if isinstance(content, str) else message


def _reversed_words(text: str) -> str:
    return " ".join(reversed(text.split(" ")))
