"""Step times: the formula by hand from public numbers, kernels against their package, and shapes."""

import json
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import ConfigError, UsageError
from labkit.modelled import cards
from labkit.modelled.cards import Card, Efficiency, KernelTables, Sheet
from labkit.modelled.engine import OVERHEAD_MS_PER_LAYER, gpu
from labkit.modelled.shapes import Shape, dense_shape, known_models, model_folder, shape_of
from labkit.modelled.step_time import (
    ALL_REDUCE_S,
    ATTENTION_EFFICIENCY,
    LINK_EFFICIENCY,
    TERMS,
    Fitted,
    Formula,
    Kernels,
    Step,
)

# Llama-3.1-8B, by hand from its public config.json: hidden 4096, 32 heads and 8 KV heads of 128, feed-forward 14336, 32
# layers, a vocabulary of 128,256, no tied embedding.
ATTENTION = 4096 * 4096 * 2 + 4096 * 1024 * 2  # q and o; k and v
LAYERS = 32 * (ATTENTION + 3 * 4096 * 14336 + 2 * 4096) + 4096  # and the norms
HEAD = 128_256 * 4096
LLAMA_8B = Shape(
    layers=32,
    hidden_size=4096,
    attention_heads=32,
    head_dim=128,
    kv_bytes_per_token=131_072,
    parameters=LAYERS + 2 * HEAD,
    active_parameters=LAYERS,
    head_parameters=HEAD,
    embedding_parameters=HEAD,
    experts=0,
    weight_bytes=2 * (LAYERS + 2 * HEAD),
    bytes_per_weight=2,
)
CARD = Card(
    name="round",
    nvml="",
    title="a card of round numbers",
    memory_gib=80,
    bandwidth_gb_per_s=3000,
    nvlink_gb_per_s=900,
    bf16_tflops=1000,
    sheet=Sheet(source="made up", date=date(2026, 1, 1)),
    efficiency=Efficiency(mfu=0.8, mbu=0.9, source="made up"),
    evidence="served",
)
FLOPS, BYTES = 1000e12 * 0.8, 3000e9 * 0.9


def step(*requests: tuple[int, int]) -> Step:
    """A step of (tokens, prefix) pairs; one token after a prefix decodes."""
    work = Step()
    for tokens, prefix in requests:
        work.add(tokens, prefix=prefix, decode=tokens == 1 and prefix > 0, sampled=True)
    return work


def seconds(*requests: tuple[int, int], gpus: int = 1, card: Card = CARD) -> float:
    return Formula.of(card, LLAMA_8B, tensor_parallel=gpus).seconds(step(*requests))


@given(st.integers(0, 256), st.integers(0, 9000), st.integers(1, 4000), st.integers(0, 9000))
def test_a_step_by_hand(decodes: int, context: int, tokens: int, prefix: int) -> None:
    """2 FLOPs per weight and token (the head once per request); attention to all earlier tokens, 4 FLOPs per layer,
    head and dimension; reads of all weights but the embedding, and of 2 x 32 layers x 8 heads x 128 x 2 bytes of KV per
    token."""
    pairs = tokens * prefix + tokens**2 / 2
    arithmetic = (2 * LAYERS * (tokens + decodes) + 2 * HEAD * (1 + decodes)) / FLOPS
    attention = 4 * 32 * 32 * 128 * pairs / (1000e12 * ATTENTION_EFFICIENCY)
    read = (2 * (LAYERS + HEAD) + (tokens + prefix + decodes * (context + 2)) * 2 * 32 * 8 * 128 * 2) / BYTES
    work = step(*[(1, context + 1)] * decodes)
    work.add(tokens, prefix=prefix, decode=False, sampled=True)
    assert Formula.of(CARD, LLAMA_8B).seconds(work) == pytest.approx(arithmetic + attention + read, rel=1e-9)


requests = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 20_000)), min_size=1, max_size=8)


@given(requests, st.sampled_from([2, 4, 8]))
def test_cards_share_the_work_and_add_their_all_reduces(mix: list[tuple[int, int]], gpus: int) -> None:
    """With infinitely fast links, N cards take 1/N of the time and two latencies per layer; a ring over real links adds
    the time of its bytes."""
    endless = CARD.model_copy(update={"nvlink_gb_per_s": 1e30})
    assert seconds(*mix, gpus=gpus, card=endless) == pytest.approx(
        seconds(*mix) / gpus + 2 * 32 * ALL_REDUCE_S, rel=1e-9
    )
    moved_bytes = 2 * 32 * 2 * (gpus - 1) / gpus * step(*mix).tokens * 4096 * 2
    links_s = seconds(*mix, gpus=gpus) - seconds(*mix, gpus=gpus, card=endless)
    assert links_s == pytest.approx(moved_bytes / (450e9 * LINK_EFFICIENCY), rel=1e-6)


def test_cards_without_figures_are_refused() -> None:
    """A card without efficiencies has no formula, and a card without NVLink no tensor parallelism."""
    with pytest.raises(UsageError, match="a guess"):
        Formula.of(CARD.model_copy(update={"efficiency": None}), LLAMA_8B)
    pcie = CARD.model_copy(update={"nvlink_gb_per_s": None})
    assert seconds((1, 9), card=pcie) == seconds((1, 9))
    with pytest.raises(UsageError, match=r"tensor_parallel is 2.*no NVLink"):
        seconds((1, 9), gpus=2, card=pcie)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=9), st.integers(0, 1000))
def test_a_prompt_in_chunks_attends_as_the_whole_prompt_does(chunks: list[int], prefix: int) -> None:
    """Tokens and attention pairs of all chunks add up to those of the whole prompt."""
    parts, whole = Step(), Step()
    for index, chunk in enumerate(chunks):
        parts.add(chunk, prefix=prefix + sum(chunks[:index]), decode=False, sampled=False)
    whole.add(sum(chunks), prefix=prefix, decode=False, sampled=False)
    assert parts.tokens == whole.tokens == whole.prefill_tokens
    assert parts.attention_pairs == pytest.approx(whole.attention_pairs)


def test_a_fitted_time_is_the_sum_of_its_terms() -> None:
    """A mixed step by hand: the sum of terms times coefficients."""
    fitted = Fitted(coefficients=dict(zip(TERMS, (7.0, 1.0, 5.0, 3.0, 2.0, 0.5), strict=True)))
    mixed = step((10, 4), (1, 20))
    assert fitted.seconds(mixed) == pytest.approx(7 + 1 + 5 * 11 + 3 * 2 + 2 * (14 + 21) + 0.5 * (10 * 4 + 10 * 10 / 2))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(cards.find("h100-sxm"), model_folder("llama-3.1-8b"))


def test_kernel_times_are_the_packages_own(kernels: Kernels) -> None:
    """Equal sequences match decode_step_latency to rounding; a single prompt, also after a cached prefix, is within 2%
    of predict_prefill_latency."""
    from aiconfigurator_core.sdk.engine import EngineHandle

    model = "meta-llama/Meta-Llama-3.1-8B"  # ships with the package
    package = EngineHandle.compile(model, "h100_sxm", "vllm", backend_version="0.24.0", tp_size=1)
    for sequences, context in product((1, 32, 200), (100, 1024, 9000)):
        expected_s = package.decode_step_latency(sequences, context, 2) / 1e3
        assert kernels.seconds(step(*[(1, context - 1)] * sequences)) == pytest.approx(expected_s, rel=1e-9)
    for tokens, prefix in product((256, 2048, 8192), (0, 4096)):
        expected_s = package.predict_prefill_latency(1, tokens + prefix, prefix) / 1e3
        assert kernels.seconds(step((tokens, prefix))) == pytest.approx(expected_s, rel=0.02)


def test_kernel_times_grow(kernels: Kernels) -> None:
    """Times grow with the prompt, its cached prefix, and the number and context of decoding sequences."""
    longer = [
        [kernels.seconds(step((tokens, 0))) for tokens in (64, 512, 2048, 8192)],
        [kernels.seconds(step((512, prefix))) for prefix in (0, 2048, 8192, 32_768)],
        [kernels.seconds(step((512, 0), *[(1, 1023)] * decodes)) for decodes in (0, 16, 64, 256)],
        [kernels.seconds(step((512, 0), *[(1, context - 1)] * 32)) for context in (256, 1024, 4096, 16_384)],
        [kernels.seconds(step(*[(1, context - 1)] * 32)) for context in (256, 1024, 4096, 16_384)],
        [kernels.seconds(step(*[(1, 1023)] * decodes)) for decodes in (1, 16, 64, 256)],
    ]
    assert longer == [sorted(times) for times in longer]
    assert all(times[-1] > 1.4 * times[0] for times in longer)


def test_kernels_that_were_not_measured_are_refused() -> None:
    """A system or version that the package lacks is a usage error with its name."""
    for system, version, says in (("abacus", "0.24.0", "abacus"), ("h100_sxm", "0.0.1", "vLLM 0.0.1")):
        card = cards.find("h100-sxm").model_copy(update={"kernels": KernelTables(system=system, version=version)})
        with pytest.raises(UsageError, match=f"(?s)no measured kernel times.*{says}"):
            Kernels(card, model_folder("llama-3.1-8b"))


# Totals of the safetensors files as huggingface.co shows them (Meta's Llama 3.1 8B and 70B; Qwen3's model cards: 8.2B,
# 32.8B, and "30.5B in total and 3.3B activated").
PUBLISHED = {
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.55e9,
    "qwen3-8b": 8.19e9,
    "qwen3-32b": 32.76e9,
    "qwen3-30b-a3b": 30.53e9,
    "qwen2.5-7b": 7.62e9,
    "qwen2.5-1.5b": 1.54e9,
}


@pytest.mark.engine  # needs no engine but torch and transformers, which no unit test imports
def test_shapes_have_the_published_sizes() -> None:
    """All and active parameters are within 1% of the published ones; LLAMA_8B above equals transformers' model, and
    `dense_shape` equals `shape_of` for Llama and Qwen2."""
    assert set(PUBLISHED) == set(known_models())
    for name, published in PUBLISHED.items():
        shape = shape_of(model_folder(name))
        active = shape.active_parameters + shape.head_parameters + shape.embedding_parameters
        assert shape.parameters == pytest.approx(published, rel=0.01)
        assert active == pytest.approx(3.35e9 if name == "qwen3-30b-a3b" else published, rel=0.01)
        assert shape.weight_bytes == 2 * shape.parameters
        assert shape.read_bytes == 2 * (shape.parameters - shape.embedding_parameters)
        assert dense_shape(model_folder(name)) == (None if "qwen3" in name else shape)
    assert shape_of(model_folder("llama-3.1-8b")) == LLAMA_8B


def changed(folder: Path, **change: Any) -> Path:
    """A new folder with a changed config.json of Llama-3.1-8B."""
    config = json.loads((model_folder("llama-3.1-8b") / "config.json").read_text())
    model = Path(mkdtemp(dir=folder))  # a new folder, because shapes are cached
    (model / "config.json").write_text(json.dumps(config | change))
    return model


@pytest.mark.engine
def test_what_a_config_changes(tmp_path: Path) -> None:
    """fp8 takes one byte per weight of the layers' matrices, and two for others. A tied embedding is stored once and
    read as the head. A quantisation without kernels and an unknown type are refused."""
    matrices = 32 * (ATTENTION + 3 * 4096 * 14336)
    expected = replace(LLAMA_8B, weight_bytes=LLAMA_8B.weight_bytes - matrices, bytes_per_weight=1)
    assert shape_of(changed(tmp_path, quantization_config={"quant_method": "fp8"})) == expected
    shape = shape_of(changed(tmp_path, tie_word_embeddings=True))
    assert (shape.parameters, shape.head_parameters) == (LAYERS + HEAD, HEAD)
    assert shape.read_bytes == shape.weight_bytes == 2 * (LAYERS + HEAD)
    with pytest.raises(UsageError, match="'awq'"):
        shape_of(changed(tmp_path, quantization_config={"quant_method": "awq"}))
    for unknown in ({"model_type": "abacus"}, {"quantization_config": "fp8"}):
        with pytest.raises(ConfigError, match="not a decoder"):
            shape_of(changed(tmp_path, **unknown))


def test_other_names_and_defaults_of_a_config_are_read(tmp_path: Path) -> None:
    """GPT-2's names for its sizes, and a key that transformers fills in, are no KeyError."""
    gpt2 = {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    assert gpu("h100-sxm", model=tmp_path).overhead_ms == pytest.approx(12 * OVERHEAD_MS_PER_LAYER)
    config = json.loads((model_folder("llama-3.1-8b") / "config.json").read_text())
    del config["num_key_value_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert dense_shape(tmp_path) is None


def test_models_are_named_by_folder_or_file(tmp_path: Path) -> None:
    """A folder and its config.json name the same model; a folder without one gives an error with the known models."""
    with pytest.raises(UsageError, match="qwen3-32b"):
        model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == model_folder(tmp_path / "config.json") == tmp_path
