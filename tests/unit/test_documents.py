"""Prompts over documents: exact lengths, shared exactly where asked, refused where impossible."""

import re
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course.page_prompts import Document, check_pages, load_documents, pages_with_questions
from labkit.errors import UsageError
from tests.unit.refusals import not_refused

quick = settings(max_examples=60)
DOCUMENTS = load_documents()


def encode(text: str) -> list[int]:
    """A tokenizer for tests: words and single signs, by their characters."""
    return [int.from_bytes(piece.encode()[:6], "big") for piece in re.findall(r"\w+|\W", text)]


def common(a: list[int], b: list[int]) -> int:
    """Tokens that two prompts have in common from their beginning."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def test_pages_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    """A README is none of them, and alone it makes no workload."""
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UsageError, match="0 documents"):
        load_documents(tmp_path)
    for name in "cab":
        (tmp_path / f"{name}.md").write_text(f"# {name}")
    assert [document.text for document in load_documents(tmp_path)] == ["# a", "# b", "# c"]


@quick
@given(st.lists(st.integers(0, 14), min_size=1, max_size=20), st.integers(16, 120), st.integers(1, 60))
def test_pages_come_again_and_questions_never(order: list[int], page: int, question: int) -> None:
    """Prompts of one number share its page and no question; other numbers differ within the page's first tokens."""
    prompts = pages_with_questions(DOCUMENTS, encode, order=order, page_tokens=page, question_tokens=question)
    for k, a in enumerate(prompts):
        assert len(a) == page + question
        for other, b in zip(order[:k], prompts[:k], strict=True):
            assert common(a, b) == page if other == order[k] else common(a, b) < 16


def test_pages_that_cannot_be_are_refused() -> None:
    """A page shorter than a block, one longer than its text, and one page more than the text gives; the prompts refuse
    a text that is too short, too."""
    only = [Document("only", " ".join("a" * 18))]
    check_pages(only, encode, page_tokens=32, pages=4, block_size=32)
    bad = [
        ((16, 4), "page_tokens is 16: a page does not fill a block of 32"),
        ((40, 4), "40 tokens of only are needed, but it has 35"),
        ((32, 5), "32 tokens of only are needed, but it has 35"),
    ]
    assert not_refused(lambda n: check_pages(only, encode, page_tokens=n[0], pages=n[1], block_size=32), bad) == []
    with pytest.raises(UsageError, match=r"(?s)40 tokens of only are needed, but it has 35.*at most 35"):
        pages_with_questions(only, encode, order=[0], page_tokens=40, question_tokens=2)
