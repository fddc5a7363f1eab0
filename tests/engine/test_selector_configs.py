"""The selector's configurations, read by the engines' own readers. Nothing is started: test_selector_starts.py does."""

import random
import shlex
import shutil
import subprocess
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from labkit.advice.selector import ConfigFile, catalogue, configure

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
KNOWN = catalogue()
DRAWN = 1500


@cache
def files(stack: str, name: str) -> dict[str, ConfigFile]:
    """Each different text of a stack's file, over answers drawn at random among those that vLLM can serve."""
    rng, found = random.Random(1), {}
    kinds = [
        kind for kind in KNOWN.questions["kind"].options if kind != "other" or stack in ("own-ray-serve", "torchserve")
    ]
    for _ in range(DRAWN):
        drawn = {one: rng.choice(list(question.options)) for one, question in KNOWN.questions.items()}
        for file in configure(stack, {**drawn, "kind": rng.choice(kinds)}):
            if file.name == name:
                found[file.text] = file
    assert found
    return found


def commands(text: str) -> list[list[str]]:
    """The arguments of each `vllm serve` in a script."""
    joined = text.replace("\\\n", " ")
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
    for stack, name in (("vllm", "start.sh"), ("vllm", "start_second.sh"), ("vllm-gateway", "start.sh")):
        for text in files(stack, name):
            for arguments in commands(text):
                read = parser.parse_args(["--model", *arguments])
                assert read.host == "127.0.0.1"
                assert (read.max_model_len in (8192, 32_768, 131_072)) == ("--max-model-len" in arguments)
                assert (read.runner == "pooling") == ("--runner" in arguments)
                assert read.tensor_parallel_size in (1, 2, 4, 8)
                assert ("--enable-prefix-caching" in arguments) == (read.enable_prefix_caching is True)
                seen |= {one for one in arguments if one.startswith("--")}
    assert {"--gpu-memory-utilization", "--max-num-seqs", "--max-num-batched-tokens", "--tensor-parallel-size"} <= seen
    assert {"--pipeline-parallel-size", "--enable-lora", "--max-loras", "--runner"} <= seen


def test_vllms_own_parser_takes_the_arguments_of_every_pod() -> None:
    """Each Deployment is YAML with vLLM's own arguments, and the key from a secret."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    for text in files("vllm-kubernetes", "vllm.yaml"):
        deployment, service = yaml.safe_load_all(text)
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        read = parser.parse_args(["--model", *container["args"]])
        assert read.served_model_name == ["main"]
        assert "valueFrom" in container["env"][0]
        assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]


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
                assert bool(entry.get("lora_config")) == bool(entry.get("engine_kwargs", {}).get("enable_lora"))
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
                assert set(entry.get("engine_kwargs", {})) <= known


def test_shares_of_one_gpu_never_add_up_to_more_than_one() -> None:
    """Where models share a GPU, the fractions and the engines' memory shares of a file fit on it."""
    for tree in serve_configs():
        fractions, memory = 0.0, 0.0
        for application in tree["applications"]:
            for entry in application.get("args", {}).get("llm_configs", []):
                bundles = entry.get("placement_group_config", {}).get("bundles", [])
                share = sum(one.get("GPU", 0) for one in bundles)
                used = entry.get("engine_kwargs", {}).get("gpu_memory_utilization")
                if share < 1 and used and bundles:
                    assert used <= share
                    fractions, memory = fractions + share, memory + used
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


def test_nginx_takes_every_gateway(tmp_path: Path) -> None:
    """Each nginx.conf passes nginx's own check."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    for number, text in enumerate(files("vllm-gateway", "nginx.conf")):
        conf = tmp_path / f"{number}.conf"
        conf.write_text(text, encoding="utf-8")
        command = [nginx, "-t", "-p", str(tmp_path), "-c", str(conf), "-g", "pid nginx.pid;"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
