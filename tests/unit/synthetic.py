"""Machines and labs that do not exist, for the tests of course, runner, report and command line."""

from pathlib import Path

from labkit.labs import load_labs
from labkit.machine import Gpu, Machine

GIB = 2**30
ROOT = Path(__file__).parent / "labs"
LABS = load_labs(ROOT / "data" / "labs.yaml")
NO_GPU = "no NVIDIA driver here"


def machine(*, memory_gib: float = 16, gpu_gib: float = 0, gpu_free_gib: float | None = None) -> Machine:
    """A machine with two CPUs, so much memory, and one GPU or none."""
    free = gpu_gib if gpu_free_gib is None else gpu_free_gib
    gpu = Gpu(
        index=0,
        name="Test GPU",
        uuid="GPU-0",
        memory_total_bytes=int(gpu_gib * GIB),
        memory_free_bytes=int(free * GIB),
        driver="580.95.05",
    )
    return Machine(
        cpu_model="Test CPU",
        cpus=2,
        memory_total_bytes=32 * GIB,
        memory_available_bytes=int(memory_gib * GIB),
        gpus=(gpu,) if gpu_gib else (),
        gpu_reason="" if gpu_gib else NO_GPU,
        os="Test OS",
        python="3.11.0",
        hostname_hash="0" * 12,
    )
