"""Exercises of lab 07: a list for a list, the law of batching, and how long an answer may be."""

import os
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import UsageError
from labkit.machine import disk_free_bytes
from labkit.serving.torchserve import CONFIG
from labkit.serving.vllm import executable
from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id

MISMATCH = ChoiceExercise(
    id="07.mismatch",
    title="this configuration is broken: find out why",
    prompt="""
A handler has served for months, one request at a time. Its `handle` ends with `return [json.dumps(answer)]`. To gain
throughput its owners set `batchSize: 8`. All tests pass (one request after the other), and the night is quiet. At nine
in the morning almost every client gets a 503. Which of these are true?

- **A** TorchServe hands `handle` all the rows that it has gathered, and wants as many answers.
- **B** The tests passed because a lone request is a batch of one: the lists had the same length by chance.
- **C** The queue was full: a larger `job_queue_size` helps.
- **D** A client whose request stood first got its answer; only the others failed.
- **E** `batchSize` in the configuration changes nothing as long as the handler reads `data[0]`.
- **F** A test has to send several requests at the same time, within the delay.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "What did TorchServe's log say, in the cell above: which two numbers did it compare?",
        "When do requests share a batch? Not at night, and not in the tests.",
    ),
    options=(
        Option(
            "A",
            "TorchServe hands `handle` all the rows that it has gathered, and wants as many answers.",
            True,
            "the contract not seen",
            "Something about the contract between the two is missing: what comes in, and what has to go out?",
        ),
        Option(
            "B",
            "The tests passed because a lone request is a batch of one.",
            True,
            "passing tests taken for a proof",
            "Why did it work for months? Count the rows of a batch when nobody else is there.",
        ),
        Option(
            "C",
            "The queue was full: a larger `job_queue_size` helps.",
            False,
            "every 503 taken for overload",
            "The number is the same as that of a full queue, and so is hardly anything else. The log tells them apart.",
        ),
        Option(
            "D",
            "A client whose request stood first got its answer; only the others failed.",
            False,
            "the first client thought safe",
            "Look at the four answers above once more. TorchServe cannot know whose answer the only one is.",
        ),
        Option(
            "E",
            "`batchSize` in the configuration changes nothing as long as the handler reads `data[0]`.",
            False,
            "the handler thought to decide",
            "The frontend gathers, whatever the handler does with it afterwards.",
        ),
        Option(
            "F",
            "A test has to send several requests at the same time, within the delay.",
            True,
            "the test that is missing",
            "Which test would have found it? It is missing in your answer, as it was in theirs.",
        ),
    ),
)

THREE_USERS = ChoiceExercise(
    id="07.three_users",
    title="this configuration is slow: find out why",
    prompt="""
`batchSize: 32`, `maxBatchDelay: 1000`, one worker. A batch takes 0.2 s, and 0.01 s for each row. There are three users,
each of whom asks again when the answer is there. Every answer takes well over a second, and the processor is idle most
of the time. Which of these help?

- **A** `batchSize: 3`
- **B** `maxBatchDelay: 10`
- **C** `batchSize: 64`
- **D** a second worker
- **E** a faster processor, and nothing else
- **F** `batchSize: 1`
""",
    starter='helps = None  # letters, such as "BD"',
    answer_name="helps",
    hints=(
        "Where does the time go? Put the numbers into your law: what is waited for, and what is computed?",
        "For each option: does a batch still wait for requests that nobody will send?",
    ),
    options=(
        Option(
            "A",
            "`batchSize: 3`",
            True,
            "the size that fits the users",
            "One of the sizes is filled by these users: its batches leave at once, whatever the delay.",
        ),
        Option(
            "B",
            "`maxBatchDelay: 10`",
            True,
            "the delay overlooked",
            "What is waited for can be made short, whatever the size.",
        ),
        Option(
            "C",
            "`batchSize: 64`",
            False,
            "larger taken for faster",
            "A larger batch is even further from being full. The same three wait as long.",
        ),
        Option(
            "D",
            "a second worker",
            False,
            "waiting taken for a lack of workers",
            "Two workers wait for requests that do not come, with fewer in each batch.",
        ),
        Option(
            "E",
            "a faster processor, and nothing else",
            False,
            "waiting taken for computing",
            "The processor is idle: it computes for a small part of each second. A shorter part leaves the rest.",
        ),
        Option(
            "F",
            "`batchSize: 1`",
            True,
            "batches thought to be always faster",
            "Batches of one never wait. Three of them, one after the other, are still far below what is waited now.",
        ),
    ),
)

PADDING = ChoiceExercise(
    id="07.padding",
    title="prompts of different lengths in one batch",
    prompt="""
`left_padded` puts prompts of different lengths into one rectangle. A decoder writes the next token after the last
position of each row. Which of these are true?

- **A** Padding stands on the left so that every row ends with its own last token.
- **B** With padding on the right a short prompt would be continued after padding instead of after its own words.
- **C** The attention mask keeps a row from reading its padding.
- **D** The padding's tokens change the answer of a short prompt even with a mask.
- **E** The padding costs nothing: it is masked.
- **F** A batch goes on until its longest answer is written; the others' places are computed for nobody.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Draw two rows, of two and of four tokens. Where does the third, the fifth token go?",
        "A mask takes away what is read, not what is computed.",
    ),
    options=(
        Option(
            "A",
            "Padding stands on the left so that every row ends with its own last token.",
            True,
            "the side taken for a matter of taste",
            "The reason for the side is missing: where does the next token go?",
        ),
        Option(
            "B",
            "With padding on the right a short prompt would be continued after padding.",
            True,
            "the right side thought harmless",
            "What is the last position of a short row that is padded on its other side?",
        ),
        Option(
            "C",
            "The attention mask keeps a row from reading its padding.",
            True,
            "the mask overlooked",
            "The second tensor that `left_padded` returns has a purpose.",
        ),
        Option(
            "D",
            "The padding's tokens change the answer of a short prompt even with a mask.",
            False,
            "padding thought to be read",
            "What is masked has no weight in attention, and positions count from the first real token. (Last digits may"
            " differ, since sums are taken in another order.)",
        ),
        Option(
            "E",
            "The padding costs nothing: it is masked.",
            False,
            "masked taken for not computed",
            "The rectangle goes through the model as a whole. The mask only takes away what is read from it.",
        ),
        Option(
            "F",
            "A batch goes on until its longest answer is written.",
            True,
            "a static batch taken for a continuous one",
            "What happens to a row that is done while another one is not? Lab 01 had a picture of it.",
        ),
    ),
)

ARCHIVE = ChoiceExercise(
    id="07.archive",
    title="an archive from a stranger",
    prompt="""
A colleague sends `llama.mar` for your TorchServe 0.12. Which of these are true?

- **A** Registering it runs the Python in it, with the server's rights, before any request.
- **B** An archive is data, like weights in safetensors; only its requests can do harm.
- **C** With `allowed_urls` and the model API off, nobody can make the server fetch one over the network.
- **D** The token keeps the code in an archive from reading files.
- **E** What is found in TorchServe from now on will be fixed in a later release.
- **F** It is a zip file: look at its handler before you serve it.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Which function of yours did a worker call before it was READY?",
        "The card at the top has dates. And ask of each protection: against whom?",
    ),
    options=(
        Option(
            "A",
            "Registering it runs the Python in it, with the server's rights, before any request.",
            True,
            "loading thought harmless",
            "`initialize` runs when a worker starts. With whose rights?",
        ),
        Option(
            "B",
            "An archive is data, like weights in safetensors; only its requests can do harm.",
            False,
            "code taken for data",
            "There is a .py file in it. What does a worker do with it?",
        ),
        Option(
            "C",
            "With `allowed_urls` and the model API off, nobody can make the server fetch one over the network.",
            True,
            "the way in overlooked",
            "One of these closes the door through which CVE-2023-43654 came.",
        ),
        Option(
            "D",
            "The token keeps the code in an archive from reading files.",
            False,
            "a token against code inside",
            "The token is asked of clients. The code is inside already.",
        ),
        Option(
            "E",
            "What is found in TorchServe from now on will be fixed in a later release.",
            False,
            "an archived project thought maintained",
            "Read the dates in the card again.",
        ),
        Option(
            "F",
            "It is a zip file: look at its handler before you serve it.",
            True,
            "the archive not opened",
            "A .mar can be opened by any program that opens zip files. What would you look at?",
        ),
    ),
)


# --- exercises of lab 07: a list for a list, the law of batching, and how long an answer may be ---


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


# --- packaging ---


DEFLATE, STORE, FOLDER, BY_PATH = "default", "zip-store", "no-archive", "by path"
WAYS = (DEFLATE, STORE, FOLDER, BY_PATH)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What one way took. `command` is the archiver's, with short paths; `bytes` what lay in the export path after."""

    way: str
    command: str
    wall_s: float
    cpu_s: float
    bytes: int


def pack(way: str, *, handler: Path, weights: Path) -> Packed:
    """Packs a handler with the folder `weights` in one of WAYS, in a folder that is removed again.

    "by path" leaves the weights where they are and writes their folder into model-config.yaml; the others copy them.
    UsageError for another way, a disk without room, or an archiver that fails.
    """
    if way not in WAYS:
        raise UsageError(f"there is no way {way!r} to pack a model", remedy=f"choose from {', '.join(WAYS)}")
    config = yaml.safe_load(handler.with_suffix(".yaml").read_text(encoding="utf-8"))
    config["handler"]["model_path"] = str(weights) if way == BY_PATH else "."
    with tempfile.TemporaryDirectory(prefix="labkit-pack-") as work:
        if way != BY_PATH:
            check_room(weights, Path(work))
        (Path(work) / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        out = Path(work) / "store"
        out.mkdir()
        words, shown = _command(way, handler, weights, Path(work), out)
        wall_s, cpu_s = _timed(words, Path(work))
        return Packed(way=way, command=shown, wall_s=wall_s, cpu_s=cpu_s, bytes=size_bytes(out))


def check_room(weights: Path, folder: Path) -> None:
    """UsageError where `folder`'s disk has not room for a copy of the weights and an archive of it beside."""
    needed, free = 2 * size_bytes(weights), disk_free_bytes(folder)
    if free < needed:
        raise UsageError(
            f"packing {weights.name} takes up to {needed / 1e9:.1f} GB in {folder}; {free / 1e9:.1f} GB are free",
            remedy="make room, set TMPDIR to a larger disk, or pack a smaller model",
        )


def size_bytes(path: Path) -> int:
    """A file's size, or that of all files in a folder; links count as what they lead to."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files if one.is_file())


def _command(way: str, handler: Path, weights: Path, work: Path, out: Path) -> tuple[list[str], str]:
    """The archiver's words, and how they are shown."""
    start = ["torch-model-archiver", "--model-name", "packed", "--version", "1.0"]
    extra = [] if way == BY_PATH else ["--archive-format", way, "--extra-files"]
    full = [*start, "--handler", str(handler), "--config-file", str(work / CONFIG), "--export-path", str(out), *extra]
    short = [*start, "--handler", handler.name, "--config-file", CONFIG, "--export-path", "model_store", *extra]
    return [*full, *([str(weights)] if extra else [])], shlex.join([*short, *([f"{weights.name}/"] if extra else [])])


def _timed(words: list[str], work: Path) -> tuple[float, float]:
    """Wall and CPU-seconds of a command, user and system, its own children included. UsageError where it fails."""
    log = work / "log"
    began = time.perf_counter()
    with log.open("wb") as file:
        # Its temporary copies go where ours are, and with them.
        environment = {**os.environ, "TMPDIR": str(work)}
        process = subprocess.Popen(
            [str(executable(words[0])), *words[1:]], stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C
            process.kill()
            process.wait()
            raise
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise UsageError(f"{words[0]} failed: {''.join(last)}", remedy="see `torch-model-archiver --help`")
    return wall_s, used.ru_utime + used.ru_stime
