"""The command line. Scripts rely on it: `--json` prints one object on stdout and nothing else; the rest goes to stderr.

Exit codes: 0 done, 1 a lab, server or comparison failed, 2 bad usage or input, 130 stopped by the user.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit import cli_modelled, cli_servers, cli_workshop
from labkit.cli_output import Json, print_json, say
from labkit.errors import LabkitError

if TYPE_CHECKING:
    from labkit.records import LabRun

INTERRUPTED = 130
RUNS = "A run's folder, or a folder of runs, as runs/notebook"

app = typer.Typer(
    help="Serving Lab: learn model serving by measuring it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would double the time to show it
)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What runs on this machine, and the fixes."""
    from labkit.doctor import examine

    found = examine()
    if as_json:
        print_json(found.to_json())
    else:
        from rich.console import Console

        found.render(Console())


@app.command()
def fetch(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: the embedded ones.")
    ] = None,
) -> None:
    """Fetches models into the cache, verified."""
    from labkit.models import EMBEDDED, resolve
    from labkit.models import fetch as fetch_model

    for name in models or list(EMBEDDED):
        folder = resolve(name, progress=say) if Path(name).expanduser().is_dir() else fetch_model(name, progress=say)
        typer.echo(folder)


@app.command()
def run(
    labs: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="Default: all that exist.")] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="cpu|gpu|FILE", help="Default: what fits this machine.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: a new folder under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Run only what is missing or failed there.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("-p", metavar="LAB.NAME=VALUE", help="A parameter; LAB may be `all`.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="On a Ray cluster: HOST:PORT of its head, or auto.")
    ] = None,
) -> None:
    """Runs labs: records, notebooks, a report."""
    from labkit import report as reports
    from labkit import tables
    from labkit.plan import make_plan
    from labkit.runner import opening_lines, run_labs

    options: dict[str, Any] = {"profile": profile, "out_dir": out, "resume": resume, "settings": settings or ()}
    if ray is not None:
        from labkit.remote import run_on_cluster

        result = run_on_cluster(ray, labs or (), **options, say=say)
    else:
        plan = make_plan(labs or (), **options, progress=say)
        say("\n".join(opening_lines(plan)))
        result = run_labs(plan)
    page = reports.build(result.out_dir)
    tables.show_run(result.out_dir)
    typer.echo(f"Report: {page}")
    _explain_failures(result.failed, result.out_dir)
    if result.interrupted or result.failed:
        raise typer.Exit(INTERRUPTED if result.interrupted else 1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help=f"{RUNS}.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: report.html in DIR.")] = None,
) -> None:
    """Writes a run's report, one HTML file."""
    from labkit.report import build

    typer.echo(build(folder, out))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    b: Annotated[Path, typer.Argument(metavar="DIR", help="Another run's folder.")],
    as_json: Json = False,
) -> None:
    """Compares two runs.

    Exit 0: identical where they must be, ratios inside their tolerance; else 1."""
    from labkit import records, tables

    found = records.compare(a, b)
    if as_json:
        print_json(found.to_json())
    else:
        tables.show_comparison(found)
    if not found.agrees:
        raise typer.Exit(1)


@app.command()
def claims(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help=f"{RUNS}: whose evidence counts.")] = None,
    as_json: Json = False,
) -> None:
    """The article's claims and their verdicts."""
    from labkit import records, tables
    from labkit.claims import ledger

    rows = ledger(records.read_newest(folder).values() if folder else ())
    if as_json:
        print_json({"claims": [row.to_json() for row in rows]})
    else:
        tables.show_claims(rows)


@app.command()
def kv(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An embedded model, a folder, or a config.json.")],
    memory: Annotated[str, typer.Option(metavar="BYTES", help="Memory for the cache, such as 1GiB.")] = "1GiB",
    block_size: Annotated[int | None, typer.Option(metavar="N", help="Tokens in a block. Default: vLLM's.")] = None,
    max_model_len: Annotated[int | None, typer.Option(metavar="N", help="Default: the model's positions.")] = None,
    as_json: Json = False,
) -> None:
    """The arithmetic of a model's KV cache."""
    from labkit.kvcache import describe
    from labkit.machine import inspect
    from labkit.models import architecture, resolve
    from labkit.settings import CPU_BLOCK_SIZE, GPU_BLOCK_SIZE, parse_bytes

    path = Path(model).expanduser()
    found = describe(
        architecture(path if path.suffix == ".json" else resolve(model, progress=say)),
        memory_bytes=parse_bytes(memory),
        block_size=block_size if block_size is not None else GPU_BLOCK_SIZE if inspect().gpus else CPU_BLOCK_SIZE,
        max_model_len=max_model_len,
    )
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo("\n".join(found.lines))


@app.command()
def cost(
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as requests_per_s=5.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What serving costs, hosted and by API."""
    from labkit.costs import command

    result = command.answer(settings or ())
    if as_json:
        print_json(result.to_json())
    else:
        typer.echo(command.text(result))


@app.command()
def select(
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An answer; `model` names what is served.")
    ] = None,
    answers: Annotated[str, typer.Option(metavar="JSON", help="Answers as the form exports them.")] = "",
    runs: Annotated[
        Path | None, typer.Option(metavar="DIR", help=f"{RUNS}: whose verdicts stand by the reasons.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which framework for which workload, and why."""
    from labkit import records, selector
    from labkit.claims import ledger

    known, model = selector.read_state(answers)
    known, other = selector.read_state({**known, **selector.from_settings(settings or ())})
    found, model = selector.select(known), other or model
    config = selector.configure(found.winner.name, found.answers, model=model)
    if as_json:
        print_json(selector.to_json(found, config, model=model))
    else:
        rows = ledger(records.read_newest(runs).values()) if runs else []
        verdicts = {row.id: row.verdict for row in rows if row.measured}
        typer.echo(selector.to_text(found, config, verdicts=verdicts, model=model))


@app.command()
def fractions(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Deployments as YAML.")],
    gpu_gib: Annotated[
        float | None, typer.Option(metavar="N", help="GiB of a GPU. Default: FILE's, or this one's.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="How many. Default: FILE's, or those here.")] = None,
    as_json: Json = False,
) -> None:
    """Audits fractions of GPUs: what fits.

    Exit 0: all replicas are placed, start and fit at rest; else 1."""
    from labkit import fractions as auditor
    from labkit.machine import inspect

    own = [
        {
            "memory_gib": one.memory_total_bytes / 2**30,
            "used_gib": (one.memory_total_bytes - one.memory_free_bytes) / 2**30,
        }
        for one in inspect().gpus
    ]
    default = {**own[0], "count": len(own)} if own else {}
    found = auditor.audit(*auditor.read(file, gpu={"memory_gib": gpu_gib, "count": gpus}, default=default))
    if as_json:
        print_json(auditor.as_json(found))
    else:
        typer.echo("\n".join(auditor.lines(found)))
    if not found.ok:
        raise typer.Exit(1)


app.command()(cli_servers.load)
app.command()(cli_servers.serve)
app.command()(cli_modelled.simulate)
app.command()(cli_workshop.progress)
app.command()(cli_workshop.solutions)
app.command("workshop-check")(cli_workshop.workshop_check)


def main(arguments: list[str] | None = None) -> None:
    """The entry point: an error of ours becomes a message on stderr and its exit code, never a traceback."""
    try:
        app(arguments, prog_name="labkit")
    except LabkitError as error:
        typer.echo(f"labkit: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _explain_failures(failed: "tuple[LabRun, ...]", out_dir: Path) -> None:
    from labkit.runner import log_path

    for lab in failed:
        say(f"{lab.name} failed: {lab.error}\n  Its log: {log_path(out_dir, lab.name)}")
