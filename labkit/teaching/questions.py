"""Read `course/questions/NN.md`: the text of a lab's exercises.

A question is a heading `## ID: title`, the prompt, and sections in this order:

    ### Data           a YAML block with numbers for the prompt's {placeholders}, if it has any
    ### Cell           a Python block: the start of the learner's cell
    ### Hints          a numbered list
    ### Options        - [x] text ([ ] if it does not apply); indented below: - *misconception:* feedback
    ### Wrong answers  - *misconception:* feedback, for a number or a function, in place of options

A learner shows an option's misconception by leaving out an option that applies, or by choosing one that does not.
Options are shuffled; the seed is the question's id and the word "choices".
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
FEEDBACK = r"- \*(.+?):\* (.+)", "- *misconception:* feedback"


@dataclass(frozen=True)
class Option:
    """An option of a choice; `misconception`: what a wrong decision about it shows."""

    code: str
    text: str
    right: bool
    misconception: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """The text of an exercise. `feedback`: by the misconception's name. `starter`: the learner's cell."""

    id: str
    title: str
    prompt: str
    starter: str
    hints: tuple[str, ...]
    feedback: Mapping[str, str]
    options: tuple[Option, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def read_questions(path: Path) -> list[Question]:
    """Return a file's questions in order. UsageError names the file and the line that cannot be read."""
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
    feedback = [_pair(*item) for item in _items(r"- ", sections.get("Wrong answers", []))]
    decisions = []
    listed = _items(r"- \[| +- ", sections.get("Options", []))
    for first, second in zip(listed[::2], [*listed[1::2], (number, "")], strict=False):
        mark, option = _match(OPTION, *first)
        feedback.append(_pair(*second))
        decisions.append((option, mark == "x", feedback[-1][0]))
    random.Random(f"{id} choices").shuffle(decisions)
    names = [name for name, _ in feedback]
    if len(set(names)) != len(names) or len(names) < 2:
        raise _FormatError(number, f"its misconceptions are {names}", "name two or more, each once")
    data = parse_yaml(_block("yaml", number, sections["Data"]), dict[str, Any], where=id) if "Data" in sections else {}
    return Question(
        id=id,
        title=title,
        prompt=_joined(prompt),
        starter=_block("python", number, sections["Cell"]),
        hints=tuple(_match(HINT, *item)[0] for item in _items(r"\d+\. ", sections["Hints"])),
        feedback=dict(feedback),
        options=tuple(Option(code, *rest) for code, rest in zip(string.ascii_uppercase, decisions, strict=False)),
        data=data,
    )


def _match(form: tuple[str, str], number: int, text: str) -> tuple[str, ...]:
    pattern, in_words = form
    match = re.fullmatch(pattern, text)
    if not match:
        raise _FormatError(number, f"{text!r} does not have the expected form", f"write {in_words}")
    return match.groups()


def _pair(number: int, text: str) -> tuple[str, str]:
    name, feedback = _match(FEEDBACK, number, text)
    return name, feedback


def _block(language: str, number: int, lines: Lines) -> str:
    match = re.fullmatch(rf"```{language}\n(.*)\n```", _joined(lines), re.DOTALL)
    if not match:
        at = lines[0][0] if lines else number
        raise _FormatError(at, f"a block of {language} is missing", f"write ```{language}, the lines, ```")
    return match[1]


def _items(start: str, lines: Lines) -> Lines:
    """Return a list's items with their line numbers, each joined to one line; `start`: how an item begins."""
    items: Lines = []
    for number, line in lines:
        if re.match(start, line):
            items.append((number, line.strip()))
        elif line.strip():
            if not items or line[0] != " ":
                raise _FormatError(number, f"{line!r} is not part of a list", "indent it, or begin an item")
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
    return items


def _split(marker: str, lines: Lines) -> list[tuple[int, str, Lines]]:
    """Return (line, heading, lines below) for each heading outside code blocks; first the text before, at line 0."""
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
