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
    if reason := remake_reason(options.venv, found, wanted):
        print(f"{options.venv} was made {reason}; making it anew.")
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


def remake_reason(venv: Path, found: dict[str, str], wanted: dict[str, str]) -> str:
    """Says why the environment cannot be brought up to date by pip, if it cannot: what it was made for or where."""
    if not (venv / "pyvenv.cfg").is_file():
        return ""  # nothing there, or nothing that is ours to delete
    if not (venv / "bin" / "python").exists():
        return "without a Python that is still there"
    if found and found["stack"] != wanted["stack"]:
        return f"for the {found['stack']} stack, this is the {wanted['stack']} stack"
    if found and found["root"] != wanted["root"]:
        return f"in {found['root']}, which its commands still name"
    made_by = _venv_python(venv)
    if made_by.split(".")[:2] != wanted["python"].split(".")[:2]:
        return f"by Python {made_by or 'unknown'}, this is Python {wanted['python']}"
    return ""


def _venv_python(venv: Path) -> str:
    """The version that stands in the environment's pyvenv.cfg; empty when there is none."""
    try:
        lines = (venv / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("version")), "")


def _read_stamp(file: Path) -> dict[str, str]:
    """What the environment was made of; empty when there is none or its stamp is damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    keys = {"stack", "python", "digest", "root"}
    return content if isinstance(content, dict) and content.keys() == keys else {}


def _install(venv: Path, stack: str, stamp_file: Path, wanted: dict[str, str]) -> int:
    print(f"Setting up {venv} with the {stack} stack (a few minutes the first time).", flush=True)
    if not (venv / "bin" / "python").exists() and not _make_venv(venv):
        return _stop(1, "Python's venv module did not work; on Debian and Ubuntu: apt install python3-venv")
    # Not done yet, but a later call has to know for what it was begun.
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
        shutil.rmtree(venv, ignore_errors=True)  # it has a Python and no pip
    return done


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
