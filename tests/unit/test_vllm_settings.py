"""What vLLM is asked for on this and that hardware, which commands are refused, and what its failures mean."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.machine import Gpu, Machine, inspect
from labkit.serving import vllm
from labkit.serving.process import explain
from labkit.serving.vllm import settings, start

GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]


def machine(*, available_gib: float = 16, gpus: tuple[Gpu, ...] = (), bf16: bool = False) -> Machine:
    """This machine with other memory and GPUs."""
    return dataclasses.replace(
        inspect(), memory_available_bytes=int(available_gib * GIB), gpus=gpus, cpu_bf16=bf16, gpu_reason=""
    )


def gpu(*, free_gib: float, total_gib: float = 24) -> Gpu:
    """A GPU of which some is taken."""
    return Gpu(
        index=0,
        name="NVIDIA L4",
        uuid="GPU-0",
        memory_total_bytes=int(total_gib * GIB),
        memory_free_bytes=int(free_gib * GIB),
        driver="580",
    )


FREE_GPU = machine(gpus=(gpu(free_gib=24),))


def test_cpu_settings() -> None:
    """Without a GPU: the cache's size and one OpenMP thread by environment, no compilation by flag and argument; the
    model's own bfloat16 where the cores are fast at it, float32 elsewhere."""
    for bf16, dtype in ((True, "auto"), (False, "float32")):
        found = settings(machine(bf16=bf16), kv_cache_gib=3)
        assert (found.env["VLLM_CPU_KVCACHE_SPACE"], found.env["OMP_NUM_THREADS"]) == ("3", "1")
        assert found.flags == f"--enforce-eager --dtype {dtype}"
        assert found.llm["enforce_eager"] is True
        assert found.dtype == found.llm["dtype"] == dtype


def test_gpu_settings() -> None:
    """With a GPU: its share, no sampler that nvcc would have to compile, the card that NVML shows first, no settings
    of the model's own, and none of the CPU's settings; each of them is printed with its reason."""
    found, on_cpu = settings(FREE_GPU, gpu_memory_share=0.4), settings(machine())
    assert found.flags == "--gpu-memory-utilization 0.4 --generation-config vllm"
    assert (found.llm["gpu_memory_utilization"], found.llm["generation_config"]) == (0.4, "vllm")
    assert (found.env["VLLM_USE_FLASHINFER_SAMPLER"], found.env["CUDA_DEVICE_ORDER"]) == ("0", "PCI_BUS_ID")
    assert not {"VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"} & found.env.keys()
    own = (found.env.keys() - on_cpu.env.keys()) | (found.llm.keys() - on_cpu.llm.keys())
    assert own == found.why.keys()
    assert all(f"\n  {name}: " in str(found) for name in own)


def test_nothing_is_sent_home() -> None:
    """On any hardware vLLM sends no usage statistics and asks no hub."""
    for hardware in (machine(), FREE_GPU):
        env = settings(hardware, gpu_memory_share=0.5).env
        assert (env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"], env["HF_HUB_OFFLINE"]) == ("1", "1", "1")


def test_a_share_that_cannot_be_is_refused() -> None:
    """A share that is not free, with what was asked, what is free, the GPU's name and size; a share outside 0 to 1."""
    with pytest.raises(UsageError) as caught:
        settings(machine(gpus=(gpu(free_gib=6),)), gpu_memory_share=0.9)
    assert "gpu_memory_share 0.9 asks for 21.6 GiB of GPU 0 (NVIDIA L4), but only 6.0 of its 24.0" in caught.value.what
    assert "at most 0.25" in caught.value.remedy
    for share in (0.0, -0.1, 1.01, 90):
        with pytest.raises(UsageError, match=f"gpu_memory_share is {share}, not a share"):
            settings(FREE_GPU, gpu_memory_share=share)


@given(free_gib=st.floats(0.5, 24))
def test_remedy_works(free_gib: float) -> None:
    """The share that the message names as possible is accepted, to the last digit, and is no stingier than 0.01."""
    full = machine(gpus=(gpu(free_gib=free_gib),))
    try:
        settings(full, gpu_memory_share=1.0)
    except UsageError as error:
        named = float(error.remedy.partition("at most ")[2].partition(",")[0])
        assert settings(full, gpu_memory_share=named).llm["gpu_memory_utilization"] == named
        assert math.isclose(named, free_gib / 24, abs_tol=0.01)
    else:
        assert free_gib == 24


def test_a_cache_that_cannot_be_is_refused() -> None:
    """One that does not fit into the free memory beside the engine, with both numbers; no or broken GiB."""
    with pytest.raises(UsageError, match=r"KV cache of 8 GiB .* do not fit: 9\.5 GiB of memory are available"):
        settings(machine(available_gib=9.5), kv_cache_gib=8)
    assert settings(machine(available_gib=10), kv_cache_gib=8).env["VLLM_CPU_KVCACHE_SPACE"] == "8"
    for size in (0, -1, 1.5):
        with pytest.raises(UsageError, match=f"kv_cache_gib is {size}"):
            settings(machine(), kv_cache_gib=size)  # type: ignore[arg-type]


def test_apply_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`apply` fills the environment and overrides nothing that stands there."""
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "7"})
    settings(machine(), kv_cache_gib=2).apply()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "2"


FORM, NO_CONFIG = "write: vllm serve MODEL [options]", "is no model folder: it has no config.json"
COMMANDS = {
    "": FORM,
    "vllm serve": FORM,
    "vllm serve --port 1": FORM,
    "vllm bench serve": FORM,
    "python -m vllm": FORM,
    "vllm serve org/model --host 0.0.0.0": "--host stands in the command",
    "vllm serve org/model --port=8000": "--port stands in the command",
    "vllm serve org/model --api-key secret": "--api-key stands in the command",
    "vllm serve 'org/model": "No closing quotation",
    "vllm serve /no/such/folder": NO_CONFIG,
    "vllm serve ./nothing": NO_CONFIG,
    "vllm serve ~/nothing": NO_CONFIG,
    "vllm serve model": NO_CONFIG,
}


def test_a_command_that_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other commands, options that are ours, broken quotes, and folders without a model, which vLLM would take for a
    hub id; a port that does not exist. Nothing is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for command, says in COMMANDS.items():
        with pytest.raises(UsageError) as caught:
            start(command, folder=tmp_path / "private", env={})
        assert says in str(caught.value), command
    with pytest.raises(UsageError, match="port 65536 does not exist"):
        start("vllm serve org/model", folder=tmp_path / "private", env={}, port=65536)
    assert not (tmp_path / "private").exists()


# A stand-in for the console command: it answers like a server and writes down how it was called.
FAKE_VLLM = f"""#!{sys.executable}
import http.server, json, os, sys
print(json.dumps([sys.argv[1:], {{k: v for k, v in os.environ.items() if k.startswith("VLLM")}}]), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`vllm` is the stand-in in this test; a model folder to serve."""
    script = tmp_path / "vllm"
    script.write_text(FAKE_VLLM)
    script.chmod(0o755)
    monkeypatch.setattr(vllm, "executable", lambda _: script)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def test_started_command(fake_vllm: Path, tmp_path: Path) -> None:
    """What runs is what the command says plus host and port; the key travels by environment, and log level is ours."""
    with start(
        f"vllm serve {fake_vllm} --max-num-seqs 16", folder=tmp_path / "run", env={"VLLM_X": "1"}, api_key="key"
    ) as server:
        arguments, environment = json.loads(server.process.log_text().splitlines()[0])
    port = server.url.rsplit(":", 1)[1]
    expected = ["serve", str(fake_vllm), "--max-num-seqs", "16", "--host", "127.0.0.1", "--port", port]
    assert arguments == expected
    assert server.command == " ".join(["vllm", *expected])
    assert (environment["VLLM_API_KEY"], environment["VLLM_X"], server.api_key) == ("key", "1", "key")
    assert (server.base_url, server.metrics_url) == (f"{server.url}/v1", f"{server.url}/metrics")
    assert not server.process.running


def test_two_servers_have_their_own_keys_and_their_names(
    fake_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and ports differ; a relative folder means the one that the user sees; the served name is the command's."""
    monkeypatch.chdir(tmp_path)
    with (
        start("vllm serve model", folder=tmp_path / "a", env={}) as first,
        start(f"vllm serve {fake_vllm} --served-model-name=chat", folder=tmp_path / "b", env={}) as second,
    ):
        assert first.api_key != second.api_key
        assert len(first.api_key) >= 16
        assert first.url != second.url
        assert first.model_path == first.model_name == second.model_path == str(fake_vllm)
        assert second.model_name == "chat"


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
        "larger than the memory that is free",
        "3.2 GiB are available",
    ),
    (
        "Free memory on device cuda:0 (6.1/79.2 GiB) on startup is less than desired GPU memory utilization",
        "less GPU memory is free",
        "6.1 GiB are free",
    ),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load", "not on this machine", "labkit fetch"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried", "ran out of memory", "smaller model"),
    ("vllm: error: unrecognized arguments: --max-sequences 4", "does not know", "leave --max-sequences 4 out"),
    ("OSError: [Errno 98] Address already in use", "took the port", "start it again"),
    (f"{HEALTHY_GPU}\nOSError: [Errno 98] Address already in use", "took the port", "start it again"),
    (
        "(EngineCore pid=7) ERROR 11-24 07:36:29 [core.py:1510] ValueError: block_size 16 is odd\nRuntimeError: above",
        "ValueError: block_size 16 is odd",
        "what the message names",
    ),
]


def test_a_failed_start_is_explained() -> None:
    """Each known failure in a log becomes what it means and what helps, with the number from the log; a log without
    one is not explained, a healthy GPU's least of all."""
    for log, meaning, remedy in FAILURES:
        explained = explain(f"INFO something before\n{log}\nINFO something after", vllm.KNOWN_FAILURES)
        assert explained is not None
        assert meaning in explained[0]
        assert remedy in explained[1]
    assert [explain(log, vllm.KNOWN_FAILURES) for log in ("", HEALTHY_GPU, "INFO: ready", "ERROR in a request")] == [
        None
    ] * 4


@pytest.mark.skipif(not (Path(sys.executable).parent / "vllm").exists(), reason="vLLM is not installed")
def test_known_failures_are_vllms_words() -> None:
    """The words looked for in the log stand in the installed vLLM: a new version cannot change them unnoticed."""
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    worker = Path(spec.submodule_search_locations[0]) / "v1"
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
    with pytest.raises(UsageError, match=r"no-such-command is not installed in") as caught:
        vllm.executable("no-such-command")
    assert "make setup" in caught.value.remedy


def test_imports_no_engine() -> None:
    """Importing labkit.serving.vllm loads neither vllm nor torch."""
    program = "import sys, labkit.serving.vllm; print(sorted(sys.modules.keys() & {'vllm', 'torch', 'transformers'}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
