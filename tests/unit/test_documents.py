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
    check_retrieval,
    load_documents,
    pages_with_questions,
    retrieval,
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
@given(st.integers(2, 6), st.integers(2, 700), st.data())
def test_prompts_share_exactly_what_was_asked(requests: int, prompt_tokens: int, data: st.DataObject) -> None:
    """Every prompt has its length; any two agree in the shared tokens and differ in the next one."""
    shared = data.draw(st.integers(0, prompt_tokens - 1))
    prompts = retrieval(DOCUMENTS, encode, requests=requests, prompt_tokens=prompt_tokens, shared_tokens=shared)
    assert {len(prompt) for prompt in prompts} == {prompt_tokens}
    assert {common(a, b) for k, a in enumerate(prompts) for b in prompts[:k]} == {shared}


def test_a_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    """Same seed, same tokens; another seed shares the document's part only."""
    options = {"requests": 3, "prompt_tokens": 90, "shared_tokens": 40}
    first, again, other = (retrieval(DOCUMENTS, encode, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again
    assert all(a[:40] == b[:40] and a != b for a, b in zip(first, other, strict=True))


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
    with pytest.raises(UsageError, match="10 tokens are asked of short, which has 5") as caught:
        pages_with_questions(short, encode, order=[0], page_tokens=10, question_tokens=2)
    assert "at most 5" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("values", "message", "remedy"),
    [
        ({"shared_tokens": [0, 160]}, "160 tokens of a prompt are to be shared, but it has 160", "at most 159"),
        ({"shared_tokens": [200]}, "200 tokens of a prompt", "at most 159"),
        ({"output_tokens": [2, 90]}, "160 and 90 output tokens make 250; the model takes 200", "at most 110"),
        ({"prompt_tokens": 500}, "500 and 24 output tokens make 524", "at most 176"),
        ({"block_size": 256}, "128 tokens are shared at most: not a full block of 256", "256 or more"),
        ({"prompt_tokens": 1, "shared_tokens": [0]}, "prompt_tokens is 1", "2 or more"),
    ],
)
def test_sizes_that_cannot_be_are_refused(values: dict[str, list[int]], message: str, remedy: str) -> None:
    """More shared tokens than the prompt has, and prompts longer than the model, with number and remedy."""
    sizes = {"prompt_tokens": 160, "shared_tokens": [0, 128], "output_tokens": [2, 24], "max_positions": 200}
    with pytest.raises(UsageError, match=message) as caught:
        check_retrieval(**{**sizes, **values})  # type: ignore[arg-type]
    assert remedy in str(caught.value.remedy)


def test_sizes_that_fit_pass() -> None:
    """The longest prompt that the model takes, with all but one token shared, is accepted."""
    check_retrieval(prompt_tokens=176, shared_tokens=[175], output_tokens=[24], max_positions=200, block_size=175)


@pytest.mark.parametrize(
    ("page_tokens", "pages", "message"),
    [
        (16, 4, "page_tokens is 16: a page does not fill a block of 32"),
        (40, 4, "40 tokens are asked of only, which has 35"),
        (32, 5, "32 tokens are asked of only, which has 35"),
    ],
)
def test_pages_that_cannot_be_are_refused(page_tokens: int, pages: int, message: str) -> None:
    """A page shorter than a block, one longer than its text, and one page more than the text gives."""
    only = [Document("only", " ".join("a" * 18))]
    check_pages(only, encode, page_tokens=32, pages=4, block_size=32)
    with pytest.raises(UsageError, match=message):
        check_pages(only, encode, page_tokens=page_tokens, pages=pages, block_size=32)
