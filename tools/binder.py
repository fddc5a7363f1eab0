"""Tries binder/ without Docker: a clean environment made as repo2docker would make it, and every lab that it is for.

    python tools/binder.py [FOLDER]

In FOLDER (default: a new temporary one) go the environment and the executed notebooks. It wants the network, or pip's
cache. What it does not try is the image around it: `repo2docker --no-build --debug .` shows how that would be built.
"""

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

from labkit.files import root
from labkit.labs import LABS

BINDER = root() / "binder"
PAGES = ("widgets/cost_calculator", "widgets/selector")


def notebooks() -> Iterator[str]:
    """What runs without an engine: the labs that say so, and the two pages; names without their ending."""
    yield from (name for name, lab in LABS.items() if lab.engine == "none")
    yield from PAGES


def steps(environment: Path, out_dir: Path) -> Iterator[list[str]]:
    """The commands in order, as repo2docker gives them: the requirements, postBuild, then each notebook by start."""
    yield [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(BINDER / "requirements.txt")]
    yield [str(BINDER / "postBuild")]
    for name in notebooks():
        source, target = root() / "notebooks" / f"{name}.ipynb", out_dir / f"{Path(name).name}.ipynb"
        yield [str(BINDER / "start"), "papermill", "-k", "python3", "--cwd", str(out_dir), str(source), str(target)]


def main(arguments: list[str]) -> int:
    """Makes the environment and runs everything; the exit code of the first command that fails, or 0."""
    folder = Path(arguments[0] if arguments else tempfile.mkdtemp(prefix="serving-lab-binder-")).resolve()
    environment, out_dir = folder / "venv", folder / "out"
    venv.create(environment, with_pip=True, clear=True)
    out_dir.mkdir(exist_ok=True)
    settings = _settings(environment)
    for command in steps(environment, out_dir):
        print("+", *command, file=sys.stderr)
        done = subprocess.run(command, cwd=root(), env=settings, check=False)
        if done.returncode:
            return done.returncode
    print(f"binder/ is enough for {', '.join(notebooks())}: {out_dir}")
    return 0


def _settings(environment: Path) -> dict[str, str]:
    """The variables of the commands: the new environment first on PATH, nothing from the one that runs this."""
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    dropped = {"PYTHONPATH", "VIRTUAL_ENV", "LABKIT_ROOT"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PATH": path, "JUPYTER_PREFER_ENV_PATH": "1"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
