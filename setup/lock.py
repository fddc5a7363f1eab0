"""Renews the locks of both stacks, and of the labs that need none: `make lock`, or `python setup/lock.py` where uv is
installed.

Exact versions and hashes for every supported Python on Linux x86-64 (pyproject's [tool.uv] environments), and no
index addresses.
"""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
COMMON = ["--universal", "--python-version", "3.11", "--generate-hashes", "--upgrade", "--quiet"]
SILENT = ["--no-emit-index-url", "--no-emit-find-links", "--no-header"]


def compile_lock(stack: str, *extra: str) -> None:
    """Resolves `stack`.in into `stack`.lock."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        f"{stack}.in",
        *COMMON,
        *SILENT,
        *extra,
        "--output-file",
        f"{stack}.lock",
    ]
    subprocess.run(command, cwd=REQUIREMENTS, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    try:
        compile_lock("cpu", "--override", "cpu-overrides.txt")
        compile_lock("gpu")
        compile_lock("pages", "--constraint", "cpu.lock")
    except subprocess.CalledProcessError as error:
        sys.exit(f"uv could not resolve the requirements (exit code {error.returncode}); its reason stands above")
