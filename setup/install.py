"""Makes `.venv` from a lock: `python3 setup/install.py [--stack auto|cpu|gpu] [--venv DIR]`. Standard library only.

With an NVIDIA GPU on the machine it takes the CUDA stack, otherwise the CPU stack. A second call finds the stamp of the
first and does nothing.
"""

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
# The only address in the project: PyPI has no CPU build of torch for x86-64.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST, NEWEST = (3, 11), (3, 13)
TORCH_HASH_PYTHON = (3, 11)  # the Python whose torch wheel torch-cpu.lock pins by hash
DISK_GIB = {"cpu": 7, "gpu": 18}


def main() -> int:
    """Installs what is missing. Returns the exit code: 0 done, 1 an installation step failed, 2 not possible here."""
    options = _options()
    if problem := platform_problem(sys.version_info[:2], platform.system(), platform.machine()):
        return _stop(2, problem)
    stack = detect_stack() if options.stack == "auto" else options.stack
    stamp_file, wanted = options.venv / "serving-lab.json", stamp(stack)
    found = _read_stamp(stamp_file)
    if found == wanted:
        return 0
    if problem := disk_problem(stack, shutil.disk_usage(ROOT).free):
        return _stop(2, problem)
    if found and found["stack"] != stack:
        print(f"The environment was made for the {found['stack']} stack; making it anew for the {stack} stack.")
        shutil.rmtree(options.venv)
    return _install(options.venv, stack, stamp_file, wanted)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    return parser.parse_args()


def platform_problem(python: tuple[int, ...], system: str, architecture: str) -> str:
    """Says why the engines cannot be installed on this platform; empty when they can."""
    if not OLDEST <= python[:2] <= NEWEST:
        versions = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        return f"This is Python {python[0]}.{python[1]}; the engines need {versions}. Try: make PYTHON=python3.11 ..."
    if (system, architecture) != ("Linux", "x86_64"):
        return f"This is {system} on {architecture}; the engines' locked builds are for Linux on x86_64."
    return ""


def disk_problem(stack: str, free_bytes: int) -> str:
    """Says how much disk is missing for the stack; empty when there is enough."""
    if free_bytes >= DISK_GIB[stack] * 2**30:
        return ""
    return f"The {stack} stack needs about {DISK_GIB[stack]} GiB; {free_bytes / 2**30:.1f} GiB are free under {ROOT}."


def detect_stack(driver: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """gpu when the NVIDIA driver lists a device (its /proc folder, or nvidia-smi where that is hidden), else cpu."""
    if driver.is_dir() and any(driver.iterdir()):
        return "gpu"
    smi = shutil.which("nvidia-smi")
    if not smi:
        return "cpu"
    listing = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
    return "gpu" if listing.returncode == 0 and "GPU " in listing.stdout else "cpu"


def stamp(stack: str) -> dict[str, str]:
    """What the environment is made of: when any of it changes, it is installed again."""
    files = [REQUIREMENTS / f"{stack}.lock", ROOT / "pyproject.toml", Path(__file__)]
    files += [REQUIREMENTS / "torch-cpu.lock", ROOT / "setup/vllm-name/pyproject.toml"] if stack == "cpu" else []
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return {"stack": stack, "python": platform.python_version(), "digest": digest, "root": str(ROOT)}


def _read_stamp(file: Path) -> dict[str, str] | None:
    try:
        content: dict[str, str] = json.loads(file.read_text())
        return content
    except (OSError, ValueError):
        return None


def _install(venv: Path, stack: str, stamp_file: Path, wanted: dict[str, str]) -> int:
    print(f"Setting up {venv} with the {stack} stack (a few minutes the first time).", flush=True)
    stamp_file.unlink(missing_ok=True)
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    for title, arguments in steps(stack, sys.version_info[:2]):
        if not _pip(venv, title, arguments):
            return _stop(1, f"'{title}' failed; the whole log is {venv / 'install.log'}. Then run the command again.")
    stamp_file.write_text(json.dumps(wanted))
    return 0


def steps(stack: str, python: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """The pip calls in order, each a title and its arguments."""
    yield "packages", ["--require-hashes", "-r", str(REQUIREMENTS / f"{stack}.lock")]
    if stack == "cpu":
        yield "torch for the CPU", torch_arguments(python)
        yield "vLLM's name", ["--no-build-isolation", str(ROOT / "setup" / "vllm-name")]
    yield "labkit", ["--no-build-isolation", "--editable", str(ROOT)]


def torch_arguments(python: tuple[int, ...]) -> list[str]:
    """By hash on the Python whose wheel the lock knows, by exact version on the others (torch-cpu.lock says why)."""
    lock = REQUIREMENTS / "torch-cpu.lock"
    fallback = ["--extra-index-url", TORCH_CPU_INDEX]
    if python[:2] == TORCH_HASH_PYTHON:
        return [*fallback, "--require-hashes", "-r", str(lock)]
    print(f"  note: torch is pinned by version, not by hash, on Python {python[0]}.{python[1]}")
    pin = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    return [*fallback, pin.rstrip(" \\")]


def _pip(venv: Path, title: str, arguments: list[str], *, tries: int = 3) -> bool:
    """Runs pip, showing how far it is; tries again, since an index may not answer just once."""
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
