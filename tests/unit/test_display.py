"""Source code as notebooks show it: classes and methods by name, and files that are not imported."""

from pathlib import Path

import pytest

from labkit.display import show_source, source_of
from labkit.serving.torchserve import handlers_path
from labkit.teaching import questions
from tests.unit.refusals import not_refused


def test_definitions_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """Methods by their class's name, classes and functions by their own, with decorators, separated by an empty line;
    without names the whole file. An unknown name is refused with those there are."""
    path = tmp_path / "mine.py"
    path.write_text("@one\nclass A:\n    def go(self): ...\n\n\n@cached\ndef one(): ...\n")
    assert source_of(path, "one", "A.go") == "@cached\ndef one(): ...\n\n    def go(self): ..."
    assert source_of(path, "A") == "@one\nclass A:\n    def go(self): ..."
    assert source_of(path) == path.read_text().strip()
    said = "mine.py has no two\n  To fix it: choose from A, A.go, one"
    assert not_refused(lambda name: source_of(path, name), [("two", said)]) == []


def test_a_source_is_printed_with_its_files_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside of a notebook it is printed, below the file's name as seen from the repository."""
    show_source(handlers_path() / "sleep.py", "batch_seconds")
    assert capsys.readouterr().out.startswith("# handlers/sleep.py\n\ndef batch_seconds(")
    show_source(questions, "read_questions")
    assert capsys.readouterr().out.startswith("# labkit/teaching/questions.py\n\ndef read_questions(")
