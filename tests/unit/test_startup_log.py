"""The reader of start-up logs: a recorded log, lines in vLLM's formats, and inconsistent lines."""

import random
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.models import Architecture
from labkit.serving.vllm_log import read

SMOLLM2 = Architecture(
    model_type="llama", layers=30, attention_heads=9, kv_heads=3, head_dim=64, hidden_size=576, dtype_bytes=2,
    max_positions=8192, parameters=134_515_008,
)  # fmt: skip
LLAMA_8B = replace(SMOLLM2, layers=32, attention_heads=32, kv_heads=8, head_dim=128, parameters=8_030_261_248)
RECORDED = (Path(__file__).parents[1] / "data" / "vllm_serve_cpu.log").read_text()
GIB = 2**30


def gib(size: float) -> str:
    """As vLLM prints it (utils/mem_utils.py `format_gib`)."""
    return f"{round(size / GIB, 2)}"


# --- a recorded log of `vllm serve` on a CPU, in float32


def test_every_memory_line_of_a_recorded_log_is_explained_and_agrees() -> None:
    """Lines keep their order and lose colours and process names; all figures follow from the config, the type and one
    GiB, to the token."""
    reading = read(RECORDED, architecture=SMOLLM2)
    kinds = [line.kind for line in reading.lines]
    start = ["arguments", "dtype", "max_model_len", "engine", "checkpoint", "cpu_memory", "cache_size"]
    assert kinds[:7] == start
    assert set(kinds[7:]) == {"statistics"}
    assert reading.agrees
    assert all(line.meaning for line in reading.lines)
    assert not any("\x1b" in line.text or "EngineCore" in line.text for line in reading.lines)
    recomputed = {
        "dtype": "46,080 bytes of KV cache per token",
        "cpu_memory": "= 182 blocks",
        "cache_size": "182 blocks x 128 = 23,296 tokens; 23,296 / 1,024 = 22.75x",
        "checkpoint": "134,515,008 parameters x 2 bytes = 0.25 GiB",
        "statistics": "of 181 blocks",
    }
    assert all(text in reading.of(kind)[0].recomputed for kind, text in recomputed.items())


def test_what_is_compared_depends_on_the_config() -> None:
    """With another model's config, the lines that depend on it differ; without one, only the division inside the log is
    checked."""
    right, other, none = (read(RECORDED, architecture=model) for model in (SMOLLM2, LLAMA_8B, None))
    assert not other.agrees
    assert other.of("cache_size")[0].agrees is False
    assert "DIFFERS" in str(other)
    assert [line.kind for line in none.lines] == [line.kind for line in right.lines]
    assert none.of("cache_size")[0].recomputed == "23,296 / 1,024 = 22.75x"
    assert none.of("checkpoint")[0].agrees is None


def test_other_text() -> None:
    """A log without memory lines has no lines and no verdict; HTML in a log is escaped."""
    reading = read("INFO 11-24 07:31:40 [model.py:733] Resolved architecture: LlamaForCausalLM\n\n")
    assert (reading.lines, reading.agrees) == ((), None)
    html = read("non-default args: {'quantization': '<img/src=x>'}")._repr_html_()
    assert ("<img" in html, "&lt;img" in html) == (False, True)


# --- lines as vLLM's source formats them, for what a CPU does not log


def budget_line(total: int, share: float, weights: int, peak: int, graphs: int) -> tuple[str, int]:
    """gpu_worker.py's line on free memory, and the KV cache's bytes."""
    requested = int(total * share)
    cache = requested - weights - peak
    line = (
        f"Free memory on device ({gib(total * 0.99)}/{gib(total)} GiB) on startup. Desired GPU memory utilization is "
        f"({share}, {gib(requested)} GiB). Actual usage is {gib(weights)} GiB for consumed memory (weights + non-torch)"
        f", {gib(peak)} GiB for peak activation, and {gib(graphs)} GiB for CUDAGraph memory. Replace "
        f"gpu_memory_utilization config with `--kv-cache-memory={cache}` ({gib(cache)} GiB) to fit into requested "
        f"memory, or `--kv-cache-memory={cache}` ({gib(cache)} GiB) to fully utilize gpu memory. Current kv cache "
        f"memory in use is {gib(cache)} GiB."
    )
    return line, cache


def gpu_log(cache_bytes: int, *, length: int, tokens: int | None = None, block_size: int = 16) -> str:
    """kv_cache_utils.py's lines for an 8B model on a GPU, with the division as vLLM does it."""
    blocks = cache_bytes // (block_size * 131_072)
    times = blocks / -(-length // block_size)
    shown = int(times * length) if tokens is None else tokens
    return (
        f"INFO 11-24 10:00:00 [gpu_worker.py:759] Available KV cache memory: {gib(cache_bytes)} GiB\n"
        f"INFO 11-24 10:00:01 [kv_cache_utils.py:2327] GPU KV cache size: {shown:,} tokens, "
        f"Maximum concurrency for {length:,} tokens per request: {shown / length if tokens else times:.2f}x\n"
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2 * GIB, 70 * GIB), st.integers(512, 8192), st.sampled_from([0.9, 0.98, 1.02, 1.5, 2]))
def test_a_gpu_cache_agrees_for_any_memory(cache: int, length: int, off: float) -> None:
    """vLLM's tokens for the exact bytes are always within the bounds of two decimals of a GiB; tokens a few per cent
    off differ."""
    reading = read(gpu_log(cache, length=length), architecture=LLAMA_8B)
    assert [line.kind for line in reading.lines] == ["gpu_memory", "cache_size"]
    assert reading.agrees
    tokens = int(cache // (16 * 131_072) * 16 * off)
    assert not read(gpu_log(cache, length=4096, tokens=tokens), architecture=LLAMA_8B).agrees


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(16 * GIB, 141 * GIB), share=st.sampled_from([0.5, 0.85, 0.9, 0.92]), peak=st.integers(0, 2 * GIB)
)
def test_a_gpu_budget_adds_up(total: int, share: float, peak: int) -> None:
    """The budget is share x total and the cache is its rest, within the printed decimals; a larger cache differs."""
    line, cache = budget_line(total, share, 5 * GIB, peak, GIB // 2)
    reading = read(line).lines[0]
    assert (reading.kind, reading.agrees) == ("gpu_usage", True)
    wrong = line.replace(f"in use is {gib(cache)}", f"in use is {gib(cache + GIB)}")
    assert read(wrong).lines[0].agrees is False


def test_weights_on_a_gpu_are_recomputed() -> None:
    """Parameters x bytes / GPUs; quantised weights do not agree with 16 bits."""
    text = f"Model loading took {gib(LLAMA_8B.parameters * 2 + GIB // 50)} GiB memory and 3.2 seconds"  # type: ignore[operator]
    assert read(text, architecture=LLAMA_8B).of("weights")[0].agrees
    assert not read(f"non-default args: {{'tensor_parallel_size': 2}}\n{text}", architecture=LLAMA_8B).agrees
    quantised = "Model loading took 5.31 GiB memory and 3.2 seconds"
    assert not read(quantised, architecture=LLAMA_8B).agrees


def test_fewer_blocks_than_the_memory_holds() -> None:
    """With an override, blocks and tokens follow from it; the line's first number is the memory's."""
    text = (
        "non-default args: {'block_size': 32, 'num_gpu_blocks_override': 16}\n"
        "Explicitly set (1.0/23.54) GiB for KV cache on node 0.\n"
        "Overriding num_gpu_blocks=1456 with num_gpu_blocks_override=16\n"
        "CPU KV cache size: 512 tokens, Maximum concurrency for 256 tokens per request: 2.00x\n"
        "Engine 000: Avg prompt throughput: 6.1 tokens/s, Avg generation throughput: 4.0 tokens/s, Running: 6 reqs, "
        "Waiting: 0 reqs, CPU KV cache usage: 80.0%, Prefix cache hit rate: 31.7%\n"
    )
    reading = read(text, architecture=SMOLLM2)
    assert [line.agrees for line in reading.lines] == [None, None, True, True, True]
    assert "num_gpu_blocks_override sets 16" in reading.of("override")[0].meaning
    assert "12 of 15 blocks" in reading.of("statistics")[0].recomputed
    assert not read(text.replace("=1456", "=1700"), architecture=SMOLLM2).agrees
    assert not read(text.replace("80.0%", "82.0%"), architecture=SMOLLM2).agrees


def test_a_share_of_the_ram() -> None:
    """On a CPU without an explicit size, the cache is the worker's share minus its other memory."""
    text = (
        "Auto set (5.5/23.54) GiB for KV cache on node 0, with 8.0 GiB requested memory for the worker. 2.5 GiB memory "
        "was consumed by non-kv usages."
    )
    line = read(text).lines[0]
    assert (line.kind, line.recomputed, line.agrees) == ("cpu_auto", "8.0 - 2.5 = 5.50 GiB", True)
    assert not read(text.replace("(5.5/", "(6.5/")).lines[0].agrees


# --- failed starts


TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (8192), (0.18 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (0.0 GiB). Based on the available memory, the estimated "
    "maximum model length is 224. Try increasing `gpu_memory_utilization` ..."
)  # vLLM 0.32 with 8 blocks of 32


def test_the_longest_length_that_fits_is_recomputed() -> None:
    """In the error, and where max_model_len=-1 shortens it: the capacity of the blocks minus the one that vLLM keeps.
    Another length differs; an error without an estimate is explained all the same."""
    before = "non-default args: {'block_size': 32}\nOverriding num_gpu_blocks=1456 with num_gpu_blocks_override=8\n"
    line = read(before + TOO_LONG, architecture=SMOLLM2).of("too_long")[0]
    assert line.agrees
    assert "(8 blocks - 1 that vLLM keeps) x 32: 224 tokens at most" in line.recomputed
    assert "longest that fits is 224" in line.meaning
    assert read(before + TOO_LONG.replace("224", "256"), architecture=SMOLLM2).of("too_long")[0].agrees is False
    fitted = "Auto-fit max_model_len: reduced from 8192 to 224 to fit in available KV cache memory (0.01 GiB CPU)"
    assert read(before + fitted, architecture=SMOLLM2).of("auto_fit")[0].agrees
    (line,) = read(TOO_LONG.split(" Based on")[0]).lines
    assert line.kind == "too_long"
    assert "No start: one request of 8,192 tokens takes 0.18 GiB, but the cache has only 0.0" in line.meaning


def test_a_log_of_two_engines_starts_afresh() -> None:
    """State from one engine does not carry over to the next in the same log."""
    first = "non-default args: {'block_size': 32}\nUpcasting torch.bfloat16 to torch.float32.\n"
    second = "non-default args: {'max_model_len': 2048}\nExplicitly set (1.0/23.54) GiB for KV cache on node 0.\n"
    size = "CPU KV cache size: 46,592 tokens, Maximum concurrency for 2,048 tokens per request: 22.75x\n"
    assert read(first + second + size, architecture=SMOLLM2).agrees


def test_any_text_can_be_read() -> None:
    """Shuffled and cut lines are read without an error."""
    rng = random.Random(0)
    lines = [*RECORDED.splitlines(), TOO_LONG, *gpu_log(3 * GIB, length=4096).splitlines()]
    for _ in range(20):
        rng.shuffle(lines)
        text = "\n".join(line[: rng.randrange(1, 400)] for line in lines)
        read(text, architecture=SMOLLM2)
        read(text)
