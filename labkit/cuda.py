"""Requirements of the locked CUDA 13 stack: GPU, driver, C compiler, Python headers, disk.

Standard library only, for Python 3.8 too: setup/install.py imports it before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

OLDEST_CUDA = 13000  # CUDA 13.0 (requirements/gpu.lock) in NVML's format, 1000 x major + 10 x minor
OLDEST_DRIVER = 580  # the first driver branch with CUDA 13.0 (CUDA toolkit release notes)
OLDEST_CAPABILITY = (7, 5)  # Turing: CUDA 13.0 dropped Maxwell, Pascal and Volta
MODEL = "Qwen/Qwen2.5-7B-Instruct"  # data/profiles: for GPUs from MODEL_GPU_GIB; smaller ones serve a 1.5B
MODEL_GIB = 15
MODEL_GPU_GIB = 20
CPU_STACK = "use the CPU stack: make setup STACK=cpu"


class Gpu(Protocol):
    """The required facts of a GPU. `capability` is None and `cuda_driver` 0 if NVML does not report them."""

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def driver(self) -> str: ...
    @property
    def capability(self) -> tuple[int, int] | None: ...
    @property
    def cuda_driver(self) -> int: ...


@dataclass(frozen=True)
class Need:
    """A requirement of the CUDA stack. `found`: what the machine has; `fix`: what to do, "" if it is met."""

    topic: str
    met: bool
    found: str
    fix: str = ""


def engine_needs(gpus: Sequence[Gpu]) -> tuple[Need, ...]:
    """Check what every engine of the CUDA stack needs on a machine with these GPUs (at least one)."""
    return capability_need(gpus), driver_need(gpus), compiler_need(), headers_need()


def capability_need(gpus: Sequence[Gpu]) -> Need:
    """Check that CUDA 13 supports every GPU. A capability that NVML does not report counts as supported."""
    oldest = ".".join(map(str, OLDEST_CAPABILITY))
    old = [gpu for gpu in gpus if gpu.capability and gpu.capability < OLDEST_CAPABILITY]
    if not old:
        versions = dict.fromkeys(".".join(map(str, gpu.capability or ["unknown"])) for gpu in gpus)
        return Need("GPU capability", True, f"{', '.join(versions)} (at least {oldest})")
    rest = ",".join(dict.fromkeys(str(gpu.index) for gpu in gpus if gpu not in old))
    has = ".".join(map(str, old[0].capability or ()))
    found = f"{old[0].name} has compute capability {has}; the CUDA stack needs {oldest} (Turing) or newer"
    # PCI_BUS_ID is NVML's order; CUDA's default is fastest first, so an index could mean another GPU.
    hide = f"hide it: export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={rest}"
    return Need("GPU capability", False, found, hide if rest else CPU_STACK)


def driver_need(gpus: Sequence[Gpu]) -> Need:
    """Check the driver by the CUDA version it supports, or by its version if NVML does not report that."""
    driver, cuda = gpus[0].driver or "of unknown version", gpus[0].cuda_driver
    major = driver.partition(".")[0]
    new_enough = cuda >= OLDEST_CUDA if cuda else not major.isdecimal() or int(major) >= OLDEST_DRIVER
    found = f"NVIDIA driver {driver}" + (f" (CUDA {cuda // 1000}.{cuda % 1000 // 10})" if cuda else "")
    if new_enough:
        return Need("GPU driver", True, found)
    found += f" is too old; the CUDA stack needs {OLDEST_DRIVER} (CUDA {OLDEST_CUDA // 1000}.0) or newer"
    if all(not capability_need([gpu]).met for gpu in gpus):
        return Need("GPU driver", False, found, CPU_STACK)  # a newer driver would not help
    command = f"Ubuntu: sudo apt install nvidia-driver-{OLDEST_DRIVER}"
    fix = f"install driver {OLDEST_DRIVER} or newer ({command}), reboot and run make setup again"
    return Need("GPU driver", False, found, fix)


def compiler_need() -> Need:
    """Look for the C compiler that Triton runs when an engine starts: $CC, gcc or clang (triton/runtime/build.py)."""
    chosen = os.environ.get("CC")
    compiler = shutil.which(chosen) if chosen else shutil.which("gcc") or shutil.which("clang")
    if compiler:
        return Need("C compiler", True, compiler)
    missing = f"$CC is {chosen!r}, which is not a program" if chosen else "no gcc or clang on the PATH"
    return Need("C compiler", False, f"{missing}; the CUDA stack (Triton) compiles C at run time", build_tools())


def headers_need() -> Need:
    """Look for Python.h, which Triton's C code includes, in the folder that Triton passes to the compiler."""
    header = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    if header.is_file():
        return Need("Python headers", True, str(header))
    return Need("Python headers", False, f"no {header}; the CUDA stack (Triton) compiles against it", build_tools())


def build_tools() -> str:
    """Return the command that installs a C compiler and this Python's headers."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return f"sudo apt install gcc {python}-dev (Fedora: sudo dnf install gcc python3-devel)"


def model_need(free_bytes: int) -> Need:
    """Check that the 7B model of the GPU profiles is in the hub's cache, or that `free_bytes` hold it."""
    topic, folder = "disk for the 7B model", hub_folder()
    if (folder / f"models--{MODEL.replace('/', '--')}" / "snapshots").is_dir():
        return Need(topic, True, f"{MODEL} is in {folder}")
    found = f"{MODEL} (for GPUs of {MODEL_GPU_GIB} GiB and more) takes about {MODEL_GIB} GiB"
    found += f"; {max(0, free_bytes) / 2**30:.1f} GiB are free for it in {folder}"
    fix = "free some space, set HF_HOME to a folder on a larger disk, or serve smollm2-135m"
    enough = free_bytes >= MODEL_GIB * 2**30
    return Need(topic, enough, found, "" if enough else fix)


def hub_folder() -> Path:
    """Return the cache of the Hugging Face hub, by the variables that huggingface_hub reads."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
