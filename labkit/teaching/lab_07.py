"""Exercises of lab 07: a list for a list, the law of batching, and how long an answer may be."""

from typing import Any

from labkit.teaching.exercises import FunctionExercise, Misconception, by_id
from labkit.teaching.lab_07_choices import ARCHIVE, MISMATCH, PADDING, THREE_USERS

GOOD, BAD = 200, 422


def statuses(data: list[dict[str, Any]]) -> list[int]:
    return [200 if isinstance(row.get("prompt"), str) else 422 for row in data]


ROWS = (
    [{"prompt": "a"}, {"prompt": 7}, {}, {"prompt": "b"}],
    [{}, {"prompt": "a"}],
    [{"prompt": "a"}, {"prompt": "b"}, {"prompt": ["c"]}],
)

STATUSES = FunctionExercise(
    id="07.statuses",
    title="a list for a list (from nothing)",
    prompt="""
A handler is called with `data`, the rows of a batch. Here each row is a body that has been decoded: a dict, which
should have a text as `prompt`. Write `statuses`: the list of HTTP statuses, one for **each** row, in the order of the
rows. Whose prompt is a text gets an answer; a client that sent none, or something else, is told that its request can be
read, but not used.
""",
    starter="def statuses(data): ...  # your code",
    answer_name="statuses",
    unit="HTTP status",
    solution=statuses,
    cases=tuple((rows,) for rows in ROWS),
    hints=(
        "A row need not have the key at all: `row.get(...)` does not raise where `row[...]` does.",
        "`isinstance(value, str)` tells a text from everything else. A cell above printed both numbers.",
    ),
    misconceptions=(
        Misconception(
            "only the first row looked at",
            "TorchServe counts: it wants an answer for every row, and this is the first one's. The whole batch fails.",
            (lambda data: statuses(data[:1]),),
        ),
        Misconception(
            "the first row's answer for everybody",
            "The list has the right length, and each client hears what was true of the first one.",
            (lambda data: statuses(data[:1]) * len(data),),
        ),
        Misconception(
            "one bad row spoils the batch",
            "Clients whose requests were good pay for a stranger's mistake. Only the row that is wrong may fail.",
            (lambda data: [max(statuses(data))] * len(data),),
        ),
        Misconception(
            "bad rows left out",
            "The bad rows have no answer at all, so the list is too short, and those behind them get a neighbour's.",
            (lambda data: [one for one in statuses(data) if one == GOOD],),
        ),
        Misconception(
            "the client's mistake told as ours",
            "Numbers from 500 say that the server failed. A client would send the same thing again, and somebody would"
            " be woken up.",
            (
                lambda data: [one if one == GOOD else 503 for one in statuses(data)],
                lambda data: [one if one == GOOD else 500 for one in statuses(data)],
            ),
        ),
        Misconception(
            "an error told as success",
            "Every client is told that all is well; the error would have to be looked for in the text.",
            (lambda data: [GOOD] * len(data),),
        ),
        Misconception(
            "not used told as not read",
            "These bodies could be read: they are JSON. There is a number of its own for one that makes no sense.",
            (lambda data: [one if one == GOOD else 400 for one in statuses(data)],),
        ),
    ),
)


def batch_seconds(rows: int, fixed_s: float, per_row_s: float) -> float:
    return fixed_s + per_row_s * rows


def requests_per_s(clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float) -> float:
    rows = min(clients, batch_size)
    waits_s = delay_s if rows < batch_size else 0
    return rows / (waits_s + fixed_s + per_row_s * rows)


Case = tuple[int, int, float, float, float]
LAW_CASES: tuple[Case, ...] = (
    (32, 8, 0.2, 0.1, 0.01),
    (2, 8, 0.2, 0.1, 0.01),
    (1, 1, 0.3, 0.2, 0.02),
    (4, 4, 0.3, 0.2, 0.02),
)

THROUGHPUT = FunctionExercise(
    id="07.throughput",
    title="the law of batching",
    prompt="""
The example is what a batch takes. Each of `clients` sends again as soon as it has its answer. A batch leaves when it
is full (`batch_size` rows), or `delay_s` after its first request. Fill the blanks: the requests answered in a second.
Below, your law is held against the measurements.
""",
    starter="""
def requests_per_s(clients, batch_size, delay_s, fixed_s, per_row_s):
    rows = min(..., ...)
    waits_s = delay_s if ... else 0
    return rows / (waits_s + fixed_s + per_row_s * rows)
""",
    answer_name="requests_per_s",
    unit="requests/s",
    worked=batch_seconds,
    solution=requests_per_s,
    cases=LAW_CASES,
    hints=(
        "Nobody sends two requests at a time: how many can there be in a batch at most, for either reason?",
        "The delay is waited for only by a batch that does not become full.",
    ),
    misconceptions=(
        Misconception(
            "every batch full",
            "With few clients a batch never becomes full: there is nobody to fill it.",
            (
                lambda _clients, size, _delay, fixed, row: size / (fixed + row * size),
                lambda clients, size, delay, fixed, row: size / ((delay if clients < size else 0) + fixed + row * size),
            ),
        ),
        Misconception(
            "the delay paid by every batch",
            "A full batch waits for nothing: it leaves at once. So does every batch of one.",
            (lambda clients, size, delay, fixed, row: min(clients, size) / (delay + fixed + row * min(clients, size)),),
        ),
        Misconception(
            "the delay never paid",
            "A batch that is not full does wait, in the hope of more requests. Someone pays for that.",
            (lambda clients, size, _delay, fixed, row: min(clients, size) / (fixed + row * min(clients, size)),),
        ),
        Misconception(
            "the fixed cost paid by every row",
            "That is a handler that writes its rows one after the other. A batch pays the fixed cost once.",
            (
                lambda clients, size, delay, fixed, row: (
                    min(clients, size) / ((delay if clients < size else 0) + (fixed + row) * min(clients, size))
                ),
            ),
        ),
        Misconception(
            "batches a second",
            "These are batches. Each of them answers several requests.",
            (
                lambda clients, size, delay, fixed, row: (
                    1 / ((delay if clients < size else 0) + fixed + row * min(clients, size))
                ),
            ),
        ),
    ),
)


def longest_answer(timeout_s: float, share: float, first_s: float, step_s: float, batch_size: int) -> int:  # noqa: ARG001
    return int((share * timeout_s - first_s) // step_s) + 1


LONGEST_ANSWER = FunctionExercise(
    id="07.longest_answer",
    title="how long an answer may be",
    prompt="""
A batch that takes longer than `responseTimeout` kills its worker. Fill the blanks: the largest `max_tokens` that a
handler may allow, so that a **full** batch of such answers ends within `share` of `timeout_s`. The first token of
every answer is there after `first_s` (the prompts are read by then); each later step takes `step_s` and adds one token
to every row of the batch. `batch_size`: the rows. Below, it gets this machine's numbers.
""",
    starter="""
def longest_answer(timeout_s, share, first_s, step_s, batch_size):
    for_steps_s = ... * timeout_s - ...
    return int(for_steps_s // ...) + ...
""",
    answer_name="longest_answer",
    unit="tokens",
    solution=longest_answer,
    cases=((64.0, 0.5, 2.0, 0.125, 8), (16.0, 0.75, 4.0, 0.375, 4), (10.0, 1.0, 0.5, 0.25, 2)),
    hints=(
        "How many seconds are left for the later steps, and how many whole steps fit into them?",
        "After the first step there is one token already. And one of the five arguments changes nothing by itself.",
    ),
    misconceptions=(
        Misconception(
            "the margin forgotten",
            "This uses the whole timeout. On a busy machine a step takes longer, and the worker dies at full load.",
            (lambda timeout, _share, first, step, _rows: int((timeout - first) / step) + 1,),
        ),
        Misconception(
            "the prompts forgotten",
            "Reading the prompts takes time, too, and TorchServe's clock runs from there.",
            (
                lambda timeout, share, _first, step, _rows: int(share * timeout / step) + 1,
                lambda timeout, share, _first, step, _rows: int(share * timeout / step),
            ),
        ),
        Misconception(
            "the rows take turns",
            "Divided by the rows: that would be one row after the other. A step adds a token to all of them.",
            (
                lambda timeout, share, first, step, rows: int((share * timeout - first) / (step * rows)) + 1,
                lambda timeout, share, first, step, rows: int((share * timeout - first) / step / rows),
            ),
        ),
        Misconception(
            "the batch's tokens for one answer's",
            "These are the tokens of all rows together. A limit holds for each answer.",
            (
                lambda timeout, share, first, step, rows: (int((share * timeout - first) / step) + 1) * rows,
                lambda timeout, share, first, step, rows: int((share * timeout - first) / step) * rows,
            ),
        ),
        Misconception(
            "the first token forgotten",
            "These are the later steps. The first token comes before them.",
            (lambda timeout, share, first, step, _rows: int((share * timeout - first) / step),),
        ),
    ),
)

EXERCISES = by_id([MISMATCH, STATUSES, THROUGHPUT, THREE_USERS, PADDING, LONGEST_ANSWER, ARCHIVE])
