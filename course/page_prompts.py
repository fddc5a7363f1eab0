"""Prompts over documents, for the lab on prefix caching: a shared beginning, then a different question each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from labkit.errors import UsageError
from labkit.files import data_path

Encode = Callable[[str], Sequence[int]]
Tokens = list[int]
QUESTIONS = (
    "Which button do I press to silence it?",
    "What does the letter on the display mean?",
    "How long does it take until something happens?",
    "What do I have to check in autumn?",
    "Why does the ring of light turn red?",
    "Can I change that limit, and where?",
)


@dataclass(frozen=True)
class Document:
    """One page: the name of its file without the ending, and its text."""

    name: str
    text: str


def load_documents(folder: Path | None = None) -> tuple[Document, ...]:
    """Return the pages of `folder` (default: data/documents) by name, without its README. UsageError: none."""
    folder = folder or data_path("documents")
    paths = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    if not paths:
        raise UsageError(f"{folder} holds 0 documents", remedy="put .md files there, or restore data/documents")
    return tuple(Document(path.stem, path.read_text(encoding="utf-8").strip()) for path in paths)


def check_pages(
    documents: Sequence[Document], encode: Encode, *, page_tokens: int, pages: int, block_size: int
) -> None:
    """Raise a UsageError unless there are `pages` different pages of `page_tokens` tokens, and each fills a block."""
    if page_tokens < block_size:
        raise UsageError(
            f"page_tokens is {page_tokens}: a page does not fill a block of {block_size}, so no page can be cached",
            remedy=f"pass page_tokens of {block_size} or more",
        )
    lap = (pages - 1) // len(documents)
    for document in documents:
        _page(document, encode(document.text), lap=lap, tokens=page_tokens)


def pages_with_questions(
    documents: Sequence[Document], encode: Encode, *, order: Sequence[int], page_tokens: int, question_tokens: int
) -> list[Tokens]:
    """One prompt for each entry of `order`: the first `page_tokens` tokens of that document, then a new question.

    Numbers in `order` beyond the documents reuse their pages from another position on, as further documents.
    Question k is different from every other. UsageError for pages shorter than asked for.
    """
    texts = [encode(document.text) for document in documents]
    starts = [divmod(number, len(documents)) for number in order]
    pages = [_page(documents[which], texts[which], lap=lap, tokens=page_tokens) for lap, which in starts]
    return [page + _question(encode, index, tokens=question_tokens) for index, page in enumerate(pages)]


def _page(document: Document, every: Sequence[int], *, lap: int, tokens: int) -> Tokens:
    """Return a page from its `lap`-th token on, so that no two laps begin alike. `every`: all of its tokens."""
    if lap + tokens > len(every):
        raise UsageError(
            f"{tokens} tokens of {document.name} are needed, but it has {len(every)}",
            remedy=f"ask for at most {len(every) - lap}, or put longer pages into data/documents",
        )
    return list(every[lap : lap + tokens])


def _question(encode: Encode, index: int, *, tokens: int) -> Tokens:
    """Return exactly `tokens` tokens: a number that no other question has, a question, and more if they fit."""
    turn = index % len(QUESTIONS)
    return list(islice(cycle(encode(" ".join((f"{index}.", *QUESTIONS[turn:], *QUESTIONS[:turn])))), tokens))
