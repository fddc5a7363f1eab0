"""TorchServe handlers under 16 clients: ours in batches of 16, ours one by one, and the naive one.

    python -m benchmarks.handlers [--requests N] [--tokens N] [--rounds N] [--clients N] [--json]

All three serve the embedded chat model in one TorchServe, each with a worker of its own, and take turns. CPU-seconds
are the worker's. All write the same number of tokens: ours are asked to go on after the model's end token, the naive
one cannot be asked and has weights without such a token. Nothing is judged here.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from labkit import models
from labkit.errors import LabkitError, LoadError
from labkit.experiments import Stopwatch, interleaved, paired_ratio
from labkit.load.workloads import chat
from labkit.machine import inspect
from labkit.serving import torchserve

Figures = dict[str, float]
BATCHED, SINGLE, NAIVE = "batch16", "batch1", "naive"
ENDS_IN = ("config.json", "generation_config.json")  # the files that name the token
TIMEOUT_S = 600
PROMPT_WORDS = 16  # a short question: reading prompts gains nothing from a batch on a CPU, writing does


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The load of one measurement."""

    requests: int
    tokens: int
    clients: int
    rounds: int


def archives(folder: Path, tokens: int) -> list[torchserve.Archive]:
    """The three handlers, on the same weights, with the same number type and one thread each."""
    chat_model = models.resolve(models.CHAT)
    endless = without_an_end(chat_model, folder / "endless")
    model = {"model_path": str(chat_model), "dtype": "float32", "max_new_tokens": tokens}

    def one(handler: str, name: str, batch_size: int, **more: Any) -> torchserve.Archive:
        settings = {"batchSize": batch_size, "maxBatchDelay": 50, "responseTimeout": TIMEOUT_S}
        inner = {**model, **more}
        return torchserve.archive(handler, folder=folder, model_name=name, settings=settings, handler_settings=inner)

    return [
        one("text_generation", BATCHED, 16),
        one("text_generation", SINGLE, 1),
        one("naive", NAIVE, 1, temperature=0.0, model_path=str(endless)),
    ]


def without_an_end(model: Path, folder: Path) -> Path:
    """Makes `folder` the same model, by links, with no token that ends an answer."""
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.name in ENDS_IN:
            config = {**json.loads(file.read_text(encoding="utf-8")), "eos_token_id": None}
            (folder / file.name).write_text(json.dumps(config), encoding="utf-8")
        else:
            (folder / file.name).symlink_to(file)
    return folder


def measure(server: torchserve.TorchServe, arm: str, setting: Setting, seed: int) -> Figures:
    """One round of one handler: all requests, by clients of which each asks again when it has its answer."""
    asked = chat(setting.requests, seed=seed, prompt_words=PROMPT_WORDS, max_tokens=setting.tokens).requests
    prompts = [one.prompt for one in asked]
    with Stopwatch(pids=server.control.worker_pids(arm)) as watch, ThreadPoolExecutor(setting.clients) as pool:
        answers = list(pool.map(lambda prompt: ask(server, arm, prompt, setting.tokens), prompts))
    tokens = sum(count(answer, setting.tokens) for answer in answers)
    return {
        "requests/s": setting.requests / watch.wall_s,
        "tokens/s": tokens / watch.wall_s,
        "requests/CPU-s": setting.requests / watch.pids_cpu_s,
        "tokens/CPU-s": tokens / watch.pids_cpu_s,
        "tokens/request": tokens / setting.requests,
    }


def ask(server: torchserve.TorchServe, arm: str, prompt: str, tokens: int) -> dict[str, Any]:
    """One request. LoadError when it is not answered well: a failed one would look fast."""
    body = {"prompt": prompt} if arm == NAIVE else {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    # The naive handler knows no chat template; this route of ours uses none either, so all read the same tokens.
    path = arm if arm == NAIVE else f"{arm}/1.0/v1/completions"
    headers = {"Authorization": f"Bearer {server.keys.inference}"}
    with requests.Session() as session:
        session.trust_env = False
        reply = session.post(f"{server.url}/predictions/{path}", json=body, headers=headers, timeout=TIMEOUT_S)
    if reply.status_code != 200:
        raise LoadError(f"{arm} answered {reply.status_code}: {reply.text[:200]}")
    answer: dict[str, Any] = json.loads(reply.content)
    return answer


def count(answer: dict[str, Any], tokens: int) -> int:
    """Tokens that were written. The naive handler gives no count; without an end it writes all that it may."""
    return int(answer["usage"]["completion_tokens"]) if "usage" in answer else tokens


def compare(setting: Setting) -> dict[str, list[Figures]]:
    """Starts the server, warms each handler up with one request, and measures them in turn."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def arm(name: str, server: torchserve.TorchServe) -> Callable[[int], Figures]:
        return lambda index: measure(server, name, setting, seed=index)

    with tempfile.TemporaryDirectory(prefix="labkit-bench-") as folder:
        made = archives(Path(folder) / "archives", setting.tokens)
        say("TorchServe: starting, with three workers")
        with torchserve.start(made, folder=Path(folder) / "run") as server:
            arms = {name: arm(name, server) for name in (BATCHED, SINGLE, NAIVE)}
            for name in arms:
                ask(server, name, "Hello", setting.tokens)
            return interleaved(
                arms,
                repeats=setting.rounds,
                seed=0,
                progress=lambda done, total, name: say(f"{done} of {total} runs{f', now {name}' if name else ''}"),
            )


def table(rounds: dict[str, list[Figures]]) -> str:
    """Means, and what the batch gains over each of the others, pair by pair, with its interval."""
    lines = [f"{'mean of the rounds':20}" + "".join(f"{arm:>12}" for arm in rounds) + "   16 against 1, and naive"]
    for name in rounds[BATCHED][0]:
        values = {arm: [figures[name] for figures in found] for arm, found in rounds.items()}
        means = "".join(f"{math.fsum(found) / len(found):12.3g}" for found in values.values())
        ratios = [paired_ratio(values[BATCHED], values[other], name=name) for other in (SINGLE, NAIVE)]
        gains = ", ".join(f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" for ratio in ratios)
        lines.append(f"{name:20}{means}   {gains}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32, help="in a run (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each handler (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="that ask at the same time (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(argv))
    as_json = options.pop("json")
    setting = Setting(**options)
    try:
        rounds = compare(setting)
    except LabkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if as_json:
        print(json.dumps({"machine": inspect().line(), **options, "rounds": rounds}))
        return 0
    print(
        f"{inspect().line()}; {setting.requests} requests of {PROMPT_WORDS} words, answers of {setting.tokens} "
        f"tokens, {setting.clients} clients"
    )
    print(table(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
