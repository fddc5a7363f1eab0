"""Lab 07: exercises on lists of rows, batches and time limits; and ways to pack a model for TorchServe."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import require
from labkit.machine import disk_free_bytes
from labkit.serving.torchserve import CONFIG
from labkit.serving.vllm import executable
from labkit.teaching import solution

Rows = list[dict[str, Any]]


def _bad_as(status: int) -> Callable[[Rows], list[int]]:
    return lambda rows: [code if code == 200 else status for code in statuses(rows)]


def statuses(data: list[dict[str, Any]]) -> list[int]:
    return [200 if isinstance(row.get("prompt"), str) else 422 for row in data]


solution(
    "07.statuses",
    statuses,
    exact=True,
    cases=[
        ([{"prompt": "a"}, {"prompt": 7}, {}, {"prompt": "b"}],),
        ([{}, {"prompt": "a"}],),
        ([{"prompt": "a"}, {"prompt": "b"}, {"prompt": ["c"]}],),
    ],
    wrong={
        "only the first row looked at": lambda data: statuses(data[:1]),
        "the first row's answer for everybody": lambda data: statuses(data[:1]) * len(data),
        "one bad row spoils the batch": lambda data: [max(statuses(data))] * len(data),
        "bad rows left out": lambda data: [code for code in statuses(data) if code == 200],
        "the client's mistake told as ours": [_bad_as(503), _bad_as(500)],
        "an error told as success": lambda data: [200] * len(data),
        "not used told as not read": _bad_as(400),
    },
)


def batch_seconds(rows: int, fixed_s: float, per_row_s: float) -> float:
    return fixed_s + per_row_s * rows


def requests_per_s(clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float) -> float:
    rows = min(clients, batch_size)
    waits_s = delay_s if rows < batch_size else 0
    return rows / (waits_s + fixed_s + per_row_s * rows)


solution(
    "07.throughput",
    requests_per_s,
    unit="requests/s",
    worked=batch_seconds,
    cases=[(32, 8, 0.2, 0.1, 0.01), (2, 8, 0.2, 0.1, 0.01), (1, 1, 0.3, 0.2, 0.02), (4, 4, 0.3, 0.2, 0.02)],
    wrong={
        "every batch full": [
            lambda _clients, size, _delay, fixed, row: size / (fixed + row * size),
            lambda clients, size, delay, fixed, row: size / ((delay if clients < size else 0) + fixed + row * size),
        ],
        "the delay paid by every batch": lambda clients, size, delay, fixed, row: requests_per_s(
            clients, size, 0, delay + fixed, row
        ),
        "the delay never paid": lambda clients, size, _delay, fixed, row: requests_per_s(clients, size, 0, fixed, row),
        "the fixed cost paid by every row": lambda clients, size, delay, fixed, row: requests_per_s(
            clients, size, delay, 0, fixed + row
        ),
        "batches a second": lambda clients, size, delay, fixed, row: (
            requests_per_s(clients, size, delay, fixed, row) / min(clients, size)
        ),
    },
)


def longest_answer(timeout_s: float, share: float, first_s: float, step_s: float, batch_size: int) -> int:  # noqa: ARG001
    return int((share * timeout_s - first_s) // step_s) + 1


solution(
    "07.longest_answer",
    longest_answer,
    unit="tokens",
    cases=((64.0, 0.5, 2.0, 0.125, 8), (16.0, 0.75, 4.0, 0.375, 4), (10.0, 1.0, 0.5, 0.25, 2)),
    wrong={
        "the margin forgotten": lambda timeout, _share, first, step, rows: longest_answer(
            timeout, 1, first, step, rows
        ),
        "the prompts forgotten": [
            lambda timeout, share, _first, step, rows: longest_answer(timeout, share, 0, step, rows),
            lambda timeout, share, _first, step, _rows: int(share * timeout / step),
        ],
        "the rows take turns": [
            lambda timeout, share, first, step, rows: longest_answer(timeout, share, first, step * rows, rows),
            lambda timeout, share, first, step, rows: int((share * timeout - first) / step / rows),
        ],
        "the batch's tokens for one answer's": [
            lambda timeout, share, first, step, rows: longest_answer(timeout, share, first, step, rows) * rows,
            lambda timeout, share, first, step, rows: int((share * timeout - first) / step) * rows,
        ],
        "the first token forgotten": lambda timeout, share, first, step, _rows: int((share * timeout - first) / step),
    },
)


# --- packaging ---

DEFLATE, STORE, FOLDER, BY_PATH = "default", "zip-store", "no-archive", "by path"
WAYS = (DEFLATE, STORE, FOLDER, BY_PATH)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What packing took. `command` is the archiver's, with short paths; `bytes`: the size of the export path after."""

    command: str
    cpu_s: float
    bytes: int


def pack(way: str, *, handler: Path, weights: Path) -> Packed:
    """Pack a handler with the folder `weights` in one of WAYS, in a folder that is removed again.

    "by path" leaves the weights where they are and writes their folder into model-config.yaml; the others copy them.
    UsageError for another way, a disk without room, or an archiver that fails.
    """
    require(way in WAYS, f"there is no way {way!r} to pack a model", fix=f"choose from {', '.join(WAYS)}")
    config = yaml.safe_load(handler.with_suffix(".yaml").read_text(encoding="utf-8"))
    config["handler"]["model_path"] = str(weights) if way == BY_PATH else "."
    with tempfile.TemporaryDirectory(prefix="labkit-pack-") as name:
        work, out = Path(name), Path(name) / "store"
        out.mkdir()
        if way != BY_PATH:
            check_room(weights, work)
        (work / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        words = ["torch-model-archiver", "--model-name", "packed", "--version", "1.0"]
        words += ["--handler", str(handler), "--config-file", str(work / CONFIG), "--export-path", str(out)]
        words += [] if way == BY_PATH else ["--archive-format", way, "--extra-files", str(weights)]
        short = {str(handler): handler.name, str(work / CONFIG): CONFIG, str(out): "model_store"}
        short[str(weights)] = f"{weights.name}/"
        cpu_s = _cpu_s(words, work)
        return Packed(command=shlex.join(short.get(word, word) for word in words), cpu_s=cpu_s, bytes=size_bytes(out))


def check_room(weights: Path, folder: Path) -> None:
    """UsageError where `folder`'s disk has no room for a copy of the weights and an archive of it."""
    needed, free = 2 * size_bytes(weights), disk_free_bytes(folder)
    require(
        free >= needed,
        f"packing {weights.name} takes up to {needed / 1e9:.1f} GB in {folder}; {free / 1e9:.1f} GB are free",
        fix="make room, set TMPDIR to a larger disk, or pack a smaller model",
    )


def size_bytes(path: Path) -> int:
    """A file's size, or that of all files in a folder; links count as what they lead to."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _cpu_s(words: list[str], work: Path) -> float:
    """CPU-seconds of a command, user and system, its own children included."""
    log = work / "log"
    command = [str(executable(words[0])), *words[1:]]
    environment = {**os.environ, "TMPDIR": str(work)}  # its temporary copies go where ours are, and with them
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    require(process.returncode == 0, f"{words[0]} failed: {last}", fix="see `torch-model-archiver --help`")
    return used.ru_utime + used.ru_stime
