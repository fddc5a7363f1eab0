"""`vllm bench serve` as another client to compare the load client with: it is run on one of our workloads, and what it
saves is read as a load of ours."""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.load.workloads import Workload, to_file
from labkit.serving.vllm import executable


def bench_serve(
    root_url: str,
    model: str,
    workload: Workload,
    *,
    tokenizer: str | Path,
    concurrency: int | None = None,
    rate: float | None = None,
    api_key: str | None = None,
) -> dict[str, Any]:
    """What `vllm bench serve --save-detailed` writes for `workload` at the server's root (without /v1). The prompts
    are ours, in our order, greedy, to exactly max_tokens. `tokenizer` is a folder."""
    with tempfile.TemporaryDirectory(prefix="labkit-bench-") as name:
        prompts = to_file(workload, Path(name) / "prompts.jsonl")
        asked = arguments(root_url, model, prompts, tokenizer=tokenizer, n=len(workload.requests))
        asked += [] if concurrency is None else ["--max-concurrency", str(concurrency)]
        asked += [] if rate is None else ["--request-rate", str(rate)]
        asked += ["--save-result", "--save-detailed", "--result-dir", name, "--result-filename", "bench.json"]
        # Unlike ours, this client asks a proxy that is set in the environment, even for loopback.
        direct = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        environment = {**os.environ, **direct, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": api_key or ""}
        command = [str(executable("vllm")), "bench", "serve", *asked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        saved: dict[str, Any] = json.loads((Path(name) / "bench.json").read_text())
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


_BENCH_FIELDS = ("duration", "input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors")


def from_vllm_bench(saved: Mapping[str, Any]) -> LoadResult:
    """What `vllm bench serve --save-result --save-detailed` wrote, as a load of ours: `summarise` gives its figures.

    vLLM counts tokens by its tokenizer where the server sent no usage."""
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
