"""What doctor and the installer say of GPU machines, through the real pynvml and ctypes, on a fake NVIDIA library.

tests/fake_nvml/fake_nvml.c is compiled and found by LD_LIBRARY_PATH. A `vllm` that is only metadata, first on
PYTHONPATH, plays the CUDA build.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labkit.files import root
from labkit.labs import LABS

SOURCE = root() / "tests" / "fake_nvml" / "fake_nvml.c"
# The larger labs may not fit into the memory of the machine that runs the tests.
ENGINE_LABS = {lab.name for lab in LABS.values() if lab.engine != "none" and lab.needs.memory_gib <= 5}
DOCTOR = ["-m", "labkit", "doctor", "--json"]
CHOICE = """
import json
from setup import install
gpus = install.find_gpus()
stack, reason = install.choose_stack(gpus)
print(json.dumps({"stack": stack, "reason": reason, "gpus": [gpu.name for gpu in gpus]}))
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A machine's GPUs as FAKE_NVML_ variables, and what is said of them.

    `gpus`: doctor's line; `problem`: the topic of the check that fails; `reason`: its words; `fix`: what mends it;
    `stack`: what set-up takes.
    """

    nvml: dict[str, str]
    gpus: str
    stack: str = "gpu"
    problem: str = ""
    reason: str = ""
    fix: str = ""
    free_gib: tuple[float, ...] = ()


def nvml(name: str, mib: str, capability: str, **more: str) -> dict[str, str]:
    """The variables of one machine."""
    return {"NAME": name, "TOTAL_MIB": mib, "CAPABILITY": capability, **more}


OLD_550 = {"DRIVER": "550.54.15", "CUDA": "12040"}
CARDS = {
    "T4 in use": Card(
        nvml=nvml("Tesla T4", "15360", "7.5", USED_MIB="10752"), gpus="1 x Tesla T4 (15 GiB)", free_gib=(4.5,)
    ),
    "V100, driver 550": Card(
        nvml=nvml("Tesla V100-SXM2-16GB", "16384", "7.0", **OLD_550),
        gpus="1 x Tesla V100-SXM2-16GB (16 GiB)",
        stack="cpu",
        problem="GPU capability",
        reason="Tesla V100-SXM2-16GB has compute capability 7.0; the CUDA stack needs 7.5",
        fix="make setup STACK=cpu",
    ),
    "H200": Card(nvml=nvml("NVIDIA H200", "143771", "9.0"), gpus="1 x NVIDIA H200 (140 GiB)"),
    "H100, driver 570": Card(
        nvml=nvml("NVIDIA H100 80GB HBM3", "81559", "9.0", DRIVER="570.86.10", CUDA="12080"),
        gpus="1 x NVIDIA H100 80GB HBM3 (80 GiB)",
        stack="cpu",
        problem="GPU driver",
        reason="NVIDIA driver 570.86.10 (CUDA 12.8) is too old; the CUDA stack needs 580 (CUDA 13.0)",
        fix="install driver 580 or newer (Ubuntu: sudo apt install nvidia-driver-580)",
    ),
    "T4, driver 470 without the CUDA version": Card(
        nvml=nvml("Tesla T4", "15360", "7.5", DRIVER="470.82.01", CUDA="0"),
        gpus="1 x Tesla T4 (15 GiB)",
        stack="cpu",
        problem="GPU driver",
        reason="NVIDIA driver 470.82.01 is too old",
        fix="install driver 580",
    ),
    "4090 and T4": Card(
        nvml=nvml("NVIDIA GeForce RTX 4090;Tesla T4", "24564;15360", "8.9;7.5", COUNT="2"),
        gpus="1 x NVIDIA GeForce RTX 4090 (24 GiB), 1 x Tesla T4 (15 GiB)",
        free_gib=(24.0, 15.0),
    ),
    "GTX 1080 and 4090": Card(
        nvml=nvml("NVIDIA GeForce GTX 1080;NVIDIA GeForce RTX 4090", "8192;24564", "6.1;8.9", COUNT="2"),
        gpus="1 x NVIDIA GeForce GTX 1080 (8 GiB), 1 x NVIDIA GeForce RTX 4090 (24 GiB)",
        problem="GPU capability",
        reason="NVIDIA GeForce GTX 1080 has compute capability 6.1",
        fix="export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1",
    ),
    "A100 80 with MIG": Card(
        nvml=nvml("NVIDIA A100-SXM4-80GB", "81920", "8.0", MIG="2"),
        gpus="2 x NVIDIA A100-SXM4-80GB MIG (40 GiB)",
        free_gib=(40.0, 40.0),
    ),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the fake libnvidia-ml.so.1."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.fail("no C compiler: this test builds a fake libnvidia-ml.so.1; sudo apt install gcc")
    folder = tmp_path_factory.mktemp("nvml")
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)], check=True)
    return folder


def run(command: list[str], library: Path, variables: dict[str, str], *, vllm: str = "0.32.0") -> dict[str, Any]:
    """Runs a command that prints a JSON object, on a machine with the fake library and the metadata of that vLLM, which
    is found before this environment's own."""
    info = library / vllm / f"vllm-{vllm}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "NVIDIA_"))}
    nvml = {f"FAKE_NVML_{name}": value for name, value in variables.items()}
    paths = os.pathsep.join(map(str, (info.parent, root())))
    environment = {**kept, **nvml, "LD_LIBRARY_PATH": str(library), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    found["checks"] = {check["topic"]: check for check in found.get("checks", ())}
    return found


def lab_states(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    """(state, reason, fix) of the labs that start an engine and need little memory; those without an engine run."""
    assert {lab["runs"] for lab in found["labs"] if LABS[lab["name"]].engine == "none"} == {"yes"}
    return {(lab["runs"], lab["reason"], lab["fix"]) for lab in found["labs"] if lab["name"] in ENGINE_LABS}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_gpu_machine(card: Card, library: Path) -> None:
    """Doctor and the installer agree on whether the GPUs can be used; what fails has its fix."""
    found = run(DOCTOR, library, card.nvml)
    check, driver = found["checks"], card.nvml.get("DRIVER", "580.95.05")
    assert check["GPU"]["found"] == f"{card.gpus}, driver {driver}"
    assert {gpu["driver"] for gpu in found["gpus"]} == {driver}
    if card.free_gib:
        assert [round(gpu["memory_free_bytes"] / 2**30, 1) for gpu in found["gpus"]] == list(card.free_gib)
    if card.problem:
        failed = check[card.problem]
        assert (failed["state"], card.fix in failed["fix"]) == ("problem", True)
        assert failed["found"].startswith(card.reason)
        assert lab_states(found) == {("no", failed["found"], failed["fix"])}
    else:
        assert {check[topic]["state"] for topic in ("GPU", "GPU driver", "GPU capability", "C compiler")} == {"ok"}
        assert lab_states(found) == {("yes", "", "")}
    choice = run(["-c", CHOICE], library, card.nvml)
    assert (choice["stack"], choice["gpus"]) == (card.stack, card.nvml["NAME"].split(";"))
    lines = choice["reason"].splitlines()
    if card.stack == "cpu":
        assert lines[0].startswith(f"Taking the CPU stack: {card.reason}")
        assert [line[:40] for line in lines[1:]] == ["To use the GPU: install driver 580 or ne"] * (
            "driver" in card.fix
        )
    else:
        assert lines == []


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cpu_build_on_a_gpu_machine(card: Card, library: Path) -> None:
    """The CPU build uses no GPU: the labs run small, and doctor names the GPU and what the CUDA build would take."""
    found = run(DOCTOR, library, card.nvml, vllm="0.32.0+cpu")
    assert found["gpus"] == []
    assert found["gpu_reason"].startswith("the installed vLLM is the CPU build (make setup STACK=cpu): the GPU ")
    assert {runs for runs, *_ in lab_states(found)} == {"small"}
    check = found["checks"]["GPU"]
    assert check["state"] == "note"
    assert check["found"].startswith(f"{card.gpus}, driver ")
    assert card.reason in check["found"]
    assert ("nothing to do" if "STACK=cpu" in card.fix else card.fix or "make setup STACK=gpu") in check["fix"]


def test_driver_that_does_not_answer(library: Path) -> None:
    """A library without a working driver is no GPU: the installer takes the CPU stack, doctor names the mismatch."""
    for code, words in (("9", "kernel module is not loaded"), ("18", "reboot")):
        check = run(DOCTOR, library, {"INIT": code})["checks"]["GPU"]
        assert (check["state"], words in check["found"]) == ("problem", True)
        assert run(["-c", CHOICE], library, {"INIT": code})["stack"] == "cpu"
