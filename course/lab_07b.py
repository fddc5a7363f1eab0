"""Lab 07b: ways to pack a model for TorchServe, and what each key allows."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from course import lab_07
from labkit.errors import require
from labkit.machine import disk_free_bytes
from labkit.serving.ray_watch import Answer, Ask
from labkit.serving.torchserve import CONFIG, TorchServe
from labkit.serving.vllm import executable

DEFLATE, STORE, FOLDER, BY_PATH = "default", "zip-store", "no-archive", "by path"
WAYS = (DEFLATE, STORE, FOLDER, BY_PATH)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The cost of packing. `command`: the archiver's, with short paths; `size_bytes`: of the export path afterwards."""

    command: str
    cpu_s: float
    size_bytes: int


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
        formats = [] if way == DEFLATE else ["--archive-format", way]
        words += [] if way == BY_PATH else [*formats, "--extra-files", str(weights)]
        short = {str(handler): handler.name, str(work / CONFIG): CONFIG, str(out): "model_store"}
        short[str(weights)] = f"{weights.name}/"
        cpu_s = _cpu_s(words, work)
        command = shlex.join(short.get(word, word) for word in words)
        return Packed(command=command, cpu_s=cpu_s, size_bytes=size_bytes(out))


def check_room(weights: Path, folder: Path) -> None:
    """Raise a UsageError if `folder`'s disk has no room for a copy of the weights and an archive of it."""
    needed, free = 2 * size_bytes(weights), disk_free_bytes(folder)
    require(
        free >= needed,
        f"packing {weights.name} takes up to {needed / 1e9:.1f} GB in {folder}; {free / 1e9:.1f} GB are free",
        fix="make room, set TMPDIR to a larger disk, or pack a smaller model",
    )


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; links count as their targets."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def packed_table(packed: Mapping[str, Packed]) -> Any:
    """CPU-seconds and size by way of packing; a DataFrame."""
    import pandas as pd

    return pd.DataFrame(
        {
            way: {"CPU-seconds": round(done.cpu_s, 2), "MB": round(done.size_bytes / 1e6, 3)}
            for way, done in packed.items()
        }
    ).T


def _cpu_s(words: list[str], work: Path) -> float:
    """Return the CPU-seconds of a command and its children, user and system."""
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


# --- keys ---


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def doors(server: TorchServe, model: str) -> dict[str, Answer]:
    """Return the answers to requests without a key and with each of the keys."""
    url, keys = f"{server.url}/predictions/{model}", server.keys
    asks = {
        "a prediction without a key": Ask(url, body={}, headers={"Authorization": ""}),
        "with a wrong key": Ask(url, body={}, headers=_bearer("wrong")),
        "with the management key": Ask(url, body={}, headers=_bearer(keys.management)),
        "with the inference key": Ask(url, body={}, headers=_bearer(keys.inference)),
        "/ping without a key": Ask(f"{server.url}/ping", headers={"Authorization": ""}),
        "/metrics without a key": Ask(server.metrics_url, headers={"Authorization": ""}),
    }
    return dict(zip(asks, lab_07.send(server, [*asks.values()]), strict=True))


def status_with(server: TorchServe, model: str, key: str) -> int:
    """The status of a prediction with a key."""
    return lab_07.send(server, [Ask(f"{server.url}/predictions/{model}", body={}, headers=_bearer(key))])[0].status
