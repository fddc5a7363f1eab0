"""`labkit kv` on public configs: the right value, or a refusal with the reason."""

import contextlib
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import ConfigError, UsageError
from labkit.models.architecture import TEXT_CONFIGS, architecture, from_config
from labkit.models.attention import FIELDS
from labkit.theory.kv_size import bytes_per_token, describe, window_bytes
from tests.unit.command import Labkit

CASES = Path(__file__).parents[1] / "data" / "cases" / "kv"
TABLE: dict[str, dict[str, Any]] = yaml.safe_load((CASES / "cases.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def kv(labkit: Labkit) -> Labkit:
    """`labkit kv` with blocks of 16 tokens."""
    return lambda *arguments: labkit("kv", *arguments, "--block-size", 16, "--json")


def wrong(case: dict[str, Any], kv: Labkit) -> str:
    """Return how the answer to a case differs from the right one, or ""."""
    ended = kv(CASES / case["file"], *shlex.split(case.get("options", "")))
    if "refused" in case:
        is_refused = (ended.code, ended.stdout) == (2, "") and case["refused"] in ended.stderr
        return "" if is_refused else str(ended)
    if ended.code:
        return str(ended)
    plan = ended.json
    model = architecture(CASES / case["file"])
    windowed = [layers for layers in model.storing_layers if layers.window]
    answer = {
        **{name: plan.get(name) for name in case},
        "window_layers": sum(layers.count for layers in windowed),
        "window_tokens": max((layers.window for layers in windowed if layers.window), default=0),
        "max_concurrency": round(plan["max_concurrency"] or 0, 2),
    }
    right = {name: value for name, value in case.items() if name not in ("file", "source", "options")}
    different = {name: (answer[name], value) for name, value in right.items() if answer[name] != value}
    return f"answer, right: {different}" if different else ""


def test_public_configs_have_the_right_value(kv: Labkit) -> None:
    """Every case has the right bytes per token, lengths, windows and states, or the right refusal."""
    assert {name: difference for name, case in TABLE.items() if (difference := wrong(case, kv))} == {}


def test_layers_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers the layers are the same, or a missing field is named: gemma-3-4b-it's heads."""
    files = sorted({CASES / case["file"] for name, case in TABLE.items() if name != "K02"})
    complete = {file: architecture(file) for file in files}
    monkeypatch.setitem(sys.modules, "transformers", None)
    different = []
    for file in files:
        if file.stem == "gemma3_4b_it":
            with pytest.raises(ConfigError, match="names a window, but not the layers"):
                architecture(file)
            continue
        models = (architecture(file), complete[file])
        layers = {(model.storing_layers, model.state_layers, model.kv_dtype, model.no_kv_cache) for model in models}
        different += [file.name] if len(layers) > 1 else []
    assert different == []


PLAIN = {
    "num_hidden_layers": 8, "num_attention_heads": 8, "hidden_size": 512, "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}  # fmt: skip
LAYER = 2 * 64 * 2  # bytes of a token and KV head in a layer: key and value of 64 numbers in 16 bits
MHA = 8 * LAYER
WINDOW = {"sliding_window": 512}
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    # What no config of cases.yaml says beside PLAIN; bytes of a token; layers with a window.
    "MPT": ({"attn_config": {"kv_n_heads": 2}, "d_model": 512, "n_heads": 8}, 8 * 2 * LAYER, 0),
    "MPT, one head": ({"attn_config": {"attn_type": "multiquery_attention"}}, 8 * LAYER, 0),
    "Falcon 40B": ({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 4}, 8 * 4 * LAYER, 0),
    "RefinedWeb 40B": ({"multi_query": True, "n_head_kv": 4}, 8 * 4 * LAYER, 0),
    "ChatGLM without groups": ({"multi_query_attention": False, "multi_query_group_num": 2}, 8 * MHA, 0),
    "OpenELM": ({"num_kv_heads": [1, 1, 2, 2, 2, 2, 4, 4]}, 18 * LAYER, 0),
    "window on all": (WINDOW, 8 * MHA, 8),
    "window turned off": ({**WINDOW, "use_sliding_window": False}, 8 * MHA, 0),
    "window of 0": ({"sliding_window": 0}, 8 * MHA, 0),
    "window on the last": ({**WINDOW, "use_sliding_window": True, "max_window_layers": 6}, 6 * MHA, 2),
    "LLLG": ({**WINDOW, "sliding_window_pattern": "LLLG"}, 2 * MHA, 6),
    "Gemma 2": ({**WINDOW, "attn_logit_softcapping": 50.0}, 4 * MHA, 4),
    "KV sharing": ({**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 4, "num_kv_shared_layers": 4},
                   2 * MHA, 2),
    "Llama 4's chunks": ({"attention_chunk_size": 128, "no_rope_layers": [1, 1, 1, 0] * 2}, 8 * MHA, 0),
    "Jamba": ({"attn_layer_period": 4, "attn_layer_offset": 1, "mamba_d_state": 16}, 2 * MHA, 0),
    "Bamba": ({"attn_layer_indices": [1, 5], "mamba_d_state": 16}, 2 * MHA, 0),
    "Falcon-H1": ({"mamba_d_ssm": 512, "mamba_d_state": 16}, 8 * MHA, 0),
    "Zamba 2": ({"layers_block_type": ["mamba", "mamba", "mamba", "hybrid"] * 2}, 2 * MHA, 0),
    "Nemotron-H": ({"hybrid_override_pattern": "M-M*EM-*", "num_hidden_layers": None}, 2 * MHA, 0),
    "LFM2": ({"full_attn_idxs": [2, 5], "conv_L_cache": 3}, 2 * MHA, 0),
    "Qwen3-Next": ({"full_attention_interval": 4, "linear_num_value_heads": 4}, 2 * MHA, 0),
    "MiniMax-Text": ({"attn_type_list": [0, 0, 0, 1] * 2}, 2 * MHA, 0),
    "Ring": ({"layer_group_size": 3}, 4 * MHA, 0),
    "Kimi Linear": ({"linear_attn_config": {"full_attn_layers": [4, 8]}, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
                    2 * 576 * 2, 0),
    "LongCat": ({"num_hidden_layers": None, "num_layers": 4, "zero_expert_num": 2, "kv_lora_rank": 512,
                 "qk_rope_head_dim": 64}, 8 * 576 * 2, 0),
    "DeepSeek V3.2": ({"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128, "index_topk": 2048},
                      8 * (576 * 2 + 132), 0),
    "Nemotron-NAS": ({"block_configs": [{"attention": {"no_op": True, "n_heads_in_group": None}},
                                        {"attention": {"no_op": False, "n_heads_in_group": 4}}] * 4}, 4 * 2 * LAYER, 0),
    "Step 3.5": ({**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 4, "num_attention_groups": 2,
                  "attention_other_setting": {"attention_type": "sliding_attention", "num_attention_groups": 4}},
                 4 * 2 * LAYER, 4),
    "unequal layers": ({"per_layer_config": {"03": {"num_key_value_heads": 1}}}, 7 * MHA + LAYER, 0),
    "compressed-tensors": ({"quantization_config": {"quant_method": "compressed-tensors",
                            "kv_cache_scheme": {"num_bits": 8, "type": "float"}}}, 4 * MHA, 0),
    "MLA ignores compressed-tensors": ({"kv_lora_rank": 512, "qk_rope_head_dim": 64,
                                        "quantization_config": {"quant_method": "compressed-tensors",
                                                                "kv_cache_scheme": {"num_bits": 8, "type": "float"}}},
                                       8 * 576 * 2, 0),
    "a window per layer": ({"sliding_window": 128, "sliding_windows": [512, None] * 4,
                            "layer_types": ["sliding_attention", "full_attention"] * 4}, 4 * MHA, 4),
    "a window per layer alone": ({"sliding_windows": [512, None] * 4}, 4 * MHA, 4),
    "PaliGemma": ({"use_bidirectional_attention": True, "architectures": ["PaliGemmaForConditionalGeneration"]},
                  8 * MHA, 0),
    "weights in 4 bits": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, 8 * MHA, 0),
    "DeepSeek-VL2's zeros": ({"kv_lora_rank": None, "qk_rope_head_dim": 0, "v_head_dim": 0}, 8 * MHA, 0),
    "float32": ({"dtype": "float32"}, 8 * MHA, 0),
    "thinker": ({"thinker_config": {"text_config": {**PLAIN, "num_hidden_layers": 2}}}, 2 * MHA, 0),
}  # fmt: skip


def test_layers_and_heads_are_told_by_their_fields() -> None:
    """Every way in which configs say how many heads and which layers keep what."""
    wrong = {}
    for name, (beside, per_token, windowed) in SHAPES.items():
        known = from_config({**PLAIN, **beside}, parameters=None)
        windows = sum(layers.count for layers in known.storing_layers if layers.window)
        found = (bytes_per_token(known), windows, window_bytes(known) > 0)
        if found != (per_token, windowed, windowed > 0):
            wrong[name] = found
    assert wrong == {}


def test_a_part_keeps_its_nulls(tmp_path: Path) -> None:
    """A null in the language model's part turns a feature off: the class's default does not come back. The class
    computes the layers of an older file. By vLLM's own classes: 10 heads x 128, 24 layers without a window, 128 layers.
    """
    attention = {"hidden_size": 1280, "num_attention_heads": 10, "num_hidden_layers": 12, "num_key_value_heads": 10}
    no_mla = {"kv_lora_rank": None, "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0}
    deepseek = {"model_type": "deepseek_v2", "max_position_embeddings": 4096, **attention, **no_mla}
    mistral = {
        "model_type": "mistral", "hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "sliding_window": None, "max_position_embeddings": 8192,
    }  # fmt: skip
    hrm = {
        "model_type": "hrm_text", "hidden_size": 1536, "head_dim": 128, "num_attention_heads": 12,
        "num_hidden_layers": 16, "H_cycles": 2, "L_cycles": 3, "max_position_embeddings": 4096,
        "transformers_version": "5.8.0",
    }  # fmt: skip
    for config, per_token in (
        ({"language_config": deepseek, "model_type": "deepseek_vl_v2"}, 12 * 10 * 2 * 128 * 2),
        ({"llm_config": mistral, "model_type": "h2ovl_chat"}, 24 * 8 * 2 * 80 * 2),
        (hrm, 128 * 12 * 2 * 128 * 2),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
        found = architecture(tmp_path)
        assert (bytes_per_token(found), window_bytes(found)) == (per_token, 0), config
    window = {"language_config": {**attention, "sliding_window_size": 128}, "model_type": "unknown-ocr"}
    (tmp_path / "config.json").write_text(json.dumps(window))
    with pytest.raises(ConfigError, match="names a window, but not the layers"):
        architecture(tmp_path)


def test_positions() -> None:
    """The least of the names that vLLM reads, times the factor of a scaling that is not in it; 2,048 without a name."""
    none = {"max_position_embeddings": None}
    cases: list[tuple[dict[str, Any], int]] = [
        ({"n_positions": 1024}, 1024),
        ({"model_max_length": 8192}, 8192),
        ({**none, "max_seq_len": 300}, 300),
        (none, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 4096),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 1024}, 4096),
    ]
    for beside, right in cases:
        assert from_config({**PLAIN, **beside}, parameters=None).max_positions == right, beside
    longrope = from_config({**PLAIN, **cases[-1][0]}, parameters=None)
    assert describe(longrope, memory_bytes=2**30, block_size=16).max_model_len == 1024


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown kind of layer": ({"layer_types": ["full_attention", "telepathy"] * 4}, "of the kind telepathy"),
    "a list that is too short": ({"layer_types": ["full_attention"] * 3}, "names 3 of 8 layers"),
    "states in unknown places": ({"mamba_d_state": 16}, "does not say which layers"),
    "an indexer without MLA": ({"index_head_dim": 128}, "sparse caches"),
    "layers that run twice": ({"loop_num": 2}, "caches (loop_num)"),
    "sinks": ({"param_sink_number": 128}, "caches (param_sink_number)"),
    "a picture's keys": ({"cross_attention_layers": [3, 7]}, "caches (cross_attention_layers)"),
    "windows that differ": ({"sliding_windows": [128, 512]}, "caches (sliding_windows)"),
    "a decoder in both directions": ({"is_causal": False, "architectures": ["Qwen2ForCausalLM"]}, "an encoder"),
    "pooled indexers": ({"index_kpool": 16}, "caches (index_kpool)"),
    "a bidirectional class": ({"architectures": ["LlamaBidirectionalModel"]}, "an encoder"),
    "a million layers": ({"num_hidden_layers": 10**6}, "it has 1,000,000 layers"),
    "more heads than numbers": ({"hidden_size": 4}, "hidden_size / num_attention_heads is 0"),
    "a pattern of nothing": ({**WINDOW, "sliding_window_pattern": ""}, "a field of a form that is not known"),
    "no head": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "an infinite layer": ({"num_hidden_layers": math.inf}, "num_hidden_layers is inf"),
    "RWKV": ({"rescale_every": 6}, "no keys and values"),
    "BART": ({"is_encoder_decoder": True}, "encoder-decoder"),
    "RoBERTa": ({"type_vocab_size": 1, "architectures": ["RobertaModel"]}, "an encoder"),
    "a type without a size": ({"quantization_config": {"quant_method": "modelopt", "kv_cache_quant_algo": "NVFP4"}},
                              "type is 'nvfp4'"),
}  # fmt: skip


def test_unknown_models_are_refused(tmp_path: Path, kv: Labkit) -> None:
    """Each refusal has the reason, and exit code 2."""
    offenders = {}
    for name, (beside, says) in REFUSED.items():
        (tmp_path / "config.json").write_text(json.dumps({**PLAIN, **beside}))
        ended = kv(tmp_path)
        if (ended.code, ended.stdout) != (2, "") or says not in ended.stderr:
            offenders[name] = ended
    assert offenders == {}


def test_wrong_options(kv: Labkit) -> None:
    """Indivisible heads and unknown types are refused with the choices."""
    wrong = {
        "--tensor-parallel 3": "does not divide",
        "--kv-dtype fp7": "choose one of auto",
        f"--max-model-len {10**30}": "max_model_len has 31 digits",
        f"--memory {'9' * 5000}": "is not a number of bytes",
    }
    for options, says in wrong.items():
        ended = kv(CASES / "mixtral_8x7b.json", *options.split())
        assert (ended.code, says in ended.stderr) == (2, True)


ODD = st.sampled_from(
    [None, True, -1, 0, 1, 3.5, 1e308, 10**8, "x", "LLLG", [], [1], [None], ["x"], {}, {"a": 1}, {"factor": -1}]
)


@settings(max_examples=200)
@given(beside=st.dictionaries(st.sampled_from([*FIELDS, *TEXT_CONFIGS, "rope_scaling", "dtype"]), ODD, max_size=4))
def test_odd_fields_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, beside: dict[str, Any]) -> None:
    """With any value of a field, the answer is a plan or a ConfigError."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({**PLAIN, **beside}))
    with contextlib.suppress(ConfigError, UsageError):
        plan = describe(architecture(folder), memory_bytes=2**30, block_size=16)
        assert json.loads(json.dumps(plan.to_json()))["bytes_per_token"] > 0
