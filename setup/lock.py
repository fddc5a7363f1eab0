"""Update the locks from pyproject.toml: `make lock`, or `python setup/lock.py` with uv installed.

Locks have exact versions and hashes for all supported Pythons on Linux x86-64 (pyproject's [tool.uv] environments), and
no index addresses.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["--universal", "--python-version", "3.11", "--generate-hashes", "--quiet",
           "--no-emit-index-url", "--no-emit-find-links", "--no-header"]  # fmt: skip
COURSE = ["--extra=test", "--group=build"]
LOCKS = {  # each with the parts of pyproject.toml that it holds
    "cpu": ["--extra=cpu", *COURSE, "--group=torch", "--override=requirements/cpu-overrides.txt"],
    "gpu": ["--extra=gpu", *COURSE],
    "pages": ["--extra=pages", "--group=build", "--constraint=requirements/cpu.lock"],
}


def compile_lock(stack: str, *options: str) -> None:
    """Resolve requirements/`stack`.lock. Its versions are kept if possible, unless `options` has --upgrade."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *LOCKS[stack], *OPTIONS, *options]
    command += ["--output-file", f"requirements/{stack}.lock"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    try:
        for name in LOCKS:
            compile_lock(name, "--upgrade")
    except subprocess.CalledProcessError as error:
        sys.exit(f"uv could not resolve the requirements (exit code {error.returncode}); see its message above")
