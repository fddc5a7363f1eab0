"""Calculate how many cards hold a model from the answers `size`, `card` and `hardware`."""

from collections.abc import Mapping

GB_PER_BILLION = 2  # weights in 16 bits
LEAST_CACHE = 0.1  # smallest KV cache and activations, relative to the weights
USABLE = 0.92  # share of a card's memory: vLLM's default of gpu_memory_utilization
PER_MACHINE = 8  # cards
NO_GPU = ("laptop", "cpu")  # hardware whose main memory holds the model
FITS = ("one", "cards", "machines", "some", "none")
"""The model fits on one card or in main memory, on several cards of one machine, or on several machines. With a single
card: some models of that size fit on some such cards, or none on any."""
SMALLEST_MODEL_B = {"4b": 1, "9b": 5, "15b": 10, "34b": 16, "80b": 35, "250b": 81, "700b": 251}
LARGEST_CARD_GB = {"8gb": 12, "16gb": 22, "24gb": 32, "40gb": 48, "80gb": 128, "141gb": 141, "180gb": 288}
"""The smallest model and the largest card of each option, as the options' labels say. AMD's MI355X has 288 GB."""


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
    """Return one of `FITS`."""
    cards = cards_needed(answers)
    if cards == 1 or answers["hardware"] != "one":
        return "one" if cards == 1 else "cards" if cards <= PER_MACHINE else "machines"
    least_gb = GB_PER_BILLION * SMALLEST_MODEL_B[answers["size"]] * (1 + LEAST_CACHE)
    return "some" if least_gb <= USABLE * LARGEST_CARD_GB[answers["card"]] else "none"


def in_words(answers: Mapping[str, str]) -> str:
    """Return a sentence about the cards; empty without cards or an LLM engine."""
    if answers["hardware"] in NO_GPU or answers["kind"] == "other":
        return ""
    billions, card_gb, cards = number(answers["size"]), number(answers["card"]), cards_needed(answers)
    model, machines = f"{billions} billion parameters in 16 bits", cards // PER_MACHINE
    if cards == 1:
        return f"One card of {card_gb} GB holds {model}."
    if answers["hardware"] == "one":
        smallest_b, largest_gb = SMALLEST_MODEL_B[answers["size"]], LARGEST_CARD_GB[answers["card"]]
        weights = _range(GB_PER_BILLION * smallest_b, GB_PER_BILLION * billions)
        usable = _range(int(USABLE * card_gb), int(USABLE * largest_gb))
        return (
            f"Models of {_range(smallest_b, billions)} billion parameters have {weights} GB of weights in 16 bits, and "
            f"the KV cache takes at least a tenth more; an engine uses {usable} GB of a card of "
            f"{_range(card_gb, largest_gb)} GB."
        )
    parts = f", {PER_MACHINE} in each of {machines} machines" if machines > 1 else ""
    return f"A replica of {model} takes {cards} cards of {card_gb} GB{parts}."


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
