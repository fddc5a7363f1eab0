"""The selector's configurations, read by the engines' own readers. vLLM and Ray are imported, nothing is started."""

import random
import shlex
import zipfile
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from labkit.advice.selector import ConfigFile, catalogue, configure

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
KNOWN = catalogue()
ASKED = ("hardware", "gpu", "priority", "prefixes", "slo", "models", "kind", "pattern")


@cache
def files(stack: str, name: str) -> dict[str, ConfigFile]:
    """Each different text of a stack's file, over every combination of the answers that it depends on."""
    rng, found = random.Random(1), {}
    for values in product(*(KNOWN.questions[one].options for one in ASKED)):
        drawn = {one: rng.choice(list(question.options)) for one, question in KNOWN.questions.items()}
        for file in configure(stack, {**drawn, **dict(zip(ASKED, values, strict=True))}):
            if file.name == name:
                found[file.text] = file
    assert found
    return found


def commands(text: str) -> list[list[str]]:
    """The arguments of each `vllm serve` in a script."""
    joined = text.replace("\\\n", " ").replace('"$VLLM_API_KEY"', "key")
    return [
        shlex.split(line.partition("vllm serve")[2].rstrip(" &"))
        for line in joined.splitlines()
        if "vllm serve" in line
    ]


def test_vllms_own_parser_takes_every_command() -> None:
    """Each `vllm serve` of the selector is parsed by vLLM's parser, and the values arrive."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    seen = set()
    for stack in ("vllm", "vllm-replicas"):
        for text in files(stack, "start.sh"):
            for arguments in commands(text):
                read = parser.parse_args(["--model", *arguments])
                assert read.host == "127.0.0.1"
                assert read.max_model_len == 8192
                assert ("--enable-prefix-caching" in arguments) == (read.enable_prefix_caching is True)
                seen |= {one for one in arguments if one.startswith("--")}
    assert {"--gpu-memory-utilization", "--max-num-seqs", "--max-num-batched-tokens"} <= seen


def serve_configs() -> list[dict[str, Any]]:
    """Every different Serve configuration."""
    texts = [*files("vllm-ray-serve", "serve_config.yaml"), *files("own-ray-serve", "serve_config.yaml")]
    return [yaml.safe_load(text) for text in texts]


def test_rays_own_schema_takes_every_serve_config() -> None:
    """Each file is a valid multi-application config, without a field that Ray does not know."""
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

    for tree in serve_configs():
        read = ServeDeploySchema.model_validate(tree)
        assert read.http_options.host == "127.0.0.1"
        assert set(tree) <= set(ServeDeploySchema.model_fields)
        for application in tree["applications"]:
            assert set(application) <= set(ServeApplicationSchema.model_fields)
            for deployment in application.get("deployments", []):
                assert set(deployment) <= set(DeploymentSchema.model_fields)


def test_ray_serve_llm_takes_every_model_entry() -> None:
    """Each entry under llm_configs is an LLMConfig; its deployment options and its router exist."""
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig
    from ray.serve.llm import LLMConfig

    routers = set()
    for tree in serve_configs():
        for application in tree["applications"]:
            for entry in application.get("args", {}).get("llm_configs", []):
                assert LLMConfig.model_validate(entry).model_id
                options = entry["deployment_config"]
                AutoscalingConfig.model_validate(options.get("autoscaling_config", {}))
                router = RequestRouterConfig.model_validate(options.get("request_router_config", {}))
                routers.add(str(router.request_router_class))
    assert any("PrefixCacheAffinityRouter" in one for one in routers)
    assert len(routers) == 2


def test_the_engine_settings_inside_ray_are_vllms() -> None:
    """What goes to the engine are names of vLLM's engine arguments."""
    from dataclasses import fields

    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {one.name for one in fields(AsyncEngineArgs)}
    for tree in serve_configs():
        for application in tree["applications"]:
            for entry in application.get("args", {}).get("llm_configs", []):
                assert set(entry["engine_kwargs"]) <= known


def test_shares_of_one_gpu_never_add_up_to_more_than_one() -> None:
    """Where models share a GPU, the fractions and the engines' memory shares of a file fit on it."""
    for tree in serve_configs():
        fractions, memory = 0.0, 0.0
        for application in tree["applications"]:
            for entry in application.get("args", {}).get("llm_configs", []):
                bundles = entry.get("placement_group_config", {}).get("bundles", [])
                share = sum(one.get("GPU", 0) for one in bundles)
                if share < 1 and "gpu_memory_utilization" in entry["engine_kwargs"] and bundles:
                    assert entry["engine_kwargs"]["gpu_memory_utilization"] <= share
                    fractions, memory = fractions + share, memory + entry["engine_kwargs"]["gpu_memory_utilization"]
        assert fractions <= 1
        assert memory < 1


def test_torchserves_frontend_knows_every_property() -> None:
    """Each key of config.properties stands in the frontend's own configuration class."""
    spec = find_spec("ts")
    assert spec is not None
    assert spec.origin is not None
    jar = Path(spec.origin).parent / "frontend" / "model-server.jar"
    with zipfile.ZipFile(jar) as archive:
        known = archive.read("org/pytorch/serve/util/ConfigManager.class")
        model = archive.read("org/pytorch/serve/archive/model/ModelConfig.class")
    for text in files("torchserve", "config.properties"):
        for line in text.splitlines():
            assert line.partition("=")[0].encode() in known, line
    for text in files("torchserve", "model-config.yaml"):
        assert all(key.encode() in model for key in yaml.safe_load(text))
