"""The command line. For scripts, `--json` prints one object on stdout; everything else goes to stderr.

Exit codes: 0 done, 1 a lab, server or comparison failed, 2 bad usage or input, 130 stopped by the user.
"""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from labkit import __version__
from labkit.cli import load, simulate
from labkit.cli.output import Json, answer, say
from labkit.errors import LabkitError, UsageError, require, whole

if TYPE_CHECKING:
    from labkit.models import Architecture

INTERRUPTED = 130
PATHLIB_ERRORS = ("Symlink loop from", "Could not determine home directory")  # RuntimeErrors of resolve and expanduser
LONG_WORD = r"(\S{60})\S{400,}(\S{20})"
RUNS = "the folder of a run or of several, such as runs/notebook"

app = typer.Typer(
    help="Serving Lab: learn model serving by measuring it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would double the time to show it
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine can run, and what to fix."""
    from labkit.cli.tables import show_doctor
    from labkit.workshop.doctor import examine

    result = examine()
    answer(as_json, result.to_json, lambda: show_doctor(result))


@app.command()
def fetch(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: the embedded models.")
    ] = None,
) -> None:
    """Fetch models into the cache and verify them."""
    from labkit.models import EMBEDDED, resolve
    from labkit.models import fetch as fetch_model

    for name in models or list(EMBEDDED):
        folder = resolve(name, progress=say) if Path(name).expanduser().is_dir() else fetch_model(name, progress=say)
        typer.echo(folder)


@app.command()
def run(
    labs: Annotated[
        list[str] | None, typer.Argument(metavar="[LAB]...", help="Default: all but optional labs.")
    ] = None,
    profile: Annotated[str | None, typer.Option(metavar="cpu|gpu|FILE", help="Default: for this machine.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: a new folder under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Run only labs that are missing or failed.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("-p", metavar="LAB.NAME=VALUE", help="Set a parameter; LAB may be `all`.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT of its head, or auto.")
    ] = None,
) -> None:
    """Run labs and write records, notebooks and a report."""
    from labkit.cli import tables
    from labkit.report.page import build
    from labkit.runs.plan import make_plan
    from labkit.runs.runner import log_path, opening_lines, run_labs

    options: dict[str, Any] = {"profile": profile, "out_dir": out, "resume": resume, "settings": settings or ()}
    if ray is not None:
        from labkit.runs.cluster import run_on_cluster

        result = run_on_cluster(ray, labs or (), **options, say=say)
    else:
        plan = make_plan(labs or (), **options, say=say)
        say("\n".join(opening_lines(plan)))
        result = run_labs(plan)
    page = build(result.out_dir)
    tables.show_run(result.out_dir)
    typer.echo(f"Report: {page}")
    for lab in result.failed:
        say(f"{lab.name} failed: {lab.error}\n  Its log: {log_path(result.out_dir, lab.name)}")
    if result.interrupted or result.failed:
        raise typer.Exit(INTERRUPTED if result.interrupted else 1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help=f"{RUNS.capitalize()}.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: report.html in DIR.")] = None,
) -> None:
    """Write a run's report as one HTML file."""
    from labkit.report.page import build

    typer.echo(build(folder, out))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    b: Annotated[Path, typer.Argument(metavar="DIR", help="Another run's folder.")],
    as_json: Json = False,
) -> None:
    """Compare two runs.

    Exit 0: exact values are identical and ratios within their tolerance; else 1."""
    from labkit import records
    from labkit.cli import tables

    comparison = records.compare(a, b)
    answer(as_json, comparison.to_json, lambda: tables.show_comparison(comparison))
    if not comparison.agrees:
        raise typer.Exit(1)


@app.command()
def claims(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help=f"Show verdicts from {RUNS}.")] = None,
    as_json: Json = False,
) -> None:
    """Show the article's claims and their verdicts."""
    from labkit import records
    from labkit.cli import tables
    from labkit.records.ledger import ledger

    rows = ledger(records.read_newest(folder).values() if folder else ())
    answer(as_json, lambda: {"claims": [row.model_dump(mode="json") for row in rows]}, lambda: tables.show_claims(rows))


@app.command(epilog="Example: labkit kv ~/models/gpt-oss-20b --memory 40GiB --tensor-parallel 2 --kv-dtype fp8")
def kv(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="An embedded or modelled model, a hub id, a model folder or a config.json."
        ),
    ],
    memory: Annotated[str, typer.Option(metavar="BYTES", help="Memory for the cache, such as 1GiB.")] = "1GiB",
    block_size: Annotated[
        int | None, typer.Option(metavar="N", help="Default: 16, vLLM's on a GPU. Its CPU build takes 128.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(metavar="N", help="Default: the model's maximum.")] = None,
    tensor_parallel: Annotated[int, typer.Option(metavar="N", help="GPUs that share the model.")] = 1,
    kv_dtype: Annotated[
        str, typer.Option(metavar="D", help="Data type of the cache: auto (the model's), bfloat16, fp8 ...")
    ] = "auto",
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a step; it matters to layers with a window.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the size of a model's KV cache on a GPU."""
    from labkit.files import CPU_BLOCK_SIZE, GPU_BLOCK_SIZE
    from labkit.machine import inspect
    from labkit.models import EMBEDDED
    from labkit.theory.kv_pool import type_bytes
    from labkit.theory.kv_size import describe
    from labkit.words import parse_bytes

    if block_size is None:
        block_size = CPU_BLOCK_SIZE if model in EMBEDDED and not inspect().gpus else GPU_BLOCK_SIZE
    cache = describe(
        _architecture(model),
        memory_bytes=parse_bytes(memory),
        block_size=block_size,
        max_model_len=max_model_len,
        tensor_parallel=tensor_parallel,
        kv_dtype_bytes=None if kv_dtype == "auto" else type_bytes(kv_dtype),
        max_num_batched_tokens=max_num_batched_tokens,
    )
    answer(as_json, cache.to_json, lambda: typer.echo("\n".join(cache.lines)))


def _architecture(model: str) -> "Architecture":
    """Return the architecture of an embedded or a modelled model, a hub id, a folder or a config.json."""
    from labkit.modelled.shapes import known_models, model_folder
    from labkit.models import architecture, resolve

    path = Path(model).expanduser()
    if path.suffix == ".json":
        require(path.exists(), f"there is no file {path}", fix="name a config.json, or the folder that holds it")
        return architecture(path)
    modelled = model in known_models() and not path.is_dir()
    return architecture(model_folder(model) if modelled else resolve(model, progress=say))


@app.command(epilog="Example: labkit log vllm.log --model Qwen3-8B/config.json; kubectl logs POD | labkit log -")
def log(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="vLLM's log, complete from its start; - reads stdin.")],
    model: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Recompute with this model (see labkit kv).")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="GPUs that share the model. Default: the log's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain the memory lines of a vLLM log, and failures."""
    from labkit.serving import vllm_log
    from labkit.serving.log_lines import open_log

    config = _architecture(model) if model else None
    with open_log(file) as stream:
        report = vllm_log.read(stream, architecture=config, tensor_parallel=tensor_parallel)
    fix = "pass the log of `vllm serve` from its start (INFO lines included)"
    require(
        bool(report.lines),
        f"no line about memory and no error of vLLM in {report.lines_read:,} lines of {file}",
        fix=fix,
    )
    answer(as_json, report.to_json, lambda: typer.echo(str(report)))


@app.command()
def cost(
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as requests_per_s=5.")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Show the keys of --set, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Compute what serving costs, self-hosted and by API.

    Example: labkit cost --set model=llama-3.1-70b --set instance=p5.48xlarge --set hourly_load=office"""
    from labkit.advice import costs
    from labkit.advice.costs.words import text, to_json
    from labkit.cli.tables import show_keys
    from labkit.files import parse_settings

    if keys:
        rows = list(costs.keys())
        answer(as_json, lambda: {"keys": [row[0] for row in rows]}, lambda: show_keys("unit", rows))
        return
    result = costs.calculate(costs.settings_from(parse_settings(settings or ())))
    answer(as_json, lambda: to_json(result), lambda: typer.echo(text(result)))


@app.command(epilog="Example: labkit select --set kind=rag --set size=70b --set card=80gb --set hardware=several")
def select(
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An answer; `model` is the model to serve.")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Show the keys of --set, and end.")] = False,
    answers: Annotated[str, typer.Option(metavar="JSON", help="Answers exported by the form.")] = "",
    runs: Annotated[Path | None, typer.Option(metavar="DIR", help=f"Add verdicts from {RUNS}.")] = None,
    as_json: Json = False,
) -> None:
    """Choose a framework for a workload, with reasons."""
    from labkit import records
    from labkit.advice import selector
    from labkit.cli.tables import show_keys
    from labkit.files import parse_settings
    from labkit.records.ledger import ledger

    if keys:
        questions = selector.catalogue().questions.items()
        rows = [(name, one.question, ", ".join(one.options), one.default) for name, one in questions]
        rows.append((selector.MODEL, "Which model is served?", "a hub id or a folder", "a suitable one"))
        answer(as_json, lambda: {"keys": [row[0] for row in rows]}, lambda: show_keys("choices", rows))
        return
    known, model = selector.read_state(answers)
    known, other = selector.read_state({**known, **parse_settings(settings or ())})
    choice, model = selector.select(known), other or model
    config = selector.configure(choice.winner.name, choice.answers, model=model)
    claims = ledger(records.read_newest(runs).values()) if runs else []
    verdicts = {row.id: row.verdict for row in claims if row.measured}
    answer(
        as_json,
        lambda: selector.to_json(choice, config, model=model),
        lambda: typer.echo(selector.to_text(choice, config, verdicts=verdicts, model=model)),
    )


@app.command(
    epilog="Example: labkit fractions serve_config.yaml --gpu-gib 80 --gpus 8 --nodes 2. "
    "Or write a file: {gpu: {memory_gib: 80, count: 2}, deployments: [{name: chat, num_gpus: 0.5, "
    "engine_share: 0.45, weight_gib: 15, replicas: 4}]}"
)
def fractions(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Deployments, a Ray Serve config or a RayService.")],
    gpu_gib: Annotated[
        float | None, typer.Option(metavar="N", help="GiB per GPU. Default: FILE's, or this machine's.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="GPUs per node. Default: FILE's, or this machine's.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Number of nodes. Default: FILE's, or 1.")] = None,
    scheduling: Annotated[
        str | None, typer.Option(metavar="spread|pack", help="How Ray Serve places replicas. Default: FILE's, or both.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether replicas with fractional GPUs fit.

    Exit 0: all replicas are placed, start and fit at rest; else 1."""
    from labkit.advice import fractions as auditor
    from labkit.machine import inspect

    default: dict[str, Any] = {}
    if here := inspect().gpus:
        memories = [gpu.memory_total_bytes / 2**30 for gpu in here]
        used = max(gpu.memory_total_bytes - gpu.memory_free_bytes for gpu in here) / 2**30
        alike = len(set(memories)) == 1
        default = {"memory_gib": memories[0] if alike else memories, "used_gib": used, "count": len(here)}
    options = {"memory_gib": gpu_gib, "count": gpus, "nodes": nodes, "scheduling": scheduling}
    options = {key: value for key, value in options.items() if value is not None}
    audit = auditor.audit(*auditor.read(file, gpu=options, default=default))
    answer(as_json, lambda: auditor.as_json(audit), lambda: typer.echo("\n".join(auditor.lines(audit))))
    if not audit.ok:
        raise typer.Exit(1)


app.command()(load.load)


@app.command()
def serve(
    server: Annotated[str, typer.Argument(metavar="vllm|ray|torchserve", help="The server to start.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="An embedded model, a folder or a hub id; with --gpu, a modelled one."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="CARD", help="vllm only: a modelled card, in real time.")] = None,
    tensor_parallel: Annotated[int, typer.Option(metavar="N", help="Modelled cards that share the model.")] = 1,
    port: Annotated[int, typer.Option(metavar="P", help="Port on the loopback interface.")] = 8000,
    gpu_memory_share: Annotated[
        float | None, typer.Option(help="vllm and ray: share of the GPU that vLLM takes. Default: 0.9.")
    ] = None,
) -> None:
    """Start a server in the foreground."""
    from labkit.cli import serve as servers
    from labkit.errors import did_you_mean
    from labkit.models import CHAT

    names = ("vllm", "ray", "torchserve")
    require(server in names, f"there is no server called {server!r}", fix=did_you_mean(server, names))
    shared = gpu is None and server != "torchserve"
    what = "--gpu-memory-share is for vLLM on this machine's GPU, and would have no effect"
    require(shared or gpu_memory_share is None, what, fix="leave it out")
    if gpu is not None:
        fix = "use `labkit serve vllm --gpu ...`, or leave --gpu out"
        require(server == "vllm", f"--gpu models vLLM, not {server}", fix=fix)
        whole("--tensor-parallel", tensor_parallel, at_least=1)
        servers.serve_modelled(gpu, model or "llama-3.1-8b", port=port, tensor_parallel=tensor_parallel)
        return
    fix = "use --gpu CARD too, or leave --tensor-parallel out"
    require(tensor_parallel == 1, "--tensor-parallel is for modelled cards", fix=fix)
    if server == "torchserve":
        servers.serve_torchserve(model or CHAT, port=port)
    else:
        start = servers.serve_vllm if server == "vllm" else servers.serve_ray
        start(model or CHAT, port=port, gpu_memory_share=0.9 if gpu_memory_share is None else gpu_memory_share)


app.command()(simulate.simulate)


@app.command()
def progress(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One folder of records for each learner.")],
    room_only: Annotated[bool, typer.Option("--room", help="Without the learners' names and rows.")] = False,
    as_json: Json = False,
) -> None:
    """Show the progress of the learners in a workshop."""
    from labkit import teaching
    from labkit.cli.tables import show_learners
    from labkit.workshop import learners

    names = learners.names_of(folders)
    room = [learners.read_learner(folder, name=name) for folder, name in zip(folders, names, strict=True)]
    hurdles = learners.hurdles(room)
    calibration = teaching.calibration(prediction for learner in room for prediction in learner.predictions)
    answer(
        as_json,
        lambda: {
            "learners": [] if room_only else [learner.to_json() for learner in room],
            "calibration": asdict(calibration),
            "exercises": [asdict(hurdle) for hurdle in hurdles],
        },
        lambda: show_learners([] if room_only else room, hurdles, calibration),
    )


@app.command()
def solutions(
    labs: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Print the exercises' solutions as Markdown."""
    from labkit.workshop import learners

    solved = learners.solutions(labs or ())
    answer(as_json, lambda: learners.to_json(solved), lambda: typer.echo(learners.to_markdown(solved), nl=False))


@app.command("workshop-check")
def workshop_check(
    labs: Annotated[list[str] | None, typer.Option("--lab", metavar="LAB", help="Check only these labs.")] = None,
    first_answer: Annotated[bool, typer.Option("--answer", help="Also start an engine and get one answer.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write DIR/<host name>.json.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="DIR", help="Only summarise the files in DIR.")] = None,
    as_json: Json = False,
) -> None:
    """Check a machine or a room before a workshop.

    Exit 0: no problem; else 1."""
    from labkit.cli import tables
    from labkit.runs.runner import now_and_then
    from labkit.workshop import room

    if summary is not None:
        if labs or first_answer or save:
            what = "--summary reads files and checks no machine"
            raise UsageError(what, remedy="leave --lab, --answer and --save out")
        machines = room.read_room(summary)
        answer(as_json, machines.to_json, lambda: tables.show_room(machines))
        ready = machines.ok
    else:
        ask = (lambda: room.first_answer(now_and_then(say))) if first_answer else None
        check = room.check_room(labs=labs, answer=ask)
        if save is not None:
            say(f"written: {room.write_check(check, save)}")
        answer(as_json, check.to_json, lambda: tables.show_check(check))
        ready = check.ok
    if not ready:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; print a LabkitError, or an unusable path, on stderr and exit with its code."""
    try:
        app(arguments, prog_name="labkit")
    except LabkitError as error:
        _exit(error)
    except (OSError, RuntimeError) as error:
        path = getattr(error, "filename", None)
        if path is None and not str(error).startswith(PATHLIB_ERRORS):  # not about a path
            raise
        what = f"{path}: {error.strerror}" if path and isinstance(error, OSError) else str(error)
        _exit(UsageError(what, remedy="choose a path that exists and that you may use"))
    except ModuleNotFoundError as error:  # the install for the web pages has no engines and no load client
        package = (error.name or "").partition(".")[0]
        if package in ("", "labkit", "course", "applications"):
            raise
        fix = "run make setup in the repository, or pip install -e '.[cpu]'"
        _exit(UsageError(f"this command needs the package {package}", remedy=fix))


def _exit(error: LabkitError) -> NoReturn:
    """Print the error, with very long words (numbers, brackets) shortened, and exit."""
    typer.echo(re.sub(LONG_WORD, r"\1...\2", f"labkit: {error}"), err=True)
    sys.exit(error.exit_code)
