"""`vllm bench serve`, run on one of our workloads, as the other client to compare with.

Run as a module it is `vllm bench serve` itself, kept loaded, since its import takes longest: vLLM's entry point with
vLLM's arguments, a job on each line of its standard input. The result also has `client_cpu_s`, the CPU time that its
`benchmark` took (its ready check and statistics included).
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from labkit.errors import LoadError, UsageError
from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.load.workloads import Workload, to_file


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
        prompts = to_file(workload, Path(name) / "prompts.jsonl")
        asked = arguments(root_url, model, prompts, tokenizer=tokenizer, n=len(workload.requests))
        asked += [] if concurrency is None else ["--max-concurrency", str(concurrency)]
        asked += [] if rate is None else ["--request-rate", str(rate)]
        with Bench(Path(name) / "bench.log") as bench:
            return bench.run([*asked, *options], folder=Path(name), api_key=api_key)


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
                [sys.executable, "-m", "course.vllm_bench"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(),
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


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    # Unlike ours, this client asks a proxy that is set in the environment, even for loopback.
    direct = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return {**os.environ, **direct, "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}


_BENCH_FIELDS = ("duration", "input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors")


def from_vllm_bench(saved: Mapping[str, Any]) -> LoadResult:
    """What `vllm bench serve --save-result --save-detailed` wrote, as a load of ours: `summarise` gives its figures.

    UsageError if the file holds no request details. vLLM counts tokens by its tokenizer where the server sent no
    usage."""
    missing = [name for name in _BENCH_FIELDS if name not in saved]
    if missing:
        raise UsageError(f"no {', '.join(missing)} in the result", remedy="run vllm bench serve with --save-detailed")
    zero = min(saved["start_times"], default=0.0)
    columns = zip(*(saved[name] for name in _BENCH_FIELDS[1:]), strict=True)
    rate = saved.get("request_rate", "inf")
    return LoadResult(
        records=tuple(_bench_record(index, zero, *row) for index, row in enumerate(columns)),
        duration_s=saved["duration"],
        client_cpu_s=math.nan,
        concurrency=saved.get("max_concurrency"),
        rate=None if rate == "inf" else float(rate),
        workload="vllm bench",
        seed=None,
        model=saved.get("model_id") or "",
    )


def _bench_record(
    index: int,
    zero: float,
    input_tokens: int,
    output_tokens: int,
    ttft_s: float,
    itl_s: Sequence[float],
    started: float,
    text: str,
    error: str,
) -> RequestRecord:
    # Sum on the clock that vLLM subtracted on: there each sum gives back the reading, bit by bit. Only then move to
    # zero.
    ok = not error and ttft_s > 0
    times = tuple(time - zero for time in accumulate(itl_s, initial=started + ttft_s)) if ok else ()
    return RequestRecord(
        index=index,
        scheduled_s=started - zero,
        started_s=started - zero,
        chunk_times_s=times,
        finished_s=times[-1] if times else started - zero,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        outcome=Outcome.OK if ok else Outcome.HTTP_ERROR,
        error=error,
        text=text,
    )


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
