"""The commands that start a server and that load one; how they print and exit is the command line's (cli.py)."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from labkit.cli_output import Json, print_json, say
from labkit.errors import LabkitError, UsageError


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server: its root or its .../v1.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The name by which the server knows the model.")],
    workload: Annotated[str, typer.Option(metavar="NAME", help="chat, shared-prefix, interference or file.")] = "chat",
    options: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A workload option.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Open loop: requests per second.")] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="Closed loop: requests under way.")] = None,
    requests: Annotated[int, typer.Option(metavar="N", help="How many requests.")] = 32,
    seed: Annotated[int, typer.Option(metavar="S", help="Fixes prompts and arrival times.")] = 0,
    warmup: Annotated[int, typer.Option(metavar="N", help="Requests sent before, and kept apart.")] = 1,
    arrival: Annotated[str, typer.Option(metavar="poisson|constant", help="Of an open loop.")] = "poisson",
    api: Annotated[str, typer.Option(metavar="completions|chat", help="The OpenAI protocol.")] = "completions",
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="S", help="Seconds for one request.")] = 600.0,
    api_key: Annotated[str | None, typer.Option(envvar="LABKIT_API_KEY", help="The server's key.")] = None,
    as_json: Json = False,
) -> None:
    """Loads a server and measures it."""
    from labkit import tables
    from labkit.load import run_blocking
    from labkit.metrics import summarise
    from labkit.settings import parse_settings
    from labkit.workloads import build

    if rate is None and concurrency is None:
        concurrency = 1
    with tables.counting("requests") as progress:
        result = run_blocking(
            url,
            model,
            build(workload, n=requests, seed=seed, **parse_settings(options or ())),
            concurrency=concurrency,
            rate=rate,
            arrival=arrival,
            api=api,  # type: ignore[arg-type]  # checked there, with the choices in the message
            warmup=warmup,
            timeout_s=timeout_s,
            api_key=api_key,
            progress=progress,
        )
    found = summarise(result)
    if as_json:
        print_json(found.to_dict())
    else:
        tables.show_load(found)
    if not found.completed:
        first = next((record for record in result.records), None)
        why = f": {first.outcome} {first.error}".rstrip() if first else ""
        raise LabkitError(f"none of {found.failed} requests succeeded{why}", remedy="look at the server's log")


def serve(
    server: Annotated[str, typer.Argument(metavar="vllm|ray|torchserve", help="The server to start.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="An embedded model, a folder or a hub id; with --gpu, a modelled one."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="CARD", help="vllm only: on a modelled card, in real time.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(metavar="N", help="Modelled cards.")] = 1,
    port: Annotated[int, typer.Option(metavar="P", help="On the loopback interface.")] = 8000,
    gpu_memory_share: Annotated[float, typer.Option(help="Share of the GPU that vLLM takes.")] = 0.9,
) -> None:
    """Starts a server in the foreground."""
    from labkit.foreground import serve_modelled, serve_ray, serve_torchserve, serve_vllm
    from labkit.labs import did_you_mean
    from labkit.models import CHAT

    starters: dict[str, Callable[..., None]] = {
        "vllm": partial(serve_vllm, gpu_memory_share=gpu_memory_share),
        "ray": partial(serve_ray, gpu_memory_share=gpu_memory_share),
        "torchserve": serve_torchserve,
    }
    if server not in starters:
        raise UsageError(f"there is no server called {server!r}", remedy=did_you_mean(server, starters))
    if gpu is None:
        starters[server](model or CHAT, port=port, say=say)
    elif server == "vllm":
        serve_modelled(gpu, model or "llama-3.1-8b", port=port, tensor_parallel=tensor_parallel, say=say)
    else:
        raise UsageError(
            f"--gpu models vLLM, not {server}", remedy="use `labkit serve vllm --gpu ...`, or leave --gpu out"
        )
