"""vLLM as a server (`vllm serve`) and as an object in this process (`LLM`), with the settings that a machine needs.

The engine's own command and arguments stay visible: nothing here renames or hides an option.
"""

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from labkit.errors import UsageError
from labkit.machine import Machine
from labkit.serving.process import LOOPBACK, Progress, ServerProcess, free_port, require_free_port

if TYPE_CHECKING:
    from types import TracebackType

# What a failed start says in its log, what that means, and what helps.
KNOWN_FAILURES = (
    (
        "is larger than the maximum number of tokens that can be stored in KV cache",
        "a request of the maximum length does not fit into the KV cache",
        "lower --max-model-len to the estimate in the log, or give the cache more memory",
    ),
    (
        "No available memory for the cache blocks",
        "no memory is left for the KV cache",
        "raise gpu_memory_share (on a CPU: VLLM_CPU_KVCACHE_SPACE), or free memory that others use",
    ),
    (
        "Free memory on device",
        "less GPU memory is free than the share that was asked for",
        "lower gpu_memory_share, or stop what else uses the GPU (`nvidia-smi` lists it)",
    ),
    (
        "out of memory",
        "the machine ran out of memory",
        "take a smaller model or a smaller share; start engines one after the other",
    ),
    (
        "unrecognized arguments",
        "vLLM does not know one of the options",
        "`vllm serve --help=all` lists those of the installed version",
    ),
    (
        "address already in use",
        "another process took the port in the meantime",
        "start it again: another free port is chosen",
    ),
)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What this hardware asks of vLLM: the environment, the arguments of `LLM` and the flags of `vllm serve`."""

    env: dict[str, str] = field(default_factory=dict)
    llm: dict[str, Any] = field(default_factory=dict)
    flags: str = ""

    def apply(self) -> None:
        """Puts `env` into this process, before vllm is imported; what the user set already stays."""
        for name, value in self.env.items():
            os.environ.setdefault(name, value)


def settings(machine: Machine, *, kv_cache_gib: int = 1, gpu_memory_share: float = 0.9) -> EngineSettings:
    """The settings for this machine.

    On a CPU: `kv_cache_gib` GiB for the KV cache (whole GiB: vLLM takes no fraction there), one OpenMP thread (spinning
    threads on few busy cores cost 8-10 times), no compilation (it takes over a minute). On a GPU: `gpu_memory_share` of
    its memory, which is what vLLM takes up front for weights and cache together.
    """
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
    if machine.gpus:
        _require_free_share(machine, gpu_memory_share)
        return EngineSettings(
            env=quiet,
            llm={"gpu_memory_utilization": gpu_memory_share},
            flags=f"--gpu-memory-utilization {gpu_memory_share}",
        )
    _require_memory(machine, kv_cache_gib)
    cpu = {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines would fight for core 0
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # LLM() in this very process: its CPU-seconds are ours to read
    }
    return EngineSettings(env={**quiet, **cpu}, llm={"enforce_eager": True}, flags="--enforce-eager")


def _require_free_share(machine: Machine, share: float) -> None:
    gpu = machine.gpus[0]
    free_share = gpu.memory_free_bytes / gpu.memory_total_bytes
    if share > free_share:
        raise UsageError(
            f"gpu_memory_share is {share:.2f}, but only {free_share:.2f} of {gpu.name}'s "
            f"{gpu.memory_total_bytes / 2**30:.0f} GiB is free",
            remedy=f"pass a gpu_memory_share of at most {free_share:.2f}, or stop what else uses the GPU",
        )


def _require_memory(machine: Machine, kv_cache_gib: int) -> None:
    if machine.memory_available_bytes < (kv_cache_gib + 2) * 2**30:
        raise UsageError(
            f"a KV cache of {kv_cache_gib} GiB and an engine of about 2 GiB do not fit: "
            f"{machine.memory_available_bytes / 2**30:.1f} GiB of memory are available",
            remedy="close other programs, or ask for a smaller cache",
        )


class Server:
    """A running `vllm serve`. Use it in a `with` block, or call `stop`.

    `command` is what was started, whole; `base_url` ends in /v1; requests need `api_key` (the server made for you
    refuses others, /metrics and /health excepted).
    """

    def __init__(self, process: ServerProcess, *, command: str, port: int, api_key: str, model_name: str) -> None:
        self.process = process
        self.command = command
        self.url = f"http://{LOOPBACK}:{port}"
        self.base_url = f"{self.url}/v1"
        self.metrics_url = f"{self.url}/metrics"
        self.api_key = api_key
        self.model_name = model_name

    def stop(self) -> None:
        """Ends the server with all its processes and waits until they are gone."""
        self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.stop()


def start(
    command: str,
    *,
    folder: Path,
    env: Mapping[str, str],
    port: int | None = None,
    api_key: str | None = None,
    start_timeout_s: float = 600.0,
    progress: Progress = lambda _: None,
) -> Server:
    """Starts a `vllm serve MODEL ...` command on a loopback port and waits until it answers.

    What is added to the command: --host, --port, and a key by environment (VLLM_API_KEY), unless you gave them.
    `folder` takes the log; `env` comes from `settings`. Raises `UsageError` for a command that cannot work, and
    `ServerError` with the reason and the end of the log when the server does not come up.
    """
    words = _checked_command(command)
    chosen = require_free_port(port) if port else free_port()
    key = api_key or secrets.token_urlsafe(16)
    words += ["--host", LOOPBACK, "--port", str(chosen)]
    process = ServerProcess(
        [str(executable("vllm")), *words[1:]],
        name="vllm serve",
        folder=folder,
        health_url=f"http://{LOOPBACK}:{chosen}/health",
        env={**env, "VLLM_API_KEY": key, "VLLM_LOGGING_LEVEL": "INFO"},
        start_timeout_s=start_timeout_s,
        explain=explain_failure,
    )
    process.start(progress=progress)
    return Server(process, command=shlex.join(words), port=chosen, api_key=key, model_name=_served_name(words))


def _checked_command(command: str) -> list[str]:
    words = shlex.split(command)
    if words[:2] != ["vllm", "serve"] or len(words) < 3 or words[2].startswith("-"):
        raise UsageError(f"not a server's command: {command!r}", remedy="write: vllm serve MODEL [options]")
    for flag in ("--host", "--port", "--api-key"):
        if any(word == flag or word.startswith(f"{flag}=") for word in words):
            raise UsageError(f"{flag} stands in the command", remedy="leave it out, or pass port= or api_key=")
    folder = Path(words[2])
    if folder.is_absolute() and not (folder / "config.json").is_file():
        # vLLM would take the path for a hub id and report a network error
        raise UsageError(f"{folder} is no model folder: it has no config.json", remedy="labkit fetch, or another path")
    return words


def _served_name(words: list[str]) -> str:
    flag = "--served-model-name"
    return words[words.index(flag) + 1] if flag in words[:-1] else words[2]


def explain_failure(log: str) -> tuple[str, str] | None:
    """Finds a known reason in the log of a failed start: (what it means, what helps)."""
    for text, meaning, remedy in KNOWN_FAILURES:
        if text in log:
            return meaning, remedy
    return None


def executable(name: str) -> Path:
    """A console command of this environment, also where its folder is not on PATH (a notebook's kernel)."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise UsageError(f"{name} is not installed in {path.parent}", remedy="run `make setup`")
    return path


def close(llm: Any) -> None:
    """Ends an in-process `LLM` and gives its memory back; `del llm` alone frees nothing (vllm #1908, #3281)."""
    import gc

    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    gc.collect()
