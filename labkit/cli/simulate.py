"""`labkit simulate`: a load on the modelled GPU."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.cli.load import check_requests, workload_options
from labkit.cli.output import Json, answer, say
from labkit.errors import UsageError, require, whole

if TYPE_CHECKING:
    from labkit.modelled import Traffic
    from labkit.modelled.routers import Router

ROUTERS = ("round-robin", "least-loaded", "prefix-aware")
TOKEN_WORKLOADS = ("conversations", "mooncake", "generated")
REQUESTS, CONVERSATIONS = 200, 50


def simulate(
    ctx: typer.Context,
    gpu: Annotated[str, typer.Option(metavar="CARD", help="A card, such as h100-sxm; an unknown name lists all.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A name (an unknown one lists all), or a config.json.")
    ] = "llama-3.1-8b",
    tensor_parallel: Annotated[int, typer.Option(metavar="N", help="Cards for one replica.")] = 1,
    replicas: Annotated[int, typer.Option(metavar="N", help="Engines behind a router.")] = 1,
    router: Annotated[str, typer.Option(metavar="NAME", help=f"{', '.join(ROUTERS)}.")] = "least-loaded",
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Closed loop: requests in flight. Default: 1.")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Open loop: requests per second.")] = None,
    arrival: Annotated[
        str, typer.Option(metavar="poisson|constant|bursty", help="Arrivals of an open loop.")
    ] = "poisson",
    requests: Annotated[
        int | None, typer.Option(metavar="N", help="Requests. Default: 200, or all of a trace.")
    ] = None,
    input_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens per prompt.")] = 500,
    output_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens per answer.")] = 200,
    shared_tokens: Annotated[int, typer.Option(metavar="N", help="Leading tokens shared by all prompts.")] = 0,
    workload: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="conversations, mooncake, generated, or a workload of `labkit load`."),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A workload option.")] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of prompts and arrival times.")] = 0,
    direction_only: Annotated[
        bool, typer.Option("--direction-only", help="Answer even if the error is unknown or large.")
    ] = False,
    as_json: Json = False,
    flags: Annotated[list[str] | None, typer.Argument(metavar="[-- VLLM FLAGS]", help="Flags of `vllm serve`.")] = None,
) -> None:
    """Run a load on a modelled GPU with vLLM's scheduler.

    Example: labkit simulate --gpu h100-sxm --rate 10 -- --max-num-batched-tokens 2048"""
    from labkit import modelled

    both = concurrency is not None and rate is not None
    require(not both, "both --concurrency and --rate are given", fix="pass only one of them")
    for option, value in (
        ("--tensor-parallel", tensor_parallel),
        ("--replicas", replicas),
        ("--concurrency", concurrency),
    ):
        whole(option, 1 if value is None else value, at_least=1)
    check_requests(requests)
    _require_used(ctx, workload, rate)
    card = modelled.gpu(gpu, model=model, tensor_parallel=tensor_parallel)
    os.environ.update(card.env)  # before vllm is imported
    from labkit.cli.tables import counting, show_simulation
    from labkit.modelled.simulate import simulate as run
    from labkit.modelled.simulate import vllm_options

    if workload is None:
        traffic = modelled.traffic.fixed(
            REQUESTS if requests is None else requests,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            shared_tokens=shared_tokens,
            seed=seed,
        )
    else:
        traffic = _traffic(workload, requests, seed, rate, settings or ())
    if rate is not None and workload not in TOKEN_WORKLOADS:
        traffic = modelled.traffic.at_rate(traffic, rate, arrival=arrival, seed=seed)
    if concurrency is None and rate is None and workload not in TOKEN_WORKLOADS:
        concurrency = 1
    options = vllm_options(flags) if flags else None
    with counting("requests") as progress:
        simulation = run(
            card,
            traffic,
            concurrency=concurrency,
            replicas=replicas,
            router=_router(router),
            options=options,
            direction_only=direction_only,
            progress=progress,
        )
    answer(as_json, simulation.to_json, lambda: show_simulation(simulation))


def _require_used(ctx: typer.Context, workload: str | None, rate: float | None) -> None:
    """UsageError for an option on the command line that this load would ignore."""
    unused = {"settings": "name a --workload too"}
    if workload is not None:
        unused = dict.fromkeys(("input_tokens", "output_tokens", "shared_tokens"), "the workload has its own lengths")
    if rate is None or workload in TOKEN_WORKLOADS:
        unused["arrival"] = "it is for --rate, and for workloads without arrivals of their own"
    for name, reason in unused.items():
        option = "--set" if name == "settings" else f"--{name.replace('_', '-')}"
        source = ctx.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        require(not given, f"{option} would have no effect: {reason}", fix="leave it out, or change the load")


def _traffic(name: str, requests: int | None, seed: int, rate: float | None, settings: Sequence[str]) -> "Traffic":
    options = workload_options(settings)
    try:
        if name in TOKEN_WORKLOADS:
            return _token_traffic(name, requests, seed, rate, options)
    except TypeError as error:
        reason = str(error).partition("() ")[2] or error
        fix = "pass each option by --set KEY=VALUE; docs/modelled-gpu.md has examples"
        raise UsageError(f"workload {name!r}: {reason}", remedy=fix) from error
    from labkit.load.workloads import WORKLOADS, build
    from labkit.modelled.traffic import tokenised
    from labkit.models import CHAT, resolve

    known = dict.fromkeys([*TOKEN_WORKLOADS, *WORKLOADS])
    require(
        name.replace("-", "_") in WORKLOADS,
        f"there is no workload {name!r}",
        fix=f"choose one of {', '.join(known)}",
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(CHAT, progress=say))
    prompts = build(name, n=REQUESTS if requests is None else requests, seed=seed, **options)
    return tokenised(prompts, tokenizer.encode)


def _token_traffic(
    name: str, requests: int | None, seed: int, rate: float | None, options: dict[str, Any]
) -> "Traffic":
    from labkit.modelled import traces, traffic

    if name == "conversations":
        count = CONVERSATIONS if requests is None else requests
        return traffic.conversations(count, rate=rate, seed=seed, **options)
    if name == "generated":
        count = REQUESTS if requests is None else requests
        trace = traces.generated(count, rate=1.0 if rate is None else rate, seed=seed, **options)
    else:
        fix = "leave --rate out, or --set speed=2"
        require(rate is None, "a trace has its own arrival times", fix=fix)
        require(
            "path" in options, "workload 'mooncake' has no path", fix="pass --set path=FILE, a trace in that format"
        )
        trace = traces.from_mooncake(Path(str(options.pop("path"))), n=requests, **options)
    for note in trace.notes:
        say(note)
    return trace.requests


def _router(name: str) -> "Router":
    from labkit.modelled import routers

    require(name in ROUTERS, f"there is no router {name!r}", fix=f"choose one of {', '.join(ROUTERS)}")
    if name == "least-loaded":
        return routers.least_loaded
    return routers.round_robin() if name == "round-robin" else routers.prefix_aware()
