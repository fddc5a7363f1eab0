"""Compute the modelled GPU's errors against real ones: `make modelled-errors`.

With --write it updates data/modelled_errors.json and the tables in docs/modelled-gpu.md; with --only too, it keeps the
other stored rows.

Real values are the served points of data/measurements/gpu_points.csv (public; source, version and licence on each row)
and of aiconfigurator-core's silicon_sample.csv. It takes about ten minutes and prints each experiment. Each host's
constants (added by engine and host per step, and by the HTTP server to the TTFT) come only from its lightest point,
which is not compared.
"""

import argparse
import csv
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from labkit import modelled
from labkit.files import data_path, root
from labkit.load.metrics import summarise
from labkit.modelled import traffic
from labkit.modelled.evidence import (
    EIGHT_GPUS,
    ERRORS,
    EXPERTS,
    FP8,
    ONE_GPU,
    SMALL_FP8,
    TENSOR_PARALLEL,
    Compared,
    compared,
    summary_rows,
)

POINTS = data_path("measurements/gpu_points.csv")
PAGE = root() / "docs" / "modelled-gpu.md"
MARKS = ("<!-- errors: written by make modelled-errors -->", "<!-- end of errors -->")
REGIONS = ("below 50%", "50-90%", "90-100%", "overload", "closed loop", "capacity")
CARDS = {
    "H100-SXM-80GB": "h100-sxm",
    "A100-SXM-80GB": "a100-80",
    "RTX 4090": "rtx-4090",
    "RTX 5090": "rtx-5090",
    "RTX PRO 6000 Server": "rtx-pro-6000",
    "L4": "l4",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
}
SERVER = {"max_num_batched_tokens": 2048, "max_num_seqs": 256, "max_model_len": 8192}  # vLLM's defaults below 70 GiB
LONGEST_S = 20  # length of an open loop: enough for a steady state
# The demo's data set (its config.yaml): 10 system prompts of 128 tokens, 10 users each, so 100 repeated prompts.
SYSTEM_PROMPTS, PROMPTS, SYSTEM_TOKENS = 10, 100, 128
BATCHES = "dense 7B, batches of 1 to 8"
KINDS = (ONE_GPU, BATCHES, TENSOR_PARALLEL, EIGHT_GPUS, SMALL_FP8, FP8, EXPERTS)  # in the tables' order
LEFT_OUT = ("Qwen2.5-0.5B",)  # so small that the host decides, not the card


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A load that was measured on a real card, with its settings for the modelled card."""

    kind: str
    card: str
    model: str | Path
    vllm: str
    load: str
    measured: Mapping[str, float]  # "tpot_ms", "ttft_ms", "output_per_s"
    requests: Sequence[modelled.TokenRequest]
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int | None = None
    tensor_parallel: int = 1
    share_of_capacity: float | None = None  # throughput over the highest one measured in the series
    host: str = ""
    lightest: bool = False  # the point that determines the host's constants
    statistic: str = "mean"


@dataclass(frozen=True, kw_only=True)
class Host:
    """Constants of a machine and engine version: time added per step, and to the TTFT (HTTP server and network)."""

    overhead_ms: float
    http_ms: float


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="experiments whose KIND, CARD, LOAD has this regular expression")
    parser.add_argument("--write", action="store_true", help="store the results and the page's table")
    options = parser.parse_args(arguments)
    os.environ.update(modelled.gpu("h100-sxm").env)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(compare(experiments(Path(folder), options.only)))
    if options.write:
        kept = [row for row in compared() if not re.search(options.only, _name(row))]
        rows = sorted([*rows, *kept], key=_order)
        ERRORS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
        write_page(rows)
    print("\n".join(table(rows)))
    return 0


def _name(row: Compared | Experiment) -> str:
    return f"{row.kind}, {row.card}, {row.load}"


def _order(row: Compared | Experiment) -> tuple[int, str, str]:
    loop = row.kind != ONE_GPU
    return (KINDS.index(row.kind), row.card if loop else "", row.load if loop else "")


def compare(todo: Sequence[Experiment]) -> Iterator[Compared]:
    """Yield each experiment's measured and modelled quantities; progress goes to stderr."""
    hosts = {experiment.host: constants(experiment) for experiment in todo if experiment.lightest}
    with Engines() as engines:
        for number, experiment in enumerate(todo, start=1):
            print(f"{number} of {len(todo)}: {_name(experiment)}", file=sys.stderr, flush=True)
            host = hosts.get(experiment.host)
            results = figures(experiment, engines, overhead_ms=host.overhead_ms if host else None)
            if host is not None and "ttft_ms" in results:
                results["ttft_ms"] += host.http_ms
            for name, measured in experiment.measured.items():
                if experiment.lightest and name in ("tpot_ms", "ttft_ms"):
                    continue
                yield Compared(
                    kind=experiment.kind,
                    card=experiment.card,
                    vllm=experiment.vllm,
                    load=experiment.load,
                    region=region(experiment, name),
                    quantity=name,
                    measured=measured,
                    modelled=results[name],
                )


def constants(experiment: Experiment) -> Host:
    """Return a host's constants: measured minus modelled TPOT, then TTFT, at its lightest point."""
    with Engines() as engines:
        without = figures(experiment, engines, overhead_ms=0.0)
        overhead_ms = max(0.0, experiment.measured["tpot_ms"] - without["tpot_ms"])
        ttft_ms = figures(experiment, engines, overhead_ms=overhead_ms)["ttft_ms"]
    measured = experiment.measured.get("ttft_ms")
    return Host(overhead_ms=overhead_ms, http_ms=max(0.0, measured - ttft_ms) if measured else 0.0)


class Engines:
    """vLLM engines on modelled cards, one at a time; the last is reused while settings are equal."""

    def __init__(self) -> None:
        self._key = ""
        self._llm: Any = None

    def get(self, experiment: Experiment, overhead_ms: float | None) -> Any:
        from vllm import LLM

        gpu = modelled.gpu(
            experiment.card, model=experiment.model, tensor_parallel=experiment.tensor_parallel, overhead_ms=overhead_ms
        )
        arguments = {"model": gpu.model, **gpu.llm, **experiment.options}
        key = repr(sorted(arguments.items()))
        if key != self._key:
            self.close()
            self._llm, self._key = LLM(**arguments), key
        return self._llm

    def close(self) -> None:
        if self._llm is not None:
            modelled.close(self._llm)
        self._key, self._llm = "", None

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def figures(experiment: Experiment, engines: Engines, *, overhead_ms: float | None) -> dict[str, float]:
    """Return TPOT, TTFT (ms) and output tokens per second of an experiment on the modelled card."""
    driven = modelled.drive(
        engines.get(experiment, overhead_ms), experiment.requests, concurrency=experiment.concurrency
    )
    summary = summarise(driven.result)
    return {
        "tpot_ms": 1e3 * getattr(summary.tpot_s, experiment.statistic),
        "ttft_ms": 1e3 * getattr(summary.ttft_s, experiment.statistic),
        "output_per_s": summary.output_throughput,
    }


def region(experiment: Experiment, quantity: str) -> str:
    """Return the range of loads to which a comparison belongs."""
    share = experiment.share_of_capacity
    if experiment.concurrency is not None and share is None:
        return "closed loop"
    if share is None or share > 1:
        return "overload" if quantity != "output_per_s" else "capacity"
    if quantity == "output_per_s":
        return "follows the rate"
    return "below 50%" if share <= 0.5 else "50-90%" if share <= 0.9 else "90-100%"


# --- the experiments ---


def experiments(folder: Path, only: str = "") -> list[Experiment]:
    """Return the experiments with the regular expression `only` in their name; config.json files go to `folder`."""
    loops = sorted(from_package(folder, only), key=lambda loop: (loop.kind, loop.card, loop.tensor_parallel))
    return [alone for alone in (*one_gpu(), *batches(folder)) if re.search(only, _name(alone))] + loops


def one_gpu() -> Iterator[Experiment]:
    """Dense 8B models in bf16 on one GPU, served by vLLM's V1 engine."""
    groups: dict[tuple[str, ...], dict[str, float]] = {}
    for row in csv.DictReader(POINTS.open(encoding="utf-8")):
        served = not row["class"].startswith("step") and "(V1)" in row["vllm"] and row["dtype"] == "bf16"
        if served and row["tp"] == "1" and row["gpu"] in CARDS and not row["model"].startswith(LEFT_OUT):
            key = tuple(row[name] for name in ("gpu", "kind", "input", "output", "load", "vllm", "note", "requests"))
            groups.setdefault(key, {})[row["metric"]] = float(row["value"])
    capacity = _capacities(groups)
    for key, measured in groups.items():
        yield from _experiment(key, measured, capacity)


Groups = Mapping[tuple[str, ...], Mapping[str, float]]


def _series(key: Sequence[str]) -> tuple[str, ...]:
    gpu, kind, prompt, _, _, vllm, note, _ = key
    return (gpu, note.split(";")[0], vllm) if "constant rate" in kind else (gpu, prompt, vllm)


def _capacities(groups: Groups) -> dict[tuple[str, ...], float]:
    """The most output tokens per second of each series: its card's capacity."""
    reached: dict[tuple[str, ...], float] = {}
    for key, measured in groups.items():
        series = _series(key)
        reached[series] = max(reached.get(series, 0.0), measured.get("output throughput", 0.0))
    return reached


def _experiment(
    key: Sequence[str], measured: Mapping[str, float], capacity: Mapping[tuple[str, ...], float]
) -> Iterator[Experiment]:
    gpu, kind, prompt, output, load, vllm, note, count = key
    inputs, outputs, requests = (round(float(text.strip("~"))) for text in (prompt, output, count))
    base = Experiment(
        kind=ONE_GPU,
        card=CARDS[gpu],
        model="llama-3.1-8b",
        vllm=vllm,
        load=f"{inputs} + {outputs} tokens, {load}",
        measured=_measured(measured),
        requests=(),
        host=f"{gpu}, {vllm}",
        statistic="p50" if any("p50" in name for name in measured) else "mean",
    )
    if "constant rate" in kind:
        yield _demo(base, inputs, outputs, requests, note, float(load.split()[0]), capacity[_series(key)])
    elif "ShareGPT" in kind:
        arriving = traffic.at_rate(traffic.fixed(requests, input_tokens=inputs, output_tokens=outputs), rate=10.0)
        yield replace(base, requests=arriving, options=SERVER | {"max_num_seqs": 128})
    elif kind == "serving, Poisson":
        rate = float(load.split()[0])
        arriving = traffic.at_rate(traffic.fixed(requests, input_tokens=inputs, output_tokens=outputs), rate=rate)
        yield replace(
            base,
            requests=arriving,
            options=SERVER,
            share_of_capacity=rate * outputs / capacity[_series(key)],
        )
    else:
        alone = "batch 1" in kind
        yield replace(
            base,
            requests=traffic.fixed(3 if alone else requests, input_tokens=inputs, output_tokens=outputs),
            options={"max_model_len": 32768},
            concurrency=1 if alone else None,
            share_of_capacity=0.0 if alone else None,
            lightest=kind == "decode batch 1" and inputs < 1000,
        )


def _measured(metrics: Mapping[str, float]) -> dict[str, float]:
    names = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "output": "output_per_s"}
    return {names[name.split()[0]]: value for name, value in metrics.items()}


def _demo(
    base: Experiment, inputs: int, outputs: int, requests: int, note: str, rate: float, capacity: float
) -> Experiment:
    """A stage of inference-perf's KubeCon demo, with its server's options (manifests.yaml)."""
    cached = "prefix_caching" in note
    prompts = [
        traffic.prompt_tokens(SYSTEM_TOKENS, key=f"system/{index % SYSTEM_PROMPTS}")
        + traffic.prompt_tokens(inputs - SYSTEM_TOKENS, key=f"user/{index}")
        for index in range(PROMPTS)
    ]
    count = min(requests, max(60, int(rate * LONGEST_S)))
    sent = [modelled.TokenRequest(token_ids=prompts[i % PROMPTS], output_tokens=outputs) for i in range(count)]
    return replace(
        base,
        load=f"{base.load}; {note.split(';')[0]}",
        requests=traffic.at_rate(sent, rate, arrival="constant"),
        options={
            "max_model_len": 512,
            "gpu_memory_utilization": 0.9,
            "max_num_seqs": int(note.split("max-num-seqs ")[1].split(";")[0]),
            "max_num_batched_tokens": 8192,
            "enable_prefix_caching": cached,
            "enable_chunked_prefill": cached,
        },
        share_of_capacity=rate * outputs / capacity,
        lightest=rate < 2 and "128" in note and not cached,
    )


MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SHORT = 16  # tokens of a prompt that the data set calls short


def batches(folder: Path) -> Iterator[Experiment]:
    """Mistral-7B on an L4, a few requests at once: their number over the throughput is a TPOT (short prompts)."""
    model = folder / "mistral-7b"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(MISTRAL_7B), encoding="utf-8")
    for row in csv.DictReader(POINTS.open(encoding="utf-8")):
        if row["model"] == "Mistral-7B-v0.1" and row["metric"] == "throughput":
            clients, outputs = int(row["load"].split()[-1]), int(row["output"])
            yield Experiment(
                kind=BATCHES,
                card=CARDS[row["gpu"]],
                model=model,
                vllm=row["vllm"],
                load=f"{row['input']} + {outputs} tokens, {clients} at once",
                measured={"tpot_ms": 1e3 * clients / float(row["value"])},
                requests=traffic.fixed(clients, input_tokens=SHORT, output_tokens=outputs),
                options={"max_model_len": 4096},
                share_of_capacity=0.0,  # of hundreds of requests
            )


MODELS = {  # of silicon_sample.csv, with the precision: the kind, the package's config.json, and the numbers of GPUs
    ("Qwen/Qwen3-32B", ""): (TENSOR_PARALLEL, "Qwen--Qwen3-32B", "248"),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"): (SMALL_FP8, "meta-llama--Meta-Llama-3.1-8B", "1248"),
    ("meta-llama/Llama-3.1-70B", "fp8"): (FP8, "meta-llama--Meta-Llama-3.1-70B", "124"),
    ("Qwen/Qwen3-235B-A22B-FP8", "fp8"): (EXPERTS, "Qwen--Qwen3-235B-A22B-FP8", "4"),
    ("MiniMaxAI/MiniMax-M2.5", "fp8"): (EXPERTS, "MiniMaxAI--MiniMax-M2.5", "24"),
}
Row = dict[str, str]


def from_package(folder: Path, only: str) -> Iterator[Experiment]:
    """Closed loops of vLLM on H100, H200 and B200, from the served points inside aiconfigurator-core.

    Of repeated points the last one counts. A row has clients, TTFT and TPOT, and by Little's law the throughput."""
    import aiconfigurator_core

    package = Path(aiconfigurator_core.__file__).parent
    rows: dict[tuple[str, ...], Row] = {}
    for row in csv.DictReader((package / "systems" / "silicon_sample.csv").open(encoding="utf-8")):
        if row["backend"] == "vllm" and row["mode"] == "agg" and row["system"] in CARDS and _plain(row):
            rows[*_sweep(row), row["batch_size"]] = row
    levels: dict[tuple[str, ...], list[float]] = {}
    for row in rows.values():
        levels.setdefault(_sweep(row), []).append(_throughput(row))
    for row in rows.values():
        kind, config, _ = MODELS[row["model_path"], row["precision"]]
        kind = EIGHT_GPUS if kind == TENSOR_PARALLEL and row["tp_size"] == "8" else kind
        model = _model(package / "model_configs" / f"{config}_config.json", folder / f"{config}{row['precision']}")
        sweep = levels[_sweep(row)]
        loop = _closed(kind, model, row, _throughput(row) / max(sweep) if len(sweep) > 1 else None)
        inputs, outputs, clients = (int(row[name]) for name in ("isl", "osl", "batch_size"))
        if re.search(only, _name(loop)) and WAVES * clients * outputs <= LARGEST_TOKENS:
            sent = traffic.fixed(WAVES * clients, input_tokens=inputs, output_tokens=outputs)
            yield replace(loop, requests=sent)


def _plain(row: Row) -> bool:
    """Whether all layers are split over all GPUs, without data or expert parallelism."""
    _, _, gpus = MODELS.get((row["model_path"], row["precision"]), ("", "", ""))
    split = row["moe_tp_size"] == row["tp_size"] or "A22B" not in row["model_path"]
    together = row["moe_ep_size"] == "1" and row["attention_dp_size"] in ("", "1")
    return bool(gpus) and row["tp_size"] in gpus and split and together


def _sweep(row: Row) -> tuple[str, ...]:
    """Return the key shared by rows that differ only in the number of clients."""
    names = ("model_path", "precision", "system", "tp_size", "isl", "osl")
    return tuple(row[name] for name in names)


def _throughput(row: Row) -> float:
    e2e_ms = float(row["silicon_ttft_ms"]) + (int(row["osl"]) - 1) * float(row["silicon_tpot_ms"])
    return int(row["batch_size"]) / e2e_ms


def _model(config: Path, folder: Path) -> Path:
    """Write `config` to `folder`, whose name ends in fp8 for weights in fp8: one scale per tensor if it names none."""
    folder.mkdir(exist_ok=True)
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("auto_map", None)  # code in the model's folder, which is not here
    if folder.name.endswith("fp8"):
        content.setdefault("quantization_config", {"quant_method": "fp8", "activation_scheme": "dynamic"})
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


WAVES = 5  # requests per client of a closed loop: more than the first wave, in which all prompts arrive at once
LARGEST_TOKENS = 170_000  # output tokens of a closed loop that a few seconds can simulate; larger ones are skipped


def _closed(kind: str, model: Path, row: Row, share: float | None) -> Experiment:
    gpus, clients = int(row["tp_size"]), int(row["batch_size"])
    return Experiment(
        kind=kind,
        card=CARDS[row["system"]],
        model=model,
        vllm=row["backend_version"] or "not stated",
        load=f"{row['isl']} + {row['osl']} tokens, {clients} clients, {gpus} GPUs",
        measured={"tpot_ms": float(row["silicon_tpot_ms"])},
        requests=(),
        options={"max_num_batched_tokens": 8192, "enable_prefix_caching": False, "max_model_len": 20480},
        concurrency=clients,
        tensor_parallel=gpus,
        share_of_capacity=share,
    )


# --- the page ---


def table(rows: Sequence[Compared]) -> list[str]:
    """Return the summary as a Markdown table."""
    head = [
        "| what | region | quantity | error, mean (worst) | points | cards | vLLM |",
        "|---|---|---|---|---|---|---|",
    ]
    return head + [
        f"| {row.kind} | {row.region} | {row.quantity} | {row.mean:.1%} ({row.worst:.0%}) | {row.points} |"
        f" {', '.join(row.cards)} | {', '.join(row.versions)} |"
        for row in sorted(summary_rows(rows), key=lambda row: (KINDS.index(row.kind), REGIONS.index(row.region)))
    ]


def by_card(rows: Sequence[Compared]) -> list[str]:
    """Return each card's mean (worst) errors of TPOT and capacity, with the number of points, as a Markdown table.

    Means within the aim (docs/modelled-gpu.md) are bold."""
    lines = [
        "| card | what | TPOT below 50% | TPOT 50-90% | TPOT above, or share unknown | capacity |",
        "|---|---|---|---|---|---|",
    ]
    columns = ((REGIONS[:1], 0.05), (REGIONS[1:2], 0.1), (REGIONS[2:5], 0.0), (REGIONS[5:], 0.1))
    for card, kind in sorted({(row.card, row.kind) for row in rows}):
        cells = []
        for regions, aim in columns:
            quantity = "output_per_s" if "capacity" in regions else "tpot_ms"
            sizes = [
                abs(row.error)
                for row in rows
                if (row.card, row.kind, row.quantity) == (card, kind, quantity) and row.region in regions
            ]
            mean = fmean(sizes) if sizes else 0.0
            bold = "**" if mean <= aim else ""
            cells.append(f"{bold}{mean:.1%}{bold} ({max(sizes):.0%}), {len(sizes)}" if sizes else "-")
        lines.append(f"| {card} | {kind} | {' | '.join(cells)} |")
    return lines


def write_page(rows: Sequence[Compared]) -> None:
    """Replace the table between its marks in docs/modelled-gpu.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(
        "\n".join([before + MARKS[0], *table(rows), "", *by_card(rows), MARKS[1] + after]), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
