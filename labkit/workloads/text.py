"""Words for prompts: a small vocabulary of our own, and sentences drawn from it by a seeded generator."""

from collections.abc import Iterator
from itertools import islice
from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words(
    "Ada Bruno Chiara Dmitri Elif Farid Greta Hana Ivo Jamila Kofi Lena Mateo Nora Omar Priya Quentin Rosa Tariq"
)
_CITIES = _words(
    "Accra Bergen Cusco Dakar Essen Fukuoka Galway Hanoi Izmir Jaipur Kyoto Lisbon Malmo Nantes Oslo Porto Riga"
)
_ADJECTIVES = _words(
    "amber brittle careful distant early faded gentle hollow idle jagged keen lively modest narrow old patient quiet "
    "rapid silver tall uneven vivid warm young"
)
_NOUNS = _words(
    "archive bridge canal depot engine ferry garden harbour island journal kitchen ledger market notebook orchard pump "
    "quarry railway signal theatre umbrella valley workshop yard"
)
_VERBS = _words(
    "answers borrows carries delays empties follows guards heats inspects joins keeps lifts moves needs opens passes "
    "questions repairs shelters tests unlocks visits warns"
)
_TIMES = _words("today tonight yesterday daily weekly monthly sometimes often rarely twice again later soon")
_QUESTIONS = (
    "What should be done first, and why?",
    "Summarise this for a new colleague in three sentences.",
    "Which of these matters most, and to whom?",
    "Write a short and friendly reply to this message.",
    "List the open questions and who could answer them.",
    "Explain the likely cause to somebody without any background.",
)
_OPENER_WORDS = 6
SHORTEST_PROMPT_WORDS = _OPENER_WORDS + 1 + max(len(question.split()) for question in _QUESTIONS)


def _sentences(rng: Random) -> Iterator[str]:
    while True:
        subject = f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
        yield f"{subject} {rng.choice(_VERBS)} the {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} {rng.choice(_TIMES)}."


def passage(rng: Random, words: int) -> list[str]:
    """Exactly `words` words of plain sentences, the last one cut where the count ends."""
    stream = (word for sentence in _sentences(rng) for word in sentence.split())
    return list(islice(stream, words))


def message(rng: Random, *, seed: int, index: int, words: int) -> str:
    """A message of exactly `words` words (SHORTEST_PROMPT_WORDS or more): opener, passage, question.

    Seed and index stand in the opener, so two messages differ within their first few tokens: no cache finds a prefix
    that they share by accident."""
    tag = f"{seed}-{index}-{rng.randrange(10_000)}"
    opener = ["Message", tag, "from", rng.choice(_NAMES), "in", f"{rng.choice(_CITIES)}:"]
    question = rng.choice(_QUESTIONS).split()
    middle = passage(rng, words - len(opener) - len(question))
    middle[-1] = f"{middle[-1].rstrip('.')}..."
    return " ".join(opener + middle + question)
