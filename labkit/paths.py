"""Where the course's own files stand: `data/` and `notebooks/`, beside the package in the repository.

The package is installed editable from the repository, so both are found from this file. `LABKIT_ROOT` points to
another folder with the same layout (a workshop's own labs, a test's synthetic ones).
"""

import os
from pathlib import Path

from labkit.errors import UsageError


def root() -> Path:
    """The folder that holds `data/` and `notebooks/`: `LABKIT_ROOT`, or else the repository."""
    chosen = os.environ.get("LABKIT_ROOT")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parent.parent


def data_path(name: str = "") -> Path:
    """The path of `name` in the data folder, or of the folder itself. UsageError says which of the two is missing."""
    folder = root() / "data"
    if not folder.is_dir():
        raise UsageError(
            f"the course's data folder is missing: {folder}",
            remedy="install labkit from a clone of the repository (make, or pip install -e .), "
            "or set LABKIT_ROOT to the folder that holds data/ and notebooks/",
        )
    path = folder / name
    if not path.exists():
        raise UsageError(f"the data file {name} is missing: {path}", remedy="restore it from the repository")
    return path


def notebooks_path() -> Path:
    """The folder of the course's notebooks."""
    folder = root() / "notebooks"
    if not folder.is_dir():
        raise UsageError(
            f"the notebooks are missing: {folder}",
            remedy="run labkit from a clone of the repository, or set LABKIT_ROOT to the folder that holds them",
        )
    return folder


def runs_path() -> Path:
    """Where runs go when nobody says where: `LABKIT_RUNS`, or else `runs/` under the root. It need not exist."""
    chosen = os.environ.get("LABKIT_RUNS")
    return Path(chosen).expanduser().resolve() if chosen else root() / "runs"
