"""Test binder/ without Docker: build a clean environment as repo2docker would, and run all labs that need no engine.

    python tools/binder.py [FOLDER]

The environment and the executed notebooks go to FOLDER (default: a new temporary one). It needs the network, or pip's
cache. The image is not tested: `repo2docker --no-build --debug .` shows how it would be built.
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
    """Yield the names of notebooks that need no engine: labs and the two pages."""
    yield from (name for name, lab in LABS.items() if lab.engine == "none")
    yield from PAGES


def steps(environment: Path, out_dir: Path) -> Iterator[list[str]]:
    """Yield the commands in repo2docker's order: the requirements, postBuild, then each notebook by start."""
    yield [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(BINDER / "requirements.txt")]
    yield [str(BINDER / "postBuild")]
    for name in notebooks():
        source, target = root() / "notebooks" / f"{name}.ipynb", out_dir / f"{Path(name).name}.ipynb"
        yield [str(BINDER / "start"), "papermill", "-k", "python3", "--cwd", str(out_dir), str(source), str(target)]


def main(arguments: list[str]) -> int:
    """Create the environment and run all commands; return the exit code of the first that fails, or 0."""
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
    """The commands' environment variables: the new environment first on PATH, without the present one's."""
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    dropped = {"PYTHONPATH", "VIRTUAL_ENV", "LABKIT_ROOT"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PATH": path, "JUPYTER_PREFER_ENV_PATH": "1"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
