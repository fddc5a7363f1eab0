"""The instructor's guide says what is so: minutes, labs, commands and messages are held to data and code."""

import re
from functools import cache
from pathlib import Path

import pytest

from labkit.files import root
from labkit.labs import LABS
from tests.unit.test_cli import COMMANDS

GUIDE = root() / "docs" / "workshops.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, its head left out."""
    lines = TEXT.partition(f"\n{heading}\n")[2].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|---")) + 1
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


@cache
def source_of_labkit() -> str:
    """All of the package's source."""
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(Path(root(), "labkit").rglob("*.py")))


PLANS = ["## Half a day", "## A full day"] + [
    f"**{line}**" for line in re.findall(r"^\*\*((?:Mon|Tues|Wednes|Thurs|Fri)day: .+)\*\*$", TEXT, re.MULTILINE)
]


def test_every_lab_has_its_minutes_and_talking_points() -> None:
    """Each lab of the course stands once in the table, with the minutes of labs.yaml, and has its paragraph."""
    table = {row[0]: row[1] for row in rows_after("## The labs in minutes")}
    for name, lab in LABS.items():
        title = name.replace("_", " ")
        assert table.get(title) == f"{lab.minutes:g}"
        assert TEXT.count(f"\n**{title}.** ") == 1


@pytest.mark.parametrize("plan", PLANS)
def test_a_plans_minutes_add_up(plan: str) -> None:
    """The last row is the sum of the others; each lab in a plan is one, with more minutes than its engine takes."""
    *blocks, total = rows_after(plan)
    assert f"**{sum(int(row[0]) for row in blocks)}**" == total[0]
    engine = {row[0]: float(row[1]) for row in rows_after("## The labs in minutes")}
    taught = [(row[1], int(row[0])) for row in blocks if row[1][:2].isdigit()]
    assert taught
    assert all(given > engine[lab] for lab, given in taught)


def test_the_week_has_five_days() -> None:
    """No day's table was missed by the search for plans."""
    assert len(PLANS) == 2 + 5


def test_the_messages_are_labkits() -> None:
    """Each piece of a message stands in the package's source, so a learner can meet it."""
    messages = [row[0].strip("`") for row in rows_after("## Failures and cures")]
    assert len(messages) == len(set(messages)) > 10
    assert [message for message in messages if message not in source_of_labkit()] == []


def test_the_commands_exist() -> None:
    """No command of labkit and no target of make is promised that is not there."""
    shown = re.findall(r"`([^`\n]+)`", TEXT) + re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    called = {name for text in shown for name in re.findall(r"\blabkit ([a-z][a-z-]*)", text)}
    assert called <= COMMANDS
    assert {"progress", "solutions", "workshop-check"} <= called
    targets = set(re.findall(r"^([a-z-]+):", (root() / "Makefile").read_text(), re.MULTILINE))
    made = {name for text in shown for line in re.findall(r"\bmake ([a-z -]+)", text) for name in line.split()}
    assert {"setup", "fetch", "workshop-check"} <= made <= targets


def test_the_links_lead_somewhere() -> None:
    """Files that are linked exist, and headings too, here and in the other file."""
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, anchor = target.partition("#")
        path = (GUIDE.parent / file).resolve() if file else GUIDE
        assert path.exists(), target
        headings = re.findall(r"^##+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {_anchor(heading) for heading in headings}, target


def _anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
