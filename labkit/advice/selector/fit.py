"""Calculate how many cards hold a model from the answers `size`, `card` and `hardware`."""

from collections.abc import Mapping

GB_PER_BILLION = 2  # weights in 16 bits
LEAST_CACHE = 0.1  # smallest KV cache and activations, relative to the weights
USABLE = 0.92  # share of a card's memory: vLLM's default of gpu_memory_utilization
PER_MACHINE = 8  # cards
NO_GPU = ("laptop", "cpu")  # hardware whose main memory holds the model
FITS = ("one", "cards", "machines")
"""The model fits on one card or in main memory, on several cards of one machine, or on several machines."""


def number(option: str) -> int:
    """Return the number in an option such as 34b (billions of parameters), 80gb or 32k."""
    return int(option.rstrip("bgk"))


def cards_needed(answers: Mapping[str, str]) -> int:
    """Return the cards for one replica in 16 bits, a power of two for tensor parallelism; 1 without cards."""
    if answers["hardware"] in NO_GPU:
        return 1
    needed_gb, cards = GB_PER_BILLION * number(answers["size"]) * (1 + LEAST_CACHE), 1
    while cards * USABLE * number(answers["card"]) < needed_gb:
        cards *= 2
    return cards


def fit(answers: Mapping[str, str]) -> str:
    cards = cards_needed(answers)
    return "one" if cards == 1 else "cards" if cards <= PER_MACHINE else "machines"


def in_words(answers: Mapping[str, str]) -> str:
    """Return a sentence about the cards; empty without cards or an LLM engine."""
    if answers["hardware"] in NO_GPU or answers["kind"] == "other":
        return ""
    billions, card_gb, cards = number(answers["size"]), number(answers["card"]), cards_needed(answers)
    model, machines = f"{billions} billion parameters in 16 bits", cards // PER_MACHINE
    if cards == 1:
        return f"One card of {card_gb} GB holds {model}."
    parts = f", {PER_MACHINE} in each of {machines} machines" if machines > 1 else ""
    return f"A replica of {model} takes {cards} cards of {card_gb} GB{parts}."
