"""Our load client beside `vllm bench serve`: how fast each can ask at most, and whether both measure the same.

    python -m benchmarks.client                            against a stub server: requests per second, CPU per request
    python -m benchmarks.client --server URL --model NAME  against a real server: what each of them reports
                                                           (its key, if it wants one, in LABKIT_API_KEY)

Both send the same workload. Rounds are interleaved, and the ratio is over pairs of rounds. Nothing is judged here.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fast_stub
from course.vllm_bench import bench_serve
from labkit.errors import LabkitError, LoadError
from labkit.experiments import Ratio, interleaved, paired_ratio
from labkit.load import run_blocking
from labkit.load.metrics import summarise
from labkit.load.workloads import Workload, chat

Figures = dict[str, float]
"""What one client found in one round: {name with unit: value}."""

OURS, THEIRS = "labkit", "vllm bench"


@dataclass(frozen=True)
class Setting:
    """One comparison: the server, and the load on it."""

    root_url: str
    model: str
    requests: int
    tokens: int
    concurrency: int
    rounds: int
    seed: int
    api_key: str | None


def word_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer of one token a word: `vllm bench serve` insists on one, and a stub server has none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(str(folder))
    return folder


def ours(setting: Setting, workload: Workload) -> Figures:
    """What our client reports."""
    result = run_blocking(
        setting.root_url,
        setting.model,
        workload,
        concurrency=setting.concurrency,
        api_key=setting.api_key,
        warmup=1,
    )
    found = summarise(result)
    if found.failed:
        raise LoadError(f"{found.failed} requests failed: {'; '.join(found.warnings)}")
    return {
        "completed": found.completed,
        "output tokens": found.output_tokens,
        "requests/s": found.request_throughput,
        "output tokens/s": found.output_throughput,
        "mean TTFT, ms": found.ttft_s.mean * 1000,
        "mean TPOT, ms": found.tpot_s.mean * 1000,
        "mean E2E, ms": found.e2e_s.mean * 1000,
        "client CPU, ms/request": result.client_cpu_s / len(result.records) * 1000,
    }


def theirs(setting: Setting, workload: Workload, *, tokenizer: Path) -> Figures:
    """What `vllm bench serve` reports."""
    saved: dict[str, Any] = bench_serve(
        setting.root_url,
        setting.model,
        workload,
        tokenizer=tokenizer,
        concurrency=setting.concurrency,
        api_key=setting.api_key,
    )
    return {
        "completed": saved["completed"],
        "output tokens": saved["total_output_tokens"],
        "requests/s": saved["request_throughput"],
        "output tokens/s": saved["output_throughput"],
        "mean TTFT, ms": saved["mean_ttft_ms"],
        "mean TPOT, ms": saved["mean_tpot_ms"],
        "mean E2E, ms": saved["mean_e2el_ms"],
        "client CPU, ms/request": saved["client_cpu_s"] / len(workload.requests) * 1000,
    }


def compare(setting: Setting) -> dict[str, list[Figures]]:
    """Both clients, round by round. Each run has prompts of its own, or the second would find the first's in a
    cache."""

    def workload(round_index: int, arm: int) -> Workload:
        seed = setting.seed + 2 * round_index + arm
        return chat(setting.requests, seed=seed, max_tokens=setting.tokens)

    def say(done: int, total: int, arm: str) -> None:
        print(f"{done} of {total} runs{f', now {arm}' if arm else ''}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="labkit-bench-") as folder:
        tokenizer = word_tokenizer(Path(folder))
        arms: dict[str, Callable[[int], Figures]] = {
            OURS: lambda index: ours(setting, workload(index, 0)),
            THEIRS: lambda index: theirs(setting, workload(index, 1), tokenizer=tokenizer),
        }
        return interleaved(arms, repeats=setting.rounds, seed=setting.seed, progress=say)


def table(rounds: dict[str, list[Figures]], names: Sequence[str]) -> str:
    """Our figure, theirs, and the ratio with its interval, one line for each of `names`."""
    lines = [f"{'mean of the rounds':24}{OURS:>14}{THEIRS:>14}{'ratio':>10}  95% interval"]
    for name in names:
        a, b = ([figures[name] for figures in rounds[arm]] for arm in (OURS, THEIRS))
        ratio = _ratio(a, b, name)
        tail = f"{ratio.value:10.3f}  {ratio.low:.3f} to {ratio.high:.3f}" if ratio else f"{'-':>10}"
        lines.append(f"{name:24}{_mean(a):14.4g}{_mean(b):14.4g}{tail}")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _ratio(a: Sequence[float], b: Sequence[float], name: str) -> Ratio | None:
    return paired_ratio(a, b, name=name) if all(math.isfinite(value) and value > 0 for value in [*a, *b]) else None


def against_stub(arguments: argparse.Namespace) -> None:
    """The highest request rate of both clients, for answers of one token and of many."""
    for tokens in (1, arguments.tokens):
        with fast_stub.running() as root_url:
            setting = _setting(arguments, root_url, fast_stub.MODEL, tokens=tokens, requests=arguments.requests or 2000)
            rounds = compare(setting)
        print(f"\nstub server, {_load_line(setting)}")
        print(table(rounds, ["requests/s", "output tokens/s", "client CPU, ms/request", "completed"]))


def against_server(arguments: argparse.Namespace) -> None:
    """What both clients report about a real server."""
    root_url = arguments.server.rstrip("/").removesuffix("/v1")
    setting = _setting(arguments, root_url, arguments.model, tokens=arguments.tokens, requests=arguments.requests or 32)
    rounds = compare(setting)
    print(f"\n{arguments.model} at {root_url}, {_load_line(setting)}")
    print(table(rounds, list(rounds[OURS][0])))


def _setting(arguments: argparse.Namespace, root_url: str, model: str, *, tokens: int, requests: int) -> Setting:
    return Setting(
        root_url,
        model,
        requests=requests,
        tokens=tokens,
        concurrency=arguments.concurrency,
        rounds=arguments.rounds,
        seed=arguments.seed,
        api_key=os.environ.get("LABKIT_API_KEY") if arguments.server else None,
    )


def _load_line(setting: Setting) -> str:
    return (
        f"{setting.requests} requests of {setting.tokens} output tokens, {setting.concurrency} under way, "
        f"{setting.rounds} rounds"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", metavar="URL", help="a running server instead of the stub")
    parser.add_argument("--model", metavar="NAME", help="the model's name at that server")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--requests", type=int, help="requests in a run (default: 2000 to the stub, 32 to a server)")
    parser.add_argument("--tokens", type=int, default=32, help="output tokens of a request (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if bool(arguments.server) != bool(arguments.model):
        parser.error("--server and --model go together")
    try:
        (against_server if arguments.server else against_stub)(arguments)
    except LabkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
