"""One real engine for all the tests that only ask it something."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from labkit import models
from labkit.machine import inspect
from labkit.models import resolve
from labkit.serving import vllm
from tests.unit.standin import survivors

pytest.register_assert_rewrite("tests.engine.openai_contract")
PATIENCE_S = 400  # for an engine's start on a busy machine, which is not what is tested


@pytest.fixture(scope="session")
def chat_model() -> Path:
    """The folder of the embedded chat model, fetched if it is not in the cache yet."""
    return resolve(models.CHAT)


@pytest.fixture(scope="session")
def engine_settings() -> vllm.EngineSettings:
    """What this machine asks of vLLM; on a GPU a share that leaves room for others."""
    return vllm.settings(inspect(), gpu_memory_share=0.3)


@pytest.fixture(scope="session")
def vllm_server(
    chat_model: Path, engine_settings: vllm.EngineSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[vllm.Server]:
    """A running `vllm serve` of the embedded chat model. Stopped, it leaves no process and no loose file."""
    command = f"vllm serve {chat_model} --max-model-len 2048 --max-num-seqs 16 {engine_settings.flags}"
    folder = tmp_path_factory.mktemp("vllm")
    server = vllm.start(command, folder=folder, env=engine_settings.env, start_timeout_s=PATIENCE_S)
    try:
        yield server
    finally:
        processes = [psutil.Process(pid) for pid in server.process.pids]
        temporary = Path(processes[0].environ()["TMPDIR"])
        assert list(temporary.glob("vllm_dist_*"))
        server.stop()
    assert not survivors(processes, within_s=0)
    assert not temporary.exists()


@pytest.fixture(scope="session")
def client(vllm_server: vllm.Server) -> Iterator[requests.Session]:
    """HTTP with the server's key; proxies and .netrc of the environment stay out of it."""
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {vllm_server.api_key}"
        yield session
