"""Benchmarks; they report and never judge: `make bench`, or python -m benchmarks [NAME [OPTIONS]].

allocator   the model of KV-cache allocation
stub        the highest request rate of our load client and of `vllm bench serve`, on one stub server
server      both clients on one real `vllm serve` with the embedded model: throughput, TTFT, TPOT, E2E
handlers    TorchServe handlers under 16 clients: batches of 16, one by one, and the naive one
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import allocator, client, handlers
from labkit import machine, models
from labkit.errors import LabkitError
from labkit.serving import vllm


def server(options: Sequence[str]) -> int:
    """Starts the engine, measures it with both clients, stops it."""
    settings = vllm.settings(machine.inspect())
    command = f"vllm serve {models.resolve(models.CHAT)} --served-model-name lab-model --max-model-len 2048"
    command += f" --max-num-seqs 16 {settings.flags}"
    with (
        tempfile.TemporaryDirectory() as folder,
        vllm.start(command, folder=Path(folder), env=settings.env) as running,
    ):
        os.environ["LABKIT_API_KEY"] = running.api_key
        return client.main(["--server", running.url, "--model", running.model_name, *options])


BENCHMARKS: dict[str, Callable[[Sequence[str]], int]] = {
    "allocator": allocator.main,
    "stub": client.main,
    "server": server,
    "handlers": handlers.main,
}


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark that is named first, or all of them; returns the exit code."""
    chosen = [arguments[0]] if arguments and arguments[0] in BENCHMARKS else list(BENCHMARKS)
    if arguments and arguments[0] not in BENCHMARKS:
        print(__doc__, file=sys.stderr)
        return 2
    codes = []
    for name in chosen:
        print(f"\n== {name}", flush=True)
        codes.append(BENCHMARKS[name](arguments[1:]))
    return max(codes)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
