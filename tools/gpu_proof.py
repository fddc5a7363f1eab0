"""Check the course's assumptions about GPUs on a real one: `make gpu-proof`, ten minutes at most.

Runs on any machine with a GPU, with or without vLLM. Each check is a separate process with a time limit; its result is
one line of JSON, in build/gpu-proof/results.jsonl and on stdout. A check that cannot run reports the reason. The exit
code is 0 unless a check failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files import data_path, root
from labkit.machine import inspect, to_json, versions
from labkit.machine.gpus import find_gpus

OUT = root() / "build" / "gpu-proof"
MIB, GIB = 2**20, 2**30
MODEL = "llama-3.1-8b"  # its shape with random weights: times do not depend on the weights' values
Result = Mapping[str, Any]


class NotHereError(LabkitError):
    """A check that this machine cannot run, with the reason."""


def tools() -> Result:
    """Look for the compilers of Triton and FlashInfer, and compile and run a Triton kernel."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found = {name: shutil.which(name) for name in ("gcc", "clang", "nvcc", "ninja")}
    return {**{name: bool(path) for name, path in found.items()}, "python_h": header.is_file(), "triton": _triton()}


def _triton() -> str:
    torch = _cuda()
    try:
        compiled = torch.compile(lambda x: (x * 2).sin().sum())
        compiled(torch.ones(4096, device="cuda")).item()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "compiles and runs"


def nvml() -> Result:
    """Return the GPUs that labkit finds, and its doctor's verdict on each lab."""
    _require_gpu()
    doctor = subprocess.run([sys.executable, "-m", "labkit", "doctor", "--json"], capture_output=True, text=True)
    labs = json.loads(doctor.stdout)["labs"] if doctor.stdout else [{"name": "doctor", "runs": doctor.stderr[-300:]}]
    return {"machine": to_json(inspect()), "labs": {lab["name"]: lab["runs"] for lab in labs}}


def memory() -> Result:
    """Measure device memory (MiB) of a CUDA context, a matrix product and attention, and what is left after release."""
    torch = _cuda()
    before = _free_mib()
    torch.ones(1, device="cuda")
    context = before - _free_mib()
    a = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16)
    (a @ a).sum().item()
    q = torch.ones(1, 32, 2048, 128, device="cuda", dtype=torch.bfloat16)
    torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().item()
    used = before - _free_mib()
    del a, q
    torch.cuda.empty_cache()
    return {"context_mib": context, "after_kernels_mib": used, "left_mib": before - _free_mib()}


def bandwidth() -> Result:
    """Measure GB/s of a sum over 256 MiB, 1 and 4 GiB, to see how large lab 00's read must be."""
    torch = _cuda()
    found = {}
    for mib in (256, 1024, 4096):
        numbers = torch.ones(mib * MIB // 4, device="cuda")
        numbers.sum().item()
        best_s = min(_seconds(lambda numbers: numbers.sum().item(), numbers) for _ in range(8))
        found[f"{mib}_mib"] = round(numbers.nbytes / best_s / 1e9, 1)
        del numbers
    return {"gb_per_s": found}


def steps() -> Result:
    """Time prefill and decode of an 8B model with random weights in transformers (ms), and compute them by formula."""
    torch = _cuda()
    from transformers import AutoConfig, AutoModelForCausalLM

    if _free_mib() < 24 * 1024:
        raise NotHereError(f"an 8B model and its cache take 24 GiB; {_free_mib() / 1024:.0f} are free")
    config = AutoConfig.from_pretrained(data_path("models") / MODEL, local_files_only=True)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config).eval()
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for tokens in (512, 4096, 12000):
            prompt = torch.randint(1000, 30000, (1, tokens), device="cuda")
            model(prompt, use_cache=True, logits_to_keep=1)
            took_s = _seconds(model, prompt, use_cache=True, logits_to_keep=1)
            found[f"prefill_{tokens}_ms"] = round(1e3 * took_s, 1)
        for batch in (1, 16, 32):
            prompt = torch.randint(1000, 30000, (batch, 128), device="cuda")
            cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
            token = prompt[:, :1]
            model(token, past_key_values=cache)
            took_s = min(_seconds(model, token, past_key_values=cache) for _ in range(8))
            found[f"decode_{batch}_ms"] = round(1e3 * took_s, 2)
    model = None
    torch.cuda.empty_cache()
    return {**found, "reserved_mib": int(torch.cuda.memory_reserved() // MIB), "modelled": _modelled()}


def _modelled() -> Result:
    """The same steps by the formula, without engine and host, for the modelled card of this name."""
    from labkit import modelled
    from labkit.modelled.step_time import Step

    name = find_gpus()[0][0].name
    card = next((card for card in modelled.cards.known().values() if _fits(card.title, name)), None)
    if card is None or card.efficiency is None:
        return {"card": f"none for {name}"}
    times = modelled.gpu(card.name, model=MODEL, source="formula").step_time()
    found: dict[str, Any] = {"card": card.name}
    for tokens in (512, 4096, 12000):
        step = Step()
        step.add(tokens, prefix=0, decode=False, sampled=True)
        found[f"prefill_{tokens}_ms"] = round(1e3 * times.seconds(step), 1)
    for batch in (1, 16, 32):
        step = Step()
        for _ in range(batch):
            step.add(1, prefix=128, decode=True, sampled=True)
        found[f"decode_{batch}_ms"] = round(1e3 * times.seconds(step), 2)
    return found


def _fits(title: str, name: str) -> bool:
    return all(word in name.replace("-", " ") for word in title.split()[1:3] if word not in ("SXM", "PCIe"))


def vllm_start() -> Result:
    """Start vLLM twice in one process with the course's settings, and measure free memory after each."""
    _cuda()
    if "vllm" not in versions() or versions()["vllm"].endswith("+cpu"):
        raise NotHereError("the CUDA build of vLLM is not installed")
    from labkit import models
    from labkit.serving import vllm

    settings = vllm.settings(inspect(), gpu_memory_share=0.3)
    settings.apply()
    from vllm import LLM, SamplingParams

    free = [_free_mib()]
    for _ in range(2):
        llm = LLM(str(models.resolve(models.CHAT)), max_model_len=2048, **settings.llm)
        (answer,) = llm.generate(["The capital of France is"], SamplingParams(max_tokens=8, temperature=0))
        vllm.close(llm)
        del llm
        free.append(_free_mib())
    return {"answer": answer.outputs[0].text, "free_mib_before_and_after_each": free}


CHECKS: dict[str, tuple[Callable[[], Result], int]] = {
    "tools": (tools, 90),
    "nvml": (nvml, 60),
    "memory": (memory, 60),
    "bandwidth": (bandwidth, 60),
    "steps": (steps, 150),
    "vllm_start": (vllm_start, 150),
}
"""Each check and its time limit in seconds: ten minutes in total."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", choices=list(CHECKS), help="run one check in this process")
    chosen = parser.parse_args(arguments).check
    if chosen is not None:
        print(json.dumps(CHECKS[chosen][0]()))
        return 0
    out = Path(os.environ.get("OUT", OUT))
    out.mkdir(parents=True, exist_ok=True)
    rows = [_head(), *(_carried_out(name, limit_s) for name, (_, limit_s) in CHECKS.items())]
    (out / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return 1 if any(row.get("status") == "failed" for row in rows) else 0


def _head() -> dict[str, Any]:
    row = {"check": "machine", "when": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", "machine": to_json(inspect())}
    return _said({**row, "versions": versions(), "torch": _version("torch"), "triton": _version("triton")})


def _carried_out(name: str, limit_s: int) -> dict[str, Any]:
    """Run one check in a separate process; its row says done with a result, not checked with the reason, or failed."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tools.gpu_proof", "--check", name]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=root())
    except subprocess.TimeoutExpired:
        return _said({"check": name, "status": "failed", "why": f"not done within {limit_s} s"})
    row: dict[str, Any] = {"check": name, "seconds": round(time.monotonic() - began, 1)}
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    if ended.returncode == 0:
        row |= {"status": "done", "result": json.loads(ended.stdout.strip().splitlines()[-1])}
    elif "NotHereError" in last or "ModuleNotFoundError" in last:
        row |= {"status": "not checked", "why": last.partition(": ")[2] or last}
    else:
        row |= {"status": "failed", "why": last}
    return _said(row)


def _said(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _require_gpu() -> None:
    gpus, reason = find_gpus()
    if not gpus:
        raise NotHereError(f"no GPU: {reason}")


def _cuda() -> Any:
    """Return torch. NotHereError if it cannot use a GPU."""
    _require_gpu()
    import torch

    if not torch.cuda.is_available():
        raise NotHereError(f"torch {torch.__version__} cannot use this GPU")
    return torch


def _free_mib() -> int:
    return find_gpus()[0][0].memory_free_bytes // MIB


def _seconds(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    work(*arguments, **options)
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
