"""How many cards hold a model: arithmetic on the answers `size`, `card` and `hardware`."""

from collections.abc import Mapping

GB_PER_BILLION = 2  # weights in 16 bits
LEAST_CACHE = 0.1  # of the weights: the least that KV cache and activations need
USABLE = 0.92  # of a card: vLLM's own default for gpu_memory_utilization
PER_MACHINE = 8  # cards
NO_GPU = ("laptop", "cpu")  # hardware where the main memory counts; a laptop's small GPU is llama.cpp's to use
FITS = ("one", "cards", "machines")
"""A card (or the main memory) holds the model; several cards of one machine do; it takes several machines."""


def number(option: str) -> int:
    """The number of an option such as 34b (billions of parameters), 80gb or 32k."""
    return int(option.rstrip("bgk"))


def cards_needed(answers: Mapping[str, str]) -> int:
    """Cards for one replica in 16 bits: a power of two, as tensor parallelism wants it. 1 where there are no cards."""
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
    """The result in a sentence; empty where no card or no engine for the model is in question."""
    if answers["hardware"] in NO_GPU or answers["kind"] == "other":
        return ""
    billions, card_gb, cards = number(answers["size"]), number(answers["card"]), cards_needed(answers)
    model, machines = f"{billions} billion parameters in 16 bits", cards // PER_MACHINE
    if cards == 1:
        return f"One card of {card_gb} GB holds {model}."
    parts = f", {PER_MACHINE} in each of {machines} machines" if machines > 1 else ""
    return f"A replica of {model} takes {cards} cards of {card_gb} GB{parts}."
