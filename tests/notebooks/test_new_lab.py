"""A lab made by `make new-lab` in a copy of the repository passes what every lab has to pass, without an engine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.files import root
from labkit.labs import LABS

pytestmark = pytest.mark.notebook

NUMBER = next(f"{number:02d}" for number in range(99, 0, -1) if f"{number:02d}" not in {name[:2] for name in LABS})
NAME = f"{NUMBER}_made_by_the_template"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "workspace", "build", "dist", "shared")
CHECKS = [  # the tests that a lab has to pass and that need no engine
    "tests/notebooks/test_stored.py",
    "tests/unit/test_exercises.py",
    "tests/unit/test_claims.py",
    "tests/unit/test_course.py",
    "tests/unit/test_docs.py",
    f"tests/unit/test_lab_{NUMBER}.py",
]
ABOUT_LABS = "name_each_other or labs_yaml_goes or guides_minutes or binder_tries or judges_as_it_says"
ABOUT_IT = f"({NUMBER} or {ABOUT_LABS}) and not profiles and not missing"


def not_copied(folder: str, names: list[str]) -> set[str]:
    """What a clone does not have; `runs` is one of them at the top only, where it holds records and no code."""
    return NOT_COPIED(folder, names) | ({"runs"} if Path(folder) == root() else set())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the new lab in it, laid out and executed by the tool's command."""
    folder = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(root(), folder, ignore=not_copied)
    done = run(folder, "tools/new_lab.py", NAME)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """A Python command in the copy, with the copy's packages in front of those of this environment."""
    environment = {name: value for name, value in os.environ.items() if name != "LABKIT_ROOT"}
    environment |= {"PYTHONPATH": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = (sys.executable, *command)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_new_lab_passes_the_checks(copy: Path) -> None:
    """In each file some tests are about the new lab or about all labs together, and all of these pass."""
    done = run(copy, "-m", "pytest", "-v", "-p", "no:cacheprovider", *CHECKS, "-k", ABOUT_IT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert [file for file in CHECKS if not re.search(rf"{file}::.* PASSED", done.stdout)] == []


def test_a_new_lab_shows_again_what_is_stored(copy: Path, tmp_path: Path) -> None:
    """nbval, as it is run on labs without an engine, finds every output again but those that are tagged `timed`."""
    code = "import sys; from pathlib import Path; from tests.notebooks.test_deterministic_outputs import nbval\n"
    code += "done = nbval(*map(Path, sys.argv[1:])); print(done.stdout); sys.exit(done.returncode)"
    done = run(copy, "-c", code, str(tmp_path), str(copy / "notebooks" / f"{NAME}.ipynb"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_a_new_lab_passes_the_linter(copy: Path) -> None:
    """Its files and its notebook are formatted and without a finding, as `make lint` wants them."""
    new = [f"notebooks/{NAME}.ipynb", f"course/lab_{NUMBER}.py", f"tests/unit/test_lab_{NUMBER}.py"]
    for command in (["check"], ["format", "--check"]):
        done = run(copy, "-m", "ruff", *command, "--no-cache", *new)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_spoilt_lab_does_not_pass(copy: Path) -> None:
    """The checks are about the new lab: with its exercise gone from the notebook they fail and name it."""
    path = copy / "notebooks" / f"{NAME}.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("core_share = ...", "core_share = 0.064"), encoding="utf-8")
    try:
        done = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/notebooks/test_stored.py", "-k", NUMBER)
    finally:
        path.write_text(text, encoding="utf-8")
    assert done.returncode == 1
    assert f"{NUMBER}.share" in done.stdout
