"""Lays out a new lab that runs and passes every check: `make new-lab NAME=13_speculative_decoding`.

    python tools/new_lab.py NAME [--title TITLE] [--question QUESTION] [--no-run]

It is a small lab on another question, with one of everything: what you write takes the place of what stands there, and
the checks stay green on the way. CONTRIBUTING.md goes through it. Nothing that exists is overwritten.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

from labkit.errors import LabError, LabkitError, UsageError
from labkit.files import root
from labkit.labs import load_labs
from labkit.records import write_atomic

TEMPLATE = Path(__file__).resolve().parent / "template"
QUESTION = "How much faster does a better encoder make a stream?"
NEW_FILES = 4  # those that `files` gives first; the others exist and get an entry
MINUTES = 0.5  # of the template's own run
TALKING_POINTS = (
    "Ask: two encoders write the same text; is the factor between them the server's? It is worth as much as\n"
    "encoding is a part of what a chunk costs. Watch for: one user's share taken for everybody's."
)


@dataclass(frozen=True, kw_only=True)
class NewLab:
    """What a new lab is called. `name`: its number and its words, as in "13_speculative_decoding"."""

    name: str
    title: str
    question: str

    @property
    def number(self) -> str:
        """Two digits."""
        return self.name[:2]

    @property
    def words(self) -> str:
        """The name as tables show it: "13 speculative decoding"."""
        return self.name.replace("_", " ")

    def fill(self, template: str) -> str:
        """A file of the template with this lab's names in it."""
        text = (TEMPLATE / template).read_text(encoding="utf-8")
        quoted = {
            "title_quoted": json.dumps(self.title, ensure_ascii=False),  # YAML reads \u escapes pair by pair
            "question_quoted": json.dumps(self.question, ensure_ascii=False),
        }
        names = {
            "name": self.name,
            "number": self.number,
            "title": self.title,
            "question": self.question,
            "minutes": str(MINUTES),
        }
        return Template(text).substitute(names | quoted)


def plan(name: str, *, title: str | None = None, question: str = QUESTION, labs: list[str]) -> NewLab:
    """A new lab beside `labs`. UsageError: a name that is none, or a number that is taken."""
    if not re.fullmatch(r"[0-9]{2}_[a-z0-9]+(_[a-z0-9]+)*", name):
        remedy = "two digits and words in lower case, such as 13_speculative_decoding"
        raise UsageError(f"{name!r} is no lab's name", remedy=remedy)
    if taken := [lab for lab in labs if lab[:2] == name[:2]]:
        free = next(number for number in range(1, 100) if f"{number:02d}" not in {lab[:2] for lab in labs})
        raise UsageError(f"number {name[:2]} is taken by {taken[0]}", remedy=f"take another one; {free:02d} is free")
    title = title or name[3:].replace("_", " ").capitalize()
    for text in (title, question):
        if not text.isprintable() or not text.strip():
            raise UsageError(f"{text!r} is not one line of text", remedy="title and question are one line each")
    return NewLab(name=name, title=title, question=question)


def with_entry(text: str, lab: NewLab) -> str:
    """data/labs.yaml with the lab's entry in its place: labs stand in the order of their numbers."""
    later = [one for one in re.finditer(r"^([0-9]{2}[a-z]?_\w+):", text, re.MULTILINE) if one[1] > lab.name]
    entry = lab.fill("entry.yaml.tmpl").strip()
    if not later:
        return f"{text.rstrip()}\n\n{entry}\n"
    return f"{text[: later[0].start()]}{entry}\n\n{text[later[0].start() :]}"


def with_row(text: str, lab: NewLab, row: str, *, start: str) -> str:
    """A text with the lab's row in its table of labs, after those with smaller numbers; a row begins with `start`."""
    rows = list(re.finditer(rf"^{re.escape(start)}([0-9]{{2}}[a-z]?) [a-z][^\n]*\n", text, re.MULTILINE))
    before = [one.end() for one in rows if one[1] < lab.number]
    if not before:
        raise UsageError("there is no table of labs to stand in", remedy="restore README.md and docs/workshops.md")
    return f"{text[: before[-1]]}{row}\n{text[before[-1] :]}"


def in_readme(text: str, lab: NewLab) -> str:
    """README.md with the lab's row."""
    question = lab.question[0].lower() + lab.question[1:].replace("|", "\\|")
    row = f"| [{lab.words}](notebooks/{lab.name}.ipynb) | {question} |"
    return with_row(text, lab, row, start="| [")


def in_guide(text: str, lab: NewLab) -> str:
    """docs/workshops.md with the lab's minutes, in the order of numbers."""
    return with_row(text, lab, f"| {lab.words} | {MINUTES} | 15 | 01 |", start="| ")


def in_notes(text: str, lab: NewLab) -> str:
    """docs/workshop/lab-by-lab.md with a paragraph on what to ask, in the order of numbers."""
    paragraphs = list(re.finditer(r"^\*\*([0-9]{2}[a-z]?) .*?\n\n", text, re.MULTILINE | re.DOTALL))
    before = [one.end() for one in paragraphs if one[1] < lab.number]
    if not before:
        raise UsageError("docs/workshop/lab-by-lab.md has no labs", remedy="restore it from the repository")
    return f"{text[: before[-1]]}**{lab.words}.** {TALKING_POINTS}\n\n{text[before[-1] :]}"


def files(lab: NewLab, folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file of the lab in the repository `folder`, with its text."""
    yield folder / "course" / f"lab_{lab.number}.py", lab.fill("exercises.py.tmpl")
    yield folder / "course" / "questions" / f"{lab.number}.md", lab.fill("questions.md.tmpl")
    yield folder / "tests" / "unit" / f"test_lab_{lab.number}.py", lab.fill("test.py.tmpl")
    yield folder / "notebooks" / f"{lab.name}.ipynb", notebook(lab)
    places = {
        "data/labs.yaml": with_entry,
        "README.md": in_readme,
        "docs/workshops.md": in_guide,
        "docs/workshop/lab-by-lab.md": in_notes,
    }
    for name, place in places.items():
        yield folder / name, place((folder / name).read_text(encoding="utf-8"), lab)


def notebook(lab: NewLab) -> str:
    """The notebook of the percent file, not executed yet."""
    import jupytext  # type: ignore[import-untyped]

    made = jupytext.reads(lab.fill("notebook.py.tmpl"), fmt="py:percent")
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return str(jupytext.writes(made, fmt="ipynb"))


def lay_out(lab: NewLab, folder: Path) -> list[Path]:
    """Writes all files, or none: UsageError when a new one exists already."""
    found = list(files(lab, folder))
    there = [path for path, _ in found[:NEW_FILES] if path.exists()]
    if there:
        raise UsageError(f"{there[0].relative_to(folder)} exists already", remedy="take another number or remove it")
    for path, text in found:
        write_atomic(path, text)
    return [path for path, _ in found]


def main(arguments: list[str] | None = None) -> int:
    """Lays the lab out and executes its notebook; prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", help="number and words, such as 13_speculative_decoding")
    parser.add_argument("--title", help="default: the name's words")
    parser.add_argument("--question", default=QUESTION, help="what the lab lets one find out, as one question")
    parser.add_argument("--no-run", action="store_true", help="lay out only; do not execute the notebook")
    given = parser.parse_args(arguments)
    lab = plan(given.name, title=given.title, question=given.question, labs=list(load_labs()))
    for path in lay_out(lab, root()):
        print(path.relative_to(root()))
    subprocess.run([sys.executable, "-m", "tools.prediction_sheet"], cwd=root(), check=True)
    if not given.no_run:
        # A process of its own: this one has read the list of labs before the new one stood in it.
        tool = [sys.executable, "tools/notebooks.py", f"notebooks/{lab.name}.ipynb"]
        if subprocess.run(tool, cwd=root(), check=False).returncode:
            raise LabError("the new notebook did not run", remedy="read what it says above")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
