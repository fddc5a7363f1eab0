"""`vllm bench serve`, run on one of our workloads, as the other client to compare with.

Run as a module it is `vllm bench serve` itself: vLLM's own entry point with vLLM's own arguments, plus the CPU time
that its `benchmark` took (its ready check and statistics included), as `client_cpu_s` in the result.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from labkit.errors import LoadError
from labkit.workloads import Workload


def bench_serve(
    root_url: str,
    model: str,
    workload: Workload,
    *,
    tokenizer: str | Path,
    concurrency: int | None = None,
    rate: float | None = None,
    api_key: str | None = None,
    options: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What `vllm bench serve --save-detailed` writes for `workload` at the server's root (without /v1). The prompts
    are ours, in our order, greedy, to exactly max_tokens. `tokenizer` is a folder; LoadError if the command fails."""
    with tempfile.TemporaryDirectory(prefix="labkit-bench-") as name:
        folder = Path(name)
        _write_dataset(folder / "prompts.jsonl", workload)
        command = [
            sys.executable, "-m", "benchmarks.vllm_bench",
            "--backend", "openai", "--base-url", root_url, "--endpoint", "/v1/completions",
            "--model", model, "--tokenizer", str(tokenizer),
            "--dataset-name", "custom", "--dataset-path", str(folder / "prompts.jsonl"),
            "--custom-output-len", "-1", "--skip-chat-template", "--disable-shuffle",
            "--num-prompts", str(len(workload.requests)),
            "--ignore-eos", "--temperature", "0",
            "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,90,99",
            "--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "result.json",
            "--disable-tqdm", "--ready-check-timeout-sec", "30",
            *([] if concurrency is None else ["--max-concurrency", str(concurrency)]),
            *([] if rate is None else ["--request-rate", str(rate)]),
            *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(api_key), check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).partition("nanobind: leaked")[0]  # what comes then is noise
            raise LoadError(f"vllm bench serve ended with {done.returncode}:\n{said[-2000:]}")
        saved: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return saved


def _write_dataset(path: Path, workload: Workload) -> None:
    lines = [{"prompt": request.prompt, "output_tokens": request.max_tokens} for request in workload.requests]
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))


def _environment(api_key: str | None) -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    # Unlike ours, this client asks a proxy that is set in the environment, even for loopback.
    direct = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    key = {"OPENAI_API_KEY": api_key} if api_key else {}  # here, and not among the arguments, which anyone can list
    return {**os.environ, **direct, **key, "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}


def word_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer of one token a word: `vllm bench serve` insists on one, and a stub server has none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(str(folder))
    return folder


def main() -> None:
    """vLLM's entry point, with its CPU time noted. (The `vllm` command does the same after importing all of vLLM's.)"""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    original = serve.benchmark

    async def timed(*args: Any, **kwargs: Any) -> dict[str, Any]:
        before_s = time.process_time()
        result: dict[str, Any] = await original(*args, **kwargs)
        return {**result, "client_cpu_s": time.process_time() - before_s}

    serve.benchmark = timed
    parser = FlexibleArgumentParser(description="vllm bench serve")
    serve.add_cli_args(parser)
    asyncio.run(serve.main_async(parser.parse_args()))


if __name__ == "__main__":
    main()
