"""List GPUs with NVML (module `pynvml` of nvidia-ml-py), not with a framework, which would take GPU memory.

NVML's errors on machines without a usable GPU become reasons in words.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

REASONS = {
    "NVMLError_LibraryNotFound": "no NVIDIA driver: its library libnvidia-ml.so.1 is not on this machine",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is installed but its kernel module is not loaded",
    "NVMLError_NoPermission": "this user may not talk to the NVIDIA driver",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA library and kernel module have different versions: reboot",
    "NVMLError_GpuIsLost": "a GPU has fallen off the bus",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device that a program can use: a whole GPU, or a MIG instance.

    `capability`: compute capability (major, minor), None if NVML does not report it. `cuda_driver`: the newest CUDA
    version that the driver supports, 13000 for 13.0, 0 if NVML does not report it.
    """

    index: int
    name: str
    uuid: str
    memory_total_bytes: int
    memory_free_bytes: int
    driver: str
    capability: tuple[int, int] | None = None
    cuda_driver: int = 0


def load_nvml() -> Any | None:
    """Return the module, or None if nvidia-ml-py is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


@contextmanager
def session(nvml: Any) -> Iterator[None]:
    """Initialise NVML, and shut it down at the end. Sessions may be nested: NVML counts them."""
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def find_gpus(nvml: Any | None = None, *, visible: str | None = None) -> tuple[tuple[Gpu, ...], str]:
    """Return the devices that a program would see, and "" or the reason why there are none.

    `nvml`: default `pynvml`. `visible`: default CUDA_VISIBLE_DEVICES, which NVML ignores.
    """
    nvml = nvml or load_nvml()
    if nvml is None:
        return (), "cannot look for GPUs: the package nvidia-ml-py is not installed"
    try:
        with session(nvml):
            gpus, reason = _all_gpus(nvml)
    except nvml.NVMLError as error:
        return (), REASONS.get(type(error).__name__, f"NVML says: {error}")
    return _visible(gpus, visible) if gpus else (gpus, reason)


def _visible(gpus: tuple[Gpu, ...], visible: str | None) -> tuple[tuple[Gpu, ...], str]:
    """Return the devices in CUDA_VISIBLE_DEVICES, which has indices and prefixes of UUIDs, in its order."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if visible is None:
        return gpus, ""
    chosen: list[Gpu] = []
    for word in (part.strip() for part in visible.split(",")):
        match = next((gpu for gpu in gpus if word and (word == str(gpu.index) or gpu.uuid.startswith(word))), None)
        if match is None:  # CUDA stops at the first entry that it cannot resolve
            break
        chosen.append(match)
    hidden = f'CUDA_VISIBLE_DEVICES="{visible}" hides all {len(gpus)} GPU(s) of this machine'
    return tuple(chosen), "" if chosen else hidden


def handles(nvml: Any) -> tuple[list[tuple[int, Any]], str]:
    """Return (index of the physical GPU, handle) for every usable device: of a GPU in MIG mode, its instances."""
    usable: list[tuple[int, Any]] = []
    reason = "the NVIDIA driver reports no GPU"
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        devices = _mig_instances(nvml, handle)
        if devices == []:
            reason = f"GPU {index} is in MIG mode and has no instance"
        usable += [(index, device) for device in ([handle] if devices is None else devices)]
    return usable, "" if usable else reason


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """Return NVML's answer, or None if the device, the driver or the library does not support the call."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def _all_gpus(nvml: Any) -> tuple[tuple[Gpu, ...], str]:
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    cuda_driver = int(_ask(nvml, "nvmlSystemGetCudaDriverVersion_v2") or 0)
    usable, reason = handles(nvml)
    gpus = []
    for index, handle in usable:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        # The physical GPU's compute capability, which its MIG instances share.
        capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", nvml.nvmlDeviceGetHandleByIndex(index))
        gpus.append(
            Gpu(
                index=index,
                name=_text(nvml.nvmlDeviceGetName(handle)),
                uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                memory_total_bytes=int(memory.total),
                memory_free_bytes=int(memory.free),
                driver=driver,
                capability=(int(capability[0]), int(capability[1])) if capability else None,
                cuda_driver=cuda_driver,
            )
        )
    return tuple(gpus), reason


def _mig_instances(nvml: Any, handle: Any) -> list[Any] | None:
    """Return a GPU's MIG instances; None if it is not in MIG mode."""
    current, _pending = _ask(nvml, "nvmlDeviceGetMigMode", handle) or (0, 0)
    if not current:
        return None
    slots = range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    instances = [_ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in slots]
    return [instance for instance in instances if instance is not None]


def _text(value: str | bytes) -> str:
    """Decode bytes, which old releases of the binding return."""
    return value.decode() if isinstance(value, bytes) else value
