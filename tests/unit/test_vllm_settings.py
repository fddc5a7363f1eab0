"""What vLLM is asked for on this and that hardware, which commands are refused, and what its failures mean."""

import dataclasses
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.machine import Machine
from labkit.serving import vllm
from labkit.serving.process import explain
from labkit.serving.vllm import settings, start
from tests.unit import synthetic
from tests.unit.refusals import not_refused

ROOT = Path(__file__).resolve().parents[2]


def on(*, memory_gib: float = 16, gpu_gib: float = 0, free_gib: float | None = None, bf16: bool = False) -> Machine:
    """A machine with so much memory, and a GPU of which some may be taken."""
    hardware = synthetic.machine(memory_gib=memory_gib, gpu_gib=gpu_gib, gpu_free_gib=free_gib)
    return dataclasses.replace(hardware, cpu_bf16=bf16)


FREE_GPU = on(gpu_gib=24)


def test_cpu_settings() -> None:
    """Without a GPU: the cache's size and one OpenMP thread by environment, no compilation by flag and argument; the
    model's own bfloat16 where the cores are fast at it, float32 elsewhere."""
    for bf16, dtype in ((True, "auto"), (False, "float32")):
        found = settings(on(bf16=bf16))
        assert (found.env["VLLM_CPU_KVCACHE_SPACE"], found.env["OMP_NUM_THREADS"]) == ("1", "1")
        assert found.flags == f"--enforce-eager --dtype {dtype}"
        assert found.llm["enforce_eager"] is True
        assert found.dtype == found.llm["dtype"] == dtype


def test_gpu_settings() -> None:
    """With a GPU: its share, no sampler that nvcc would have to compile, the card that NVML shows first, no settings
    of the model's own, and none of the CPU's settings; each of them is printed with its reason."""
    found, on_cpu = settings(FREE_GPU, gpu_memory_share=0.4), settings(on())
    assert found.flags == "--gpu-memory-utilization 0.4 --generation-config vllm"
    assert (found.llm["gpu_memory_utilization"], found.llm["generation_config"]) == (0.4, "vllm")
    assert (found.env["VLLM_USE_FLASHINFER_SAMPLER"], found.env["CUDA_DEVICE_ORDER"]) == ("0", "PCI_BUS_ID")
    assert not {"VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"} & found.env.keys()
    own = (found.env.keys() - on_cpu.env.keys()) | (found.llm.keys() - on_cpu.llm.keys())
    assert own == found.why.keys()
    assert all(f"\n  {name}: " in str(found) for name in own)


def test_a_server_of_the_cpu_build_finds_a_version_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only `vllm-cpu` is installed, `vllm` finds its version on the path that the server gets; elsewhere nothing
    is added."""
    ask = [sys.executable, "-c", "import importlib.metadata as m; print(m.version('vllm'))"]
    assert vllm.name_on_path(tmp_path, {}) == {}

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(vllm, "vllm_version", lambda: "9.9.9+cpu")
    monkeypatch.setenv("PYTHONPATH", "/kept")
    added = vllm.name_on_path(tmp_path, {})
    assert added["PYTHONPATH"].endswith(f"{os.pathsep}/kept")
    found = subprocess.run(ask, env=os.environ | added, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "9.9.9+cpu"


def test_nothing_is_sent_home() -> None:
    """On any hardware vLLM sends no usage statistics and asks no hub."""
    for hardware in (on(), FREE_GPU):
        env = settings(hardware, gpu_memory_share=0.5).env
        assert (env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"], env["HF_HUB_OFFLINE"]) == ("1", "1", "1")


def test_memory_that_cannot_be_is_refused() -> None:
    """A GPU's share or a cache that is not free, with both numbers; a share outside 0 to 1."""
    taken = on(gpu_gib=24, free_gib=6)
    bad: list[tuple[tuple[Machine, dict[str, Any]], str]] = [
        (
            (taken, {"gpu_memory_share": 0.9}),
            "share 0.9 asks for 21.6 GiB of GPU 0 (Test GPU), but only 6.0 of its 24.0",
        ),
        ((taken, {"gpu_memory_share": 0.9}), "at most 0.25"),
        *(((FREE_GPU, {"gpu_memory_share": n}), f"gpu_memory_share is {n}") for n in (0.0, -0.1, 1.01, 90)),
        ((on(memory_gib=2.9), {}), "do not fit: 2.9 GiB of memory are available"),
    ]
    assert not_refused(lambda given: settings(given[0], **given[1]), bad) == []
    assert settings(on(memory_gib=3)).env["VLLM_CPU_KVCACHE_SPACE"] == "1"


@given(free_gib=st.floats(0.5, 23.9))
def test_remedy_works(free_gib: float) -> None:
    """The share that the message names as possible is accepted, to the last digit, and is no stingier than 0.01."""
    full = on(gpu_gib=24, free_gib=free_gib)
    with pytest.raises(UsageError) as caught:
        settings(full, gpu_memory_share=1.0)
    named = float(caught.value.remedy.partition("at most ")[2].partition(",")[0])
    assert settings(full, gpu_memory_share=named).llm["gpu_memory_utilization"] == named
    assert math.isclose(named, free_gib / 24, abs_tol=0.01)


def test_apply_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`apply` fills the environment and overrides nothing that stands there."""
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "7"})
    settings(on()).apply()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "1"


REFUSED_COMMANDS = {
    "write: vllm serve MODEL [options]": [
        "",
        "vllm serve",
        "vllm serve --port 1",
        "vllm bench serve",
        "python -m vllm",
    ],
    "the command contains --host": ["vllm serve org/model --host 0.0.0.0"],
    "the command contains --port": ["vllm serve org/model --port=8000"],
    "the command contains --api-key": ["vllm serve org/model --api-key secret"],
    "No closing quotation": ["vllm serve 'org/model"],
    "is not a model folder: it has no config.json": [
        f"vllm serve {folder}" for folder in ("/no/such/folder", "./nothing", "~/nothing", "model")
    ],
}


def test_a_command_that_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other commands, options that are ours, broken quotes, and folders without a model, which vLLM would take for a
    hub id; a port that does not exist. Nothing is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    bad: list[tuple[tuple[str, int | None], str]] = [(("vllm serve org/model", 65536), "port 65536 does not exist")]
    bad += [((command, None), says) for says, commands in REFUSED_COMMANDS.items() for command in commands]
    private = tmp_path / "private"
    assert not_refused(lambda given: start(given[0], folder=private, env={}, port=given[1]), bad) == []
    assert not private.exists()


# A stand-in for the console command: it answers like a server and writes down how it was called.
FAKE_VLLM = f"""#!{sys.executable}
import http.server, json, os, sys
print(json.dumps([sys.argv[1:], {{k: v for k, v in os.environ.items() if k.startswith(("VLLM", "GATE"))}}]), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_started_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is what the command says plus host, port and gate; the key travels by environment. Two servers have
    their own keys and ports; a relative folder means the one that the user sees; the served name is the command's."""
    script, model = tmp_path / "vllm", tmp_path / "model"
    script.write_text(FAKE_VLLM)
    script.chmod(0o755)
    monkeypatch.setattr(vllm, "executable", lambda _: script)
    monkeypatch.chdir(tmp_path)
    model.mkdir()
    (model / "config.json").write_text("{}")
    renamed = f"vllm serve {model} --served-model-name=chat"
    with (
        start("vllm serve model --max-num-seqs 16", folder=tmp_path / "a", env={"VLLM_X": "1"}, api_key="key") as first,
        start(renamed, folder=tmp_path / "b", env={}) as second,
    ):
        arguments, environment = json.loads(first.process.log_text().splitlines()[0])
        assert second.api_key != first.api_key == "key"
        assert len(second.api_key) >= 16
        assert first.url != second.url
    port = first.url.rsplit(":", 1)[1]
    gated = ["--middleware", "labkit.serving.gate.Gate"]
    assert arguments == ["serve", str(model), "--max-num-seqs", "16", "--host", "127.0.0.1", "--port", port, *gated]
    assert first.command == " ".join(["vllm", *arguments])
    assert (environment["VLLM_API_KEY"], environment["GATE_API_KEY"], environment["VLLM_X"]) == ("key", "key", "1")
    assert (first.base_url, first.metrics_url) == (f"{first.url}/v1", f"{first.url}/metrics")
    assert first.model_path == first.model_name == second.model_path == str(model)
    assert second.model_name == "chat"
    assert not first.process.running


# Recorded from vLLM 0.32.0.
TOO_SMALL = """\
(EngineCore pid=1) ERROR 11-24 07:36:29 [core.py:1510] ValueError: To serve at least one request with the model's max \
seq len (8192), (0.18 GiB KV cache is needed, which is larger than the available KV cache memory (0.0 GiB). Based on \
the available memory, the estimated maximum model length is 224. Try increasing `gpu_memory_utilization` (which also \
controls CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the engine.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"""
HEALTHY_GPU = """\
INFO [gpu_worker.py:1013] Free memory on device (78.1/79.2 GiB) on startup. Desired GPU memory utilization is (0.9, \
71.3 GiB). Actual usage is 0.6 GiB for consumed memory"""
FAILURES = [
    (TOO_SMALL, "does not fit into the KV cache", "lower --max-model-len to 224 or less"),
    (TOO_SMALL.replace("224", "").replace("Based on", ""), "the KV cache is too small", "more memory"),
    ("ValueError: No available memory for the cache blocks. Try", "no memory is left", "gpu_memory_share"),
    (
        "Available memory on node 0 (3.2/23.54 GiB) on kv cache allocation is less than requested memory for kv",
        "larger than the free memory",
        "3.2 GiB are available",
    ),
    (
        "Free memory on device cuda:0 (6.1/79.2 GiB) on startup is less than desired GPU memory utilization",
        "less GPU memory is free",
        "6.1 GiB are free",
    ),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load", "not on this machine", "labkit fetch"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried", "ran out of memory", "smaller model"),
    ("vllm: error: unrecognized arguments: --max-sequences 4", "does not know", "remove --max-sequences 4"),
    ("OSError: [Errno 98] Address already in use", "took the port", "start it again"),
    (f"{HEALTHY_GPU}\nOSError: [Errno 98] Address already in use", "took the port", "start it again"),
    (
        "(EngineCore pid=7) ERROR 11-24 07:36:29 [core.py:1510] ValueError: block_size 16 is odd\nRuntimeError: above",
        "ValueError: block_size 16 is odd",
        "that the message names",
    ),
]


def test_a_failed_start_is_explained() -> None:
    """Each known failure in a log becomes what it means and what helps, with the number from the log; a log without
    one is not explained, a healthy GPU's least of all."""
    for log, meaning, remedy in FAILURES:
        explained = explain(f"INFO something before\n{log}\nINFO something after", vllm.KNOWN_FAILURES)
        assert explained is not None, log
        assert (meaning in explained[0], remedy in explained[1]) == (True, True), explained
    for log in ("", HEALTHY_GPU, "INFO: ready", "ERROR in a request"):
        assert explain(log, vllm.KNOWN_FAILURES) is None


@pytest.mark.skipif(not (Path(sys.executable).parent / "vllm").exists(), reason="vLLM is not installed")
def test_known_failures_are_vllms_words() -> None:
    """The words looked for in the log stand in the installed vLLM: a new version cannot change them unnoticed."""
    worker = Path(sysconfig.get_path("purelib")) / "vllm" / "v1"
    names = ("core/kv_cache_utils.py", "worker/cpu_worker.py", "worker/utils.py")
    sources = "".join((worker / name).read_text() for name in names)
    words = " ".join(part for part in sources.replace('"', " ").replace(" f ", " ").split())
    for said in (
        "larger than the available KV cache memory",
        "the estimated maximum model length is",
        "No available memory for the cache blocks",
        "less than requested memory for kv",
        "Free memory on device",
        "is less than desired GPU memory utilization",
    ):
        assert said in words


def test_executable_of_this_environment() -> None:
    """A console command is found beside this Python, also where PATH has none; a missing one says what to run."""
    assert vllm.executable("python") == Path(sys.executable).parent / "python"
    with pytest.raises(UsageError, match=r"no-such-command is not installed in(.|\n)*make setup"):
        vllm.executable("no-such-command")


def test_imports_no_engine() -> None:
    """Importing labkit.serving.vllm loads neither vllm nor torch."""
    program = "import sys, labkit.serving.vllm; sys.exit(not {'vllm', 'torch', 'transformers'}.isdisjoint(sys.modules))"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
