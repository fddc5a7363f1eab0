"""What goes wrong with a real engine becomes one message with the number and the remedy, and nothing keeps running."""

import re
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests

from labkit.errors import ServerError, UsageError
from labkit.serving import vllm
from labkit.serving.process import LOOPBACK
from tests.engine.conftest import PATIENCE_S
from tests.unit.standin import survivors

pytestmark = pytest.mark.engine


def assert_no_engine(folder: Path) -> None:
    """No process works in that folder any more."""
    left = [process.pid for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
    assert left == []


def test_longer_than_the_cache(chat_model: Path, engine_settings: vllm.EngineSettings, tmp_path: Path) -> None:
    """A maximum length that the KV cache cannot hold: the message names the option and the length that fits."""
    small = "--block-size 32 --num-gpu-blocks-override 8"
    command = f"vllm serve {chat_model} --max-model-len 8192 {small} {engine_settings.flags}"
    with pytest.raises(ServerError, match="maximum length does not fit into the KV cache") as caught:
        vllm.start(command, folder=tmp_path, env=engine_settings.env)
    fits = re.search(r"lower --max-model-len to (\d+) or less", caught.value.remedy)
    assert fits is not None
    assert 0 < int(fits[1]) <= 8 * 32
    assert caught.value.log_tail
    assert_no_engine(tmp_path)


def test_unknown_option(chat_model: Path, engine_settings: vllm.EngineSettings, tmp_path: Path) -> None:
    """An option that vLLM does not know is named."""
    command = f"vllm serve {chat_model} --max-sequences 4"
    with pytest.raises(ServerError, match="vLLM does not know one of the options") as caught:
        vllm.start(command, folder=tmp_path, env=engine_settings.env)
    assert "--max-sequences" in caught.value.remedy
    assert_no_engine(tmp_path)


def test_port_in_use(chat_model: Path, engine_settings: vllm.EngineSettings, tmp_path: Path) -> None:
    """A port in use is refused before anything starts."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on {LOOPBACK} cannot be used"):
            vllm.start(f"vllm serve {chat_model}", folder=tmp_path / "x", env=engine_settings.env, port=port)
    assert not (tmp_path / "x").exists()


def test_killed_in_the_middle(chat_model: Path, engine_settings: vllm.EngineSettings, tmp_path: Path) -> None:
    """When the engine's process is killed, as by the kernel out of memory, the request in flight ends, every process
    of the server is gone, and `check` raises with the end of the log."""
    command = f"vllm serve {chat_model} --max-model-len 2048 --max-num-seqs 4 {engine_settings.flags}"
    server = vllm.start(command, folder=tmp_path, env=engine_settings.env, start_timeout_s=PATIENCE_S)
    outcomes: list[str] = []
    try:
        processes = [psutil.Process(pid) for pid in server.process.pids]
        request = threading.Thread(target=lambda: outcomes.append(endless_request(server)))
        request.start()
        time.sleep(1)
        engine_of(processes).kill()
        request.join(60)
        assert outcomes == ["ended"]
        assert not survivors(processes, within_s=60)
        wait_until_ended(server)
        with pytest.raises(ServerError, match=r"vllm serve (died|was|ended)") as caught:
            server.process.check()
        assert len(caught.value.log_tail.splitlines()) > 1
    finally:
        server.stop()
    assert server.process.pids == ()


def endless_request(server: vllm.Server) -> str:
    """Asks for more than comes before the end; "ended" when the server breaks off."""
    body = {"model": server.model_name, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    key = {"Authorization": f"Bearer {server.api_key}"}
    try:
        text = requests.post(f"{server.base_url}/completions", json=body, headers=key, timeout=300).text
    except requests.RequestException:
        return "ended"
    return "ended" if '"finish_reason":"length"' not in text else "answered"


def engine_of(processes: list[psutil.Process]) -> psutil.Process:
    """The process that holds the model (vLLM names it VLLM::EngineCore)."""
    (engine,) = [process for process in processes if process.name().startswith("VLLM::Engine")]
    return engine


def wait_until_ended(server: vllm.Server) -> None:
    """The guard needs a moment to notice that its server is gone."""
    deadline = time.monotonic() + 60
    while server.process.running and time.monotonic() < deadline:
        time.sleep(0.1)
