"""Plan a batch run and check it before anything starts.

Labs, notebooks, parameters, profile, memory, disk, models and folder are checked in the first seconds; an error names
the number and the remedy.
"""

import ast
import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabError, UsageError, did_you_mean, require
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
from labkit.records.comparison import GPU_SHARE

GIB = 2**30
OUT_DIR = "out_dir"  # not part of a record's parameters: it does not affect measurements


@dataclass(frozen=True, kw_only=True)
class Job:
    """One lab to run. `given`: parameters passed to the notebook; `parameters`: with its defaults, without out_dir."""

    lab: Lab
    notebook: Path
    given: Mapping[str, Any]
    parameters: Mapping[str, Any]
    done: bool = False
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked run. Jobs that are `done` (resume) or `refused` (this machine cannot run them) are skipped."""

    out_dir: Path
    profile: Profile
    machine: Machine
    versions: Mapping[str, str]
    jobs: tuple[Job, ...]

    @property
    def line(self) -> str:
        """The run's profile and folder."""
        return f"profile {self.profile.name}: {self.profile.description}; into {self.out_dir}"

    @property
    def running(self) -> tuple[Job, ...]:
        """The jobs to run."""
        return tuple(job for job in self.jobs if not job.done and not job.refused)

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the jobs to run, without duplicates."""
        return tuple(dict.fromkeys(str(job.parameters["model"]) for job in self.running if "model" in job.parameters))

    @property
    def seed(self) -> int:
        """The seed of the first lab that has one (each record has its own); 0 if none has."""
        return next((int(job.parameters["seed"]) for job in self.jobs if "seed" in job.parameters), 0)

    def record_file(self, job: Job) -> Path:
        """Return the path of the lab's record."""
        return self.out_dir / f"{job.lab.name}.json"


def make_plan(
    names: Sequence[str] = (),
    *,
    profile: str | None = None,
    out_dir: Path | None = None,
    resume: bool = False,
    settings: Sequence[str] = (),
    labs: Mapping[str, Lab] = LABS,
    machine: Machine | None = None,
    versions: Mapping[str, str] | None = None,
    fetch: Callable[[str], object] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Check everything and return the plan. `names`: labs (default: all with a notebook that are not optional).
    `settings`: LAB.NAME=VALUE.

    `machine`, `versions`, `fetch`: the machine that runs the labs, its packages, and how it gets models (default: this
    machine, into the cache).

    UsageError: an unknown lab, parameter, profile or model; a value out of range; too little memory or disk, or no
    GPU; a folder that cannot be written or contains another run. RecordError: a corrupt record in a resumed run.
    """
    machine = inspect() if machine is None else machine
    versions = installed_versions() if versions is None else versions
    chosen = load_profile(profile or profile_for(machine), machine, labs)
    overrides = parse_overrides(settings, labs)
    selected = selected_labs(names, labs)
    for name in overrides.keys() - {"all"} - {lab.name for lab in selected}:
        fix = f"name {name} too, or leave the parameter out"
        raise UsageError(f"-p {name}.… sets a parameter of a lab that does not run", remedy=fix)
    everywhere = {name for lab in selected for name in lab.parameters} - {OUT_DIR}
    for name in overrides.get("all", {}).keys() - everywhere:
        raise UsageError(f"-p all.{name}: no lab of this run has it", remedy="leave it out (for out_dir: --out DIR)")
    folder = _folder(out_dir, chosen, resume)
    plan = Plan(out_dir=folder, profile=chosen, machine=machine, versions=versions, jobs=())
    plan = replace(plan, jobs=tuple(_job(lab, plan, overrides, resume=resume) for lab in selected))
    refused = [job for job in plan.jobs if job.refused]
    if refused and (names or len(refused) == len(plan.jobs)):  # a run of all labs skips it instead
        raise UsageError(f"{refused[0].lab.name} cannot run here: {refused[0].refused}", remedy="see labkit doctor")
    _require_disk(plan)
    for model in plan.models:
        fetch(model) if fetch else resolve(model, progress=say)
    _require_writable(folder)
    return plan


def read_defaults(notebook: Path) -> dict[str, Any]:
    """Return the names and values assigned in the cells tagged `parameters` and `defaults`. LabError without
    parameters, or for a value that is not a literal."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [(cell["metadata"].get("tags", ()), "".join(cell["source"])) for cell in cells]
        if not any("parameters" in tags for tags, _ in tagged):
            remedy = "tag the cell that assigns the parameters"
            raise LabError(f"{notebook} has no cell tagged parameters", remedy=remedy)
        sources = [source for tags, source in tagged if {"parameters", "defaults"} & set(tags)]
        statements = ast.parse("\n".join(sources)).body
        return dict(value for statement in statements if (value := _assigned(statement)))
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        remedy = "the cell tagged parameters may only assign literals to names"
        raise LabError(f"the parameters of {notebook} cannot be read: {error}", remedy=remedy) from None


def _assigned(statement: ast.stmt) -> tuple[str, Any] | None:
    match statement:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
        ):
            try:
                return name, ast.literal_eval(value)
            except ValueError:
                raise ValueError(f"{name} = {ast.unparse(value)} is not a literal") from None
    return None


def selected_labs(names: Sequence[str] = (), labs: Mapping[str, Lab] = LABS) -> list[Lab]:
    """Return the labs of a run (see `make_plan`) in the course's order, each once."""
    folder = notebooks_path()
    with_notebook = [lab for lab in labs.values() if (folder / lab.notebook).is_file()]
    require(bool(with_notebook or names), f"no lab has a notebook in {folder}", fix="run from a complete clone")
    wanted = [find_lab(name, labs) for name in names] or [lab for lab in with_notebook if not lab.optional]
    for lab in wanted:
        fix = did_you_mean(lab.name, [other.name for other in with_notebook])
        require(lab in with_notebook, f"{lab.name} has no notebook in {folder}", fix=fix)
    return [lab for lab in with_notebook if lab in wanted]


def _job(lab: Lab, plan: Plan, overrides: Mapping[str, Mapping[str, Any]], *, resume: bool) -> Job:
    """The lab's job, with parameters checked against its notebook and the plan's machine."""
    notebook = notebooks_path() / lab.notebook
    defaults = read_defaults(notebook)
    if differing := sorted(set(defaults) ^ set(lab.parameters)):
        remedy = "make the cell tagged parameters and data/labs.yaml name the same parameters"
        raise LabError(f"{lab.notebook} and its entry in labs.yaml disagree on {', '.join(differing)}", remedy=remedy)
    given = {name: value for name, value in plan.profile.parameters(lab, overrides).items() if name != OUT_DIR}
    parameters = check_parameters(lab, {**defaults, **given})
    parameters.pop(OUT_DIR, None)
    job = Job(lab=lab, notebook=notebook, given=given, parameters=parameters)
    chosen = {**overrides.get("all", {}), **overrides.get(lab.name, {})}
    varies = GPU_SHARE not in chosen and plan.profile.has_free_share(lab, GPU_SHARE)
    if resume and _is_done(plan.record_file(job), parameters, ignored=(GPU_SHARE,) if varies else ()):
        return replace(job, done=True)
    ready = readiness(lab, plan.machine, plan.versions)
    if ready.runs == "no":
        return replace(job, refused=f"{ready.reason}: {ready.fix}")
    check_gpu_memory(parameters, plan.machine, plan.profile.weights, engines=lab.needs.engines)
    return job


def _is_done(record_file: Path, parameters: Mapping[str, Any], *, ignored: Collection[str]) -> bool:
    """Whether the record is complete and has these parameters. RecordError if it is corrupt; it is kept.

    `ignored`: the GPU's share, if it follows from the memory that is free at the moment."""
    if not record_file.exists():
        return False
    record = read(record_file)
    names = (record.parameters.keys() | parameters.keys()) - set(ignored)
    same = record.parameters.keys() == parameters.keys()
    return record.status == "done" and same and all(record.parameters[name] == parameters[name] for name in names)


def _folder(out_dir: Path | None, profile: Profile, resume: bool) -> Path:
    if out_dir is None and resume:
        return _newest_run()
    folder = (out_dir or runs_path() / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{profile.name}").expanduser().resolve()
    is_free = resume or not (folder / "run.json").exists()
    require(is_free, f"{folder} already contains a run", fix="pass --resume to complete that run, or another --out")
    return folder


def _newest_run() -> Path:
    runs = sorted(runs_path().glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    fix = "pass --out DIR, or leave --resume out"
    require(bool(runs), f"there is no run to resume in {runs_path()}", fix=fix)
    return runs[-1].parent


def _require_disk(plan: Plan) -> None:
    """UsageError if the disk is too small for the lab that needs most (labs clean up after themselves)."""
    need_gib = max((job.lab.needs.disk_gib for job in plan.running), default=0)
    free_gib = disk_free_bytes(plan.out_dir) / GIB
    what = f"the run needs {need_gib:.1f} GiB of disk and {free_gib:.1f} GiB are free for {plan.out_dir}"
    require(free_gib >= need_gib, what, fix="free some disk space, or pass --out on another disk")


def _require_writable(folder: Path) -> None:
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"{folder} cannot be written: {reason}", remedy="pass another --out") from None
