"""The ways to hand a model to TorchServe, timed: `torch-model-archiver` in its formats, with the weights and without.

CPU-seconds are the archiver's own, from the kernel, so that several may be measured at a time.
"""

import os
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from labkit.errors import UsageError
from labkit.machine import disk_free_bytes
from labkit.serving.torchserve_archive import CONFIG
from labkit.serving.vllm import executable

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
