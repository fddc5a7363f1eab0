"""Check that vLLM's CUDA build accepts the labs' arguments, and that requirements/gpu.lock is complete:
`make gpu-arguments`.

Needs no GPU. Writes data/gpu_arguments.jsonl, which a unit test compares with the lock and the notebooks.

The Python files of the locked CUDA wheel (326 MB, kept in build/) take precedence over this environment's vLLM, with a
fake NVML that reports one card after the other. `LLM(...)` and the parser of `vllm serve` then run as far as the
engine's configuration. Without kernels, Triton counts as missing and Model Runner V2 as off.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from labkit.files import data_path, root
from labkit.labs import LABS, load_profile, profile_for
from labkit.machine import Gpu, Machine
from labkit.serving.vllm import GPU_ENV
from tools import gpu_lock
from tools.engine_calls import EngineCall, engine_calls, small_config

RECORD = root() / "data" / "gpu_arguments.jsonl"
BUILD = root() / "build" / "gpu-arguments"
MODELS, CACHE = BUILD / "models", BUILD / "cache"
MIB, GIB = 2**20, 2**30
WRONG = EngineCall(model="SmolLM2-135M", command="vllm serve SmolLM2-135M --no-such-option")  # must be refused
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


@dataclass(frozen=True)
class Card:
    """A GPU as NVML reports it."""

    name: str
    total_mib: int
    capability: tuple[int, int]

    @property
    def machine(self) -> Machine:
        """A machine with this card only, unused."""
        gpu = Gpu(
            index=0,
            name=self.name,
            uuid="GPU-0",
            memory_total_bytes=self.total_mib * MIB,
            memory_free_bytes=self.total_mib * MIB,
            driver="580.95.05",
            capability=self.capability,
            cuda_driver=13000,
        )
        host = {"cpu_model": "", "os": "", "python": "", "hostname_hash": "", "gpu_reason": "", "cpus": 16}
        memory = {"memory_total_bytes": 128 * GIB, "memory_available_bytes": 128 * GIB}
        return Machine(gpus=(gpu,), **host, **memory)  # type: ignore[arg-type]


CARDS = {
    "t4": Card("Tesla T4", 15360, (7, 5)),
    "rtx-4060-ti": Card("NVIDIA GeForce RTX 4060 Ti", 16380, (8, 9)),
    "l4": Card("NVIDIA L4", 23034, (8, 9)),
    "rtx-4090": Card("NVIDIA GeForce RTX 4090", 24564, (8, 9)),
    "a100-40": Card("NVIDIA A100-SXM4-40GB", 40960, (8, 0)),
    "l40s": Card("NVIDIA L40S", 46068, (8, 9)),
    "a100-80": Card("NVIDIA A100-SXM4-80GB", 81920, (8, 0)),
    "h100": Card("NVIDIA H100 80GB HBM3", 81559, (9, 0)),
    "h200": Card("NVIDIA H200", 143771, (9, 0)),
    "b200": Card("NVIDIA B200", 183359, (10, 0)),
}


def harvest(card: Card) -> Iterator[tuple[str, str, EngineCall]]:
    """Yield (profile, lab, call) for each engine that the course starts on the card, with its default profile."""
    machine = card.machine
    profile = load_profile(profile_for(machine), machine)
    for lab in LABS.values():
        for call in engine_calls(lab, profile, machine):
            yield profile.name, lab.name, call


def read_record() -> list[dict[str, Any]]:
    """Return the record's lines: the lock, its check on each Python, and a line for each card and call."""
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the record and print what was refused; return 1 if anything was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parse", nargs=2, type=Path, metavar=("CALLS", "ANSWERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.parse:
        calls, answers = arguments.parse
        to_parse = [EngineCall(**fields) for fields in json.loads(calls.read_text(encoding="utf-8"))]
        answers.write_text(json.dumps([_device(), *map(_answer, to_parse)]), encoding="utf-8")
        return 0
    build, library = _cuda_build(), _fake_nvml()
    _write_models()
    # vLLM inspects a model's class by importing it, which needs the CUDA kernels. The CPU build has the same files; its
    # results are cached by the files' hash, where the CUDA build finds them.
    _parse([EngineCall(model=name) for name in _configs()], {})
    lines = [*_lock_lines(), *(line for card in CARDS for line in _lines(card, build, library))]
    RECORD.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    wrong = [line for line in lines if line.get("refused") or line.get("unmet") or line.get("collisions")]
    print(f"{len(lines)} lines in {RECORD.relative_to(root())}, {len(wrong)} to look at")
    for line in wrong:
        print(json.dumps(line, indent=1))
    return 1 if wrong else 0


def _lock_lines() -> list[dict[str, Any]]:
    """The record's lines on this lock, or a new check if it has changed."""
    known = read_record() if RECORD.is_file() else []
    first, checked = {"lock_sha256": gpu_lock.sha256()}, [line for line in known if "python" in line]
    if known[:1] == [first] and tuple(line["python"] for line in checked) == gpu_lock.PYTHONS:
        return [first, *checked]
    try:
        return [first, *(gpu_lock.check(python, BUILD) for python in gpu_lock.PYTHONS)]
    finally:
        shutil.rmtree(BUILD / gpu_lock.CACHE, ignore_errors=True)


def _lines(card: str, build: Path, library: Path) -> list[dict[str, Any]]:
    shown, calls = CARDS[card], list(harvest(CARDS[card]))
    nvml = {
        "FAKE_NVML_NAME": shown.name,
        "FAKE_NVML_TOTAL_MIB": str(shown.total_mib),
        "FAKE_NVML_CAPABILITY": ".".join(map(str, shown.capability)),
        "LD_LIBRARY_PATH": str(library),
        "PYTHONPATH": f"{build}{os.pathsep}{root()}",
    }
    device, wrong, *answers = _parse([WRONG, *(call for *_, call in calls)], nvml)
    if device != shown.name or "refused" not in wrong:
        raise SystemExit(f"no check: vLLM sees {device} for {shown.name}, and says of {WRONG.command!r}: {wrong}")
    print(f"{card}: {len(answers)} calls", flush=True)
    return [
        {"card": card, "profile": profile, "lab": lab, **call.to_dict(), **answer}
        for (profile, lab, call), answer in zip(calls, answers, strict=True)
    ]


def _parse(calls: Sequence[EngineCall], variables: Mapping[str, str]) -> list[Any]:
    """The device and answers of the vLLM in a new process with these environment variables."""
    call_file, answers = BUILD / "calls.json", BUILD / "answers.json"
    call_file.write_text(json.dumps([call.to_dict() for call in calls]), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "NVIDIA_", "VLLM_"))}
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**kept, **quiet, "VLLM_CACHE_ROOT": str(CACHE), "PYTHONPATH": str(root()), **GPU_ENV, **variables}
    command = [sys.executable, "-W", "ignore", "-m", "tools.gpu_arguments", "--parse", str(call_file), str(answers)]
    subprocess.run(command, cwd=MODELS, env=environment, check=True)
    return list(json.loads(answers.read_text(encoding="utf-8")))


class _ConfiguredError(Exception):
    """Raised to end the constructor of `LLM` once its engine is configured."""


def _device() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name())


def _answer(call: EngineCall) -> dict[str, Any]:
    """The call's configuration, or the first lines of vLLM's error."""
    try:
        config = _served(call.command) if call.command else _constructed(call)
        _check_dtype(config.model_config.dtype)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"refused": f"{type(error).__name__}: {' '.join(lines[:3])}"}
    scheduler, cache = config.scheduler_config, config.cache_config
    return {
        "resolved": {
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "block_size": cache.block_size,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "max_num_seqs": scheduler.max_num_seqs,
            "enable_chunked_prefill": scheduler.enable_chunked_prefill,
            "enable_prefix_caching": cache.enable_prefix_caching,
            "async_scheduling": scheduler.async_scheduling,
        }
    }


def _constructed(call: EngineCall) -> Any:
    from vllm import LLM
    from vllm.v1.engine.llm_engine import LLMEngine

    def stop(*, engine_args: Any, usage_context: Any, **_: Any) -> None:
        raise _ConfiguredError(engine_args.create_engine_config(usage_context))

    with patch.object(LLMEngine, "from_engine_args", stop):
        try:
            LLM(call.model, **call.arguments or {})
        except _ConfiguredError as end:
            return end.args[0]


def _served(command: str) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(command.split()[2:])
    except SystemExit:
        raise ValueError(stderr.getvalue().strip().splitlines()[-1]) from None
    arguments.model = arguments.model_tag  # as `vllm serve` does
    return AsyncEngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)


def _check_dtype(dtype: Any) -> None:
    """Check that the card supports the number type, as a worker does when it starts."""
    from vllm.platforms import current_platform

    current_platform.check_if_supports_dtype(dtype)


def _cuda_build() -> Path:
    """Create a folder with the Python files of the locked CUDA wheel, and an empty module for each library."""
    lock = gpu_lock.LOCK.read_text(encoding="utf-8")
    entry = re.search(r"^vllm==(\S+) (?:.*\\\n)+.*\n", lock, re.MULTILINE)
    if entry is None:
        raise SystemExit(f"{gpu_lock.LOCK} pins no vllm")
    BUILD.mkdir(parents=True, exist_ok=True)
    wanted = BUILD / "vllm.txt"
    wanted.write_text(entry[0], encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet"]
    pip = [sys.executable, "-m", "pip", "download", *options, "--dest", str(BUILD), "-r", str(wanted)]
    subprocess.run(pip, check=True)
    (wheel,) = BUILD.glob(f"vllm-{entry[1]}-*.whl")
    folder = BUILD / f"vllm-{entry[1]}"
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder, [name for name in names if name.endswith(".py") or ".dist-info/" in name])
    for library in (Path(name) for name in names if name.endswith(".so")):
        stub = folder / library.with_name(f"{library.name.partition('.')[0]}.py")
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.touch()
    return folder


def _fake_nvml() -> Path:
    folder = BUILD / "nvml"
    folder.mkdir(exist_ok=True)
    source = root() / "tests" / "fake_nvml" / "fake_nvml.c"
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)], check=True)
    return folder


def _configs() -> dict[str, dict[str, Any]]:
    """Configs of the models that the GPU profiles serve, by name."""
    examples = yaml.safe_load(data_path("example_models.yaml").read_text(encoding="utf-8"))
    return {**{name: examples[name] for name in ("SmolLM2-135M", "Qwen2.5-7B")}, "Qwen2.5-1.5B": small_config()}


def _write_models() -> None:
    for name, shape in _configs().items():
        folder = MODELS / name
        folder.mkdir(parents=True, exist_ok=True)
        config = {**shape, "architectures": [ARCHITECTURES[shape["model_type"]]], "torch_dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
