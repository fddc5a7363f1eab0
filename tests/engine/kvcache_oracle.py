"""vLLM's own KV-cache classes beside ours, in a process of its own since all of vLLM comes along: prints one object.

python -m tests.engine.kvcache_oracle
"""

import json
import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from labkit.models import Architecture, architecture
from labkit.models.attention import KvLayers
from labkit.theory.kv_size import bytes_per_block, describe

CASES = Path(__file__).parents[1] / "data" / "cases" / "kv"


def wrong_sizes(seed: int) -> list[str]:
    """Blocks, tokens, concurrency and the longest sequence of a random model's layers in a random memory, where they
    differ from what vLLM plans."""
    import torch
    from vllm.v1.core import kv_cache_utils as theirs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec
    from vllm.v1.kv_cache_layout import KVCacheLayout

    chance = random.Random(seed)
    model = random_model(chance)
    block_size, per_step, length = 16 * chance.randint(1, 8), chance.randint(1, 9000), chance.randint(1, 40_000)
    specs: dict[str, Any] = {}
    for layers in model.storing_layers:
        kind = {"block_size": block_size, "num_kv_heads": layers.kv_heads, "head_size": layers.key_size}
        kind["dtype"] = torch.bfloat16
        spec: Any = MLAAttentionSpec(**kind)
        if not layers.replicated:
            kind["head_size_v"] = layers.value_size
            window = {} if layers.window is None else {"sliding_window": layers.window}
            spec = (SlidingWindowSpec if window else FullAttentionSpec)(**kind, **window)
        specs |= {f"layer.{len(specs) + number}": spec for number in range(layers.count)}
    config: Any = SimpleNamespace(
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=None,
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        model_config=SimpleNamespace(max_model_len=length),
        speculative_config=None,
        max_in_flight_tokens=in_flight_on_a_gpu(per_step),
    )
    groups = theirs.get_kv_cache_groups(config, specs)
    block = bytes_per_block(model, block_size=block_size)
    memory = block * chance.randint(2, 3000) + chance.randint(0, block - 1)
    planned = theirs.get_kv_cache_config_from_groups(config, groups, memory)
    tokens, concurrency = theirs.get_kv_cache_capacity(config, planned)
    longest = theirs._estimate_max_model_len_from_groups(config, groups, memory - block)
    plan = describe(
        model, memory_bytes=memory, block_size=block_size, max_model_len=length, max_num_batched_tokens=per_step
    )
    said = (plan.blocks, plan.logged_tokens, plan.max_concurrency, plan.longest_tokens)
    right = (planned.num_blocks, tokens, concurrency, longest)
    return [] if said == right else [f"seed {seed}: vLLM {right}, ours {said} for {model.storing_layers}"]


def in_flight_on_a_gpu(per_step: int) -> int:
    """vLLM's max_in_flight_tokens for steps of `per_step` tokens, without the CPU platform's changes to the config."""
    from vllm.config import SchedulerConfig, VllmConfig
    from vllm.platforms import current_platform

    scheduler = SchedulerConfig(
        max_num_batched_tokens=per_step, max_num_seqs=1, max_model_len=2048, is_encoder_decoder=False
    )
    with patch.object(type(current_platform), "check_and_update_config"):
        return int(VllmConfig(scheduler_config=scheduler).max_in_flight_tokens)


def random_model(chance: random.Random) -> Architecture:
    """A model of one to three kinds of layers: full attention, MLA, or windows, with heads of several sizes."""
    if chance.random() < 0.2:
        kinds = [KvLayers(count=chance.randint(1, 60), kv_heads=1, key_size=576, value_size=0, replicated=True)]
    else:
        shapes = chance.sample([(1, 64, 64), (2, 128, 128), (4, 192, 128), (8, 256, 256), (3, 80, 80)], 2)
        windows = [None, *chance.sample([128, 512, 1000], 2)]
        kinds = [
            KvLayers(count=chance.randint(1, 40), kv_heads=heads, key_size=key, value_size=value, window=window)
            for window in chance.sample(windows, chance.randint(1, 3))
            for heads, key, value in [chance.choice(shapes)]
        ]
    return Architecture(
        model_type="random",
        layers=sum(kind.count for kind in kinds),
        attention_heads=24,
        kv_heads=kinds[0].kv_heads,
        head_dim=64,
        hidden_size=1,
        dtype_bytes=2,
        max_positions=8192,
        kv_layers=tuple(sorted(kinds, key=lambda kind: kind.window is not None)),
    )


def wrong_readings() -> tuple[int, list[str]]:
    """The cases' configs that vLLM's convertor can read: how many, and where layers, heads or lengths differ."""
    from vllm.transformers_utils.config import get_config, get_hf_text_config
    from vllm.transformers_utils.model_arch_config_convertor import (
        MODEL_ARCH_CONFIG_CONVERTORS,
        ModelArchConfigConvertorBase,
    )

    read, wrong = 0, []
    for file in sorted(CASES.glob("*.json")):
        with TemporaryDirectory() as folder:
            Path(folder, "config.json").write_bytes(file.read_bytes())
            try:
                config = get_config(folder, trust_remote_code=False)
                ours = architecture(folder)
            except Exception:  # a type that only remote code knows; and the refusals, which have tests of their own
                continue
        if ours.no_kv_cache:
            continue
        convertor = MODEL_ARCH_CONFIG_CONVERTORS.get(config.model_type, ModelArchConfigConvertorBase)
        right = convertor(config, get_hf_text_config(config)).convert()
        length = right.derived_max_model_len_and_key[0]
        kinds = getattr(get_hf_text_config(config), "layer_types", None) or ["full_attention"]
        layer = right[kinds.index("full_attention")] if "full_attention" in kinds else right
        full = ours.storing_layers[0]
        expanded = hasattr(config, "kv_lora_rank") and not right.is_deepseek_mla  # wider than the convertor says
        pairs = {
            "layers": (right.total_num_hidden_layers, ours.layers),
            "heads": (right.total_num_attention_heads, ours.attention_heads),
            "positions": (2048 if length == math.inf else length, ours.max_positions),
            "MLA": (right.is_deepseek_mla, full.replicated),
            "head size": (layer.head_size, layer.head_size if expanded else ours.head_dim),
            "KV heads": (1 if right.is_deepseek_mla else layer.total_num_kv_heads, full.kv_heads),
        }
        read += 1
        wrong += [f"{file.name}: {name}: vLLM {a}, ours {b}" for name, (a, b) in pairs.items() if a != b]
    return read, wrong


def main(trials: int = 200) -> None:
    """Runs the trials and prints what differed and how many configs were read."""
    import vllm.config  # noqa: F401 - first: the convertor and it import each other

    read, wrong = wrong_readings()
    for seed in range(trials):
        wrong += wrong_sizes(seed)
    print(json.dumps({"configs": read, "wrong": wrong}))


if __name__ == "__main__":
    main()
