"""Prompts over documents: exact lengths, shared exactly where asked, refused where impossible."""

import re
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course.page_prompts import (
    Document,
    check_pages,
    load_documents,
    pages_with_questions,
)
from labkit.errors import UsageError

quick = settings(max_examples=60, deadline=None)
DOCUMENTS = load_documents()


def encode(text: str) -> list[int]:
    """A tokenizer for tests: words and single signs, by their characters."""
    return [int.from_bytes(piece.encode()[:6], "big") for piece in re.findall(r"\w+|\W", text)]


def common(a: list[int], b: list[int]) -> int:
    """Tokens that two prompts have in common from their beginning."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def test_the_course_has_a_handful_of_pages() -> None:
    """The help pages are read in the order of their names, the README is none of them, and each is long enough."""
    assert [document.name for document in DOCUMENTS] == sorted(document.name for document in DOCUMENTS)
    assert len(DOCUMENTS) >= 5
    for document in DOCUMENTS:
        assert document.text.startswith("# ")
        assert len(document.text.split()) >= 150, document.name


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    """A README alone makes no workload."""
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UsageError, match="0 documents"):
        load_documents(tmp_path)


@quick
@given(st.lists(st.integers(0, 14), min_size=1, max_size=20), st.integers(16, 120), st.integers(1, 60))
def test_pages_come_again_and_questions_never(order: list[int], page: int, question: int) -> None:
    """Prompts of one number share its page and no question; other numbers differ within the page's first tokens."""
    prompts = pages_with_questions(DOCUMENTS, encode, order=order, page_tokens=page, question_tokens=question)
    for k, a in enumerate(prompts):
        assert len(a) == page + question
        for other, b in zip(order[:k], prompts[:k], strict=True):
            assert common(a, b) == page if other == order[k] else common(a, b) < 16


def test_a_page_that_is_too_short_is_refused() -> None:
    """The message has the page, its length and the most that can be asked for."""
    short = [Document("short", "one two three")]
    with pytest.raises(UsageError, match="10 tokens of short are needed, but it has 5") as caught:
        pages_with_questions(short, encode, order=[0], page_tokens=10, question_tokens=2)
    assert "at most 5" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("page_tokens", "pages", "message"),
    [
        (16, 4, "page_tokens is 16: a page does not fill a block of 32"),
        (40, 4, "40 tokens of only are needed, but it has 35"),
        (32, 5, "32 tokens of only are needed, but it has 35"),
    ],
)
def test_pages_that_cannot_be_are_refused(page_tokens: int, pages: int, message: str) -> None:
    """A page shorter than a block, one longer than its text, and one page more than the text gives."""
    only = [Document("only", " ".join("a" * 18))]
    check_pages(only, encode, page_tokens=32, pages=4, block_size=32)
    with pytest.raises(UsageError, match=message):
        check_pages(only, encode, page_tokens=page_tokens, pages=pages, block_size=32)
