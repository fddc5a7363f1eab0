"""Data files are read as typed, frozen data; what is wrong in them is named with file and place."""

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from labkit.errors import UsageError
from labkit.files import Frozen, parse_settings, read_named, read_yaml
from labkit.labs import load_profile
from labkit.machine import inspect
from tests.unit.refusals import not_refused


class Entry(Frozen):
    name: str
    size: int


def test_entries_are_read_typed_with_their_names_and_frozen(tmp_path: Path) -> None:
    path = tmp_path / "entries.yaml"
    path.write_text("a: {size: 1}\nb: {size: 2}\n")
    entries = read_named(path, Entry)
    assert entries == {"a": Entry(name="a", size=1), "b": Entry(name="b", size=2)}
    with pytest.raises(ValidationError, match="frozen"):
        entries["a"].size = 3


def test_an_error_names_the_file_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "entries.yaml"
    wrong = {
        "a: {size: many}": "entries.yaml: a is not valid: size",
        "a: {size: 1, colour: red}": "entries.yaml: a is not valid: colour",
        "a: 5": "entries.yaml is not valid: a",
        "a: {size: [": "line 2",
        "": "entries.yaml is not valid",
    }

    def read(text: str) -> object:
        path.write_text(text)
        return read_named(path, Entry)

    assert not_refused(read, wrong.items()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml cannot be read"):
        read_yaml(tmp_path / "absent.yaml", dict[str, Entry])


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20))
HOSTILE = [
    (BOMB, "it has more than 1,000,000 values"),
    ("&a [*a]", "*a refers to itself"),
    ("[" * 100_000, "nested more than 64 deep"),
    ("{a: " * 100_000, "nested more than 64 deep"),
    ("- " * 100_000, "nested more than 64 deep"),
    ("9" * 5_000, "too large a number"),
    (":".join(["1"] * 3_000), "too large a number"),
    ("9" * 400, "too large a number"),
    ("2026-02-30", "day"),
]


def test_hostile_yaml_is_refused_at_once(tmp_path: Path) -> None:
    """From a file, a profile and a setting: a short message, before anything is built."""
    path, began_s = tmp_path / "hostile.yaml", time.process_time()

    def read(text: str) -> Any:
        path.write_text(text)
        return read_yaml(path, Any)

    only_files = [
        ("a: {b: 1, b: 2}", "b appears twice"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("# nothing", "it is empty"),
        ("!!python/object:os.system x", "not valid YAML"),
        ("\0", "not valid YAML"),
        (" " * 10_000_001, "more than 10,000,000 bytes"),
    ]
    assert not_refused(read, [*HOSTILE, *only_files]) == []
    assert not_refused(lambda text: parse_settings([f"n={text}"]), HOSTILE) == []
    path.write_text(f"all: {{seed: [{BOMB.splitlines()[0][4:]}, {'[' * 100}")
    with pytest.raises(UsageError, match="nested more than"):
        load_profile(str(path), inspect())
    with pytest.raises(UsageError) as refused:
        read(f"[{'9' * 5_000}, ")
    assert len(str(refused.value)) < 1_000
    assert time.process_time() - began_s < 5


def test_what_people_write_is_read(tmp_path: Path) -> None:
    """Anchors and merged keys, a byte order mark, and keys that a merge brings along and the entry overrides."""
    path = tmp_path / "good.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\n", encoding="utf-8-sig")
    assert read_yaml(path, dict[str, dict[str, int]]) == {"base": {"a": 1, "b": 2}, "mine": {"a": 1, "b": 3}}
