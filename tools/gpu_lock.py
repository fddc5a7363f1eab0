"""Check that requirements/gpu.lock is complete: install it for each Python and read the packages' metadata.

uv can install for other Pythons, from wheels only and by hash: about 5 GB to download and 10 GB on disk, which are
deleted afterwards. Without a GPU the packages cannot be run.
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
CACHE = "uv"  # shared by all Pythons: most wheels fit each of them
PYTHONS = ("3.11.9", "3.12.9", "3.13.9")
UNUSED = ("build_backend.py",)  # build files that some wheels contain; nothing imports them
PLATFORM = "x86_64-manylinux_2_34"  # Ubuntu 22.04 and newer


def sha256() -> str:
    """Return the SHA-256 of the lock's pins and hashes, without its comments."""
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check(python: str, build: Path) -> dict[str, Any]:
    """Install the lock for `python` below `build`; return unmet requirements and files that several packages write."""
    target, cache = build / f"lock-{python}", build / CACHE
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--link-mode", "hardlink", "--quiet"]
    folders = ["--target", str(target), "--cache-dir", str(cache)]
    uv = [sys.executable, "-m", "uv", "pip", "install", *options, *folders]
    uv += ["--python-version", python, "--python-platform", PLATFORM, "-r", str(LOCK)]
    try:
        subprocess.run(uv, check=True)
        installed = distributions(path=[str(target)])
        packages: dict[str, Distribution] = {
            canonicalize_name(package.metadata["Name"]): package for package in installed
        }
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
    """Yield each requirement of a package, including those of requested extras, that `packages` do not meet."""
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    todo = [(name, "") for name in packages]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        for needed in map(Requirement, packages[name].requires or ()):
            if needed.marker is not None and not needed.marker.evaluate({**environment, "extra": extra}):
                continue
            package = canonicalize_name(needed.name)
            version = packages[package].version if package in packages else "none"
            if version == "none" or not needed.specifier.contains(version, prereleases=True):
                yield f"{name}{f'[{extra}]' if extra else ''} needs {needed}, and there is {version}"
                continue
            fresh = {(package, wanted) for wanted in needed.extras} - seen
            seen |= fresh
            todo += fresh


def collisions(packages: Mapping[str, Distribution]) -> Iterator[str]:
    """Yield each file that several packages write with different content: the last one installed wins."""
    contents: dict[str, dict[str, str]] = defaultdict(dict)
    for name, package in packages.items():
        for file in package.files or ():
            if file.hash is not None:
                contents[str(file)][name] = file.hash.value
    for path, by_package in contents.items():
        if len(set(by_package.values())) > 1 and path not in UNUSED:
            yield f"{path} of {' and '.join(sorted(by_package))}"
