"""Copies of the notebooks for the learner: without outputs, with the parameters for this machine.

`make lab` writes them to workspace/, which git ignores, with the files that they link to. What a learner has edited or
run is never overwritten; a notebook reports at start if a newer version exists.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from labkit.errors import LabkitError
from labkit.files import notebooks_path, root, write_atomic
from labkit.labs import LABS, Profile, load_profile, profile_for
from labkit.machine import Machine, inspect

KEY = "serving_lab"
NOT_A_NOTEBOOK = (OSError, ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError)
COPIES = ".copies.json"  # the linked files' hashes as laid out, by name
LINKED = re.compile(r"\]\((\.\./|(?=widgets/))([^)#]+)")  # a link to a file that is not a lab


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The workspace after `lay_out`: notebooks that were written, and the learner's own files that were kept.

    `unreadable`: kept files that are not notebooks, in the place of a lab.
    """

    folder: Path
    profile: str
    written: tuple[str, ...]
    kept: tuple[str, ...]
    outdated: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What was written and kept, in lines for the learner."""
        lines = [f"workspace {self.folder}: {len(self.written)} notebooks with the sizes of profile {self.profile}"]
        if self.kept:
            lines.append(f"kept as you left them: {', '.join(self.kept)}")
        if self.outdated:
            again = "rename your copy and start again"
            lines.append(f"the course has another version of: {', '.join(self.outdated)} ({again})")
        if self.unreadable:
            again = "rename or delete them and start again to get the labs"
            lines.append(f"kept, although they are not notebooks: {', '.join(self.unreadable)} ({again})")
        return "\n".join(lines)


def workspace_path() -> Path:
    """Return the learner's folder: `LABKIT_WORKSPACE`, by default workspace/ under the root."""
    chosen = os.environ.get("LABKIT_WORKSPACE")
    return Path(chosen).expanduser().resolve() if chosen else root() / "workspace"


def lay_out(folder: Path, profile: Profile) -> Layout:
    """Copy the course's notebooks into `folder` with the profile's parameters.

    A notebook that a learner has edited or run is kept, as is an edited file that a notebook links to; untouched copies
    are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = _Copies(folder)
    written, kept, outdated, unreadable = [], [], [], []
    for source in course_notebooks():
        notebook = nbformat.read(source, as_version=4)
        version, target = digest(notebook), folder / source.name
        try:
            learners_version = _learners_version(target)
        except NOT_A_NOTEBOOK:
            unreadable.append(source.name)
            continue
        copies.bring_linked(notebook)
        if learners_version is None:
            _prepare(notebook, source.stem, profile, version)
            nbformat.write(notebook, target)
            written.append(source.name)
        else:
            kept.append(source.name)
            outdated += [source.name] if learners_version != version else []
    copies.save()
    return Layout(
        folder=folder,
        profile=profile.name,
        written=tuple(written),
        kept=(*kept, *copies.kept),
        outdated=(*outdated, *copies.outdated),
        unreadable=tuple(unreadable),
    )


def course_notebooks() -> list[Path]:
    """Return the labs' notebooks in order."""
    return sorted(notebooks_path().glob("*.ipynb"))


def digest(notebook: Any) -> str:
    """Return a hash of a notebook's cells without their outputs."""
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def with_parameters(source: str, values: Mapping[str, Any]) -> str:
    """Return a parameters cell with `values`; comments, order and other parameters are unchanged."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    for statement in reversed(ast.parse(source).body):  # from the end, so that earlier positions stay valid
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in values:
                first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
                before, after = lines[first][: value.col_offset], lines[last][value.end_col_offset :]
                lines[first : last + 1] = [before + _literal(values[name]).encode() + after]
    return b"".join(lines).decode()


def newer_version(notebook: Path) -> str:
    """Return a message if the learner's notebook is older than the course's; "" if not, or if it is not a copy."""
    try:
        laid_out = nbformat.read(notebook, as_version=4).metadata.get(KEY)
        source = next(path for path in course_notebooks() if path.name == notebook.name)
        current = digest(nbformat.read(source, as_version=4))
    except (*NOT_A_NOTEBOOK, StopIteration, LabkitError):
        return ""
    if laid_out is None or laid_out.get("version") == current:
        return ""
    rename = f"rename {notebook.name} and run `make lab` again"
    return f"A newer version of this lab exists. Yours is kept; to get the new one, {rename}."


def opened_notebook() -> Path | None:
    """Return the notebook of this kernel, or None if JupyterLab does not name it."""
    name = os.environ.get("JPY_SESSION_NAME", "")
    return Path(name) if name.endswith(".ipynb") and Path(name).is_file() else None


def _learners_version(target: Path) -> str | None:
    """The version of a learner's notebook that was edited or run; None if it may be overwritten. `NOT_A_NOTEBOOK`: the
    file is something else."""
    if not target.exists():
        return None
    notebook = nbformat.read(target, as_version=4)
    laid_out = notebook.metadata.get(KEY, {})
    ran = any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    return str(laid_out.get("version", "")) if ran or laid_out.get("laid_out") != digest(notebook) else None


class _Copies:
    """The files that notebooks link to, copied into the workspace, since JupyterLab opens nothing outside it.

    `kept`: those that the learner has edited; `outdated`: those of them that the course has changed since, or may have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept, self.outdated = dict[str, None](), dict[str, None]()
        try:
            self.laid_out = dict(json.loads((folder / COPIES).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.laid_out = {}  # a copy that differs from the course's may be edited, or only old

    def bring_linked(self, notebook: Any) -> None:
        """Copy what the text links to, unless the learner has edited the copy; link to the copies."""
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                for up, name in LINKED.findall(cell.source):
                    self._bring(notebooks_path() / up / name, name)
                cell.source = LINKED.sub(r"](\2", cell.source)

    def _bring(self, source: Path, name: str) -> None:
        target, current, laid_out = self.folder / name, _hash(source), self.laid_out.get(name)
        if target.exists() and _hash(target) not in (current, laid_out):
            self.kept[name] = None
            self.outdated |= {name: None} if laid_out != current else {}
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        self.laid_out[name] = current

    def save(self) -> None:
        write_atomic(self.folder / COPIES, json.dumps(self.laid_out, indent=1) + "\n")


def _hash(file: Path) -> str:
    """Return a hash of a file's bytes; empty for a folder, which no copy is."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""


def _prepare(notebook: Any, name: str, profile: Profile, version: str) -> None:
    values = profile.parameters(LABS[name]) if name in LABS else {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if {"parameters", "defaults"} & set(cell.metadata.get("tags", ())):
            cell.source = with_parameters(cell.source, values)
    notebook.metadata.pop("widgets", None)
    notebook.metadata[KEY] = {"version": version, "laid_out": digest(notebook), "profile": profile.name}


def _literal(value: Any) -> str:
    """A literal in the notebooks' style: strings in double quotes if JSON and Python agree on them."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return text if ast.literal_eval(text) == value else repr(value)


def expected_minutes(profile: Profile, machine: Machine) -> list[str]:
    """Return a table of each lab's expected minutes on this machine's GPU; empty without one."""
    from labkit.runs import minutes
    from labkit.runs.plan import read_defaults

    if not machine.gpus:
        return []
    gpu, estimates = machine.gpus[0], {}
    for lab in LABS.values():
        parameters = {**read_defaults(notebooks_path() / lab.notebook), **profile.parameters(lab)}
        estimates[lab.name] = minutes.estimate(lab, parameters, gpu)
    return minutes.lines(estimates, gpu)


def main(arguments: list[str]) -> int:
    """Run `python -m labkit.runs.workspace [--profile NAME]`: write the notebooks, report, return the exit code."""
    parser = argparse.ArgumentParser(prog="labkit.runs.workspace", description=__doc__)
    parser.add_argument("--profile", default="", help="cpu, gpu or a YAML file (default: chosen for this machine)")
    chosen = parser.parse_args(arguments).profile
    try:
        machine = inspect()
        profile = load_profile(chosen or profile_for(machine), machine)
        layout = lay_out(workspace_path(), profile)
    except LabkitError as error:
        print(f"labkit: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        fix = "rename what is in the way, or set LABKIT_WORKSPACE to another folder"
        print(f"labkit: the workspace cannot be written: {error}\n  To fix it: {fix}", file=sys.stderr)
        return 1
    print("\n".join([layout.text, *expected_minutes(profile, machine)]), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
