"""The wheel outside the clone: built from the sdist, installed in an environment of its own, with its data inside."""

import json
import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.files import root
from tests.unit.stub_server import MODEL, serving

CASES = root() / "tests" / "data" / "cases"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs the installed `labkit`, in an empty folder. Its environment has the dependencies, but not the clone."""
    folder = tmp_path_factory.mktemp("release")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=root(), check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")

    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    install = ["uv", "pip", "install", "--offline", "--no-deps", "--python", str(environment / "bin" / "python")]
    subprocess.run([sys.executable, "-m", *install, str(wheel)], check=True, capture_output=True)
    # A path in a .pth file: packages there are found, its own .pth files (the clone's) are not read.
    (packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LABKIT", "PYTHON"))}

    def run(*arguments: str, timeout_s: float = 60, program: str = "labkit") -> subprocess.CompletedProcess[str]:
        command = [str(environment / "bin" / program), *arguments]
        return subprocess.run(command, cwd=elsewhere, env=kept, capture_output=True, text=True, timeout=timeout_s)

    return run


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it printed, as JSON."""
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def test_the_installed_package_is_not_the_clone(installed: Command) -> None:
    """labkit and its data lie in the environment; neither course nor clone can be imported."""
    where = "import labkit, labkit.files as f; print(labkit.__version__, labkit.__file__, f.data_path()); import course"
    done = installed("-c", where, program="python")
    assert done.stdout.startswith(f"{labkit.__version__} ")
    assert installed("--version").stdout == f"{labkit.__version__}\n"
    assert str(root()) not in done.stdout
    assert "No module named 'course'" in done.stderr


def test_the_tools_answer_as_in_the_clone(installed: Command) -> None:
    """kv, log, fractions, cost and select print the same object, and write nothing."""
    for arguments in (
        ("kv", str(CASES / "kv" / "gemma3_27b.json"), "--json"),
        ("log", str(CASES / "log" / "v0_9_tp4_qwen3_235b.log"), "--json"),
        ("fractions", str(CASES / "fractions" / "ray_62553_two_halves_h100.yaml"), "--json"),
        ("cost", "--json"),
        ("select", "--json"),
    ):
        in_clone = subprocess.run(
            [sys.executable, "-m", "labkit", *arguments], cwd=root(), capture_output=True, text=True, timeout=60
        )
        assert answer(installed(*arguments)) == answer(in_clone), arguments


def test_the_load_client_measures_a_server(installed: Command) -> None:
    """load reaches a server and counts its answers."""
    with serving() as stub:
        done = installed("load", stub.base_url, "--model", MODEL, "--requests", "4", "--json")
    assert answer(done)["completed"] == 4


def test_what_needs_a_clone_says_so(installed: Command) -> None:
    """`labkit run` and `labkit solutions` ask for a clone, with exit code 2 and no traceback."""
    for command in ("run", "solutions"):
        done = installed(command)
        assert done.returncode == 2
        assert "install labkit from a clone" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.engine
def test_a_modelled_card_answers_outside_the_clone(installed: Command) -> None:
    """vLLM's engine finds card, model and step times in the wheel."""
    done = installed("simulate", "--gpu", "h100-sxm", "--rate", "5", "--requests", "20", "--json", timeout_s=300)
    assert answer(done)["completed"] == 20
