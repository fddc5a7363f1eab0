"""What the notes on the labs let an instructor leave out can be left out."""

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

import nbformat
import pytest

from labkit.files import notebooks_path, root
from labkit.labs import LABS, Lab

SLIDES = (root() / "docs" / "workshop" / "slides.md").read_text(encoding="utf-8")
NOTES = (root() / "docs" / "workshop" / "lab-by-lab.md").read_text(encoding="utf-8")


def named(lab: Lab, what: str) -> list[tuple[str, str]]:
    """The headings, first words and exercises in a line of the lab's notes."""
    notes = NOTES.partition(f"\n**{lab.name.replace('_', ' ')}.** ")[2].partition("\n\n")[0]
    line = re.search(rf"^- \*{what}:\*(.*)$", notes, re.MULTILINE)
    return re.findall(rf"\*(.+?)\*|\b({lab.number}\.\w+)", line[1]) if line else []


def part(cells: Sequence[Any], words: str, exercise: str) -> range:
    """The numbers of the cells that a heading, first words or an exercise stand for."""
    sources = [cell.source for cell in cells]
    headings = [n for n, source in enumerate(sources) if words and re.match(rf"#+ {re.escape(words)}", source)]
    begins = f'ask("{exercise}"' if exercise else words
    first = headings[0] if headings else next(n for n, source in enumerate(sources) if begins in source)
    texts = [source if cell.cell_type == "markdown" else "" for source, cell in zip(sources, cells, strict=True)]
    for stop in range(first + 1, len(cells)):
        asks = sources[stop].startswith("ask(") and not headings
        if asks or texts[stop].startswith("##") or (texts[stop] and not headings and not exercise):
            return range(first, stop)
    return range(first, len(cells))


def bound_and_used(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives a value, and those that it reads."""
    nodes = list(ast.walk(compile(source, "", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)}
    imported = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    bound |= {(alias.asname or alias.name).partition(".")[0] for alias in imported}
    return bound, {node.id for node in names if isinstance(node.ctx, ast.Load)}


def missing(cells: Sequence[Any], left_out: set[int]) -> Iterator[tuple[int, set[str]]]:
    """Cells that read what only cells that were left out give a value."""
    known: set[str] = set()
    lost: set[str] = set()
    for number, cell in enumerate(cells):
        if cell.cell_type == "code":
            bound, used = bound_and_used(cell.source)
            if number in left_out:
                lost |= bound - known
                continue
            if used & lost - known - bound:
                yield number, used & lost - known - bound
            known |= bound


def code(cells: Sequence[Any], numbers: set[int]) -> list[int]:
    return [number for number in sorted(numbers) if cells[number].cell_type == "code"]


@pytest.mark.parametrize("lab", LABS.values(), ids=LABS)
def test_what_may_be_skipped_is_needed_by_no_later_cell(lab: Lab) -> None:
    """Each part that the notes name exists, and without those to skip every name still has its value, and every engine
    that an earlier cell started is closed."""
    cells = nbformat.read(notebooks_path() / lab.notebook, as_version=4).cells
    for words, exercise in named(lab, "Keep"):
        assert part(cells, words, exercise)
    left_out = {number for words, exercise in named(lab, "Skip") for number in part(cells, words, exercise)}
    assert list(missing(cells, left_out)) == []
    started = {name for number in code(cells, left_out) for name in bound_and_used(cells[number].source)[0]}
    closed = [re.findall(r"close\((\w+)\)|(\w+)\.stop\(", cells[number].source) for number in code(cells, left_out)]
    assert {name for pairs in closed for pair in pairs for name in pair if name} <= started


def test_a_slide_asks_what_its_lab_asks() -> None:
    """The question in bold on a lab's slide is the one on the lab's card."""
    slides = re.findall(r"^# Lab (\w+)\n\n(\*\*.+\*\*)$", SLIDES, re.MULTILINE)
    assert len(slides) == 7
    notebooks = {lab.number: notebooks_path() / lab.notebook for lab in LABS.values()}
    assert [number for number, asked in slides if asked not in notebooks[number].read_text(encoding="utf-8")] == []
