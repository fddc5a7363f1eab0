"""`vllm bench serve`, run on one of our workloads, as the other client to compare with.

Run as a module it is `vllm bench serve` itself: vLLM's own entry point with vLLM's own arguments, plus the CPU time
that its `benchmark` took (its ready check and statistics included), as `client_cpu_s` in the result. With `--jobs` it
reads one job after another from its standard input: the import, which takes it longest, is then paid once.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import msgspec

from labkit.errors import LoadError
from labkit.load.workloads import Workload


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
        load = ([] if concurrency is None else ["--max-concurrency", str(concurrency)]) + (
            [] if rate is None else ["--request-rate", str(rate)]
        )
        asked = arguments(root_url, model, folder / "prompts.jsonl", tokenizer=tokenizer, n=len(workload.requests))
        saving = ["--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "result.json"]
        command = [sys.executable, "-m", "course.vllm_bench", *asked, *saving, *load, *options]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(api_key), check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).partition("nanobind: leaked")[0]  # what comes then is noise
            raise LoadError(f"vllm bench serve ended with {done.returncode}:\n{said[-2000:]}")
        saved: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return saved


def arguments(root_url: str, model: str, prompts: Path, *, tokenizer: str | Path, n: int) -> list[str]:
    """The arguments of `vllm bench serve` that ask the first `n` prompts of a JSONL file in its order, greedy, each
    for exactly its number of tokens."""
    return [
        "--backend", "openai", "--base-url", root_url, "--endpoint", "/v1/completions",
        "--model", model, "--tokenizer", str(tokenizer),
        "--dataset-name", "custom", "--dataset-path", str(prompts),
        "--custom-output-len", "-1", "--skip-chat-template", "--disable-shuffle",
        "--num-prompts", str(n), "--ignore-eos", "--temperature", "0",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,90,99",
        "--disable-tqdm", "--ready-check-timeout-sec", "30",
    ]  # fmt: skip


class Bench:
    """`vllm bench serve` that stays loaded between its runs. Use it in a `with` block, or call `stop`.

    Starting it returns at once; its first run waits until vLLM is imported. What it prints goes to `log`.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "course.vllm_bench", "--jobs"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(None),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, asked: list[str], *, folder: Path, api_key: str | None = None) -> dict[str, Any]:
        """What one run saves of these `arguments`. LoadError with its log's end where it fails."""
        saving = ["--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "bench.json"]
        job = {"arguments": [*asked, *saving], "api_key": api_key or ""}
        if self._process.stdin is None or self._process.stdout is None or self._process.poll() is not None:
            raise LoadError("vllm bench serve has ended", remedy=f"read {self.log}")
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        if (said := self._process.stdout.readline().strip()) != b"done":
            end = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise LoadError(f"vllm bench serve failed ({said.decode() or 'it ended'}):\n{end}")
        saved: dict[str, Any] = json.loads((folder / "bench.json").read_text())
        return saved

    def stop(self) -> None:
        """Ends the process. Safe to call again."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


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
    if sys.argv[1:] != ["--jobs"]:
        asyncio.run(serve.main_async(parser.parse_args()))
        return
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no reply
    for line in sys.stdin:
        print(_one_job(json.loads(line), parser, serve.main_async), file=replies, flush=True)


def _one_job(job: dict[str, Any], parser: Any, main_async: Callable[[Any], Coroutine[Any, Any, Any]]) -> str:
    """One run of `vllm bench serve`; "done", or what it failed of."""
    os.environ["OPENAI_API_KEY"] = job["api_key"]
    try:
        asyncio.run(main_async(parser.parse_args(job["arguments"])))
    except (Exception, SystemExit) as error:  # whatever it is, the next job is another one's
        traceback.print_exc()
        return repr(error).replace("\n", " ")
    return "done"


if __name__ == "__main__":
    main()
