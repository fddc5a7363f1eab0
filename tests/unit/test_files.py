"""Data files are read as typed, frozen data; what is wrong in them is named with file and place."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from labkit.errors import UsageError, require
from labkit.files import Frozen, read_named, read_yaml


class Entry(Frozen):
    name: str
    size: int


def test_require_refuses_with_what_and_the_fix() -> None:
    require(True, "all is well", fix="")
    with pytest.raises(UsageError, match="size is 0\n  To fix it: pass 1"):
        require(False, "size is 0", fix="pass 1")


def test_entries_are_read_typed_with_their_names_and_frozen(tmp_path: Path) -> None:
    path = tmp_path / "entries.yaml"
    path.write_text("a: {size: 1}\nb: {size: 2}\n")
    entries = read_named(path, Entry)
    assert entries == {"a": Entry(name="a", size=1), "b": Entry(name="b", size=2)}
    with pytest.raises(ValidationError, match="frozen"):
        entries["a"].size = 3


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: {size: many}", r"entries\.yaml: a is not valid: size"),
        ("a: {size: 1, colour: red}", r"entries\.yaml: a is not valid: colour"),
        ("a: 5", r"entries\.yaml is not valid: a"),
        ("a: {size: [", r"entries\.yaml is not valid YAML: [\s\S]*line \d"),
        ("", r"entries\.yaml is not valid"),
    ],
)
def test_an_error_names_the_file_and_the_place(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "entries.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=place):
        read_named(path, Entry)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml cannot be read"):
        read_yaml(tmp_path / "absent.yaml", dict[str, Entry])
