"""The example models: their parameters, computed from the config, are the published ones."""

import pytest
import yaml

from labkit.errors import UsageError
from labkit.example_models import decoder_parameters, example_models, find
from labkit.kvcache import bytes_per_token
from labkit.paths import data_path
from tools.engine_calls import QWEN_1_5B

# Published: the safetensors metadata of each model's page on the Hugging Face hub.
PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "Llama-2-7B": 6_738_415_616,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-405B": 405_853_388_800,
}


def test_the_parameters_are_the_published_ones() -> None:
    """Embeddings, attention, MLP and norms add up to the count that the model's publisher gives, to the last one."""
    assert {name: one.parameters for name, one in example_models().items()} == PUBLISHED


def test_tokens_take_what_is_known_of_these_models() -> None:
    """Bytes of KV cache a token: 512 KiB for Llama 2, 128 KiB for Llama 3.1 8B with a quarter of the KV heads."""
    found = {name: bytes_per_token(one) / 1024 for name, one in example_models().items()}
    assert (found["Llama-2-7B"], found["Llama-3.1-8B"], found["Qwen2.5-7B"]) == (512, 128, 56)


def test_an_unknown_example() -> None:
    """A name that is none is refused with the names that are."""
    known = example_models()
    assert find("Qwen2.5-7B", known).layers == 28
    with pytest.raises(UsageError, match="no example model called 'Qwen9'") as caught:
        find("Qwen9", known)
    assert all(name in caught.value.remedy for name in known)


def test_the_gpu_profiles_weights_follow_from_the_config() -> None:
    """What the gpu profiles tell of their models' weights before the download is what the shapes in a config give."""
    profile = yaml.safe_load(data_path("profiles/gpu-80.yaml").read_text(encoding="utf-8"))
    assert profile["weights"] == {
        "Qwen/Qwen2.5-7B-Instruct": example_models()["Qwen2.5-7B"].parameters,
        "Qwen/Qwen2.5-1.5B-Instruct": decoder_parameters(QWEN_1_5B),
    }
