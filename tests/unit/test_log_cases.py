"""`labkit log` on logs from public reports, in every format that carries logs."""

import csv
import gzip
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import models
from labkit.models import Architecture
from labkit.serving.log_failures import FAILURES
from labkit.serving.log_lines import open_log
from labkit.serving.vllm_log import KEPT, MemoryLog, read

FOLDER = Path(__file__).parents[1] / "data" / "cases" / "log"
CASES = yaml.safe_load((FOLDER / "cases.yaml").read_text())
LLAMA_8B = Architecture(
    model_type="llama", layers=32, attention_heads=32, kv_heads=8, head_dim=128, hidden_size=4096, dtype_bytes=2,
    max_positions=131_072, parameters=8_030_261_248,
)  # fmt: skip
MODELS = {
    "llama-3.1-8b": LLAMA_8B,
    "qwen3-235b-a22b": replace(
        LLAMA_8B, model_type="qwen3_moe", layers=94, attention_heads=64, kv_heads=4, parameters=None
    ),
}


def model_of(case: dict[str, str]) -> Architecture | None:
    name = case.get("model", "")
    return models.architecture(FOLDER.parent / name) if name.endswith(".json") else MODELS.get(name)


def verdicts(reading: MemoryLog) -> list[list[object]]:
    return [[line.kind, line.agrees] for line in reading.lines]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']} {case['source']}")
def test_the_case_is_read_right(case: dict[str, Any]) -> None:
    """Every line about memory is found and explained, and has the right verdict."""
    reading = read((FOLDER / case["file"]).read_text(), architecture=model_of(case))
    assert verdicts(reading) == case["lines"]
    assert reading.kv_tokens == case["kv_tokens"]
    assert case.get("says", "") in str(reading)
    assert any(case.get("fix", "") in line.fix for line in reading.lines)
    assert any(case.get("recomputed", "") in line.recomputed for line in reading.lines)
    assert all(line.meaning for line in reading.lines)


# --- carriers


def wrapped(width: int) -> Callable[[str], str]:
    return lambda log: "\n".join(
        line[at : at + width] for line in log.splitlines() for at in range(0, len(line), width)
    )


def prefixed(form: str) -> Callable[[str], str]:
    return lambda log: "\n".join(form.format(line) for line in log.splitlines())


WRAPPINGS: dict[str, Callable[[str], str]] = {
    "journald": prefixed("Nov 28 10:00:00 gpu-node-1 vllm[123]: {}"),
    "kubernetes": prefixed("2026-11-28T10:00:00.123456789Z stdout F {}"),
    "kubectl --timestamps": prefixed("2026-11-28T10:00:00.123456789Z {}"),
    "stern": prefixed("vllm-7d4b9-x2x vllm {}"),
    "docker compose": prefixed("vllm-1  | {}"),
    "ray": prefixed("\x1b[36m(ServeReplica:app:LLMServer pid=4021, ip=10.0.0.2)\x1b[0m {}"),
    "rsyslog": prefixed("Nov 28 10:00:00 host vllm: #033[1;36m{}#033[0m"),
    "a paste": prefixed("[36m{}[0m"),
    "torchserve": prefixed("2026-11-28T10:00:00,123 [INFO ] W-9000-vllm_1.0-stdout MODEL_LOG - {}"),
    "docker json": lambda log: "\n".join(
        json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2026-11-28T10:00:00.123456789Z"})
        for line in log.splitlines()
    ),
    "json message": lambda log: "\n".join(
        json.dumps({"level": "INFO", "message": line, "pid": 7}) for line in log.splitlines()
    ),
    "journald json": lambda log: "\n".join(
        json.dumps({"_HOSTNAME": "h", "MESSAGE": list(f"\x1b[32m{line}\x1b[0m".encode())}) for line in log.splitlines()
    ),
    "carriage returns": lambda log: log.replace("\n", "\r\n"),
    "progress bars": prefixed("Loading shards:  50% 1/2\rLoading shards: 100% 2/2\r{}"),
    "80 columns": wrapped(80),
    "100 columns": wrapped(100),
    "120 columns": wrapped(120),
    "120 columns of kubernetes": lambda log: wrapped(120)(WRAPPINGS["kubernetes"](log)),
    "80 columns without trailing spaces": lambda log: "\n".join(
        line.rstrip() for line in wrapped(80)(log).splitlines()
    ),
}


Entry = tuple[str, int, str]  # its time, also in ms since 1970, and the line


def exported(form: Callable[[list[Entry]], str], *, newest_first: bool = False) -> Callable[[str], str]:
    """What a log service exports: entries with times, some of them the same."""

    def carry(log: str) -> str:
        stamps = [(f"2026-11-28T10:00:{k // 2:02}.{k // 2:03}456Z", 1_795_860_000_000 + k // 2 * 1001)
                  for k in range(len(log.splitlines()))]  # fmt: skip
        entries = [(*stamp, line) for stamp, line in zip(stamps, log.splitlines(), strict=True)]
        return form(entries[::-1] if newest_first else entries)

    return carry


def document(entry: Callable[..., Any], *path: Any, indent: int | None = None) -> Callable[[list[Entry]], str]:
    """JSON with the entries at `path`: keys of objects, and 0 for a list of one."""

    def form(entries: list[Entry]) -> str:
        tree: Any = [entry(*parts) for parts in entries]
        for key in reversed(path):
            tree = [tree] if key == 0 else {"status": "Complete", key: tree, "nextToken": "f/123"}
        return json.dumps(tree, indent=indent)

    return form


def lines(entry: Callable[..., Any]) -> Callable[[list[Entry]], str]:
    """JSON in lines, or text if the entry is one."""

    def form(entries: list[Entry]) -> str:
        made = [entry(*parts) for parts in entries]
        return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in made)

    return form


def table(*header: str, make: Callable[..., list[str]]) -> Callable[[list[Entry]], str]:
    """CSV in the services' form: cells are quoted where they must be."""

    def form(entries: list[Entry]) -> str:
        file = StringIO()
        csv.writer(file).writerows([header, *(make(*parts) for parts in entries)])
        return file.getvalue()

    return form


def gcp(iso: str, _ms: int, line: str) -> dict[str, Any]:
    resource = {"labels": {"container_name": "vllm", "pod_name": "vllm-0"}, "type": "k8s_container"}
    return {"insertId": "a1", "receiveTimestamp": iso, "resource": resource, "textPayload": line, "timestamp": iso}


def aws(_iso: str, ms: int, line: str) -> dict[str, Any]:
    return {"logStreamName": "vllm/0", "timestamp": ms, "message": line, "ingestionTime": ms + 9, "eventId": "3"}


def insights(iso: str, _ms: int, line: str) -> list[dict[str, str]]:
    named = {"@timestamp": iso[:23].replace("T", " "), "@message": line, "@ptr": "CmEKJgo"}
    return [{"field": name, "value": value} for name, value in named.items()]


def fluent_bit(iso: str, ms: int, line: str) -> dict[str, Any]:
    record = {"time": iso, "stream": "stderr", "log": f"{line}\n", "kubernetes": {"pod_name": "vllm-0"}}
    return aws(iso, ms, json.dumps(record))


def datadog(iso: str, _ms: int, line: str) -> dict[str, Any]:
    return {"id": "AQ", "type": "log", "attributes": {"message": line, "timestamp": iso, "tags": ["pod:vllm-0"]}}


def elastic(iso: str, _ms: int, line: str) -> dict[str, Any]:
    return {"_id": "x", "_source": {"@timestamp": iso, "message": line, "event": {"original": line}}}


def yaml_entry(iso: str, ms: int, line: str) -> str:
    return f"---\n{yaml.safe_dump(gcp(iso, ms, line), width=10**6)}".rstrip()


EXPORTS: dict[str, Callable[[str], str]] = {
    "gcloud json": exported(document(gcp, indent=2), newest_first=True),
    "gcloud json, cut off": lambda log: EXPORTS["gcloud json, oldest first"](log)[:-9],
    "gcloud json, oldest first": exported(document(gcp, indent=2)),
    "gcloud json in one line": exported(document(gcp), newest_first=True),
    "gcloud jsonl": exported(lines(gcp), newest_first=True),
    "gcloud yaml": exported(lines(yaml_entry), newest_first=True),
    "gcloud jsonPayload": exported(lines(lambda iso, _ms, line: {"jsonPayload": {"message": line}, "timestamp": iso})),
    "jq": exported(lambda entries: "\n".join(json.dumps(gcp(*parts), indent=2) for parts in entries)),
    "aws filter-log-events": exported(document(aws, "events", indent=4)),
    "aws filter-log-events in one line": exported(document(aws, "events")),
    "aws logs tail": exported(lines(lambda iso, _ms, line: f"{iso[:-1]}+00:00 vllm/vllm/0a1b {line}")),
    "aws container insights": exported(document(fluent_bit, "events")),
    "logs insights": exported(document(insights, "results", indent=4), newest_first=True),
    "logs insights csv": exported(
        table("@timestamp", "@message", make=lambda iso, _ms, line: [iso[:23].replace("T", " "), line]),
        newest_first=True,
    ),
    "azure": exported(document(lambda iso, _ms, line: [iso, "vllm", line], "tables", 0, "rows")),
    "azure cli": exported(
        document(lambda iso, _ms, line: {"LogEntry": line, "TimeGenerated": iso}, indent=2), newest_first=True
    ),
    "azure csv": exported(
        table("TimeGenerated [UTC]", "LogMessage", make=lambda iso, _ms, line: [iso, line]), newest_first=True
    ),
    "datadog": exported(document(datadog, "data"), newest_first=True),
    "datadog csv": exported(
        table("Date", "Host", "Service", "Content", make=lambda iso, _ms, line: [iso, "h", "vllm", line]),
        newest_first=True,
    ),
    "loki": exported(
        document(lambda _iso, ms, line: [f"{ms}000000", line], "data", "result", 0, "values"), newest_first=True
    ),
    "logcli": exported(lines(lambda iso, _ms, line: f'{iso} {{app="vllm", pod="vllm-0"}} {line}'), newest_first=True),
    "logcli jsonl": exported(
        lines(lambda iso, _ms, line: {"labels": {"app": "vllm"}, "line": line, "timestamp": iso}), newest_first=True
    ),
    "grafana": exported(
        document(lambda iso, ms, line: {"line": line, "timestamp": f"{ms}000000", "date": iso}, indent=2),
        newest_first=True,
    ),
    "grafana text": exported(lines(lambda iso, ms, line: f"{ms}000000\t{iso}\t{line}"), newest_first=True),
    "elastic": exported(document(elastic, "hits", "hits")),
    "kubectl --timestamps --prefix": exported(lines(lambda iso, _ms, line: f"[pod/vllm-0/vllm] {iso} {line}")),
}


@pytest.mark.parametrize("carrier", WRAPPINGS | EXPORTS)
def test_what_carries_a_log_changes_nothing(carrier: str) -> None:
    """Prefixes, colours, JSON, CSV, the order of entries, line ends and a terminal's width change no line or rank."""

    def seen(log: str) -> object:
        reading = read(log, architecture=model_of(case))
        return reading.kv_tokens, [(line.kind, line.text, line.agrees, line.rank) for line in reading.lines]

    for case in CASES:
        text = (FOLDER / case["file"]).read_text()
        assert seen((WRAPPINGS | EXPORTS)[carrier](text)) == seen(text), case["id"]


def test_bytes_of_any_kind_are_read(tmp_path: Path) -> None:
    """UTF-16 (a PowerShell redirect), a byte order mark, gzip, and undecodable bytes."""
    text = (FOLDER / "v0_7_v1_blocks.log").read_text()
    contents = {
        "utf-16": text.encode("utf-16"),
        "mark": b"\xef\xbb\xbf" + text.encode(),
        "gzip": gzip.compress(text.encode()),
        "bytes": b"\xff\xfa\x00\n" + text.encode(),
    }
    tokens = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with open_log(tmp_path / name) as stream:
            tokens[name] = read(stream).kv_tokens
    assert tokens == dict.fromkeys(contents, 22_096)


# --- other versions


V0 = """INFO 05-21 18:16:50 [__init__.py:239] Automatically detected platform cuda.
INFO 05-21 18:16:51 [llm_engine.py:240] Initializing a V0 LLM engine (v0.8.5) with config: model='m', \
speculative_config=None, dtype=torch.float16, max_seq_len=8192, tensor_parallel_size=1, quantization=None, \
enforce_eager=False, kv_cache_dtype=auto,  device_config=cuda
INFO 05-21 18:17:01 [model_runner.py:1146] Model loading took 14.9888 GiB and 30.643008 seconds
INFO 05-21 18:17:06 [worker.py:267] Memory profiling takes 5.29 seconds
INFO 05-21 18:17:06 [worker.py:267] the current vLLM instance can use total_gpu_memory (23.58GiB) x \
gpu_memory_utilization (0.90) = 21.22GiB
INFO 05-21 18:17:06 [worker.py:267] model weights take 14.99GiB; non_torch_memory takes 0.35GiB; PyTorch \
activation peak memory takes 2.99GiB; the rest of the memory reserved for KV Cache is 2.89GiB.
INFO 05-21 18:17:07 [executor_base.py:112] # cuda blocks: 1478, # CPU blocks: 512
INFO 05-21 18:17:07 [executor_base.py:117] Maximum concurrency for 8192 tokens per request: 2.89x
INFO 05-21 18:17:30 [model_runner.py:1600] Graph capturing finished in 18 secs, took 0.62 GiB
INFO 05-21 18:18:00 [metrics.py:455] Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 9.1 tokens/s, \
Running: 1 reqs, Swapped: 2 reqs, Pending: 3 reqs, GPU KV cache usage: 99.3%, CPU KV cache usage: 0.0%.
WARNING 05-21 18:18:01 [scheduler.py:1754] Sequence group cmpl-1-0 is preempted by PreemptionMode.RECOMPUTE mode \
because there is not enough KV cache space. This can affect the end-to-end performance.
"""


def test_v0() -> None:
    """The lines of the V0 engine are consistent, with the config and without."""
    reading = read(V0, architecture=LLAMA_8B)
    assert verdicts(reading) == [
        ["engine", None], ["weights", True], ["share", True], ["parts", True], ["blocks", True], ["concurrency", True],
        ["graphs", None], ["statistics", None], ["preempted", None],
    ]  # fmt: skip
    assert (reading.kv_tokens, reading.agrees) == (23_648, True)
    assert not read(V0.replace("1478", "1600"), architecture=LLAMA_8B).agrees
    assert read(V0.replace("KV Cache is 2.89GiB", "KV Cache is 5.89GiB")).of("parts")[0].agrees is False


def test_another_block_size_is_found_from_the_concurrency() -> None:
    """Blocks and concurrency together determine the block size."""
    assert read("# GPU blocks: 1000\nMaximum concurrency for 4096 tokens per request: 7.81x").kv_tokens == 32_000


TOO_LONG = (
    "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (5.61 GiB). Based on the available memory, the estimated "
    "maximum model length is {}. Try increasing"
)


def test_too_long_is_recomputed_from_the_message_alone() -> None:
    """128 KiB a token are 16 GiB for 131,072 tokens and 45,952 in 5.61 GiB; another length or another model differ."""
    line = read(TOO_LONG.format(45_952), architecture=LLAMA_8B).lines[0]
    assert line.agrees
    assert "131,072 tokens take 16.00 GiB" in line.recomputed
    assert line.fix.startswith("set max_model_len=45952 or less")
    assert read(TOO_LONG.format(65_536), architecture=LLAMA_8B).agrees is False
    assert read(TOO_LONG.format(45_952), architecture=replace(LLAMA_8B, layers=80)).agrees is False
    assert read(TOO_LONG.format(45_952)).agrees is None


OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.58 GiB "
    "of which 1.10 GiB is free."
)


SERVING = (
    "Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 9.1 tokens/s, Running: 1 reqs, "
    "Waiting: 0 reqs, GPU KV cache usage: 50.0%, Prefix cache hit rate: 0.0%"
)


def test_out_of_memory_names_when_and_what_to_change() -> None:
    """The fix depends on the phase of the start."""
    for before, phase, fix in (
        ("", "before any line about loaded weights", "tensor_parallel_size"),
        ("Model loading took 14.9 GiB and 3 seconds", "in the profiling run", "max_num_batched_tokens"),
        ("GPU KV cache size: 23,648 tokens", "CUDA graphs", "enforce_eager"),
        ("Graph capturing finished in 18 secs, took 0.62 GiB", "warm-up of the sampler or later", "max_num_seqs"),
        (SERVING, "while it served", "gpu_memory_utilization"),
    ):
        line = read(f"{before}\n{OUT_OF_MEMORY}").of("out_of_memory")[0]
        assert (phase in line.meaning, fix in line.fix) == (True, True), line
        assert "of 23.58 GiB only 1.10 GiB were free" in line.meaning


FAILED = {
    "nothing_left": "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
    "warm_up": "CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering",
    "no_room_for_weights": "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization",
    "kv_not_free": "Available memory on node 0 (5.1/23.5 GiB) on kv cache allocation is less than requested memory for "
    "kv (8.0 GiB)",
    "weights_elsewhere": "Externally held weights on device cuda:0 (15.1/23.5 GiB) exceed the desired",
    "profiling_disturbed": "AssertionError: Error in memory profiling. Initial free memory 10.5 GiB, current",
    "too_few_states": "ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (614). Each",
    "beyond_positions": "User-specified max_model_len (32768) is greater than the derived max_model_len "
    "(max_position_embeddings=8192 or model_max_length=None in model's config.json).",
    "batch_below_length": "max_num_batched_tokens (2048) is smaller than max_model_len (4096). This effectively limits",
    "swap_space": "Too large swap space. 16.00 GiB out of the 15.60 GiB total CPU memory is allocated",
    "shared_memory": "Error while creating shared memory segment /dev/shm/nccl-CV4Hgf (size 9637888)",
    "host_memory": "Nov 28 10:00:00 host kernel: Out of memory: Killed process 4021 (python3) total-vm:98765432kB",
    "killed": "vllm-1 exited with code 137",
    "locked_memory": "NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory",
    "driver_memory": "ncclUnhandledCudaError: Call to CUDA function failed. Last error: Cuda failure 2 'out of memory'",
    "gated_model": "OSError: You are trying to access a gated repo.",
    "unknown_model": "OSError: some/model is not a local folder and is not a valid model identifier listed on",
    "hub_unreachable": "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find",
    "no_model_class": "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig   Value error, "
    "Model architectures ['NewForCausalLM'] are not supported for now. Supported architectures: dict_keys(['A'])",
    "retired_model_class": "ValueError: Model architecture OldForCausalLM was supported in vLLM until v0.10.2, and is",
    "unknown_architecture": "ValueError: The checkpoint you are trying to load has model type `new_model` but "
    "Transformers does not recognize this architecture. This could be because",
    "remote_code": "ValueError: The repository m contains custom code which must be executed to correctly",
    "tokenizer": "OSError: Can't load tokenizer for 'm'. If you were trying to load it from",
    "no_bfloat16": "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your "
    "Tesla T4 GPU has compute capability 7.5. You can use float16 instead",
    "quantization_beyond_gpu": "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum "
    "capability: 75. Current capability: 70.",
    "quantization_beyond_platform": "ValueError: gguf quantization is currently not supported in cpu.",
    "quantization_mismatch": "ValueError: Quantization method specified in the model config (awq) does not match the "
    "quantization method specified in the `quantization` argument (gptq).",
    "quantization_dtype": "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: "
    "[torch.float16]",
    "old_driver": "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update",
    "no_kernel_image": "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
    "no_gpu": "RuntimeError: Failed to infer device type, please set the environment variable",
    "illegal_access": "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    "too_few_gpus": "ValueError: World size (4) is larger than the number of available GPUs (2) in this node. If this",
    "not_divisible": "ValueError: Total number of attention heads (14) must be divisible by tensor parallel size (4).",
    "bus_error": "Bus error (core dumped)",
    "nccl_timeout": "[rank0]:[E1218 ProcessGroupNCCL.cpp:629] [Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=1, OpType=BROADCAST) ran for 600081 milliseconds before timing out.",
    "nccl": "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "step_timeout": "TimeoutError: RPC call to sample_tokens timed out.",
    "start_timeout": "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow "
    "weight loading for large models. Waited 600s (configured by VLLM_ENGINE_READY_TIMEOUT_S).",
    "port_in_use": "OSError: [Errno 98] Address already in use",
    "disk_full": "OSError: [Errno 28] No space left on device",
    "engine_ended": "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
}  # fmt: skip


OTHER_WORDS = {
    "RuntimeError: Insufficient space in /dev/shm for shared-memory allocation: 160 MiB required": "shared_memory",
    "CUDA out of memory occurred when warming up pooler (task='embed') with 256 dummy requests. Please": "warm_up",
    "kernel: Memory cgroup out of memory: Killed process 4021 (python3) total-vm:98765432kB": "host_memory",
    "    Exit Code:    137": "killed",
    "RuntimeError: fork failed: Cannot allocate memory": "host_memory",
    "RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}": "killed",
    "[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use": "port_in_use",
    "RuntimeError: Quantization scheme is not supported for the current GPU. Min capability: 89. Current capability: "
    "80.": "quantization_beyond_gpu",
    "AssertionError: 14336 is not divisible by 3": "not_divisible",
    "ERROR: Unexpected bus error. This might be caused by insufficient shared memory (shm).": "shared_memory",
    "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.": "engine_ended",
}


def test_failures_in_other_words() -> None:
    """Newer engines, the kernel and kubectl say the same otherwise; a length that is allowed is no failure."""
    assert {text: [line.kind for line in read(text).lines] for text in OTHER_WORDS} == {
        text: [kind] for text, kind in OTHER_WORDS.items()
    }
    allowed = FAILED["beyond_positions"] + " VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution."
    assert read(allowed).lines == ()


def test_a_share_leaves_room_for_what_the_budget_leaves_out() -> None:
    """Another process's weights are in the difference of share and request; without room, freeing memory remains."""
    budget = "Free memory on device cuda:0 ({}/79.1 GiB) on startup is less than the engine's budget after excluding "
    budget += "external process's weights (0.5, 15.2 GiB)"
    assert "gpu_memory_utilization=0.43 or less" in read(budget.format("10.1")).lines[0].fix
    assert "gpu_memory_utilization" not in read(budget.format("0.48").replace("15.2", "39.55")).lines[0].fix


def test_mixed_services_and_an_earlier_failure_are_told() -> None:
    """Two services' lines are compared with nothing; a failure before the last start is named."""
    lines = [f"{name} | INFO 11-28 10:00:00 [x.py:1] {text}" for text in START for name in ("chat-1", "small-1")]
    reading = read("\n".join(lines))
    assert "chat-1, small-1 are mixed" in reading.notes[0]
    assert (reading.kv_tokens, reading.agrees) == (None, None)
    after = [f"{name} | {text}" for name in ("INFO", "WARNING", "0.52") for text in START]
    after += [f"(ServeReplica:m pid={pid}) INFO 11-28 10:00:00 [x.py:1] {text}" for pid in (1, 2) for text in START]
    assert "are mixed" not in " ".join(read("\n".join(after)).notes)
    restarted = [f"{name} | {text}" for name in ("chat-1", "small-1", "chat-1") for text in START]
    assert "are mixed" not in " ".join(read("\n".join(restarted)).notes)
    again = read("\n".join([*START, FAILED["nothing_left"], *START]))
    assert "start 1 ended with an error, line 3: " in " ".join(again.notes)


START = ("Initializing a V1 LLM engine (v0.9.2) with config: model='m'", "GPU KV cache size: 45,952 tokens")


def test_a_long_prefix_hides_no_line() -> None:
    """Lines of a pod with a long name begin where they do, also after a message that may be wrapped."""
    prefix = f"[pod/{'chat-' * 22}0/kserve-container] 2026-11-28T10:00:00.123456789Z INFO 11-28 10:00:00 [core.py:65] "
    lines = ["Initializing a V1 LLM engine (v0.9.2) with config: model='m'", "Available KV cache memory: 5.61 GiB"]
    assert [line.kind for line in read("\n".join(prefix + line for line in lines)).lines] == ["engine", "gpu_memory"]


def test_every_failure_is_explained_with_what_to_change() -> None:
    """Each kind of failure is recognised, and shown once although every rank repeats it."""
    assert FAILED.keys() == FAILURES.keys()
    for kind, text in FAILED.items():
        reading = read(f"(Worker_TP0 pid=1) ERROR {text}\n(Worker_TP1 pid=2) ERROR {text}\n")
        assert [line.kind for line in reading.lines] == [kind]
        assert reading.lines[0].fix
        assert reading.agrees is None


UNKNOWN = "(EngineCore pid=7) ERROR 11-28 10:00:0{} [core.py:700] ValueError: the flux is {}"


def test_an_unknown_error_is_shown_as_such() -> None:
    """The first one, where no failure is explained; its consequences are left out, and errors before the server went
    on serving."""
    end = FAILED["engine_ended"]
    wrapped = "RuntimeError: Worker failed with error 'the flux is low', please check the stack trace above"
    (line,) = read("\n".join([UNKNOWN.format(1, "low"), UNKNOWN.format(2, "high"), wrapped, end])).lines
    assert (line.kind, line.text, line.number) == ("unknown_error", "ValueError: the flux is low", 1)
    assert "(ValueError) that is not known here" in line.meaning
    assert [line.kind for line in read("\n".join([UNKNOWN.format(1, "low"), FAILED["nccl"], end])).lines] == ["nccl"]
    assert [line.kind for line in read(f"{UNKNOWN.format(1, 'low')}\n{SERVING}").lines] == ["statistics"]
    later = read("\n".join([UNKNOWN.format(1, "low"), SERVING, UNKNOWN.format(3, "no"), end])).of("unknown_error")
    assert [line.number for line in later] == [3]
    again = read("\n".join([UNKNOWN.format(1, "low"), end, START[0], UNKNOWN.format(2, "low"), end, *START]))
    assert "start 1 ended with an error" in " ".join(again.notes)


def test_what_starts_without_a_fault_has_no_failure() -> None:
    """Warnings of a start that goes on name no failure."""
    retried = "WARNING 11-28 10:00:00 [parallel.py:746] Address already in use. Retrying with a new port."
    chatter = "NCCL WARN Call to bind failed : Address already in use"
    assert read(f"{retried}\n{chatter}\nINFO 11-28 10:00:00 [x.py:1] vLLM is using nccl==2.27.5").lines == ()


READY = "(APIServer pid=1) INFO:     Application startup complete."


def test_a_healthy_server_has_no_failure() -> None:
    """What failed before the server was ready ended no start of it; later unknown errors may concern a request, and
    remain in doubt; a failure after the start is one."""
    bind = FAILED["port_in_use"]
    late = "ValueError: This model's maximum context length is 4096 tokens."
    for log in ((bind, READY), (UNKNOWN.format(1, "low"), READY), (bind, SERVING)):
        assert not [line for line in read("\n".join((*START, *log))).lines if line.fix]
    (error,) = read("\n".join((*START, READY, late, late))).of("unknown_error")
    assert (error.number, error.fix, "it concerns a request" in error.meaning) == (len(START) + 2, "", True)
    again = read("\n".join((*START, READY, late, *START, READY)))
    assert "ended with an error" not in " ".join(again.notes)
    assert [line.kind for line in read("\n".join((*START, READY, bind))).lines if line.fix] == ["port_in_use"]
    pods = [f"{pod}-1  | {line}" for pod, line in (("a", START[0]), ("b", START[0]), ("b", bind), ("a", READY))]
    assert read("\n".join(pods)).of("port_in_use")


def test_the_body_of_a_request_is_no_part_of_the_log() -> None:
    """A user's text in JSON, in an entry of JSON or after a prefix, is not read, whatever it says."""
    asked = {"model": "m", "messages": [{"role": "user", "content": f"why?\n{FAILED['nccl']}\n{START[-1]}"}]}
    for line in (f"INFO request {json.dumps(asked)}", json.dumps({"msg": "request", "body": json.dumps(asked)})):
        assert read(line).lines == ()
    assert read(json.dumps({"msg": START[-1], "body": asked})).lines


def test_two_clocks_are_not_the_newest_entry_first() -> None:
    """Lines of two machines alternate; the one with the slow clock writes last."""
    lines = [f"2026-11-28T10:00:{second:02}Z node-{node}" for k in range(9) for node, second in ((1, k + 5), (2, k))]
    assert read("\n".join(lines)).notes[0].startswith("without the model's config")


def test_a_document_of_many_values_takes_linear_time() -> None:
    """Objects one after another, as jq prints them: each is decoded where it is, without a copy of the rest."""
    text = json.dumps({"log": "x" * 1_000}, indent=1) + "\n"

    def seconds(count: int) -> float:
        started = time.process_time()
        assert read(text * count).lines_read == count
        return time.process_time() - started

    seconds(100)  # warm-up
    assert seconds(16_000) < 40 * seconds(1_000)  # 16 times the text


def test_a_negative_figure_is_a_failure_and_a_quoted_line_is_nothing() -> None:
    """A line quoted in a prompt or an error is not a statement of the engine."""
    line = read("INFO [gpu_worker.py:276] Available KV cache memory: -2.31 GiB").lines[0]
    assert "2.31 GiB are missing" in line.meaning
    assert line.fix
    prompt = "INFO [logger.py:43] Received request cmpl-1: prompt: 'why GPU KV cache size: 5 tokens', params: x"
    assert read(prompt).lines == ()


@given(
    st.integers(0, 2**32),
    st.sampled_from(["0", "-1", "", "9" * 5000, "1.5.2", ",", "\u0663", "\u00b2", "nan", "9" * 11]),
)
@settings(max_examples=60, deadline=None)
def test_numbers_of_any_form_end_in_no_error(seed: int, number: str) -> None:
    """A log with damaged numbers is read to its end, with a model and without."""
    rng = random.Random(seed)
    lines = [*V0.splitlines(), *FAILED.values(), TOO_LONG.format(9), OUT_OF_MEMORY]
    lines += [line for case in CASES for line in (FOLDER / case["file"]).read_text().splitlines()]
    text = "\n".join(
        re.sub(r"\d[\d.,]*", lambda match: number if rng.random() < 0.3 else match[0], line)
        for line in rng.sample(lines, k=20)
    )
    for model in (None, LLAMA_8B):
        read(text, architecture=model).to_json()


# --- ranks, engines and starts


def test_unlogged_ranks_may_be_smaller() -> None:
    """If some ranks do not log their memory, fewer tokens than one rank holds are inconclusive; more differ."""
    line = "(Worker_TP0 pid=1) Available KV cache memory: 8.11 GiB\nGPU KV cache size: {:,} tokens"
    config = MODELS["qwen3-235b-a22b"]
    verdicts = [
        read(line.format(tokens), architecture=config, tensor_parallel=4).of("cache_size")[0].agrees
        for tokens in (178_880, 180_928, 190_000)
    ]
    assert verdicts == [None, True, False]


def test_what_cannot_be_recomputed_is_not_compared() -> None:
    """Pipeline stages, a draft model and other layouts give a reason and no verdict."""
    for setting in ("'pipeline_parallel_size': 2", "'speculative_config': {'method': 'eagle3'}",
                    "'kv_cache_dtype': 'nvfp4'", "'decode_context_parallel_size': 2"):  # fmt: skip
        text = f"non-default args: {{{setting}}}\nAvailable KV cache memory: 2.89 GiB\n"
        reading = read(f"{text}GPU KV cache size: 9,999 tokens", architecture=LLAMA_8B)
        assert (reading.agrees, "not recomputed" in str(reading)) == (None, True), setting


def test_one_rank_does_not_show_the_split() -> None:
    """Since 0.10 only the first rank logs its memory: without the settings the split is unknown, not 1."""
    text = "(Worker_TP0 pid=1) Available KV cache memory: 8.02 GiB\nGPU KV cache size: 178,880 tokens"
    config = MODELS["qwen3-235b-a22b"]
    assert read(text, architecture=config).agrees is None
    assert "--tensor-parallel" in str(read(text, architecture=config))
    assert read(text, architecture=config, tensor_parallel=4).agrees
    assert read(text.replace("178,880", "44,720"), architecture=config, tensor_parallel=5).agrees is None


def test_every_prefix_names_its_rank() -> None:
    """The names that workers have had since 0.6, and that Ray gives them."""
    prefixes = {
        "(VllmWorker rank=3 pid=12)": "rank 3",
        "(VllmWorker TP3 pid=12)": "TP3",
        "(Worker_TP3 pid=12)": "TP3",
        "(Worker_DP1_PP0_TP3_EP3 pid=12)": "PP0 TP3",
        "(VllmWorkerProcess pid=12)": "process 12",
        "(RayWorkerWrapper pid=12, ip=10.0.0.2)": "process 12 on 10.0.0.2",
        "(ServeReplica:a:LLM pid=9) (RayWorkerWrapper pid=12)": "process 12",
        "(EngineCore_DP0 pid=12)": "",
        "": "",
    }
    ranks = {prefix: read(f"{prefix} Available KV cache memory: 1.0 GiB").lines[0].rank for prefix in prefixes}
    assert ranks == prefixes


@pytest.mark.parametrize("tokens", [(178_880, 180_928), (180_928, 178_880)])
def test_every_rank_may_log_its_own_cache(tokens: tuple[int, int]) -> None:
    """From 0.7 to 0.10 each rank logs its size, in any order: all agree, and the smallest is the cache's."""
    text = "".join(
        f"(VllmWorker TP{rank} pid=1) Available KV cache memory: {gib} GiB\n" for rank, gib in enumerate((8.11, 8.02))
    )
    text += "".join(
        f"(EngineCore_0 pid=9) GPU KV cache size: {count:,} tokens\n"
        f"(EngineCore_0 pid=9) Maximum concurrency for 40,960 tokens per request: {count / 40_960:.2f}x\n"
        for count in tokens
    )
    config = replace(MODELS["qwen3-235b-a22b"], kv_heads=2)  # on 2 GPUs what 4 heads are on 4
    reading = read(text, architecture=config)
    assert (reading.kv_tokens, reading.agrees, reading.starts) == (178_880, True, 1)
    assert [line.agrees for line in reading.of("cache_size")] == [True, True]
    assert read(text.replace("178,880", "170,000"), architecture=config).agrees is False


def test_data_parallel_engines_have_a_cache_each() -> None:
    """Each engine's tokens are compared with its own rank's memory."""
    text = "\n".join(
        f"(EngineCore_DP{n} pid={n}) Available KV cache memory: {gib} GiB\n"
        f"(EngineCore_DP{n} pid={n}) GPU KV cache size: {tokens:,} tokens"
        for n, gib, tokens in ((0, 2.89, 23_648), (1, 1.0, 8_192))
    )
    reading = read(text, architecture=LLAMA_8B)
    assert [line.agrees for line in reading.of("cache_size")] == [True, True]
    assert "2 engines" in reading.notes[0]


def test_the_last_of_several_starts_is_read() -> None:
    """A log of several starts is read from the last one, and a note says so."""
    first = (FOLDER / "v0_10_fp8_qwen3_30b.log").read_text()
    reading = read(first * 2 + (FOLDER / "v0_2x_tp2_qwen36_fp8.log").read_text())
    assert (reading.starts, reading.kv_tokens, reading.lines[0].number) == (3, 300_220, 11)
    assert "3 starts" in reading.notes[0]
    lines = "(VllmWorker TP{} pid=1) Available KV cache memory: 1.0 GiB\n"
    once = lines.format(0) + lines.format(1) + "(EngineCore_0 pid=1) GPU KV cache size: 9,999 tokens\n"
    assert read(once * 2).starts == 2


def test_a_large_log_is_read_in_bounded_memory() -> None:
    """Of months of statistics and a huge line, the last lines of each kind are kept and the others counted."""
    line = "Engine 000: Running: {} reqs, Waiting: 0 reqs, GPU KV cache usage: 3.1%\n"
    stream = StringIO("x" * 1_000_000 + "\n" + "".join(line.format(n) for n in range(KEPT + 7)))
    reading = read(stream)
    assert (len(reading.lines), reading.lines_read) == (KEPT, KEPT + 8)
    assert reading.lines[-1].text.startswith(f"Running: {KEPT + 6} reqs")
    assert sys.getsizeof(str(reading)) < 100_000
    assert reading.notes[0].startswith("7 earlier lines")
