"""Prompts over documents, for the lab on prefix caching: a shared beginning, then a message of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from random import Random

from labkit import errors
from labkit.errors import UsageError
from labkit.files import data_path
from labkit.load import workloads

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
    """The pages of `folder` (default: data/documents), by name; without its README. UsageError where there is none."""
    folder = folder or data_path("documents")
    paths = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    if not paths:
        raise UsageError(f"{folder} holds 0 documents", remedy="put .md files there, or restore data/documents")
    return tuple(Document(path.stem, path.read_text(encoding="utf-8").strip()) for path in paths)


def check_retrieval(
    *,
    prompt_tokens: int,
    shared_tokens: Sequence[int],
    output_tokens: Sequence[int],
    max_positions: int,
    block_size: int = 1,
) -> None:
    """Sizes that fit together and into the model; UsageError otherwise, with the number, before an engine is started.

    `prompt_tokens`: a whole prompt's; `shared_tokens` and `output_tokens`: the levels of a sweep; `max_positions`: what
    the model can take, prompt and answer together; `block_size`: the most that is shared is to fill a block at least.
    """
    errors.whole("prompt_tokens", prompt_tokens, at_least=2)
    most = max(shared_tokens)
    if most >= prompt_tokens:
        raise UsageError(
            f"{most} tokens of a prompt are to be shared, but it has {prompt_tokens}, and at least one is its own",
            remedy=f"pass shared_tokens of at most {prompt_tokens - 1}, or longer prompts",
        )
    if most < block_size:
        raise UsageError(
            f"{most} tokens are shared at most: not a full block of {block_size}, so nothing can be found",
            remedy=f"pass shared_tokens with one level of {block_size} or more",
        )
    longest = prompt_tokens + max(output_tokens)
    if longest > max_positions:
        raise UsageError(
            f"prompt_tokens {prompt_tokens} and {max(output_tokens)} output tokens make {longest}; the model takes "
            f"{max_positions}",
            remedy=f"pass prompt_tokens of at most {max_positions - max(output_tokens)}",
        )


def check_pages(
    documents: Sequence[Document], encode: Encode, *, page_tokens: int, pages: int, block_size: int
) -> None:
    """`pages` different pages of `page_tokens` tokens can be had and each fills a block; UsageError otherwise."""
    if page_tokens < block_size:
        raise UsageError(
            f"page_tokens is {page_tokens}: a page does not fill a block of {block_size}, so none can be found",
            remedy=f"pass page_tokens of {block_size} or more",
        )
    lap = (pages - 1) // len(documents)
    for document in documents:
        _page(document, encode(document.text), lap=lap, tokens=page_tokens)


def retrieval(
    documents: Sequence[Document],
    encode: Encode,
    *,
    requests: int,
    prompt_tokens: int,
    shared_tokens: int,
    seed: int = 0,
) -> list[Tokens]:
    """`requests` prompts of `prompt_tokens` tokens, of which the first `shared_tokens` are the same in all.

    The shared part comes from the documents, repeated where they are too short. What follows is each request's own: a
    message drawn from `seed` and its number, different from its beginning on. UsageError on a value out of range.
    """
    errors.whole("requests", requests, at_least=1)
    check_retrieval(
        prompt_tokens=prompt_tokens,
        shared_tokens=[shared_tokens],
        output_tokens=[0],
        max_positions=prompt_tokens,
        block_size=0,
    )
    pages = [list(encode(document.text)) for document in documents]
    shared = list(islice(chain.from_iterable(cycle(pages)), shared_tokens))
    own = prompt_tokens - shared_tokens
    return [shared + _message(encode, seed=seed, index=index, tokens=own) for index in range(requests)]


def pages_with_questions(
    documents: Sequence[Document], encode: Encode, *, order: Sequence[int], page_tokens: int, question_tokens: int
) -> list[Tokens]:
    """One prompt for each entry of `order`: the first `page_tokens` tokens of that document, then a new question.

    Numbers in `order` beyond the documents take their pages again, from another place on, as documents of their own.
    Question k is different from every other. UsageError for pages shorter than asked for.
    """
    texts = [encode(document.text) for document in documents]
    starts = [divmod(number, len(documents)) for number in order]
    pages = [_page(documents[which], texts[which], lap=lap, tokens=page_tokens) for lap, which in starts]
    return [page + _question(encode, index, tokens=question_tokens) for index, page in enumerate(pages)]


def _page(document: Document, every: Sequence[int], *, lap: int, tokens: int) -> Tokens:
    """A page, of which `every` token is given, from its `lap`-th token on, so that no two laps begin alike."""
    if lap + tokens > len(every):
        raise UsageError(
            f"{tokens} tokens are asked of {document.name}, which has {len(every)}",
            remedy=f"ask for at most {len(every) - lap}, or put longer pages into data/documents",
        )
    return list(every[lap : lap + tokens])


def _question(encode: Encode, index: int, *, tokens: int) -> Tokens:
    """Exactly `tokens` tokens: a number that no other question has, a question, and more of them if they fit."""
    turn = index % len(QUESTIONS)
    return list(islice(cycle(encode(" ".join((f"{index}.", *QUESTIONS[turn:], *QUESTIONS[:turn])))), tokens))


def _message(encode: Encode, *, seed: int, index: int, tokens: int) -> Tokens:
    """Exactly `tokens` tokens (a word is one token at least), the request's number first."""
    words = max(tokens, workloads.SHORTEST_PROMPT_WORDS)
    text = workloads.message(Random(f"retrieval/{seed}/{index}"), seed=seed, index=index, words=words)
    return list(encode(f"{index} {text}"))[:tokens]
