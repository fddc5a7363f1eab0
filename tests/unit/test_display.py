"""Source code as notebooks show it: classes and methods by name, and files that are not imported."""

from pathlib import Path

import pytest

from labkit.display import show_source, source_of
from labkit.errors import UsageError
from labkit.serving.torchserve import handlers_path
from labkit.teaching import questions


def test_a_class_is_shown_with_its_decorators() -> None:
    """The source of a named class begins with its decorator and ends with its last line; it can be compiled."""
    text = source_of(questions, "Question")
    assert text.startswith("@dataclass(frozen=True, kw_only=True)\nclass Question:")
    compile(text, "shown", "exec")


def test_definitions_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """A method by its class's name, a function by its own, separated by an empty line; without names the whole file."""
    path = tmp_path / "mine.py"
    path.write_text("class A:\n    def go(self): ...\n\n\n@cached\ndef one(): ...\n")
    assert source_of(path, "one", "A.go") == "@cached\ndef one(): ...\n\n    def go(self): ..."
    assert source_of(path) == path.read_text().strip()
    with pytest.raises(UsageError, match=r"^mine\.py has no two") as caught:
        source_of(path, "two")
    assert "A.go" in caught.value.remedy


def test_a_source_is_printed_with_its_files_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside of a notebook it is printed, below the file's name as seen from the repository."""
    show_source(handlers_path() / "sleep.py", "batch_seconds")
    assert capsys.readouterr().out.startswith("# handlers/sleep.py\n\ndef batch_seconds(rows: int")
    show_source(questions, "read_questions")
    assert capsys.readouterr().out.startswith("# labkit/teaching/questions.py\n\ndef read_questions")
