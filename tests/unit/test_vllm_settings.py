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
from labkit.serving.vllm import explain_failure, settings, start

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


def test_cpu_settings() -> None:
    """Without a GPU: the cache's size and one OpenMP thread by environment, no compilation by flag and argument."""
    found = settings(machine(), kv_cache_gib=3)
    assert found.env["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert found.env["OMP_NUM_THREADS"] == "1"
    assert "--enforce-eager" in found.flags.split()
    assert found.llm["enforce_eager"] is True
    assert "gpu" not in found.flags


@pytest.mark.parametrize(("bf16", "dtype"), [(True, "auto"), (False, "float32")])
def test_cpu_dtype(bf16: bool, dtype: str) -> None:
    """The model's own bfloat16 where the cores are fast at it, float32 elsewhere, the same for server and object."""
    found = settings(machine(bf16=bf16))
    assert found.dtype == found.llm["dtype"] == dtype
    assert f"--dtype {dtype}" in found.flags


def test_gpu_settings() -> None:
    """With a GPU: its share by flag and argument, and none of the CPU's settings."""
    found = settings(machine(gpus=(gpu(free_gib=24),)), gpu_memory_share=0.4)
    assert found.flags == "--gpu-memory-utilization 0.4 --generation-config vllm"
    assert found.llm["gpu_memory_utilization"] == 0.4
    assert not {"VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"} & found.env.keys()


def test_an_engine_on_a_gpu_starts_with_a_driver_alone() -> None:
    """No sampler that nvcc would have to compile, the card that NVML shows first, and no settings of the model's own;
    on a CPU none of this, which it does not know."""
    on_gpu, on_cpu = settings(machine(gpus=(gpu(free_gib=24),)), gpu_memory_share=0.4), settings(machine())
    assert on_gpu.env["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert on_gpu.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert on_gpu.llm["generation_config"] == "vllm"
    assert "enforce" not in on_gpu.flags
    assert not {"VLLM_USE_FLASHINFER_SAMPLER", "CUDA_DEVICE_ORDER"} & on_cpu.env.keys()
    assert "generation_config" not in on_cpu.llm


def test_a_gpus_settings_are_printed_with_their_reasons() -> None:
    """A line for each of the GPU's own variables and arguments says why it is there."""
    found = settings(machine(gpus=(gpu(free_gib=24),)), gpu_memory_share=0.4)
    own = (found.env.keys() - settings(machine()).env.keys()) | (found.llm.keys() - settings(machine()).llm.keys())
    assert own == found.why.keys()
    lines = str(found).splitlines()
    assert all(any(line.startswith(f"  {name}: ") for line in lines) for name in own)


@pytest.mark.parametrize("gpus", [(), (gpu(free_gib=24),)])
def test_nothing_is_sent_home(gpus: tuple[Gpu, ...]) -> None:
    """On any hardware vLLM sends no usage statistics and asks no hub."""
    env = settings(machine(gpus=gpus), gpu_memory_share=0.5).env
    assert (env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"], env["HF_HUB_OFFLINE"]) == ("1", "1", "1")


def test_gpu_too_full() -> None:
    """A share that is not free is refused with what was asked, what is free, the GPU's name and size."""
    with pytest.raises(UsageError) as caught:
        settings(machine(gpus=(gpu(free_gib=6),)), gpu_memory_share=0.9)
    assert "gpu_memory_share 0.9 asks for 21.6 GiB of GPU 0 (NVIDIA L4), but only 6.0 of its 24.0" in caught.value.what
    assert "at most 0.25" in caught.value.remedy


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


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, 90])
def test_no_share(share: float) -> None:
    """A share outside 0 to 1 (a percentage, say) is refused."""
    with pytest.raises(UsageError, match=f"gpu_memory_share is {share}, not a share"):
        settings(machine(gpus=(gpu(free_gib=24),)), gpu_memory_share=share)


def test_memory_too_small() -> None:
    """A cache that does not fit into the free memory beside the engine is refused with both numbers."""
    with pytest.raises(UsageError, match=r"KV cache of 8 GiB .* do not fit: 9\.5 GiB of memory are available"):
        settings(machine(available_gib=9.5), kv_cache_gib=8)
    assert settings(machine(available_gib=10), kv_cache_gib=8).env["VLLM_CPU_KVCACHE_SPACE"] == "8"


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_cache_size_is_whole(size: float) -> None:
    """A cache of no or of broken GiB, which vLLM would stumble over later, is refused."""
    with pytest.raises(UsageError, match=f"kv_cache_gib is {size}"):
        settings(machine(), kv_cache_gib=size)  # type: ignore[arg-type]


def test_apply_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`apply` fills the environment and overrides nothing that stands there."""
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "7"})
    settings(machine(), kv_cache_gib=2).apply()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "2"


def refused(command: str, tmp_path: Path) -> UsageError:
    """The error that a command gets before anything starts."""
    with pytest.raises(UsageError) as caught:
        start(command, folder=tmp_path / "private", env={})
    assert not (tmp_path / "private").exists()
    return caught.value


@pytest.mark.parametrize(
    "command", ["", "vllm", "vllm serve", "vllm serve --port 1", "vllm bench serve", "python -m vllm", "serve model"]
)
def test_not_a_servers_command(command: str, tmp_path: Path) -> None:
    """Anything but `vllm serve MODEL ...` is refused with the form that is wanted."""
    assert refused(command, tmp_path).remedy == "write: vllm serve MODEL [options]"


@pytest.mark.parametrize("option", ["--host 0.0.0.0", "--port 8000", "--port=8000", "--api-key secret", "--host=::"])
def test_options_that_are_ours(option: str, tmp_path: Path) -> None:
    """Address, port and key are not the command's: what stands there is named."""
    error = refused(f"vllm serve org/model {option}", tmp_path)
    assert error.what == f"{option.replace('=', ' ').split()[0]} stands in the command"


def test_broken_quotes(tmp_path: Path) -> None:
    """A quotation mark without its partner is a usage error, not a traceback."""
    assert "No closing quotation" in refused("vllm serve 'org/model", tmp_path).what


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "~/nothing", "../nothing"])
def test_model_folder_missing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is no model folder is refused here: vLLM would take it for a hub id and report a network error."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "is no model folder: it has no config.json" in refused(f"vllm serve {model}", tmp_path).what


def test_model_folder_without_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without config.json is refused, by an absolute and by a relative path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for model in (str(tmp_path / "model"), "model"):
        assert "it has no config.json" in refused(f"vllm serve {model}", tmp_path).what


@pytest.mark.parametrize("port", [0, 65536])
def test_port_checked(port: int, tmp_path: Path) -> None:
    """A port that does not exist is refused."""
    with pytest.raises(UsageError, match=f"port {port} does not exist"):
        start("vllm serve org/model", folder=tmp_path, env={}, port=port)


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


def test_keys_differ(fake_vllm: Path, tmp_path: Path) -> None:
    """Each server gets a key and a port of its own."""
    command = f"vllm serve {fake_vllm}"
    with (
        start(command, folder=tmp_path / "a", env={}) as first,
        start(command, folder=tmp_path / "b", env={}) as second,
    ):
        assert first.api_key != second.api_key
        assert len(first.api_key) >= 16
        assert first.url != second.url


def test_relative_folder(fake_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative model folder means the one that the user sees, although the server works in another folder."""
    monkeypatch.chdir(tmp_path)
    with start("vllm serve model", folder=tmp_path / "run", env={}) as server:
        assert server.model_path == server.model_name == str(fake_vllm)


@pytest.mark.parametrize("option", ["--served-model-name chat", "--served-model-name=chat"])
def test_served_name(fake_vllm: Path, tmp_path: Path, option: str) -> None:
    """The name that requests use is the one that the command gives, in either spelling."""
    with start(f"vllm serve {fake_vllm} {option} --seed 1", folder=tmp_path / "run", env={}) as server:
        assert server.model_name == "chat"
        assert server.model_path == str(fake_vllm)


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


@pytest.mark.parametrize(("log", "meaning", "remedy"), FAILURES)
def test_explained(log: str, meaning: str, remedy: str) -> None:
    """Each known failure in a log becomes what it means and what helps, with the number from the log."""
    explained = explain_failure(f"INFO something before\n{log}\nINFO something after")
    assert explained is not None
    assert meaning in explained[0]
    assert remedy in explained[1]


@pytest.mark.parametrize("log", ["", HEALTHY_GPU, "INFO: ready", "ERROR in a request"])
def test_not_explained(log: str) -> None:
    """A log without a known failure is not explained, a healthy GPU's least of all."""
    assert explain_failure(log) is None


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
