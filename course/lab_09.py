"""Exercises of lab 09: what a table must obey, tokens worth paying for, goodput and cost.

Those with options are in `lab_09_choices`.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import psutil

from labkit import load
from labkit.errors import UsageError
from labkit.load import LoadResult, RequestRecord, metrics
from labkit.load.workloads import Workload
from labkit.machine import Sampler, UseSummary
from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id

FAIR = ChoiceExercise(
    id="09.fair",
    title="a comparison that is none (a broken benchmark)",
    prompt="""
A colleague compares vLLM with TorchServe on one machine. The report says: "TorchServe: batchSize 1, float32. Monday, 16
clients, 200 prompts from `chat.jsonl`, measured by our Python script, the first request included. vLLM: bfloat16,
Tuesday, the same 16 clients and the same 200 prompts, after a run with the same file to warm it up, measured by `vllm
bench serve`. Both in a closed loop, answers of exactly 64 tokens." Which of these make the comparison worth less?

- **A** Two clients: what differs may be the way in which they count and wait.
- **B** The same prompts for both.
- **C** TorchServe's batch size: 16 clients queue for one place.
- **D** vLLM's prefix cache had seen every prompt before.
- **E** Two number types: half of the bytes to be read for every token.
- **F** Answers of the same length for both.
- **G** Monday and Tuesday: whatever else the machine did is in the difference.
""",
    starter='faults = None  # letters, such as "BD"',
    answer_name="faults",
    hints=(
        "Go through everything that the two servers do not have in common.",
        "Two of the options are what makes a comparison fair.",
    ),
    options=(
        Option(
            "A",
            "Two clients.",
            True,
            "any client taken for every client",
            "Something about how it was measured is missing: what is a token to each, and when does its clock start?",
        ),
        Option(
            "B",
            "The same prompts for both.",
            False,
            "different prompts thought to be fairer",
            "With others their lengths would be in the difference. Sharing them is right, unless a cache knows them.",
        ),
        Option(
            "C",
            "TorchServe's batch size.",
            True,
            "a configuration taken for a server",
            "Something about a setting is missing: it is the default of one server, and decides more than its name.",
        ),
        Option(
            "D",
            "vLLM's prefix cache had seen every prompt before.",
            True,
            "a warm cache taken for a warm-up",
            "Something about the warm-up is missing: what did it leave behind (lab 03)?",
        ),
        Option(
            "E",
            "Two number types.",
            True,
            "the number type not seen",
            "Something about the weights is missing: are they the same, to the last bit?",
        ),
        Option(
            "F",
            "Answers of the same length for both.",
            False,
            "free lengths thought to be fairer",
            "Left free, a server that breaks off early would look faster. A fixed length is right.",
        ),
        Option(
            "G",
            "Monday and Tuesday.",
            True,
            "the day taken for nothing",
            "Something about when it was measured is missing: this lab goes round by round, in a shuffled order.",
        ),
    ),
)

SAY = ChoiceExercise(
    id="09.say",
    title="what may be said",
    prompt="""
You have measured the four servers of this lab on a machine without a GPU, with a small model and short answers, and
write to your team. Which of these sentences do the numbers carry?

- **A** On this machine, with this load, vLLM wrote more tokens a second than our handler on TorchServe, by a factor in
  this interval.
- **B** On a GPU with an 8B model the factor will be the same.
- **C** Where the interval of Ray Serve over vLLM holds 1, Ray Serve costs nothing.
- **D** Where it holds 1, these rounds cannot tell the two apart, and the interval's ends say what may still be so.
- **E** The p99 of our thirty requests is the promise to make to users.
- **F** The order of two servers at one rate may turn at another: the rate belongs into the sentence.
- **G** The cheapest price of a million tokens is what we shall pay.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Which of them would still be true if someone measured again tomorrow, on the same machine?",
        "A sentence that names its conditions is a finding; without them it is a hope.",
    ),
    options=(
        Option(
            "A",
            "On this machine, with this load, by a factor in this interval.",
            True,
            "nothing may be said at all",
            "A measurement with its conditions and its interval is missing: that much you do know.",
        ),
        Option(
            "B",
            "On a GPU with an 8B model the factor will be the same.",
            False,
            "a factor taken along to other machines",
            "What limits a token changes with model and machine, and with it what a server can gain.",
        ),
        Option(
            "C",
            "Where the interval holds 1, Ray Serve costs nothing.",
            False,
            "not told apart taken for equal",
            "Too few rounds cannot show a cost, but that does not make it nothing.",
        ),
        Option(
            "D",
            "Where it holds 1, these rounds cannot tell the two apart.",
            True,
            "an interval that says nothing",
            "What an interval around 1 does say is missing: its ends are the largest differences that fit.",
        ),
        Option(
            "E",
            "The p99 of our thirty requests is the promise to make.",
            False,
            "the slowest of a few taken for a p99",
            "With so few requests this is the slowest one that happened to be there.",
        ),
        Option(
            "F",
            "The rate belongs into the sentence.",
            True,
            "one rate taken for all",
            "A server that waits to fill a batch and one that does not change places as the load grows.",
        ),
        Option(
            "G",
            "The cheapest price of a million tokens is what we shall pay.",
            False,
            "a full machine taken for granted",
            "That price is for a machine that is never idle. Yours will be, at night.",
        ),
    ),
)


# --- exercises of lab 09: what a table must obey, tokens worth paying for, goodput and cost ---


Answers = list[tuple[float, float, bool]]


def requests_per_s(clients: int, mean_e2e_s: float) -> float:
    return clients / mean_e2e_s


LITTLE = FunctionExercise(
    id="09.little",
    title="a table that cannot be (from nothing)",
    prompt="""
In a closed loop `clients` clients each have one request under way, all the time: whoever is answered asks again at
once. Of a colleague's table you know the clients and the mean time of an answer, end to end. Write `requests_per_s`:
the throughput that the table must show, if it is right.
""",
    starter="def requests_per_s(clients, mean_e2e_s): ...  # your code",
    answer_name="requests_per_s",
    unit="requests/s",
    solution=requests_per_s,
    cases=((6, 1.5), (1, 0.4), (64, 8.0)),
    hints=(
        "How many requests does one client get answered in a minute?",
        "This is Little's law: what is under way = throughput x time in the system. It knows nothing of the server.",
    ),
    misconceptions=(
        Misconception(
            "one client's throughput taken for all",
            "This is what a single client gets answered. The others ask at the same time.",
            (lambda _clients, mean_e2e_s: 1 / mean_e2e_s,),
        ),
        Misconception(
            "times multiplied",
            "This grows when answers take longer. Clients that wait longer ask less.",
            (lambda clients, mean_e2e_s: clients * mean_e2e_s,),
        ),
        Misconception(
            "seconds a request",
            "This is how much time passes for each request that is answered: the throughput upside down.",
            (lambda clients, mean_e2e_s: mean_e2e_s / clients,),
        ),
        Misconception(
            "the asker left out",
            "There is no need to leave a client out: all of them have a request under way, all the time.",
            (lambda clients, mean_e2e_s: (clients - 1) / mean_e2e_s,),
        ),
    ),
)


def tokens_written(written: list[int], asked: list[int]) -> int:
    return sum(one for one, _wanted in zip(written, asked, strict=True))


def tokens_asked_for(written: list[int], asked: list[int]) -> int:
    return sum(min(one, wanted) for one, wanted in zip(written, asked, strict=True))


USEFUL = FunctionExercise(
    id="09.useful",
    title="tokens that somebody asked for",
    prompt="""
The naive handler writes the same length for everybody. The example counts all that it wrote. A user who wanted four
tokens and got sixteen has four that are of use; one whose answer ended early has those that came. Fill the blank:
the tokens that count when servers are compared.
""",
    starter="""
def tokens_asked_for(written, asked):
    return sum(... for one, wanted in zip(written, asked, strict=True))
""",
    answer_name="tokens_asked_for",
    unit="tokens",
    worked=tokens_written,
    solution=tokens_asked_for,
    cases=(([12, 12, 12], [4, 12, 8]), ([12, 5, 12], [9, 9, 12]), ([3], [12])),
    hints=(
        "Two numbers a request: what came, and what was wanted. When is which of them the right one?",
        "Try it with an answer that is too long, and with one that is too short.",
    ),
    misconceptions=(
        Misconception(
            "all that was written",
            "This counts tokens that nobody asked for. A server would become faster by talking more.",
            (lambda written, _asked: sum(written),),
        ),
        Misconception(
            "all that was asked for",
            "This counts tokens that never came. A server would become faster by breaking off.",
            (lambda _written, asked: sum(asked),),
        ),
        Misconception(
            "only answers of the right length",
            "An answer that is too long still holds what was wanted, and a short one is not nothing.",
            (lambda written, asked: sum(w for w, a in zip(written, asked, strict=True) if w == a),),
        ),
        Misconception(
            "the larger of the two",
            "Of two numbers this takes the one that makes the server look better.",
            (lambda written, asked: sum(max(w, a) for w, a in zip(written, asked, strict=True)),),
        ),
        Misconception(
            "a mean for a sum",
            "This is how much each request got on average. Asked for are the tokens of all of them together.",
            (lambda written, asked: tokens_asked_for(written, asked) / len(asked),),
        ),
    ),
)


def kept(answers: Answers, ttft_slo_s: float) -> float:
    good = sum(first_s - due_s <= ttft_slo_s and ok for due_s, first_s, ok in answers)
    return good / len(answers)


def _kept_of_the_answered(answers: Answers, ttft_slo_s: float) -> float:
    done = [(due_s, first_s) for due_s, first_s, ok in answers if ok]
    return sum(first_s - due_s <= ttft_slo_s for due_s, first_s in done) / len(done)


def _mean_kept(answers: Answers, ttft_slo_s: float) -> float:
    waits = [first_s - due_s for due_s, first_s, ok in answers if ok]
    return float(sum(waits) / len(waits) <= ttft_slo_s)


KEPT = FunctionExercise(
    id="09.kept",
    title="how many users were served in time",
    prompt="""
Each entry of `answers` is (when the request was **due**, when its first token came, whether it ended well). Fill the
blanks: the share of all users who had their first token within `ttft_slo_s` of the moment at which they came.
""",
    starter="""
def kept(answers, ttft_slo_s):
    good = sum(first_s - ... <= ttft_slo_s and ... for due_s, first_s, ok in answers)
    return good / ...
""",
    answer_name="kept",
    unit="",
    solution=kept,
    cases=(
        ([(0.0, 0.4, True), (1.0, 1.9, True), (2.0, 3.2, True), (3.0, 3.1, False)], 1.0),
        ([(0.0, 0.9, True), (0.5, 2.9, True), (1.0, 1.2, True), (1.5, 9.0, False), (2.0, 2.9, True)], 0.9),
    ),
    hints=(
        "A request that failed after a fast first token: was its user served?",
        "Who stands below the line of the fraction: those who were answered, or those who came?",
    ),
    misconceptions=(
        Misconception(
            "failures not counted among the users",
            "Users who got nothing came, too: a server would improve by failing.",
            (_kept_of_the_answered,),
        ),
        Misconception(
            "a fast failure taken for good",
            "An answer that began in time and broke off was no answer to its user.",
            (lambda answers, slo_s: sum(first - due <= slo_s for due, first, _ in answers) / len(answers),),
        ),
        Misconception(
            "the mean held to the objective",
            "This asks whether the average user was served in time. The objective is for each of them.",
            (_mean_kept,),
        ),
        Misconception(
            "every answer in time",
            "This is the share that was answered at all, however late.",
            (lambda answers, _slo_s: sum(ok for _, _, ok in answers) / len(answers),),
        ),
        Misconception(
            "a moment taken for a wait",
            "This compares a time of day with a length of time. A wait has a beginning.",
            (lambda answers, slo_s: sum(first <= slo_s and ok for _, first, ok in answers) / len(answers),),
        ),
        Misconception(
            "a count for a share",
            "This is how many users were served in time. Asked for is their share.",
            (lambda answers, slo_s: kept(answers, slo_s) * len(answers),),
        ),
    ),
)


def usd_per_million(usd_per_hour: float, tokens_per_s: float, busy_share: float) -> float:
    return usd_per_hour / (tokens_per_s * busy_share * 3600) * 1_000_000


COST = FunctionExercise(
    id="09.cost",
    title="what a million tokens cost (from nothing)",
    prompt="""
A machine is paid by the hour, whether it works or not: `usd_per_hour`. While it works it writes `tokens_per_s`; it
works for `busy_share` of the time. Write `usd_per_million`: dollars for a million tokens that were written.
""",
    starter="def usd_per_million(usd_per_hour, tokens_per_s, busy_share): ...  # your code",
    answer_name="usd_per_million",
    unit="dollars",
    solution=usd_per_million,
    cases=((0.1, 50.0, 1.0), (2.0, 1000.0, 0.25), (21.96, 5556.0, 0.0375)),
    hints=(
        "How many tokens are written in an hour that is paid for?",
        "A machine that is idle half of the time: do its tokens become cheaper or dearer?",
    ),
    misconceptions=(
        Misconception(
            "idle hours for nothing",
            "This is the price on a machine that is never idle. Nobody gives back what an idle hour cost.",
            (lambda usd, rate, _busy: usd / (rate * 3600) * 1e6,),
        ),
        Misconception(
            "idleness that makes it cheaper",
            "With this formula tokens become cheaper the less the machine has to do.",
            (lambda usd, rate, busy: usd * busy / (rate * 3600) * 1e6,),
        ),
        Misconception(
            "seconds taken for hours",
            "The price is for an hour, the speed for a second: one of them has to be converted.",
            (lambda usd, rate, busy: usd / (rate * busy) * 1e6,),
        ),
        Misconception(
            "a minute for an hour",
            "An hour has more than sixty seconds.",
            (lambda usd, rate, busy: usd / (rate * busy * 60) * 1e6,),
        ),
        Misconception(
            "one token's price",
            "This is the price of a single token.",
            (lambda usd, rate, busy: usd / (rate * busy * 3600),),
        ),
        Misconception(
            "tokens for a dollar",
            "This is how many million tokens a dollar buys: the fraction is upside down.",
            (lambda usd, rate, busy: rate * busy * 3600 / usd / 1e6,),
        ),
    ),
)

EXERCISES = by_id([FAIR, LITTLE, USEFUL, KEPT, COST, SAY])


# --- head to head ---


SAMPLE_S = 0.5
SECONDS_PER_HOUR, MILLION = 3600, 1_000_000
SHORTEST_BATCH = 2
MOST_OF_A_GPU = 0.8


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server that is compared. `pids`: its processes' roots. `api` "plain": a handler without OpenAI's protocol."""

    name: str
    base_url: str
    api_key: str
    pids: tuple[int, ...]
    api: load.Api = "completions"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice: what the client saw, and what the server's processes used meanwhile."""

    result: LoadResult
    use: UseSummary

    @property
    def tokens(self) -> int:
        """Tokens that somebody asked for."""
        return sum(record.output_tokens or 0 for record in self.result.records if record.ok)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.result.duration_s

    @property
    def tokens_per_cpu_s(self) -> float:
        """Tokens per CPU-second of the server's processes."""
        return self.tokens / self.use.processes_cpu_s if self.use.processes_cpu_s else float("nan")

    @property
    def memory_gib(self) -> float:
        """The largest resident memory of its processes; pages that several share count once for each."""
        return self.use.processes_rss_bytes.max / 2**30 if self.use.processes_rss_bytes else float("nan")


def part(workload: Workload, start: int, n: int) -> Workload:
    """`n` requests of a workload, from number `start` on. UsageError if there are too few."""
    if start < 0 or n < 1 or start + n > len(workload.requests):
        raise UsageError(
            f"requests {start} to {start + n - 1} of {len(workload.requests)} are asked for",
            remedy="write a longer workload file",
        )
    requests = workload.requests[start : start + n]
    return replace(workload, requests=requests, parameters={**workload.parameters, "start": start, "n": n})


def ask(
    contender: Contender,
    requests: Workload,
    *,
    model: str,
    count_tokens: Callable[[str], int],
    clients: int | None = None,
    rate: float | None = None,
    warmup: int = 0,
    timeout_s: float = 120.0,
    seed: int = 0,
) -> Slice:
    """Sends the requests to one server, in a closed loop (`clients`) or an open one (`rate`), and watches it."""
    plain = contender.api == "plain"
    with Sampler(pids=roots(contender.pids), interval_s=SAMPLE_S) as use:
        result = load.run_blocking(
            contender.base_url,
            model,
            requests,
            concurrency=clients,
            rate=rate,
            api=contender.api,
            stream=not plain,
            warmup=warmup,
            timeout_s=timeout_s,
            seed=seed,
            api_key=contender.api_key,
        )
    return Slice(result=useful(result, requests, count_tokens) if plain else result, use=use.summary())


def roots(pids: Sequence[int]) -> tuple[int, ...]:
    """Those of the processes that are nobody's child among them: a sampler finds the others below them."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if not {parent.pid for parent in psutil.Process(pid).parents()} & set(pids):
                found.append(pid)
    return tuple(found)


def useful(result: LoadResult, requests: Workload, count_tokens: Callable[[str], int]) -> LoadResult:
    """Plain answers as what they were worth to whoever asked: the prompt cut off, no token more than was asked for.

    A user sees nothing before the whole answer is there, so its first token comes with its last.
    """
    asked = dict(enumerate(requests.requests))

    def worth(record: RequestRecord) -> RequestRecord:
        if not record.ok:
            return record
        request = asked[record.index]
        text = record.text.removeprefix(request.prompt)
        tokens = min(count_tokens(text), request.max_tokens)
        return replace(record, text=text, output_tokens=tokens, chunk_times_s=(record.finished_s,))

    return replace(result, records=tuple(map(worth, result.records)))


def pooled(slices: Iterable[Slice]) -> metrics.Summary:
    """All slices of one server as one load: their requests together, over the sum of their times."""
    found = [one.result for one in slices]
    records = [record for one in found for record in one.records]
    return metrics.summarise_records(
        records,
        duration_s=sum(one.duration_s for one in found),
        client_cpu_share=max(one.client_cpu_share for one in found),
    )


def cores(slices: Sequence[Slice]) -> float:
    """CPU-seconds of the server's processes a second: how many cores it kept busy, over all slices."""
    return sum(one.use.processes_cpu_s for one in slices) / sum(one.use.duration_s for one in slices)


def goodputs(slices: Sequence[Slice], slo: metrics.Slo) -> tuple[float, float]:
    """(share of the requests that kept the objective, how many did so a second), over all slices together.

    In an open loop the time to the first token counts from the moment at which a request was due.
    """
    records = [record for one in slices for record in one.result.records]
    good = sum(slo.holds(_from_schedule(record)) for record in records)
    return good / len(records), good / sum(one.result.duration_s for one in slices)


def _from_schedule(record: RequestRecord) -> RequestRecord:
    return replace(record, started_s=record.scheduled_s)


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float, *, busy_share: float = 1.0) -> float:
    """Dollars for a million tokens on a machine that is paid by the hour and writes for `busy_share` of it.

    UsageError for what cannot be.
    """
    if usd_per_hour < 0 or tokens_per_s <= 0 or not 0 < busy_share <= 1:
        raise UsageError(
            f"${usd_per_hour} an hour, {tokens_per_s} tokens/s, busy for {busy_share} of it",
            remedy="a price of 0 or more, tokens above 0, a share between 0 and 1",
        )
    return usd_per_hour / (tokens_per_s * busy_share * SECONDS_PER_HOUR) * MILLION


def check_lengths(low: int, high: int, *, requests: int, clients: int) -> None:
    """UsageError before anything starts: lengths the wrong way round, or a slice that is over in one batch."""
    if low > high:
        raise UsageError(f"answers of {low} to {high} tokens", remedy="tokens_low may be tokens_high at most")
    if requests < clients + SHORTEST_BATCH:
        raise UsageError(
            f"{requests} requests for {clients} clients: nobody would ever ask a second time",
            remedy=f"pass requests={clients + SHORTEST_BATCH} or more, or fewer clients",
        )


def check_shares(gpu_memory_share: float, *, gpus: int) -> None:
    """UsageError on a GPU that cannot hold two engines and two handlers with this share for each engine."""
    if gpus and 2 * gpu_memory_share > MOST_OF_A_GPU:
        raise UsageError(
            f"two engines with a share of {gpu_memory_share} each leave nothing of the GPU to the two handlers",
            remedy=f"pass gpu_memory_share={MOST_OF_A_GPU / 2:g} or less",
        )
