"""vLLM as a server (`vllm serve`) and in this process (`LLM`), with the settings that the machine needs.

vLLM's own command and arguments stay visible: this module renames and hides no option.
"""

import importlib.metadata
import logging
import os
import secrets
import shlex
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.errors import UsageError, require
from labkit.machine import Machine
from labkit.machine.facts import vllm_version
from labkit.machine.gpu_share import require_share
from labkit.serving import gate
from labkit.serving.process import LOOPBACK, Say, ServerProcess, Stoppable, free_port, require_free_port

CPU_CACHE_GIB = 1  # vLLM takes whole GiB on a CPU
KNOWN_FAILURES = (
    (
        r"larger than the available KV cache memory.*estimated maximum model length is (\d+)",
        "a request of the maximum length does not fit into the KV cache",
        "lower --max-model-len to {0} or less, or give the cache more memory",
    ),
    (
        r"larger than the available KV cache memory",
        "the KV cache is too small for any request",
        "give the cache more memory",
    ),
    (
        r"No available memory for the cache blocks",
        "no memory is left for the KV cache",
        "raise gpu_memory_share (on a CPU: VLLM_CPU_KVCACHE_SPACE), or free memory that other processes use",
    ),
    (
        r"Available memory on node \d+ \(([\d.]+)/.*is less than requested memory for kv",
        "the requested KV cache is larger than the free memory",
        "{0} GiB are available: lower VLLM_CPU_KVCACHE_SPACE, or close other programs",
    ),
    (
        # a successful start logs the first words too
        r"Free memory on device \S+ \(([\d.]+)/.*is less than",
        "less GPU memory is free than the requested share",
        "{0} GiB are free: lower gpu_memory_share, or stop other processes on the GPU (`nvidia-smi` lists them)",
    ),
    (
        r"out of memory|OutOfMemory",
        "the machine ran out of memory",
        "use a smaller model or a smaller share; start engines one after the other",
    ),
    (
        r"couldn't connect to 'https://huggingface\.co'",
        "the model is not on this machine, and a starting server downloads nothing",
        "run `labkit fetch MODEL`, or pass a model folder",
    ),
    (
        r"unrecognized arguments: (.*)",
        "vLLM does not know one of the options",
        "remove {0}; `vllm serve --help=all` lists the options of the installed version",
    ),
    (
        r"[Aa]ddress already in use",
        "another process took the port in the meantime",
        "start it again; it will choose another free port",
    ),
    (
        # The root cause; vLLM's last lines only say "See root cause above".
        r"(?m)^\(EngineCore[^)]*\) ERROR .*?\] (\w+(?:Error|Exception): .*)$",
        "{0}",
        "change the setting that the message names",
    ),
    (
        r"Value error, (.*?) \[type=",  # of vLLM's configuration classes
        "{0}",
        "change the option that the message names",
    ),
    (
        r"engine core exited unexpectedly",  # the server then ends with exit code 0
        "its engine core was killed: by a signal, or by the kernel when memory runs out",
        "look for an out-of-memory message of the kernel (`dmesg`), free memory, and start it again",
    ),
)
OPEN_PATHS = ("/health", "/metrics")  # Prometheus and health checks of a loopback server send no key
BODY_LIMIT_BYTES = 64 << 20
GPU_ENV = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
WHY_ON_GPU = {
    "VLLM_USE_FLASHINFER_SAMPLER": (
        "FlashInfer compiles its sampler with nvcc when an engine starts, and a driver alone does not include nvcc "
        "(vLLM issue 49497); greedy decoding loses nothing"
    ),
    "CUDA_DEVICE_ORDER": (
        "CUDA numbers the fastest card first, NVML by the PCI bus; with the same order vLLM uses the card that was "
        "checked"
    ),
    "generation_config": (
        "the model's own file may set a temperature and penalties, which `vllm serve` would use and `LLM.generate` "
        "with explicit parameters would not"
    ),
    "gpu_memory_utilization": "vLLM allocates this share of the card at start, for weights and KV cache together",
}


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings for this machine: environment variables, arguments of `LLM`, flags of `vllm serve`.

    `dtype`, also for other libraries: "auto" (the model's own) or "float32". `why`: the reason for a variable or an
    argument, by name.
    """

    dtype: str = "auto"
    env: dict[str, str] = field(default_factory=dict)
    llm: dict[str, Any] = field(default_factory=dict)
    flags: str = ""
    why: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.llm.items())
        environment = " ".join(f"{name}={value}" for name, value in self.env.items())
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in self.why.items())
        return f"LLM(..., {arguments})\nvllm serve ... {self.flags}\nenvironment: {environment}{reasons}"

    def apply(self) -> None:
        """Add `env` to this process's environment; variables that are set stay. Call it before vllm is imported."""
        for name, value in self.env.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # no Triton on a CPU: known


def settings(machine: Machine, *, gpu_memory_share: float = 0.9, weight_bytes: int | None = None) -> EngineSettings:
    """Return the settings for this machine. UsageError if a number is out of range or memory does not suffice.

    On a CPU: CPU_CACHE_GIB of KV cache, one OpenMP thread (spinning threads on few
    busy cores are 8-10 times slower), no compilation (it takes over a minute), and float32 if the cores have no fast
    bfloat16 (batching would gain nothing). On a GPU: `gpu_memory_share` of its memory, which vLLM allocates at start
    for weights and cache together; `weight_bytes`, if known, must leave room for the cache.
    """
    # Errors only in a notebook; a server's log has its own level (see `start`).
    offline = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    require(0 < gpu_memory_share <= 1, f"gpu_memory_share is {gpu_memory_share}", fix="pass a number from 0.01 to 1")
    quiet = {**offline, "VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    if machine.gpus:
        require_share(machine.gpus[0], gpu_memory_share, weight_bytes=weight_bytes)
        return EngineSettings(
            env={**quiet, **GPU_ENV},
            llm={
                "gpu_memory_utilization": gpu_memory_share,
                "generation_config": "vllm",
                "use_tqdm_on_load": False,
            },
            flags=f"--gpu-memory-utilization {gpu_memory_share} --generation-config vllm",
            why=WHY_ON_GPU,
        )
    require(
        machine.memory_available_bytes >= (CPU_CACHE_GIB + 2) * 2**30,
        f"a KV cache of {CPU_CACHE_GIB} GiB and an engine of about 2 GiB do not fit: "
        f"{machine.memory_available_bytes / 2**30:.1f} GiB of memory are available",
        fix="close other programs",
    )
    cpu = {
        "VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines would both bind to core 0
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # LLM() runs in this process, so that its CPU time can be measured
    }
    dtype = "auto" if machine.cpu_bf16 else "float32"
    return EngineSettings(
        dtype=dtype,
        env={**quiet, **cpu},
        llm={"enforce_eager": True, "dtype": dtype, "use_tqdm_on_load": False},
        flags=f"--enforce-eager --dtype {dtype}",
    )


class Server(Stoppable):
    """A running `vllm serve`. Use it in a `with` block, or call `stop`.

    `command`: the full command; `base_url` ends in /v1. All routes but /health and /metrics need `api_key` (see
    `gate`). `model_path`: the folder or hub id with weights and tokenizer. `model_name`: the model's name in requests.
    """

    def __init__(
        self, process: ServerProcess, *, command: str, port: int, api_key: str, model_path: str, model_name: str
    ) -> None:
        self.process = process
        self.model_path = model_path
        self.command = command
        self.url = f"http://{LOOPBACK}:{port}"
        self.base_url = f"{self.url}/v1"
        self.metrics_url = f"{self.url}/metrics"
        self.api_key = api_key
        self.model_name = model_name

    def stop(self) -> None:
        """End the server with all its processes and wait until they have ended."""
        self.process.stop()


def start(
    command: str,
    *,
    folder: Path,
    env: Mapping[str, str],
    port: int | None = None,
    api_key: str | None = None,
    start_timeout_s: float = 600.0,
    progress: Say = lambda _: None,
) -> Server:
    """Start a `vllm serve MODEL ...` command on a loopback port and wait until it answers.

    --host, --port and --middleware are added; the middleware requires a key on all routes but /health and /metrics.
    vLLM's own key (VLLM_API_KEY), set to the same value, covers only some routes. `folder`: for the log; `env`: from
    `settings`. UsageError for an invalid command; ServerError, with the reason and the end of the log, if the server
    does not start.
    """
    words = _checked_command(command)
    chosen = free_port() if port is None else require_free_port(port)
    key = api_key or secrets.token_urlsafe(16)
    words += ["--host", LOOPBACK, "--port", str(chosen), "--middleware", f"{gate.__name__}.Gate"]
    guarded = gate.environment(api_key=key, open_paths=OPEN_PATHS, body_limit_bytes=BODY_LIMIT_BYTES)
    process = ServerProcess(
        [str(executable("vllm")), *words[1:]],
        name="vllm serve",
        folder=folder,
        health_url=f"http://{LOOPBACK}:{chosen}/health",
        env={**env, **guarded, **name_on_path(folder, env), "VLLM_API_KEY": key, "VLLM_LOGGING_LEVEL": "INFO"},
        start_timeout_s=start_timeout_s,
        failures=KNOWN_FAILURES,
    )
    process.start(progress=progress)
    return Server(
        process,
        command=shlex.join(words),
        port=chosen,
        api_key=key,
        model_path=words[2],
        model_name=_served_name(words),
    )


def _checked_command(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{error} in {command!r}", remedy="put both quotes around the argument") from None
    serves = words[:2] == ["vllm", "serve"] and len(words) > 2 and not words[2].startswith("-")
    require(serves, f"not a `vllm serve` command: {command!r}", fix="write: vllm serve MODEL [options]")
    options = {word.partition("=")[0] for word in words}
    for flag in ("--host", "--port", "--api-key"):
        require(flag not in options, f"the command contains {flag}", fix="remove it; pass port= or api_key= instead")
    folder = Path(words[2]).expanduser()
    if folder.is_dir() or words[2].startswith(("/", ".", "~")):
        # vLLM would treat a path without a model as a hub id and report a network error
        is_model = (folder / "config.json").is_file()
        fix = "run labkit fetch, or pass another path"
        require(is_model, f"{folder} is not a model folder: it has no config.json", fix=fix)
        words[2] = str(folder.absolute())  # the server runs in another folder
    return words


def _served_name(words: list[str]) -> str:
    arguments = [part for word in words for part in word.split("=", 1)]
    flag = "--served-model-name"
    return arguments[arguments.index(flag) + 1] if flag in arguments else words[2]


def executable(name: str) -> Path:
    """Return the path of a console command of this environment, even if it is not on PATH (as in a kernel)."""
    path = Path(sys.executable).parent / name
    require(path.exists(), f"{name} is not installed in {path.parent}", fix="run `make setup`")
    return path


def name_on_path(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which `vllm` finds its version: its command line needs a distribution of that name, and
    the CPU build's is `vllm-cpu`. Where none is installed (`make setup` does), one is written below `folder`."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version, where = vllm_version(), folder.absolute() / "vllm-name"
        metadata = where / f"vllm-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
        given = env.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(where), given)))}
    return {}


def close(llm: Any) -> None:
    """End an in-process `LLM` and free its memory; `del llm` alone frees nothing (vllm #1908, #3281)."""
    import gc

    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    gc.collect()
