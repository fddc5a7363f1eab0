"""The example models: parameters computed from the config equal the published ones."""

import pytest
import yaml

from labkit.errors import UsageError
from labkit.files import data_path
from labkit.modelled.shapes import model_folder, read_config
from labkit.models.examples import decoder_parameters, example_models, find

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
    """Embeddings, attention, MLP and norms add up exactly to the published count."""
    assert {name: model.parameters for name, model in example_models().items()} == PUBLISHED


def test_an_unknown_example() -> None:
    """An unknown name is refused with the known ones."""
    known = example_models()
    assert find("Qwen2.5-7B", known).layers == 28
    with pytest.raises(UsageError, match="no example model called 'Qwen9'") as caught:
        find("Qwen9", known)
    assert all(name in caught.value.remedy for name in known)


def test_the_gpu_profiles_weights_follow_from_the_config() -> None:
    """The gpu profiles' parameter counts equal those computed from the configs."""
    profile = yaml.safe_load(data_path("profiles/gpu-80.yaml").read_text(encoding="utf-8"))
    small = {**read_config(model_folder("qwen2.5-1.5b")), "qkv_bias": True}
    assert profile["weights"] == {
        "Qwen/Qwen2.5-7B-Instruct": example_models()["Qwen2.5-7B"].parameters,
        "Qwen/Qwen2.5-1.5B-Instruct": decoder_parameters(small),
    }
