"""Exercises of lab 00: what a model takes in memory, from the numbers in its config."""

from typing import Any, Protocol

from labkit.teaching.exercises import Context, Misconception, ValueExercise, by_id


class Config(Protocol):
    """The numbers of a model's config that these exercises are asked with (`models.Architecture` has them)."""

    @property
    def layers(self) -> int: ...
    @property
    def attention_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def dtype_bytes(self) -> int: ...
    @property
    def parameters(self) -> int | None: ...


# For tests: any config whose numbers of heads, layers and bytes all differ. A lab passes its own model's.
EXAMPLE: dict[str, Any] = {
    "layers": 30,
    "attention_heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "hidden_size": 576,
    "dtype_bytes": 2,
}


def facts(config: Config) -> Context:
    """The context for this lab's exercises, out of a model's architecture."""
    return {name: getattr(config, name) for name in (*EXAMPLE, "parameters")}


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, dtype_bytes: int) -> int:
    keys_and_values = 2
    return keys_and_values * layers * kv_heads * head_dim * dtype_bytes


KV_BYTES = ValueExercise(
    id="00.kv_bytes_per_token",
    title="what one token leaves in the KV cache",
    prompt="""
While a request runs, the engine keeps what attention has computed for each of its tokens. This model's config says:
{layers} layers, {attention_heads} attention heads, {kv_heads} KV heads of {head_dim} numbers each, a hidden size of
{hidden_size}, and {dtype_bytes} bytes for a number. How many bytes does **one token** take in the KV cache?
""",
    starter="kv_bytes_per_token = ...  # bytes",
    answer_name="kv_bytes_per_token",
    unit="bytes",
    needs=EXAMPLE,
    solution=kv_bytes_per_token,
    hints=(
        "What is kept of a token are the vectors that later tokens look up. How many kinds does attention have?",
        "Several attention heads may share one pair of vectors (grouped-query attention): the config counts them.",
        "Every layer keeps its own. Multiply kinds of vectors, layers, KV heads, numbers in a head, bytes in each.",
    ),
    misconceptions=(
        Misconception(
            "all attention heads instead of the KV heads",
            "This takes as many heads as the query side has (their width together is the hidden size). In grouped-query"
            " attention several query heads share one key and one value head, and only those are kept.",
            (
                lambda layers, attention_heads, head_dim, dtype_bytes: (
                    2 * layers * attention_heads * head_dim * dtype_bytes
                ),
                lambda layers, hidden_size, dtype_bytes: 2 * layers * hidden_size * dtype_bytes,
            ),
        ),
        Misconception(
            "half of it: keys without values",
            "Half of what it takes. A token leaves a key and a value, not one vector; and a 16-bit number takes more"
            " than one byte. One of the two was left out.",
            (lambda layers, kv_heads, head_dim, dtype_bytes: layers * kv_heads * head_dim * dtype_bytes,),
        ),
        Misconception(
            "bits for bytes",
            "This is the number of bits. The question, and every memory figure that the engine prints, is in bytes.",
            (lambda layers, kv_heads, head_dim, dtype_bytes: 16 * layers * kv_heads * head_dim * dtype_bytes,),
        ),
        Misconception(
            "one layer only",
            "This is what a single layer keeps. Each layer attends with keys and values of its own, so each keeps"
            " them.",
            (lambda kv_heads, head_dim, dtype_bytes: 2 * kv_heads * head_dim * dtype_bytes,),
        ),
        Misconception(
            "one head only",
            "This counts a single head. Each KV head has its own key and value.",
            (lambda layers, head_dim, dtype_bytes: 2 * layers * head_dim * dtype_bytes,),
        ),
    ),
)


def weight_bytes(parameters: int, dtype_bytes: int) -> int:
    return parameters * dtype_bytes


WEIGHTS = ValueExercise(
    id="00.weight_bytes",
    title="what the weights take",
    prompt="""
This model has {parameters:,} parameters, each stored as a number of {dtype_bytes} bytes. How many bytes do its
**weights** take, before a single request has arrived? (Within a percent is close enough.)
""",
    starter="weight_bytes = ...  # bytes",
    answer_name="weight_bytes",
    unit="bytes",
    needs={"dtype_bytes": EXAMPLE["dtype_bytes"], "parameters": 134_515_008},
    solution=weight_bytes,
    tolerance=0.01,
    hints=(
        "A parameter is one number. How many bytes is a number stored in?",
        "bf16 is the name of a 16-bit number; eight bits are a byte.",
    ),
    misconceptions=(
        Misconception(
            "32-bit numbers",
            "This counts four bytes for each parameter, as for 32-bit floats. Models are served in the type that their"
            " config names.",
            (lambda parameters: 4 * parameters,),
        ),
        Misconception(
            "bits for bytes",
            "This is the number of bits. Divide by the number of bits in a byte.",
            (lambda parameters, dtype_bytes: 8 * parameters * dtype_bytes,),
        ),
        Misconception(
            "a parameter taken for a byte",
            "This is how many parameters there are. Each of them takes more than one byte, unless the weights are"
            " quantised to 8 bits.",
            (lambda parameters: parameters,),
        ),
    ),
)

EXERCISES = by_id([KV_BYTES, WEIGHTS])
