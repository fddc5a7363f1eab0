"""Creating a new lab: valid names, entries in shared files, no file overwritten."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.files import FAST_LOADER, root
from labkit.labs import LABS
from tests.unit.refusals import not_refused
from tools import new_lab

CHANGED = {
    name: (root() / name).read_text(encoding="utf-8")
    for name in ("data/labs.yaml", "README.md", "docs/workshops.md", "docs/workshop/lab-by-lab.md")
}
LABS_TEXT, README, GUIDE, NOTES = CHANGED.values()
FREE = [f"{number:02d}" for number in range(1, 100) if f"{number:02d}" not in {name[:2] for name in LABS}]
PRINTABLE = st.characters(codec="utf-8").filter(str.isprintable)
words = st.text(PRINTABLE, min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


def made(name: str, **more: str) -> new_lab.NewLab:
    """A new lab beside those of the course."""
    return new_lab.plan(name, labs=list(LABS), **more)


def test_what_cannot_be_a_lab_is_refused() -> None:
    """Only two digits and words in lower case are a name; of a taken number the lab that has it is named, and a number
    that no lab has. A title of two lines, none or control characters would break the files that it goes into."""
    names = ("", "13", "13_", "x13_more", "3_more", "13_More", "13-more", "13_a__b", "13_a/b")
    table: list[tuple[dict[str, str], str]] = [({"name": name}, "13_speculative_decoding") for name in names]
    table += [({"name": "03_more"}, says) for says in ("taken by 03_prefix_caching", f"{FREE[0]} is free")]
    for wrong in ({"title": "a\nb"}, {"question": " "}, {"title": "a\x07"}):
        table.append(({"name": f"{FREE[0]}_more", **wrong}, "one line"))
    assert not_refused(lambda names: made(**names), table) == []


@settings(max_examples=20, deadline=None)
@example(number=FREE[0], title='"a": {b} #c', question="\U0001003a")
@given(number=st.sampled_from(FREE), title=words, question=words)
def test_an_entry_goes_to_its_place_and_moves_nothing(number: str, title: str, question: str) -> None:
    """For any free number and texts: the labs stay in order, the old ones as they were, the new one says its texts."""
    lab = made(f"{number}_made", title=title, question=question)
    entries = yaml.load(new_lab.with_entry(LABS_TEXT, lab), FAST_LOADER)
    assert list(entries) == sorted(entries)
    assert (entries[lab.name]["title"], entries[lab.name]["question"]) == (title, question)
    del entries[lab.name]
    assert entries == yaml.load(LABS_TEXT, FAST_LOADER)


@given(st.sampled_from(FREE))
def test_a_row_goes_to_its_place_in_the_readme(number: str) -> None:
    """One line more, after every lab with a smaller number and before every other."""
    before, after = README.splitlines(), new_lab.in_readme(README, made(f"{number}_made")).splitlines()
    (row,) = [line for line in after if line not in before]
    assert [line for line in after if line != row] == before
    numbers = [line[3:5] for line in after if line.startswith("| [") and line[3:5].isdigit()]
    assert numbers == sorted(numbers)
    assert number in numbers


@given(st.sampled_from(FREE))
def test_the_guide_gets_a_row_and_a_paragraph(number: str) -> None:
    """Rows and paragraphs stay in order, one more of each, and nothing that was there is gone; a text without any is
    refused."""
    lab = made(f"{number}_made")
    guide, notes = new_lab.in_guide(GUIDE, lab), new_lab.in_notes(NOTES, lab)
    for pattern, before, after in (
        (r"^\| ([0-9]{2}[a-z]?) [a-z ]+ \| [\d.]+ \| \d+ \| [^|]+ \|$", GUIDE, guide),
        (r"^\*\*([0-9]{2}[a-z]?) [^*]*\.\*\* ", NOTES, notes),
    ):
        found, old = (re.findall(pattern, text, re.MULTILINE) for text in (after, before))
        assert found == sorted([*old, number])
        new = set(after.splitlines()) - set(before.splitlines())
        assert [line for line in after.splitlines() if line not in new and line] == [
            x for x in before.splitlines() if x
        ]
    lines = guide.splitlines()
    (row,) = [n for n, line in enumerate(lines) if line.startswith(f"| {number} made ")]
    assert re.match(r"\| [0-9]{2}[a-z]? [a-z]", lines[row - 1])
    with pytest.raises(UsageError, match="no table of labs"):
        new_lab.in_readme("# Another\n", lab)
    with pytest.raises(UsageError, match="has no labs"):
        new_lab.in_notes("| 00 start here | 1 |\n", lab)


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    """When one of the new files is there already, it is named and not one file is changed. (What a new lab is worth:
    tests/notebooks/test_new_lab.py.)"""
    for name, text in CHANGED.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    lab = made(f"{FREE[-1]}_made")
    for path in [path for path, _ in new_lab.files(lab, tmp_path)][: new_lab.NEW_FILES]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
        with pytest.raises(UsageError, match=f"{path.name} exists already"):
            new_lab.lay_out(lab, tmp_path)
        assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before
        path.unlink()
