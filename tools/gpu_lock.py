"""Is requirements/gpu.lock whole? Installs it for each Python, beside everything, and reads what the packages say.

uv installs for another Python than the one that runs, from wheels alone and by hash: about 5 GB to fetch and 10 GB on
disk, which are given back. On a machine without a GPU nothing of it can be run.
"""

import hashlib
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labkit.files import root

LOCK = root() / "requirements" / "gpu.lock"
CACHE = "uv"  # one for all Pythons: most wheels serve each of them
PYTHONS = ("3.11.9", "3.12.9", "3.13.9")
UNUSED = ("build_backend.py",)  # what some wheels carry of their own making, and nothing imports
PLATFORM = "x86_64-manylinux_2_34"  # Ubuntu 22.04 and newer


def sha256() -> str:
    """Of the lock, as it is now."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def check(python: str, build: Path) -> dict[str, Any]:
    """Installs the lock for `python` below `build`; what is missing and which files several packages write."""
    target, cache = build / f"lock-{python}", build / CACHE
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--link-mode", "hardlink", "--quiet"]
    where = ["--target", str(target), "--cache-dir", str(cache)]
    uv = [sys.executable, "-m", "uv", "pip", "install", *options, *where]
    uv += ["--python-version", python, "--python-platform", PLATFORM, "-r", str(LOCK)]
    try:
        subprocess.run(uv, check=True)
        installed = distributions(path=[str(target)])
        packages: dict[str, Distribution] = {canonicalize_name(each.metadata["Name"]): each for each in installed}
        print(f"lock on Python {python}: {len(packages)} packages", flush=True)
        return {
            "python": python,
            "packages": len(packages),
            "unmet": sorted(unmet(packages, python)),
            "collisions": sorted(collisions(packages)),
        }
    finally:
        shutil.rmtree(target, ignore_errors=True)


def unmet(packages: Mapping[str, Distribution], python: str) -> Iterator[str]:
    """Each requirement of a package, of the extras asked for too, that the packages here do not meet."""
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    todo = [(name, "") for name in packages]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        for needed in map(Requirement, packages[name].requires or ()):
            if needed.marker is not None and not needed.marker.evaluate({**environment, "extra": extra}):
                continue
            found = canonicalize_name(needed.name)
            version = packages[found].version if found in packages else "none"
            if version == "none" or not needed.specifier.contains(version, prereleases=True):
                yield f"{name}{f'[{extra}]' if extra else ''} needs {needed}, and there is {version}"
                continue
            fresh = {(found, asked) for asked in needed.extras} - seen
            seen |= fresh
            todo += fresh


def collisions(packages: Mapping[str, Distribution]) -> Iterator[str]:
    """Each file that several packages write with different content: which one wins depends on the order."""
    contents: dict[str, dict[str, str]] = defaultdict(dict)
    for name, package in packages.items():
        for file in package.files or ():
            if file.hash is not None:
                contents[str(file)][name] = file.hash.value
    for path, by_package in contents.items():
        if len(set(by_package.values())) > 1 and path not in UNUSED:
            yield f"{path} of {' and '.join(sorted(by_package))}"
