"""Write data/modelled_throughput.json, the throughput of one replica on modelled GPUs, for `labkit cost`.

    python -m tools.modelled_throughput          (`make modelled-throughput`; about ten minutes on two cores)

Each point is one `labkit simulate`: vLLM's engine and scheduler, a closed loop of CONCURRENCY requests. The table has
only cards and models that `labkit simulate` supports; it refuses the others, and so does the calculator.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from typing import Any, cast

import numpy as np

from labkit import modelled
from labkit.errors import require
from labkit.files import data_path, write_atomic
from labkit.modelled.evidence import Errors, promise
from labkit.modelled.shapes import shape_of

TABLE = "modelled_throughput.json"
CONCURRENCY, REQUESTS, MAX_MODEL_LEN = 128, 512, 8192
MIXES = ((200, 500), (600, 200), (2000, 200), (4000, 100))  # input and output tokens of a request
CARDS = ("rtx-4090", "l40s", "a100-80", "rtx-pro-6000", "h100-pcie", "h100-sxm", "h200", "b200")
REPLICAS = (  # model, card, GPUs of one replica
    *(("llama-3.1-8b", card, 1) for card in CARDS),
    *(("llama-3.1-70b", card, gpus) for card, gpus in (("a100-80", 4), ("h100-sxm", 4), ("h200", 2), ("b200", 2))),
)


def simulated(model: str, card: str, tensor_parallel: int, mix: tuple[int, int]) -> dict[str, Any]:
    """Return the output of `labkit simulate --json` for one mix on one replica."""
    options = {
        "--gpu": card,
        "--model": model,
        "--tensor-parallel": tensor_parallel,
        "--concurrency": CONCURRENCY,
        "--requests": REQUESTS,
        "--input-tokens": mix[0],
        "--output-tokens": mix[1],
    }
    words = [str(word) for option in options.items() for word in option]
    flags = ["--json", "--", "--max-model-len", str(MAX_MODEL_LEN)]
    done = subprocess.run(
        [sys.executable, "-m", "labkit", "simulate", *words, *flags], stdout=subprocess.PIPE, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def known_error(gpu: modelled.ModelledGpu) -> Errors:
    """Return the error of the modelled capacity, or else of the TPOT, which determines the capacity."""
    known = promise(gpu.card, gpu.folder, tensor_parallel=gpu.tensor_parallel, load_share=1.0)
    errors = known.of("output_per_s") or known.of("tpot_ms")
    require(errors is not None, f"no measurement was compared with {gpu.label}", fix="remove it from REPLICAS")
    return cast(Errors, errors)


def fitted(points: Sequence[dict[str, Any]]) -> tuple[list[float], float]:
    """Return prefill_s, decode_s and context_s (see ModelledReplica) by least relative squares, and the worst error."""
    rows = [
        (p["input_tokens"], p["output_tokens"], p["output_tokens"] * (p["input_tokens"] + p["output_tokens"] / 2))
        for p in points
    ]
    shares = np.array(rows) * np.array([[p["requests_per_s"]] for p in points])
    seconds = np.linalg.lstsq(shares, np.ones(len(points)), rcond=None)[0]
    return [float(f"{value:.6g}") for value in seconds], float(np.abs(shares @ seconds - 1).max())


def point(model: str, card: str, tensor_parallel: int, mix: tuple[int, int]) -> dict[str, Any]:
    """Simulate one point of the table."""
    rate = simulated(model, card, tensor_parallel, mix)["request_throughput"]
    return {"input_tokens": mix[0], "output_tokens": mix[1], "requests_per_s": round(rate, 4)}


def row(model: str, card: str, tensor_parallel: int, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a replica's row: its points and their fit."""
    seconds, fit_error = fitted(points)
    gpu = modelled.gpu(card, model=model, tensor_parallel=tensor_parallel)
    error = known_error(gpu)
    warning = f"no capacity of {model} on {gpu.card.title} was compared with a real one: the error is from "
    warning += f"other comparisons: {error.kind}, on {', '.join(error.cards)}"
    compared = card in error.cards and tensor_parallel == 1  # on several cards, only a 32B model was compared
    return {
        "model": model,
        "card": card,
        "tensor_parallel": tensor_parallel,
        "weights_gb": round(2 * shape_of(gpu.folder).parameters / 1e9, 2),
        "source": gpu.label,
        "warnings": [] if compared else [warning],
        "error": round(error.worst, 4),
        "fit_error": round(fit_error, 4),
        **dict(zip(("prefill_s", "decode_s", "context_s"), seconds, strict=True)),
        "points": list(points),
    }


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for replica in REPLICAS:
        rows.append(row(*replica, [point(*replica, mix) for mix in MIXES]))
        print(*replica, [point["requests_per_s"] for point in rows[-1]["points"]], rows[-1]["fit_error"], flush=True)
    table = {
        "vllm": version("vllm").partition("+")[0],
        "date": date.today().isoformat(),
        "concurrency": CONCURRENCY,
        "requests": REQUESTS,
        "max_model_len": MAX_MODEL_LEN,
        "rows": rows,
    }
    write_atomic(data_path() / TABLE, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
