"""Reads `course/questions/NN.md`: all that a learner reads of a lab's exercises, each sentence once.

A question is a heading `## ID: title`, the prompt, and sections in this order:

    ### Data           a YAML block with the prompt's numbers, where it has {placeholders}
    ### Cell           a Python block: what the learner's cell begins with
    ### Hints          a numbered list
    ### Options        - [x] text (where it applies, else [ ]); indented below: - *misconception:* what it tells
    ### Wrong answers  - *misconception:* what it tells, for a number or a function, in place of options

An option's misconception is shown by missing the option, where it applies, or by choosing it, where it does not. The
options get their order and their letters by a shuffle whose seed is the question's id.
"""

import random
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.files import parse_yaml

Lines = list[tuple[int, str]]  # with their numbers in the file
SECTIONS = ("Data", "Cell", "Hints", "Options", "Wrong answers")
# (pattern, the same in words)
HEADING = r"([0-9]{2}[a-z]?\.\w+): (.+)", "## NN.name: title, with the number of the file"
HINT = r"\d+\. (.+)", "1. hint"
OPTION = r"- \[([x ])\] (.+)", "- [x] text"
TOLD = r"- \*(.+?):\* (.+)", "- *misconception:* what it tells"


@dataclass(frozen=True)
class Option:
    """One option of a choice; `misconception` is what a wrong decision about it shows."""

    code: str
    text: str
    right: bool
    misconception: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a learner reads. `told`: what each misconception, by its name, is answered with. `starter`: their cell."""

    id: str
    title: str
    prompt: str
    starter: str
    hints: tuple[str, ...]
    told: Mapping[str, str]
    options: tuple[Option, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def read_questions(path: Path) -> list[Question]:
    """The questions of one file, in its order. UsageError names the file and the line of what it cannot read."""
    try:
        lines = list(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="restore it, or write it as UTF-8") from None
    try:
        return [_question(number, heading, body) for number, heading, body in _split("## ", lines)[1:]]
    except _FormatError as error:
        number, what, fix = error.args
        raise UsageError(f"{path}, line {number}: {what}", remedy=fix) from None


class _FormatError(Exception):
    """(line, what is wrong, how to fix it)"""


def _question(number: int, heading: str, body: Lines) -> Question:
    id, title = _match(HEADING, number, heading)
    (_, _, prompt), *parts = _split("### ", body)
    sections = {name: lines for _, name, lines in parts}
    order = [name for name in SECTIONS if name in sections]
    if [name for _, name, _ in parts] != order or not {"Cell", "Hints"} <= set(order):
        raise _FormatError(number, f"its sections are {list(sections)}", f"take these, in this order: {SECTIONS}")
    told = [_pair(*item) for item in _items(r"- ", sections.get("Wrong answers", []))]
    decisions = []
    listed = _items(r"- \[| +- ", sections.get("Options", []))
    for first, second in zip(listed[::2], [*listed[1::2], (number, "")], strict=False):
        mark, option = _match(OPTION, *first)
        told.append(_pair(*second))
        decisions.append((option, mark == "x", told[-1][0]))
    random.Random(id).shuffle(decisions)
    if len(dict(told)) != len(told) or len(told) < 2:
        raise _FormatError(
            number, f"its misconceptions are {[name for name, _ in told]}", "name two or more, each once"
        )
    data = parse_yaml(_block("yaml", number, sections["Data"]), dict[str, Any], where=id) if "Data" in sections else {}
    return Question(
        id=id,
        title=title,
        prompt=_joined(prompt),
        starter=_block("python", number, sections["Cell"]),
        hints=tuple(_match(HINT, *item)[0] for item in _items(r"\d+\. ", sections["Hints"])),
        told=dict(told),
        options=tuple(Option(code, *rest) for code, rest in zip(string.ascii_uppercase, decisions, strict=False)),
        data=data,
    )


def _match(form: tuple[str, str], number: int, text: str) -> tuple[str, ...]:
    pattern, in_words = form
    found = re.fullmatch(pattern, text)
    if not found:
        raise _FormatError(number, f"{text!r} is not of the form it should have", f"write {in_words}")
    return found.groups()


def _pair(number: int, text: str) -> tuple[str, str]:
    name, tells = _match(TOLD, number, text)
    return name, tells


def _block(language: str, number: int, lines: Lines) -> str:
    found = re.fullmatch(rf"```{language}\n(.*)\n```", _joined(lines), re.DOTALL)
    if not found:
        at = lines[0][0] if lines else number
        raise _FormatError(at, f"a block of {language} is missing", f"write ```{language}, the lines, ```")
    return found[1]


def _items(start: str, lines: Lines) -> Lines:
    """The items of a list, each on one line with its number; `start`: what an item begins with."""
    items: Lines = []
    for number, line in lines:
        if re.match(start, line):
            items.append((number, line.strip()))
        elif line.strip():
            if not items or line[0] != " ":
                raise _FormatError(number, f"{line!r} is in no list", "indent it, or begin an item")
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
    return items


def _split(marker: str, lines: Lines) -> list[tuple[int, str, Lines]]:
    """(line, heading, lines below it) at each heading outside of blocks; first what is before them, at line 0."""
    parts: list[tuple[int, str, Lines]] = [(0, "", [])]
    in_block = False
    for number, line in lines:
        in_block ^= line.startswith("```")
        if line.startswith(marker) and not in_block:
            parts.append((number, line.removeprefix(marker).strip(), []))
        else:
            parts[-1][2].append((number, line))
    return parts


def _joined(lines: Lines) -> str:
    return "\n".join(line for _, line in lines).strip()
