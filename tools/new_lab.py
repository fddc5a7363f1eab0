"""Create a new lab that runs and passes all checks: `make new-lab NAME=13_speculative_decoding`.

    python tools/new_lab.py NAME [--title TITLE] [--question QUESTION] [--no-run]

The result is a small example lab with one of each part, to be replaced step by step while the checks stay green; see
CONTRIBUTING.md. Existing files are not overwritten.
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
NEW_FILES = 4  # the first ones from `files`; the others exist and get an entry
MINUTES = 0.5  # of the template's run
TALKING_POINTS = (
    "Ask: two encoders write the same text; is the factor between them the server's gain? It matters only as much as\n"
    "encoding is a part of a chunk's cost. Watch for: one user's share instead of everyone's."
)


@dataclass(frozen=True, kw_only=True)
class NewLab:
    """A new lab's names. `name`: number and words, as in "13_speculative_decoding"."""

    name: str
    title: str
    question: str

    @property
    def number(self) -> str:
        """The two digits at its start."""
        return self.name[:2]

    @property
    def words(self) -> str:
        """The name in tables: "13 speculative decoding"."""
        return self.name.replace("_", " ")

    def fill(self, template: str) -> str:
        """Return a file of the template with this lab's names."""
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
    """Return the names of a lab that is not in `labs`. UsageError for an invalid name or a number in use."""
    if not re.fullmatch(r"[0-9]{2}_[a-z0-9]+(_[a-z0-9]+)*", name):
        remedy = "use two digits and words in lower case, such as 13_speculative_decoding"
        raise UsageError(f"{name!r} is not a valid name for a lab", remedy=remedy)
    if taken := [lab for lab in labs if lab[:2] == name[:2]]:
        free = next(number for number in range(1, 100) if f"{number:02d}" not in {lab[:2] for lab in labs})
        raise UsageError(f"number {name[:2]} is taken by {taken[0]}", remedy=f"use another number; {free:02d} is free")
    title = title or name[3:].replace("_", " ").capitalize()
    for text in (title, question):
        if not text.isprintable() or not text.strip():
            raise UsageError(f"{text!r} is not one line of text", remedy="write title and question in one line each")
    return NewLab(name=name, title=title, question=question)


def with_entry(text: str, lab: NewLab) -> str:
    """Return data/labs.yaml with the lab's entry, in the order of numbers."""
    entries = re.finditer(r"^([0-9]{2}[a-z]?_\w+):", text, re.MULTILINE)
    later = [match for match in entries if match[1] > lab.name]
    entry = lab.fill("entry.yaml.tmpl").strip()
    if not later:
        return f"{text.rstrip()}\n\n{entry}\n"
    return f"{text[: later[0].start()]}{entry}\n\n{text[later[0].start() :]}"


def with_row(text: str, lab: NewLab, row: str, *, start: str) -> str:
    """Return a text with the lab's row in its table of labs, in the order of numbers; rows begin with `start`."""
    rows = list(re.finditer(rf"^{re.escape(start)}([0-9]{{2}}[a-z]?) [a-z][^\n]*\n", text, re.MULTILINE))
    before = [row_match.end() for row_match in rows if row_match[1] < lab.number]
    if not before:
        raise UsageError("there is no table of labs", remedy="restore README.md and docs/workshops.md")
    return f"{text[: before[-1]]}{row}\n{text[before[-1] :]}"


def in_readme(text: str, lab: NewLab) -> str:
    """Return README.md with the lab's row."""
    question = lab.question[0].lower() + lab.question[1:].replace("|", "\\|")
    row = f"| [{lab.words}](notebooks/{lab.name}.ipynb) | {question} |"
    return with_row(text, lab, row, start="| [")


def in_guide(text: str, lab: NewLab) -> str:
    """Return docs/workshops.md with the lab's minutes."""
    return with_row(text, lab, f"| {lab.words} | {MINUTES} | 15 | 01 |", start="| ")


def in_notes(text: str, lab: NewLab) -> str:
    """Return docs/workshop/lab-by-lab.md with the lab's talking points, in the order of numbers."""
    paragraphs = list(re.finditer(r"^\*\*([0-9]{2}[a-z]?) .*?\n\n", text, re.MULTILINE | re.DOTALL))
    before = [paragraph.end() for paragraph in paragraphs if paragraph[1] < lab.number]
    if not before:
        raise UsageError("docs/workshop/lab-by-lab.md has no labs", remedy="restore it from the repository")
    return f"{text[: before[-1]]}**{lab.words}.** {TALKING_POINTS}\n\n{text[before[-1] :]}"


def files(lab: NewLab, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield all files of the lab in the repository `folder`, with their text."""
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
    """Return the template's notebook, not executed."""
    import jupytext  # type: ignore[import-untyped]

    parsed = jupytext.reads(lab.fill("notebook.py.tmpl"), fmt="py:percent")
    parsed.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return str(jupytext.writes(parsed, fmt="ipynb"))


def lay_out(lab: NewLab, folder: Path) -> list[Path]:
    """Write all files and return their paths. UsageError, without a change, if a new file already exists."""
    texts = dict(files(lab, folder))
    if existing := [path for path in list(texts)[:NEW_FILES] if path.exists()]:
        what = f"{existing[0].relative_to(folder)} exists already"
        raise UsageError(what, remedy="use another number or remove the file")
    for path, text in texts.items():
        write_atomic(path, text)
    return list(texts)


def main(arguments: list[str] | None = None) -> int:
    """Create the lab, execute its notebook, and print the written files; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", help="number and words, such as 13_speculative_decoding")
    parser.add_argument("--title", help="title (default: the name's words)")
    parser.add_argument("--question", default=QUESTION, help="the question that the lab answers")
    parser.add_argument("--no-run", action="store_true", help="do not execute the notebook")
    given = parser.parse_args(arguments)
    lab = plan(given.name, title=given.title, question=given.question, labs=list(load_labs()))
    for path in lay_out(lab, root()):
        print(path.relative_to(root()))
    subprocess.run([sys.executable, "-m", "tools.prediction_sheet"], cwd=root(), check=True)
    if not given.no_run:
        # In another process: this one read the list of labs before the new lab was added.
        tool = [sys.executable, "tools/notebooks.py", f"notebooks/{lab.name}.ipynb"]
        if subprocess.run(tool, cwd=root(), check=False).returncode:
            raise LabError("the new notebook did not run", remedy="see the error above")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
