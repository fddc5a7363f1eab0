"""What a batch run will do, decided and checked before anything starts.

Labs, notebooks, parameters, profile, memory, disk, models and the folder: whatever would fail in the middle of an
hour's run is refused in its first seconds, with the number and the remedy.
"""

import ast
import functools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabError, RecordError, UsageError, did_you_mean
from labkit.files import notebooks_path, runs_path
from labkit.labs import (
    LABS,
    Lab,
    Profile,
    check_gpu_memory,
    check_parameters,
    find_lab,
    load_profile,
    parse_overrides,
    profile_for,
    readiness,
)
from labkit.machine import Machine, disk_free_bytes, inspect
from labkit.machine import versions as installed_versions
from labkit.models import resolve
from labkit.records import read

GIB = 2**30
OUT_DIR = "out_dir"  # where a record goes is no parameter of what is measured


@dataclass(frozen=True, kw_only=True)
class Job:
    """One lab to run. `given`: what the notebook is passed; `parameters`: that and its defaults, without out_dir."""

    lab: Lab
    notebook: Path
    given: Mapping[str, Any]
    parameters: Mapping[str, Any]
    done: bool = False
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked run. A job that is `done` (resume) or `refused` (this machine cannot run it) is not run."""

    out_dir: Path
    profile: Profile
    machine: Machine
    versions: Mapping[str, str]
    jobs: tuple[Job, ...]

    @property
    def line(self) -> str:
        """What a run says first."""
        return f"profile {self.profile.name}: {self.profile.description}; into {self.out_dir}"

    @property
    def running(self) -> tuple[Job, ...]:
        """The jobs that are to run."""
        return tuple(job for job in self.jobs if not job.done and not job.refused)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that they serve, each once."""
        return tuple(dict.fromkeys(str(job.parameters["model"]) for job in self.running if "model" in job.parameters))

    @property
    def seed(self) -> int:
        """The seed of the first lab that has one (each record holds its own); 0 where none has."""
        return next((int(job.parameters["seed"]) for job in self.jobs if "seed" in job.parameters), 0)


def make_plan(
    names: Sequence[str] = (),
    *,
    profile: str | None = None,
    out_dir: Path | None = None,
    resume: bool = False,
    settings: Sequence[str] = (),
    labs: Mapping[str, Lab] | None = None,
    machine: Machine | None = None,
    versions: Mapping[str, str] | None = None,
    models: Callable[[str], object] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Checks everything and decides. `names`: labs (default: all that have a notebook); `settings`: LAB.NAME=VALUE.

    `machine`, `versions`, `models`: where the labs will run, what is installed there, and how a model gets there
    (default: here, into the cache).

    UsageError: an unknown lab, parameter, profile or model; a value out of range; no memory, disk or GPU for it; a
    folder that cannot be written or holds another run. RecordError: a corrupt record where a run is to be resumed.
    """
    labs, machine, versions = labs or LABS, machine or inspect(), versions or installed_versions()
    chosen = load_profile(profile or profile_for(machine), machine, labs)
    overrides = parse_overrides(settings, labs)
    selected = _selected(names, labs)
    _require_selected(overrides, selected)
    folder = _folder(out_dir, chosen, resume)
    jobs = [_job(lab, chosen, overrides, machine, versions, folder, resume) for lab in selected]
    _refuse_named(jobs, names)
    plan = Plan(out_dir=folder, profile=chosen, machine=machine, versions=versions, jobs=tuple(jobs))
    _require_disk(plan.running, folder)
    fetch = models or functools.partial(resolve, progress=progress)
    for model in plan.models:
        fetch(model)
    _require_writable(folder)
    return plan


def read_defaults(notebook: Path) -> dict[str, Any]:
    """The names and values that the cell tagged `parameters` assigns. LabError where there is none, or no literal."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        cell = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
        statements = ast.parse("".join(cell["source"])).body
        return dict(value for statement in statements if (value := _assigned(statement)))
    except StopIteration:
        remedy = "tag the cell that assigns the parameters"
        raise LabError(f"{notebook} has no cell tagged parameters", remedy=remedy) from None
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        remedy = "the cell tagged parameters may only assign literals to names"
        raise LabError(f"the parameters of {notebook} cannot be read: {error}", remedy=remedy) from None


def _assigned(statement: ast.stmt) -> tuple[str, Any] | None:
    match statement:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
        ):
            return name, _literal(name, value)
    return None


def _literal(name: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise ValueError(f"{name} = {ast.unparse(value)} is not a literal") from None


def _selected(names: Sequence[str], labs: Mapping[str, Lab]) -> list[Lab]:
    """The labs in the course's order, each once; those named must have a notebook."""
    there = [lab for lab in labs.values() if (notebooks_path() / lab.notebook).is_file()]
    wanted = [find_lab(name, labs) for name in names] or there
    if not wanted:
        raise UsageError(f"no lab has a notebook in {notebooks_path()}", remedy="run from a complete clone")
    for lab in wanted:
        if lab not in there:
            remedy = did_you_mean(lab.name, [each.name for each in there])
            raise UsageError(f"{lab.name} has no notebook in {notebooks_path()}", remedy=remedy)
    return [lab for lab in labs.values() if lab in wanted]


def _require_selected(overrides: Mapping[str, Any], selected: Sequence[Lab]) -> None:
    for name in overrides:
        if name != "all" and name not in [lab.name for lab in selected]:
            remedy = f"name {name} too, or leave the parameter out"
            raise UsageError(f"-p {name}.… sets a parameter of a lab that does not run", remedy=remedy)


def _job(
    lab: Lab,
    profile: Profile,
    overrides: Mapping[str, Mapping[str, Any]],
    machine: Machine,
    versions: Mapping[str, str],
    folder: Path,
    resume: bool,
) -> Job:
    notebook = notebooks_path() / lab.notebook
    defaults = read_defaults(notebook)
    if set(defaults) != set(lab.parameters):
        wrong = ", ".join(sorted(set(defaults) ^ set(lab.parameters)))
        remedy = "make the cell tagged parameters and data/labs.yaml name the same parameters"
        raise LabError(f"{notebook.name} and its entry in labs.yaml disagree on {wrong}", remedy=remedy)
    given = {name: value for name, value in profile.parameters(lab, overrides).items() if name != OUT_DIR}
    parameters = check_parameters(lab, {**defaults, **given})
    parameters.pop(OUT_DIR, None)
    done = resume and _is_done(folder / f"{lab.name}.json", parameters)
    ready = readiness(lab, machine, versions)
    refused = f"{ready.reason}: {ready.fix}" if ready.runs == "no" and not done else ""
    if not refused and not done:
        check_gpu_memory(parameters, machine, profile.weights, engines=lab.needs.engines)
    return Job(lab=lab, notebook=notebook, given=given, parameters=parameters, done=done, refused=refused)


def _is_done(record_file: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether the record is complete and of the same parameters. A corrupt one raises: it is not ours to overwrite."""
    if not record_file.exists():
        return False
    try:
        record = read(record_file)
    except RecordError as error:
        remedy = f"remove {record_file} to run the lab again, or run without --resume into a new folder"
        raise RecordError(error.what, remedy=remedy) from None
    return record.status == "done" and dict(record.parameters) == dict(parameters)


def _refuse_named(jobs: Sequence[Job], names: Sequence[str]) -> None:
    """A lab that the user asked for by name, or a run of which nothing is left, is an error and not a skipped line."""
    refused = [job for job in jobs if job.refused]
    if refused and (names or len(refused) == len(jobs)):
        raise UsageError(
            f"{refused[0].lab.name} cannot run here: {refused[0].refused}", remedy="labkit doctor says more"
        )


def _folder(out_dir: Path | None, profile: Profile, resume: bool) -> Path:
    if out_dir is None and resume:
        return _newest_run()
    folder = (out_dir or runs_path() / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{profile.name}").expanduser().resolve()
    if not resume and (folder / "run.json").exists():
        remedy = "pass --resume to complete that run, or another --out"
        raise UsageError(f"{folder} holds a run already", remedy=remedy)
    return folder


def _newest_run() -> Path:
    runs = sorted(runs_path().glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise UsageError(f"there is no run to resume in {runs_path()}", remedy="pass --out DIR, or leave --resume out")
    return runs[-1].parent


def _require_disk(jobs: Sequence[Job], folder: Path) -> None:
    """The labs clean up after themselves, so the hungriest of them decides."""
    need = max((job.lab.needs.disk_gib for job in jobs), default=0) * GIB
    free = disk_free_bytes(folder)
    if free < need:
        raise UsageError(
            f"the run needs {need / GIB:.1f} GiB of disk and {free / GIB:.1f} GiB are free for {folder}",
            remedy="free some, or pass --out on another disk",
        )


def _require_writable(folder: Path) -> None:
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"{folder} cannot be written: {reason}", remedy="pass another --out") from None
