"""The selector's configurations, started as they are written: bash, nginx, `serve run` and `torchserve`, on CPUs.

Only ports, folders and the models' names are replaced: what is free here, and the models that the course embeds. vLLM
starts eagerly, since compiling takes minutes and changes nothing that is tested here.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from labkit.advice.selector import complete, configure
from labkit.advice.selector.configs import EMBEDDING_MODEL
from labkit.machine.processes import end_processes
from labkit.models import EMBEDDING, resolve
from labkit.serving import torchserve
from labkit.serving.process import free_port
from tests.unit.standin import survivors

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
START_TIMEOUT_S = 420  # on a busy machine, two servers one after the other
EAGER = {
    "--served-model-name": "--enforce-eager --served-model-name",
    "engine_kwargs:": "engine_kwargs:\n        enforce_eager: true",
}
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
CHAT = {"model": "main", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
EMBED = {"model": "embeddings", "input": "hello"}


@pytest.fixture(scope="module")
def embedding_model() -> Path:
    """The folder of the embedded embedding model."""
    return resolve(EMBEDDING)


def written(folder: Path, stack: str, answers: Mapping[str, str], replacing: Mapping[str, str], **given: Any) -> Path:
    """The folder with a stack's files in it, for CPUs, after the replacements."""
    for file in configure(stack, complete({"hardware": "cpu", **answers}), **given):
        text = file.text
        for old, new in {**EAGER, **replacing}.items():
            text = text.replace(old, new)
        (folder / file.name).write_text(text, encoding="utf-8")
    return folder


@contextmanager
def running(folder: Path, *command: str, ready: str, status: int = 200) -> Iterator[list[psutil.Process]]:
    """The command in the folder until `ready` answers with the status; at the end no process of it is left."""
    log = folder / f"{command[0]}.log"
    with log.open("wb") as output:
        process = psutil.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
    family: list[psutil.Process] = []
    try:
        for _ in range(START_TIMEOUT_S):
            assert process.poll() is None, log.read_text()[-4000:]
            family = process.children(recursive=True)  # known also when the first process dies
            if answers(ready, status):
                break
            time.sleep(1)
        else:
            pytest.fail(f"{ready} did not answer: {log.read_text()[-4000:]}")
        yield process.children(recursive=True)
    finally:
        family += [process, *(process.children(recursive=True) if process.is_running() else ())]
        end_processes(family)
    assert not survivors(family, within_s=0)


def answers(url: str, status: int) -> bool:
    """Whether the address answers with the status."""
    try:
        return requests.get(url, timeout=5).status_code == status
    except requests.RequestException:
        return False


def post(url: str, body: Mapping[str, Any], key: str = "") -> requests.Response:
    """A request with the key as a bearer token."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(url, json=body, headers=headers, timeout=START_TIMEOUT_S)


def test_vllm_alone_starts_and_hides_its_key(chat_model: Path, tmp_path: Path) -> None:
    """`bash start.sh` serves the model as `main`, only to clients with vllm.key's key, which no command line shows."""
    port = free_port()
    folder = written(tmp_path, "vllm", {}, {"8000": str(port)}, model=str(chat_model))
    with running(folder, "bash", "start.sh", ready=f"http://127.0.0.1:{port}/health") as family:
        key = (folder / "vllm.key").read_text().strip()
        assert len(key) == 48
        assert (folder / "vllm.key").stat().st_mode & 0o077 == 0
        assert post(f"http://127.0.0.1:{port}/v1/chat/completions", CHAT).status_code == 401
        assert post(f"http://127.0.0.1:{port}/v1/chat/completions", CHAT, key).status_code == 200
        commands = [" ".join(process.cmdline()) for process in family if process.is_running()]
        assert any("vllm" in command for command in commands)
        assert not [command for command in commands if key in command]


def test_vllm_alone_serves_embeddings(embedding_model: Path, tmp_path: Path) -> None:
    """With embeddings as the kind of model, the same script serves vectors."""
    port = free_port()
    folder = written(tmp_path, "vllm", {"kind": "pooling"}, {"8000": str(port)}, model=str(embedding_model))
    with running(folder, "bash", "start.sh", ready=f"http://127.0.0.1:{port}/health"):
        key = (folder / "vllm.key").read_text().strip()
        answer = post(f"http://127.0.0.1:{port}/v1/embeddings", {**EMBED, "model": "main"}, key)
        assert len(answer.json()["data"][0]["embedding"]) == 384


def test_vllm_servers_start_behind_their_gateway(chat_model: Path, embedding_model: Path, tmp_path: Path) -> None:
    """Chat and embeddings, two servers, answer at nginx's one address."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: the gateway's configuration was not started")
    ports = {"8000": free_port(), "8001": free_port(), "8002": free_port()}
    replacing = {EMBEDDING_MODEL: str(embedding_model), **{old: str(new) for old, new in ports.items()}}
    folder = written(tmp_path, "vllm-gateway", {"kind": "rag"}, replacing, model=str(chat_model))
    nginx = ("nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off; pid nginx.pid;")
    gateway = f"http://127.0.0.1:{ports['8000']}"
    with (
        running(folder, "bash", "start.sh", ready=f"http://127.0.0.1:{ports['8002']}/health"),
        running(folder, *nginx, ready=f"{gateway}/health"),
    ):
        key = (folder / "vllm.key").read_text().strip()
        assert post(f"{gateway}/v1/chat/completions", CHAT).status_code == 401
        assert post(f"{gateway}/v1/chat/completions", CHAT, key).json()["choices"]
        assert len(post(f"{gateway}/v1/embeddings", EMBED, key).json()["data"][0]["embedding"]) == 384


def test_vllm_starts_inside_ray_serve(chat_model: Path, tmp_path: Path) -> None:
    """`serve run serve_config.yaml` serves the model as `main` through ray.serve.llm."""
    port = free_port()
    folder = written(tmp_path, "vllm-ray-serve", {}, {"port: 8000": f"port: {port}"}, model=str(chat_model))
    with running(folder, "serve", "run", "serve_config.yaml", ready=f"http://127.0.0.1:{port}/v1/models"):
        answer = post(f"http://127.0.0.1:{port}/v1/chat/completions", CHAT)
        assert answer.json()["choices"], answer.text


@pytest.mark.parametrize("models", ["one", "few"])
def test_your_own_models_start_in_ray_serve(models: str, tmp_path: Path) -> None:
    """`serve run` finds your_models.py in its folder; the frame answers before a model is in it."""
    port = free_port()
    folder = written(tmp_path, "own-ray-serve", {"kind": "other", "models": models}, {"port: 8000": f"port: {port}"})
    with running(folder, "serve", "run", "serve_config.yaml", ready=f"http://127.0.0.1:{port}/-/healthz"):
        answer = post(f"http://127.0.0.1:{port}/", {"text": "hello"})
        assert (answer.status_code, answer.text) == (200, "HELLO")


def test_torchserve_starts_with_both_files(tmp_path: Path) -> None:
    """TorchServe takes config.properties, and a handler of the course archived with model-config.yaml predicts."""
    ports = {old: str(free_port()) for old in ("8080", "8081", "8082")}
    store = tmp_path / "store"
    store.mkdir()
    folder = written(
        tmp_path, "torchserve", {"kind": "other", "team": "torchserve"}, {"/srv/model-store": str(store), **ports}
    )
    settings = dict(line.split(": ") for line in (folder / "model-config.yaml").read_text().splitlines())
    numbers = {name: int(value) for name, value in settings.items()}
    torchserve.archive(
        "sleep", folder=store, model_name="nap", settings={**numbers, "maxWorkers": numbers["minWorkers"]}
    )
    command = ("torchserve", "--start", "--foreground", "--ncs", "--ts-config", "config.properties")
    with running(
        folder, *command, ready=f"http://127.0.0.1:{ports['8080']}/ping", status=400
    ):  # it wants a key there, too
        key = json.loads((folder / "key_file.json").read_text())["inference"]["key"]
        url = f"http://127.0.0.1:{ports['8080']}/predictions/nap"
        assert post(url, {}).status_code == 400
        assert post(url, {}, key).status_code == 200
