"""`labkit load`: the load client."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from labkit import errors
from labkit.cli.output import Json, answer, say
from labkit.errors import LabkitError, UsageError, require

if TYPE_CHECKING:
    from labkit.load import LoadResult
    from labkit.load.metrics import Slo

REQUESTS, CONVERSATIONS = 32, 8
MOST_REQUESTS = 100_000
"""All are built before the run and kept until its end: some kilobytes each."""
RECORDED = ("file", "mooncake")  # workloads whose file determines the number of requests
SLO_BOUNDS = ("ttft_s", "tpot_s", "e2e_s")
REMEDIES = {
    "stream_options": "pass --no-stream-options",
    "ignore_eos": "pass --no-ignore-eos",
    "max_completion_tokens": "pass --limit-field max_tokens",
    "max_tokens": "pass --limit-field max_completion_tokens",
}
"""The remedy for a field that a server's refusal names."""
INTERRUPTED = 130
Run = Callable[..., "LoadResult"]


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's root, its .../v1, or an endpoint.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model's name on the server.")],
    workload: Annotated[
        str,
        typer.Option(metavar="NAME", help="chat, shared-prefix, interference, conversations, file or mooncake."),
    ] = "chat",
    options: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A workload option.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Open loop: requests per second.")] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="Closed loop: requests in flight.")] = None,
    ramp_from: Annotated[
        float | None, typer.Option(metavar="X", help="Ramp linearly from X to --rate or --concurrency.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="rate=1,2,4,8", help="Sweep rates or concurrencies and find the knee.")
    ] = None,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="KEY=SECONDS", help="Bound for the knee: ttft_s, tpot_s or e2e_s.")
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Requests, or conversations. Default: 32, 8, or all of a file's, and 4 per client, which a sweep over "
            "concurrency always sends.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of prompts and arrival times.")] = 0,
    warmup: Annotated[int, typer.Option(metavar="N", help="Requests sent first, unmeasured.")] = 1,
    arrival: Annotated[str, typer.Option(metavar="poisson|constant", help="Arrivals of an open loop.")] = "poisson",
    api: Annotated[Literal["completions", "chat"] | None, typer.Option(help="Default: from URL and workload.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="S", help="Seconds for one request.")] = 600.0,
    api_key: Annotated[str | None, typer.Option(envvar="LABKIT_API_KEY", help="The server's key.")] = None,
    no_preflight: Annotated[bool, typer.Option("--no-preflight", help="Do not ask for the server's models.")] = False,
    no_stream_options: Annotated[
        bool, typer.Option("--no-stream-options", help="For servers that reject them; counts may be missing.")
    ] = False,
    no_ignore_eos: Annotated[
        bool, typer.Option("--no-ignore-eos", help="For servers that reject vLLM's ignore_eos.")
    ] = False,
    limit_field: Annotated[
        str | None, typer.Option(metavar="FIELD", help="max_tokens or max_completion_tokens. Default: the API's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a load to a server and measure it.

    Example: labkit load http://127.0.0.1:8000 --model my-model --sweep rate=1,2,4,8 --slo ttft_s=0.5"""
    _check(requests, warmup, timeout_s)
    driven = {"rate": rate, "concurrency": concurrency, "ramp_from": ramp_from}
    both = rate is not None and concurrency is not None
    require(not both, "both --concurrency and --rate are given", fix="pass only one of them")
    default = rate is None and concurrency is None
    what = "--ramp-from is given without --rate or --concurrency"
    require(ramp_from is None or not default, what, fix="pass --rate or --concurrency, the end of the ramp")
    what = "--sweep sets the load, and so does --rate, --concurrency or --ramp-from"
    require(default or sweep is None, what, fix="leave those out, or --sweep")
    ladder = None if sweep is None else _ladder(sweep)
    bounds = _slo(slo or (), sweep)
    from labkit.cli import tables
    from labkit.experiments import REQUESTS_PER_CLIENT, few_requests
    from labkit.load import run_blocking
    from labkit.load.address import parse
    from labkit.load.workloads import build

    chats = parse(url, api_key=api_key).api == "chat"
    settings = workload_options(options or ())
    count = requests or {"conversations": CONVERSATIONS, **dict.fromkeys(RECORDED)}.get(workload, REQUESTS)
    kept: list[LoadResult] = []
    leave_out = {"stream_options": no_stream_options, "ignore_eos": no_ignore_eos}

    def run(fresh_seed: int, driven: Mapping[str, Any] | None) -> "LoadResult":
        clients = (driven or {}).get("concurrency") or 0
        least = min(REQUESTS_PER_CLIENT * clients, MOST_REQUESTS) if requests is None or sweep else 0
        traffic = build(workload, n=count and max(count, least), seed=fresh_seed, **settings)
        if driven is None:
            driven = {} if traffic.due_s else {"concurrency": 1}
        for note in (*traffic.notes, few_requests(traffic.chains, concurrency=driven.get("concurrency"))):
            if note:
                say(note)
        with tables.counting("requests") as progress:
            return run_blocking(
                url,
                model,
                traffic,
                **driven,
                arrival=arrival,
                api=api
                or ("chat" if chats or any(request.messages for request in traffic.requests) else "completions"),
                warmup=warmup,
                timeout_s=timeout_s,
                api_key=api_key,
                preflight=not no_preflight,
                limit_field=limit_field,
                body={name: None for name, out in leave_out.items() if out},
                progress=progress,
                on_cancel=kept.append,
            )

    if ladder is not None:
        _sweep(run, *ladder, slo=bounds, seed=seed, as_json=as_json)
        return
    try:
        result = run(seed, None if default else driven)
    except KeyboardInterrupt:
        for result in kept:
            _show(result, as_json)
        raise typer.Exit(INTERRUPTED) from None
    _show(result, as_json)
    if not any(record.ok for record in result.records):
        _none_succeeded(result)


def workload_options(settings: Sequence[str]) -> dict[str, Any]:
    """Parse a workload's --set. UsageError for what has an option of its own."""
    from labkit.files import parse_settings

    values = parse_settings(settings)
    for name, option in (("n", "--requests"), ("seed", "--seed")):
        require(name not in values, f"--set {name} would set what {option} sets", fix=f"pass {option}")
    return values


def check_requests(requests: int | None) -> None:
    """Check --requests: all are built before the first is sent."""
    errors.whole("--requests", REQUESTS if requests is None else requests, at_least=1)
    _at_most("--requests", requests or 0)


def _at_most(name: str, number: int) -> None:
    fix = "run several loads with different seeds"
    require(number <= MOST_REQUESTS, f"{name} is {number:,}; the maximum is {MOST_REQUESTS:,}", fix=fix)


def _check(requests: int | None, warmup: int, timeout_s: float) -> None:
    """Check numbers by their option names, before the workload is built."""
    check_requests(requests)
    errors.whole("--warmup", warmup, at_least=0)
    errors.above_zero("--timeout", timeout_s, unit="seconds")
    _at_most("--warmup", warmup)


def _ladder(sweep: str) -> tuple[str, list[float]]:
    from labkit.load.sweep import check_levels

    kind, _, steps = sweep.partition("=")
    try:
        levels = [float(text) for text in steps.split(",")]
    except ValueError:
        raise UsageError(f"--sweep is {sweep!r}", remedy="write it as rate=1,2,4,8") from None
    check_levels(kind, levels)
    return kind, levels


def _slo(bounds: Sequence[str], sweep: str | None) -> "Slo | None":
    from labkit.files import parse_settings
    from labkit.load.metrics import Slo

    values = parse_settings(bounds)
    require(sweep is not None or not values, "--slo is given without --sweep", fix="add --sweep rate=1,2,4,8")
    for name in values:
        require(name in SLO_BOUNDS, f"--slo has no bound {name!r}", fix=f"use one of {', '.join(SLO_BOUNDS)}")
    return Slo(**values) if values else None


def _show(result: "LoadResult", as_json: bool) -> None:
    from labkit.cli import tables
    from labkit.load.metrics import summarise

    summary = summarise(result)
    answer(as_json, summary.to_dict, lambda: tables.show_load(summary))


def _none_succeeded(result: "LoadResult") -> NoReturn:
    record = result.records[0]
    fix = next((fix for word, fix in REMEDIES.items() if word in record.error), "look at the server's log")
    what = f"none of {len(result.records)} requests succeeded: {record.outcome} {record.error}".rstrip()
    raise LabkitError(what, remedy=fix)


def _sweep(run: Run, kind: str, levels: Sequence[float], *, slo: "Slo | None", seed: int, as_json: bool) -> None:
    """Run each step with new prompts, so that a prefix cache does not serve the later ones."""
    from labkit.cli import tables
    from labkit.load.sweep import judge, step

    steps = []
    ended: KeyboardInterrupt | LabkitError | None = None
    for index, level in enumerate(levels):
        driven = {kind: level if kind == "rate" else int(level)}
        try:
            result = run(seed + index, driven)
            steps.append(step(result, level, slo))
        except (KeyboardInterrupt, LabkitError) as error:
            ended = error
            break
        say(f"{kind} {level:g}: {steps[-1].throughput:.3g} requests/s, p50 {steps[-1].summary.e2e_s.p50:.3g} s")
    if steps:
        sweep = judge(kind, steps, slo)  # type: ignore[arg-type]  # check_levels checks the kind
        if ended and sweep.why.startswith(("never saturated", "too short")):
            sweep = replace(sweep, why=f"ended before {kind} {level:g}, and no knee until then")
        answer(as_json, sweep.to_dict, lambda: tables.show_sweep(sweep))
    if isinstance(ended, LabkitError):
        raise ended
    if ended:
        raise typer.Exit(INTERRUPTED)
