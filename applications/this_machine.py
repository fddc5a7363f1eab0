"""The support desk's settings on this machine, for `labkit serve ray` and the labs."""

import logging
from pathlib import Path
from typing import Any

from labkit import models
from labkit.machine import Machine
from labkit.models import EMBEDDING
from labkit.serving import vllm


def import_llm() -> None:
    """Import ray.serve.llm and put the root logger back, whose handlers and level the import replaces."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        import ray.serve.llm  # noqa: F401
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def llm_config(
    model: str, *, machine: Machine, name: str = "", gpu_memory_share: float = 0.9, **engine: Any
) -> dict[str, Any]:
    """Return the fields of an LLMConfig that serves `model` here as `name`. `engine` goes to vLLM's engine arguments.

    Ray counts the GPU's share in the placement group, vLLM takes it. Without a GPU the bundle must be set: Ray would
    otherwise wait for a GPU. The bundle has the engine's CPU; the replica itself requests none.
    """
    folder = models.resolve(model)
    hardware = vllm.settings(machine, gpu_memory_share=gpu_memory_share)
    bundle: dict[str, float] = {"CPU": 1, "GPU": gpu_memory_share} if machine.gpus else {"CPU": 1}
    return {
        "model_loading_config": {"model_id": name or model, "model_source": str(folder)},
        "engine_kwargs": {"max_model_len": 1024, "max_num_seqs": 16, **hardware.llm, **engine},
        "runtime_env": {"env_vars": hardware.env},
        "placement_group_config": {"bundles": [bundle]},
        "deployment_config": {
            "num_replicas": 1,
            "max_ongoing_requests": 64,
            "health_check_timeout_s": 60,
            "ray_actor_options": {"num_cpus": 0},
        },
        "experimental_configs": {"stream_batching_interval_ms": 0},  # by default tokens leave every 50 ms
        "log_engine_metrics": False,
    }


def desk_settings(
    model: str, *, machine: Machine, api_key_file: Path, embedding_model: str = EMBEDDING, **llm: Any
) -> dict[str, Any]:
    """Return the arguments of DeskSettings; `llm` goes to `llm_config`."""
    return {
        "llm": llm_config(model, machine=machine, **llm),
        "api_key_file": str(api_key_file),
        "embedding_model": str(models.resolve(embedding_model)),
    }
