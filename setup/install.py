"""Create `.venv` from a lock: `python3 setup/install.py [--stack auto|cpu|gpu] [--venv DIR]`. Standard library only.

Installs the CUDA stack if an NVIDIA GPU and its driver can run it, otherwise the CPU stack. Other requirements of the
CUDA stack are checked before anything is installed. If the environment is up to date, nothing is done.
"""

from __future__ import annotations  # so that Python 3.8 and 3.9 get as far as the message that they are too old

import argparse
import ctypes
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from labkit.cuda import (  # noqa: E402 - needs nothing installed
    CPU_STACK,
    Need,
    build_tools,
    capability_need,
    compiler_need,
    driver_need,
    headers_need,
    hub_folder,
    model_need,
)

REQUIREMENTS = ROOT / "requirements"
# The only address in the project: PyPI has no CPU build of torch for x86-64.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST, NEWEST = (3, 11), (3, 13)
TORCH_HASH_PYTHON = (3, 11)  # the Python whose torch wheel torch-cpu.lock pins by hash
DISK_GIB = {"cpu": 7, "gpu": 18}


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine. `capability` is None and `cuda_driver` 0 if the driver does not report them."""

    index: int
    name: str
    driver: str
    capability: tuple[int, int] | None = None
    cuda_driver: int = 0


def main() -> int:
    """Install what is missing; return the exit code: 0 done, 1 a step failed, 2 not possible on this machine."""
    options = _options()
    if problem := platform_problem(sys.version_info[:2], platform.system(), platform.machine()):
        return _stop(2, problem)
    stamp_file = options.venv / "serving-lab.json"
    installed = _read_stamp(stamp_file)
    # An explicitly chosen stack is kept until another one is chosen.
    chosen = installed.get("chosen", "") if options.stack == "auto" else options.stack
    gpus = () if chosen == "cpu" else find_gpus()
    stack, reason = (chosen, "") if chosen else choose_stack(gpus)
    wanted = {**stamp(stack), "chosen": chosen}
    if installed == wanted:
        return 0
    if reason:
        print(reason)
    missing = missing_for_cuda(gpus, new=not options.venv.exists()) if stack == "gpu" else []
    for need in missing:
        print(f"{need.found}\n  To fix it: {need.fix}", file=sys.stderr)
    if not chosen and any(need.fix == build_tools() for need in missing):
        return _stop(2, f"Nothing was installed. Run make setup again after that, or {CPU_STACK}")
    if reason := remake_reason(options.venv, installed, wanted):
        print(f"{options.venv} was made {reason}; creating it again.")
        shutil.rmtree(options.venv)
    if not options.venv.exists() and (problem := disk_problem(stack, shutil.disk_usage(ROOT).free)):
        return _stop(2, problem)
    return _install(options.venv, stack, stamp_file, wanted)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    return parser.parse_args()


def platform_problem(python: tuple[int, ...], system: str, architecture: str) -> str:
    """Return why the engines cannot be installed on this platform; "" if they can."""
    if not OLDEST <= python[:2] <= NEWEST:
        versions = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        return f"This is Python {python[0]}.{python[1]}; the engines need {versions}. Try: make PYTHON=python3.11 ..."
    if (system, architecture) != ("Linux", "x86_64"):
        return f"This is {system} on {architecture}; the engines' locked builds are for Linux on x86_64."
    return ""


def disk_problem(stack: str, free_bytes: int) -> str:
    """Return a message if the disk is too small for the stack; "" if it is not."""
    if free_bytes >= DISK_GIB[stack] * 2**30:
        return ""
    return f"The {stack} stack needs about {DISK_GIB[stack]} GiB; {free_bytes / 2**30:.1f} GiB are free under {ROOT}."


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that NVML lists, or else nvidia-smi; () if neither works."""
    return _gpus_of_nvml() or _gpus_of_smi()


def choose_stack(gpus: Sequence[Gpu], driver: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, str]:
    """Return "gpu" if a GPU and the driver can run the CUDA stack, else "cpu"; and why a GPU is not used, or ""."""
    if not gpus:
        listed = driver.is_dir() and any(driver.iterdir())
        problem = f"{driver} lists a GPU, but its driver does not answer"
        fix = "reboot if the driver was updated; start a container with --gpus all"
        return "cpu", _cpu_reason([Need("GPU driver", False, problem, fix)]) if listed else ""
    able = [gpu for gpu in gpus if capability_need([gpu]).met]
    missing = [need for need in (capability_need(able or gpus), driver_need(gpus)) if not need.met]
    return ("cpu", _cpu_reason(missing)) if missing else ("gpu", "")


def _cpu_reason(missing: Sequence[Need]) -> str:
    lines = [f"Taking the CPU stack: {'; '.join(need.found for need in missing)}."]
    fixes = dict.fromkeys(need.fix for need in missing)
    return "\n".join(lines if CPU_STACK in fixes else [*lines, f"To use the GPU: {'; '.join(fixes)}."])


def _gpus_of_nvml() -> tuple[Gpu, ...]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()
    if nvml.nvmlInit_v2():
        return ()
    try:
        return tuple(_read_nvml(nvml))
    finally:
        nvml.nvmlShutdown()


def _read_nvml(nvml: ctypes.CDLL) -> Iterator[Gpu]:
    """Each GPU. NVML's functions return 0 on success; libraries before CUDA 10 cannot report the CUDA version."""
    count, cuda, driver = ctypes.c_uint(), ctypes.c_int(), ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlSystemGetDriverVersion(driver, 96)
    if hasattr(nvml, "nvmlSystemGetCudaDriverVersion_v2"):
        nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))
    for index in range(count.value):
        handle, name, major, minor = ctypes.c_void_p(), ctypes.create_string_buffer(96), ctypes.c_int(), ctypes.c_int()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            continue
        nvml.nvmlDeviceGetName(handle, name, 96)
        failed = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        capability = None if failed else (major.value, minor.value)
        yield Gpu(index, name.value.decode(), driver.value.decode(), capability, cuda.value)


def _gpus_of_smi() -> tuple[Gpu, ...]:
    smi = shutil.which("nvidia-smi")
    if not smi:
        return ()
    command = [smi, "--query-gpu=driver_version,compute_cap,name", "--format=csv,noheader"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split(", ", 2) for line in listing.stdout.splitlines()] if listing.returncode == 0 else []
    return tuple(_gpu_of_row(index, row) for index, row in enumerate(rows) if len(row) == 3)


def _gpu_of_row(index: int, row: Sequence[str]) -> Gpu:
    driver, capability, name = row
    major, _, minor = capability.partition(".")
    known = major.isdecimal() and minor.isdecimal()
    return Gpu(index, name, driver, (int(major), int(minor)) if known else None)


def missing_for_cuda(gpus: Sequence[Gpu], *, new: bool) -> list[Need]:
    """Return unmet needs of the CUDA stack. `new`: the stack is not installed yet, so its disk space counts too."""
    absent = Need("GPU", False, "no NVIDIA GPU answers on this machine", "run nvidia-smi and read its message")
    needs = [capability_need(gpus), driver_need(gpus)] if gpus else [absent]
    needs += [compiler_need(), headers_need(), *([model_need(_free_for_model())] if new else [])]
    return [need for need in needs if not need.met]


def _free_for_model() -> int:
    """Free bytes for the hub's cache after the stack is installed, which may be on the same file system."""
    folder = hub_folder().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    stack = DISK_GIB["gpu"] * 2**30 if existing.stat().st_dev == ROOT.stat().st_dev else 0
    return shutil.disk_usage(existing).free - stack


def stamp(stack: str) -> dict[str, str]:
    """Return the inputs of the environment; if any of them changes, it is installed again."""
    files = [REQUIREMENTS / f"{stack}.lock", ROOT / "pyproject.toml", Path(__file__)]
    files += [REQUIREMENTS / "torch-cpu.lock", ROOT / "setup/vllm-name/pyproject.toml"] if stack == "cpu" else []
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return {"stack": stack, "python": platform.python_version(), "digest": digest, "root": str(ROOT)}


def remake_reason(venv: Path, installed: dict[str, str], wanted: dict[str, str]) -> str:
    """Return why pip cannot update the environment, so that it must be created again; "" if pip can."""
    if not (venv / "pyvenv.cfg").is_file():
        return ""  # no environment; do not delete what else may be there
    if not (venv / "bin" / "python").exists():
        return "with a Python that no longer exists"
    if installed and installed["stack"] != wanted["stack"]:
        return f"for the {installed['stack']} stack, this is the {wanted['stack']} stack"
    if installed and installed["root"] != wanted["root"]:
        return f"in {installed['root']}, which its commands still name"
    made_by = _venv_python(venv)
    if made_by.split(".")[:2] != wanted["python"].split(".")[:2]:
        return f"by Python {made_by or 'unknown'}, this is Python {wanted['python']}"
    return ""


def _venv_python(venv: Path) -> str:
    """The Python version in the environment's pyvenv.cfg; "" if there is none."""
    try:
        lines = (venv / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("version")), "")


def _read_stamp(file: Path) -> dict[str, str]:
    """The environment's stamp; empty if it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    keys = {"stack", "python", "digest", "root"}
    return content if isinstance(content, dict) and content.keys() >= keys else {}


def _install(venv: Path, stack: str, stamp_file: Path, wanted: dict[str, str]) -> int:
    print(f"Setting up {venv} with the {stack} stack (a few minutes the first time).", flush=True)
    if not (venv / "bin" / "python").exists() and not _make_venv(venv):
        return _stop(1, "Python's venv module did not work; on Debian and Ubuntu: apt install python3-venv")
    # Not complete yet, but a later call needs to know for which stack it was started.
    stamp_file.write_text(json.dumps({**wanted, "digest": "incomplete"}))
    for title, arguments in steps(stack, sys.version_info[:2]):
        if not _pip(venv, title, arguments):
            return _stop(1, f"'{title}' failed; the whole log is {venv / 'install.log'}. Then run the command again.")
    stamp_file.write_text(json.dumps(wanted))
    return 0


def _make_venv(venv: Path) -> bool:
    new = not venv.exists()
    done = subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False).returncode == 0
    if new and not done:
        shutil.rmtree(venv, ignore_errors=True)  # it has Python but no pip
    return done


def steps(stack: str, python: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield the pip calls in order: (title, arguments)."""
    yield "packages", ["--require-hashes", "-r", str(REQUIREMENTS / f"{stack}.lock")]
    if stack == "cpu":
        yield "torch for the CPU", torch_arguments(python)
        yield "vLLM's name", ["--no-build-isolation", str(ROOT / "setup" / "vllm-name")]
    yield "labkit", ["--no-build-isolation", "--editable", str(ROOT)]


def torch_arguments(python: tuple[int, ...]) -> list[str]:
    """Pin by hash on the Python whose wheel is in the lock, by version on others (see torch-cpu.lock)."""
    lock = REQUIREMENTS / "torch-cpu.lock"
    fallback = ["--extra-index-url", TORCH_CPU_INDEX]
    if python[:2] == TORCH_HASH_PYTHON:
        return [*fallback, "--require-hashes", "-r", str(lock)]
    print(f"  note: torch is pinned by version, not by hash, on Python {python[0]}.{python[1]}")
    pin = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    return [*fallback, pin.rstrip(" \\")]


def _pip(venv: Path, title: str, arguments: list[str], *, tries: int = 3) -> bool:
    """Run pip with progress; retry, since an index may fail temporarily."""
    for attempt in range(1, tries + 1):
        command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
        if _show_progress([*command, *arguments], title, venv / "install.log") == 0:
            return True
        print(f"\n  {title}: attempt {attempt} of {tries} failed", flush=True)
    return False


def _show_progress(command: list[str], title: str, log: Path) -> int:
    collected = 0
    with log.open("a") as sink, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True) as pip:
        for line in pip.stdout or ():
            sink.write(line)
            collected += line.startswith(("Collecting", "Processing", "Obtaining"))
            if line.startswith("Installing collected"):
                print(f"\r  {title}: {collected} collected, installing ...   ", end="", flush=True)
            elif sys.stdout.isatty():
                print(f"\r  {title}: {collected} collected", end="", flush=True)
    print(f"\r  {title}: {collected} {'done' if pip.returncode == 0 else 'FAILED'}              ", flush=True)
    if pip.returncode:
        print("".join(log.read_text().splitlines(keepends=True)[-8:]))
    return pip.returncode


def _stop(code: int, message: str) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
