"""Explain failures of starts and runs, and what to change.

The wording is that of vLLM 0.32, torch, transformers and huggingface_hub. Other errors are shown as unknown.
"""

import re

from labkit.serving.log_engine import (
    GIB,
    HALF_A_DIGIT,
    NUMBER,
    Engine,
    Explain,
    Explanation,
    close,
    reads,
    whole_number,
)
from labkit.serving.log_readers import LARGER_CACHE, LARGER_SHARE, longest_request

SMALLER_CACHE = "use kv_cache_dtype=fp8, spread the model over more GPUs (tensor_parallel_size)"
SMALLER_STEPS = "lower max_num_seqs or max_num_batched_tokens"
OTHERS = "end other processes that use this memory (on a GPU nvidia-smi lists them), or lower gpu_memory_utilization"
LESS_WEIGHTS = "use more GPUs (tensor_parallel_size) or a quantised checkpoint, or end other processes on the GPU"
FAILURES = {
    "nothing_left": (
        r"No available memory for the cache blocks|Cannot auto-fit max_model_len: not enough",
        "No start: weights and other memory leave less than one usable block of the share.",
        LARGER_SHARE,
    ),
    "warm_up": (
        r"out of memory occurred when warming up (sampler|pooler)(?: \([^)]*\))? with (\d{1,12}) dummy requests",
        "No start: out of memory in the warm-up of the {0} with {1} requests, after the cache had taken its share.",
        "lower max_num_seqs (below {1}) or gpu_memory_utilization",
    ),
    "no_room_for_weights": (
        r"Failed to load model - not enough GPU memory",
        "No start: the weights do not fit into the GPU.",
        LESS_WEIGHTS,
    ),
    "kv_not_free": (
        rf"Available memory on node \d+ \({NUMBER}/{NUMBER} GiB\) on kv cache allocation is less than requested "
        rf"memory for kv \({NUMBER}",
        "No start: the cache asks for {2} GiB of RAM, of which {0} are free.",
        "lower kv_cache_memory_bytes, VLLM_CPU_KVCACHE_SPACE or gpu_memory_utilization, or end other processes",
    ),
    "weights_elsewhere": (
        rf"Externally held weights on device \S+ \({NUMBER}/{NUMBER} GiB\) exceed",
        "No start: weights held by another process take {0} GiB, more than this engine's share.",
        LARGER_SHARE,
    ),
    "profiling_disturbed": (
        r"Error in memory profiling\. Initial free memory",
        "No start: another process freed GPU memory while this engine measured its own.",
        "start engines on a GPU one at a time, or set kv_cache_memory_bytes, which needs no measurement",
    ),
    "too_few_states": (
        r"max_num_seqs \((\d{1,12})\) exceeds available Mamba cache blocks \((\d{1,12})\)",
        "No start: {0} requests at once need {0} states, and the cache holds {1}.",
        "set max_num_seqs={1} or less, or raise gpu_memory_utilization",
    ),
    "beyond_positions": (
        r"User-specified max_model_len \((\d{1,12})\) is greater than the derived max_model_len \(\w+=(\d{1,12})"
        r"(?![^)]*\)\. (?:VLLM_ALLOW_LONG|Make sure))",  # a warning only, if longer ones are allowed
        "No start: max_model_len is {0} and the model has {1} positions. This does not concern memory.",
        "set max_model_len={1} or less",
    ),
    "batch_below_length": (
        r"max_num_batched_tokens \((\d{1,12})\) is smaller than max_model_len \((\d{1,12})\)",
        "No start: without chunked prefill a step of {0} tokens cannot take a prompt of {1}.",
        "raise max_num_batched_tokens to {1}, lower max_model_len, or leave chunked prefill on",
    ),
    "swap_space": (
        rf"[Tt]oo large swap space\. {NUMBER} GiB out of the {NUMBER} GiB",
        "The swap space takes {0} of {1} GiB of RAM.",
        "lower swap_space",
    ),
    "shared_memory": (
        r"Error while creating shared memory segment|[Nn]o space left on device.*/dev/shm|insufficient shared memory"
        r"|Insufficient space in /dev/shm|out of shared memory",
        "/dev/shm, through which the workers exchange data, is full: RAM of the container, not GPU memory.",
        "start the container with --ipc=host or --shm-size=16g; in Kubernetes mount an emptyDir with medium Memory",
    ),
    "locked_memory": (
        r"ibv_\w+ failed(?: with error|:) Cannot allocate memory",
        "InfiniBand may not lock enough memory (ulimit -l). GPU memory is not the cause.",
        "start the container with --ulimit memlock=-1",
    ),
    "host_memory": (
        r"(?i:out of memory: killed process)|OOMKilled|oom-kill|node running low on memory"
        r"|DefaultCPUAllocator: can't allocate memory|Cannot allocate memory",
        "The machine or the container ran out of RAM; GPU memory is not the cause.",
        "give the container more memory, or lower swap_space, cpu_offload_gb or (on a CPU) the cache",
    ),
    "killed": (
        r"(?i:\bexit(?:ed)?(?: with)? (?:status|code)[: ]+(?:137|-9)\b)|core proc\(s\): \{[^}]*: -9\b",
        "The process was killed (SIGKILL): by the kernel if RAM ran out, or by a failed liveness probe or a stop.",
        "look for the reason (kubectl describe pod, docker inspect, dmesg): more memory if it is OOMKilled, else a "
        "startupProbe that waits for the model",
    ),
    "driver_memory": (
        r"(?:CUDA|HIP) error: out of memory|cudaErrorMemoryAllocation|CU\w{2,9}_STATUS_ALLOC_FAILED"
        r"|[Cc]uda failure (?:\d+ )?'out of memory'|Failed to CUDA calloc",
        "The driver, cuBLAS or NCCL found no free GPU memory. gpu_memory_utilization does not cover their memory.",
        f"{OTHERS}; enforce_eager omits the CUDA graphs",
    ),
    # --- not memory: the model
    "gated_model": (
        r"Cannot access gated repo|You are trying to access a gated repo|Access to model \S+ is restricted",
        "No start: the model's owner grants access on request, and this token has none.",
        "accept the terms on the model's page, and set HF_TOKEN to a token of that account",
    ),
    "unknown_model": (
        r"is not a local folder and is not a valid model identifier|Repository Not Found for url",
        "No start: the hub has no such model, or hides a private one from this token; there is no such folder either.",
        "correct the name or the path; for a private model set HF_TOKEN",
    ),
    "hub_unreachable": (
        r"We couldn't connect to '?([^\s']+)'? to load th",
        "No start: {0} did not answer, and the files are not in the cache.",
        "check network and proxy (HTTPS_PROXY, HF_ENDPOINT), or serve a local folder",
    ),
    "no_model_class": (
        r"Model architectures (\[[^\]]*\]) are not supported for now",
        "No start: this version of vLLM has no code for {0}.",
        "install a version whose list of supported models has it",
    ),
    "retired_model_class": (
        r"Model architecture (\w+) was supported in vLLM until v([\w.]+?),",
        "No start: vLLM has dropped {0}.",
        "install vLLM {1}",
    ),
    "unknown_architecture": (
        r"has model type `([\w.-]+)` but Transformers does not recognize this architecture",
        "No start: this version of transformers does not know {0}.",
        "upgrade vLLM and transformers, or correct model_type in config.json",
    ),
    "remote_code": (
        r"contains custom code which must be executed|requires you to execute the (?:configuration|tokenizer) file"
        r"|Failed to load the model config\. If the model is a custom model",
        "No start: the model brings Python code, which runs only with consent.",
        "read that code, then pass --trust-remote-code",
    ),
    "tokenizer": (
        r"Failed to load the tokenizer\.|Can't load tokenizer for",
        "No start: the tokenizer's files are missing, or its class is unknown to this version of transformers.",
        "pass --tokenizer with a model or folder that has them, upgrade transformers, or, if the model brings its own "
        "class, pass --trust-remote-code",
    ),
    # --- the GPU
    "no_bfloat16": (
        r"Bfloat16 is only supported on GPUs with compute capability of at least ([\d.]+)\. "
        r"Your (.*?) GPU (?:has compute capability ([\d.]+)|does not)",
        "No start: bfloat16 needs compute capability {0}, which {1} does not have.",
        "pass --dtype half",
    ),
    "quantization_beyond_gpu": (
        r"([Qq]uantization (?:method \w+|scheme)) is not supported for the current GPU\. "
        r"\w+ capability: (\d+)\. Current capability: (\d+)",
        "No start: {0} needs compute capability {1} (75 means 7.5), and this GPU has {2}.",
        "choose a checkpoint with another quantization, or another GPU",
    ),
    "quantization_beyond_platform": (
        r"\b(\w{1,40}) quantization is currently not supported in (\w{1,40})",
        "No start: {0} does not run on {1}.",
        "choose a checkpoint with another quantization",
    ),
    "quantization_mismatch": (
        r"Quantization method specified in the model config \((\S+)\) does not match the quantization method specified "
        r"in the `quantization` argument \((\S+)\)",
        "No start: the checkpoint is {0}, and --quantization says {1}.",
        "leave --quantization out",
    ),
    "quantization_dtype": (
        r"(?<!\S)(\S{1,40}) is not supported for quantization method (\w{1,40})\. Supported dtypes: (\[[^\]]*\])",
        "No start: {1} does not compute in {0}.",
        "pass --dtype with one of {2}",
    ),
    "old_driver": (
        r"NVIDIA driver on your system is too old \(found version (\d+)\)|CUDA driver version is insufficient",
        "The NVIDIA driver is older than the CUDA version that PyTorch was built for.",
        "update the driver, or install a vLLM that was built for an older CUDA",
    ),
    "no_kernel_image": (
        r"no kernel image is available for execution on the device",
        "vLLM or PyTorch was built without kernels for this GPU's compute capability.",
        "install a build for this GPU: a newer one for a new GPU, an older one for an old GPU",
    ),
    "no_gpu": (
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver on your system",
        "No start: no GPU is visible to this process.",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES, and start a container with --gpus all; without a GPU install "
        "vLLM's CPU build",
    ),
    "illegal_access": (
        r"CUDA error: (an illegal memory access was encountered|device-side assert triggered)",
        "A kernel failed ({0}). The GPU has not run out of memory, and the line may name a later operation.",
        "set CUDA_LAUNCH_BLOCKING=1 to find the kernel; upgrade vLLM, or try enforce_eager",
    ),
    # --- several GPUs and processes
    "too_few_gpus": (
        r"World size \((\d{1,9})\) is larger than the number of available GPUs \((\d{1,9})\)",
        "No start: the settings ask for {0} GPUs, and this node has {1}.",
        "set tensor_parallel_size x pipeline_parallel_size to {1} or less, or use several nodes",
    ),
    "not_divisible": (
        r"(?:Total number of attention heads \(|AssertionError: )(\d{1,12})"
        r"(?:\) must be divisible by tensor parallel size \(| is not divisible by )(\d{1,12})",
        "No start: {0} attention heads, or rows of a weight, cannot be divided over {1} GPUs.",
        "choose a tensor_parallel_size that divides {0}",
    ),
    "bus_error": (
        r"\b(?:[Bb]us error|SIGBUS)\b",
        "A process ended with SIGBUS: as a rule /dev/shm, through which the workers exchange data, is full.",
        "start the container with --ipc=host or --shm-size=16g; in Kubernetes mount an emptyDir with medium Memory",
    ),
    "nccl_timeout": (
        r"Watchdog caught collective operation timeout",
        "A GPU waited for the others in vain: a worker ended or hangs, or the connection is down.",
        "look for the first error of another rank; set NCCL_DEBUG=INFO",
    ),
    "nccl": (
        r"NCCL error(?::| in:)|nccl(?:UnhandledSystem|System|Internal|Remote)Error",
        "The GPUs cannot exchange data through NCCL.",
        "set NCCL_DEBUG=INFO and read its first warning; check the network interface (NCCL_SOCKET_IFNAME), /dev/shm, "
        "and with NCCL_P2P_DISABLE=1 the direct connection of the GPUs",
    ),
    "step_timeout": (
        r"RPC call to \w+ timed out",
        "A worker did not finish a step in time.",
        "look for a worker's error before this line; if a step may take so long, raise "
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
    ),
    "start_timeout": (
        r"Timed out waiting for engine core processes to start\..*Waited (\d{1,9})s",
        "No start: the engine was not ready after {0} s, as with large weights on slow storage.",
        "raise VLLM_ENGINE_READY_TIMEOUT_S, or put the weights on faster storage",
    ),
    # --- the machine
    "port_in_use": (
        r"\[Errno \d+\] (?:error while attempting to bind on address .*)?[Aa]ddress already in use",
        "No start: another process listens on this port.",
        "pass another --port, or end that process (ss -ltnp shows it)",
    ),
    "disk_full": (
        r"\[Errno 28\]|No space left on device",
        "A disk is full.",
        "free space, or set HF_HOME to a folder on a larger disk",
    ),
    # --- errors whose cause is elsewhere
    "engine_ended": (
        r"Engine core initialization failed\.|EngineCore encountered an issue|EngineCore encountered a fatal error"
        r"|WorkerProc initialization failed|Worker proc \S+ died unexpectedly|Worker failed with error",
        "The engine ended. This is a consequence; the cause is in an earlier line.",
        "look for the first error above, also in the workers' lines",
    ),
}
CONSEQUENCE, UNKNOWN, READY = "engine_ended", "unknown_error", "ready"
SERVED = (READY, "statistics")
"""Kinds of lines that a server writes after its start."""


LEAST_SHARE = 0.05
"""A smaller share of a card starts no engine: the remedy is to free memory."""


def _explained(meaning: str, fix: str) -> Explain:
    return lambda match, _engine: Explanation(meaning.format(*match.groups()), fix=fix.format(*match.groups()))


for kind, (pattern, meaning, fix) in FAILURES.items():
    reads(kind, pattern)(_explained(meaning, fix))


@reads(
    "not_free",
    rf"(?:Free|Available) memory on (?:device|node)(?: [\w:]+)? \({NUMBER}/{NUMBER} GiB\) on startup is less than "
    rf"(?:desired (?:GPU|CPU) memory utilization|the engine's budget[\w' ]*) \({NUMBER}, {NUMBER} GiB\)",
)
def _not_free(match: re.Match[str], _engine: Engine) -> Explanation:
    free, total, share, requested = map(float, match.groups())
    meaning = (
        f"No start: {free} of {total} GiB are free, and the share asks for {requested}. Something else uses the rest."
    )
    # What a budget leaves out, such as another process's weights, is in the difference of share and request.
    share_now = share - (requested - free) / (total or 1) - 0.01
    others = OTHERS.partition(", or")[0]
    fix = f"set gpu_memory_utilization={share_now:.2f} or less, or {others}" if share_now >= LEAST_SHARE else others
    if "budget" in match[0]:  # minus weights held by another process
        return Explanation(meaning, fix=fix)
    return Explanation(
        meaning, f"{share} x {total} = {share * total:.2f} GiB", close(share * total, match[4], 0.015), fix
    )


@reads(
    "too_long",
    rf"(?:To serve at least one request with the models?'s )?max seq len \((\d{{1,9}})\),? \({NUMBER} Gi?B KV cache "
    rf"is needed, which is larger than the available KV cache memory \({NUMBER} Gi?B\)"
    r"(?:.*maximum model length is (\d{1,12}))?",
)
def _too_long(match: re.Match[str], engine: Engine) -> Explanation:
    length, fits = whole_number(match[1]), whole_number(match[4] or "0")
    meaning = f"No start: one request of {length:,} tokens takes {match[2]} GiB, but the cache has only {match[3]}."
    shorter = f"set max_model_len={fits} or less" if fits else "lower max_model_len"
    fix = f"{shorter}, {SMALLER_CACHE}, or {LARGER_CACHE}"
    meaning += f" The longest that fits is {fits:,}." if fits else ""
    plan = engine.plan(GIB * GIB, engine.block_sizes[0], length)
    if plan is None:
        return Explanation(meaning, fix=fix)
    needed = plan.bytes_per_sequence / GIB
    same = close(needed, match[2], HALF_A_DIGIT + plan.bytes_per_block / GIB) if engine.keeps_all_tokens else None
    recomputed = f"{length:,} tokens take {needed:.2f} GiB"
    if not fits:
        return Explanation(meaning, recomputed, same, fix)
    if engine.overridden is None:  # the error's figure excludes the block that vLLM keeps
        size, off = float(match[3]) * GIB, HALF_A_DIGIT * GIB
        least, most = (max(0, int(size + sign * off)) + plan.bytes_per_block for sign in (-1, 1))
        engine.memory = {(engine.worker.engine, engine.worker.label): (least, most)}
    longest, agrees = longest_request(fits, length, engine)
    return Explanation(meaning, f"{recomputed}; {longest}", False if same is False else agrees, fix)


@reads(
    "too_long_v0",
    r"(?:The model's )?max seq len \((\d{1,12})\) is larger than the maximum number of tokens that can be stored in KV "
    r"cache \((\d{1,12})\)",
)
def _too_long_v0(match: re.Match[str], engine: Engine) -> Explanation:
    length, fits = whole_number(match[1]), whole_number(match[2])
    meaning = f"No start: one request may have {length:,} tokens, but the cache has room for only {fits:,}."
    fix = f"set max_model_len={fits} or less, {SMALLER_CACHE}, or {LARGER_CACHE}"
    engine.set_tokens(fits)
    if (count := engine.blocks) is None:
        return Explanation(meaning, fix=fix)
    sizes = [size for size in engine.block_sizes if size * count == fits]
    size = sizes[0] if sizes else engine.block_sizes[0]
    return Explanation(meaning, f"{count:,} blocks x {size} = {count * size:,} tokens", bool(sizes), fix)


@reads("out_of_memory", r"(?:CUDA|HIP|XPU|NPU) out of memory\. Tried to allocate ([\d.]+ \w+)")
def _out_of_memory(match: re.Match[str], engine: Engine) -> Explanation:
    rest = match.string[match.end() :]
    new = re.search(r"total capac\w+ of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", rest)
    old = re.search(r"([\d.]+ \w+) total capacity;.*? ([\d.]+ \w+) free", rest)
    free = f" of {sizes[1]} only {sizes[2]} were free" if (sizes := new or old) else ""
    phases = {
        "while it served": (("statistics",), f"lower gpu_memory_utilization, or {SMALLER_STEPS}"),
        "after CUDA graphs were captured, in the warm-up of the sampler or later": (
            ("graphs",),
            f"lower gpu_memory_utilization, or {SMALLER_STEPS}",
        ),
        "in the warm-up or while CUDA graphs were captured, after the cache had taken its share": (
            ("cache_size", "blocks"),
            f"lower gpu_memory_utilization, set enforce_eager, or {SMALLER_STEPS}",
        ),
        "in the profiling run or later": (("weights",), f"{SMALLER_STEPS}, or lower gpu_memory_utilization"),
        "before any line about loaded weights": ((), LESS_WEIGHTS),
    }
    phase, fix = next((phase, fix) for phase, (kinds, fix) in phases.items() if not kinds or engine.has(*kinds))
    return Explanation(
        f"Out of GPU memory {phase}: {match[1]} more were asked for{',' if free else ''}{free}.", fix=fix
    )


@reads(READY, r"Application startup complete")
def _ready(_match: re.Match[str], _engine: Engine) -> Explanation:
    return Explanation("The server takes requests.")


@reads(
    UNKNOWN, r"(?<![\w.`(])((?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): \S.*"
)  # the last reader: it takes any error
def _unknown(match: re.Match[str], engine: Engine) -> Explanation:
    if engine.has(*SERVED):
        return Explanation(
            f"An error ({match[1]}) after the start. If the server goes on, it concerns a request; if not, read the "
            "traceback before this line."
        )
    fix = "read the traceback before this line, and search for its message among vLLM's issues"
    return Explanation(f"An error ({match[1]}) that is not known here.", fix=fix)
