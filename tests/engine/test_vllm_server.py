"""`vllm serve` of the embedded model, for real: what the labs rely on."""

import os
import re
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import requests

from labkit.machine import inspect
from labkit.models import CHAT, EMBEDDED, architecture, cached, is_complete
from labkit.serving import vllm
from tests.engine.openai_contract import OpenAIContract, Served

pytestmark = pytest.mark.engine


def test_embedded_model_facts(chat_model: Path) -> None:
    """The embedded chat model is what the course's arithmetic says: 30 layers, 3 KV heads, 134,515,008 parameters."""
    assert chat_model == cached(CHAT)
    assert is_complete(chat_model)
    assert EMBEDDED[CHAT].title == "SmolLM2-135M-Instruct"
    found = architecture(chat_model)
    assert (found.layers, found.attention_heads, found.kv_heads, found.head_dim) == (30, 9, 3, 64)
    assert (found.hidden_size, found.dtype_bytes, found.max_positions) == (576, 2, 8192)
    assert found.parameters == 134_515_008


def test_healthy(vllm_server: vllm.Server) -> None:
    """A started server runs, is healthy, and took the time that it says."""
    vllm_server.process.check()
    assert requests.get(f"{vllm_server.url}/health", timeout=30).status_code == 200
    assert vllm_server.process.start_seconds is not None
    assert vllm_server.process.start_seconds > 1


def test_what_it_serves(vllm_server: vllm.Server, client: requests.Session, chat_model: Path) -> None:
    """The server lists the one model, under the name and with the length of its command."""
    (card,) = client.get(f"{vllm_server.base_url}/models", timeout=30).json()["data"]
    assert card["id"] == vllm_server.model_name == vllm_server.model_path == str(chat_model)
    assert card["max_model_len"] == 2048
    assert vllm_server.command.startswith(f"vllm serve {chat_model} --max-model-len 2048 --max-num-seqs 16")


@pytest.mark.parametrize("key", ["", "Bearer wrong"])
def test_wrong_key(vllm_server: vllm.Server, key: str) -> None:
    """Without the key that was made for this server it answers 401; the key is not in its command line."""
    answer = requests.post(f"{vllm_server.base_url}/completions", json={}, headers={"Authorization": key}, timeout=30)
    assert answer.status_code == 401
    assert vllm_server.api_key not in vllm_server.command
    assert all(vllm_server.api_key not in psutil.Process(pid).cmdline() for pid in vllm_server.process.pids)


def test_loopback_only(vllm_server: vllm.Server) -> None:
    """Whatever the server's processes listen on, HTTP above all, is reachable from this machine only."""
    listening = {
        connection.laddr
        for pid in vllm_server.process.pids
        for connection in psutil.Process(pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert int(vllm_server.url.rsplit(":", 1)[1]) in {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_private_folder(vllm_server: vllm.Server) -> None:
    """The server works in its own folder, where its log is, not in ours."""
    folder = vllm_server.process.folder
    assert Path(psutil.Process(vllm_server.process.pids[0]).cwd()) == folder != Path.cwd()
    assert "max_model_len" in (folder / "server.log").read_text()


@pytest.mark.skipif(bool(inspect().gpus), reason="the KV cache of a GPU is as large as its free memory")
def test_settings_reach_the_engine(vllm_server: vllm.Server, engine_settings: vllm.EngineSettings) -> None:
    """On a CPU the engine gets the one GiB of KV cache and the single OpenMP thread that the settings ask for."""
    found = re.search(r"CPU KV cache size: ([\d,]+) tokens", vllm_server.process.log_text())
    assert found is not None
    model = architecture(vllm_server.model_path)
    element_bytes = {"auto": model.dtype_bytes, "float32": 4}[engine_settings.dtype]
    block_bytes = 128 * 2 * model.layers * model.kv_heads * model.head_dim * element_bytes
    blocks = int(found[1].replace(",", "")) // 128
    assert blocks * block_bytes <= 2**30 < (blocks + 1) * block_bytes
    environment = psutil.Process(vllm_server.process.pids[0]).environ()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ


class TestOpenAI(OpenAIContract):
    """`vllm serve` carries out what the SDK asks, but for tools and images without its flags and a model for them."""

    refuses: ClassVar = {"tools": "tool", "image": "multimodal"}
    ignores: ClassVar = frozenset({"frobnicate"})

    @pytest.fixture(scope="class")
    @classmethod
    def served(cls, vllm_server: vllm.Server) -> Served:
        """The session's server."""
        return Served(base_url=vllm_server.base_url, api_key=vllm_server.api_key, model=vllm_server.model_name)
