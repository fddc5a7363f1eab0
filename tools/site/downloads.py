"""Download what the site needs and is not built here: Pyodide and one wheel for it, pinned in requirements/site.lock.

npm and pip download them once, with the user's configuration. Afterwards the build needs no network.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from labkit.errors import LabkitError, require
from labkit.files import Frozen, read_named, root

LOCK = "requirements/site.lock"
WAIT_S = 300
# The files of Pyodide's package that a page loads.
PYODIDE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")


class Pin(Frozen):
    """One file of a registry: its name, version and SHA-256. `platform` and `python`: for a wheel."""

    name: str
    registry: Literal["npm", "pypi"]
    version: str
    sha256: str
    platform: str = ""
    python: str = ""

    def command(self, folder: Path) -> list[str]:
        """Return the command that downloads it into `folder`."""
        if self.registry == "npm":
            return ["npm", "pack", f"{self.name}@{self.version}", "--ignore-scripts", "--pack-destination", str(folder)]
        tags = ["--platform", self.platform, "--python-version", self.python, "--implementation", "cp"]
        options = ["--no-deps", "--only-binary=:all:", "--abi", f"cp{self.python.replace('.', '')}", "--dest"]
        return [sys.executable, "-m", "pip", "download", *tags, *options, str(folder), f"{self.name}=={self.version}"]


def pins() -> dict[str, Pin]:
    return read_named(root() / LOCK, Pin)


def cached(pin: Pin, cache: Path) -> Path:
    """Return the file in `cache`, downloaded if necessary. LabkitError: no network, or not the pinned content."""
    folder = cache / f"{pin.name}-{pin.version}"
    if not folder.is_dir():
        _download(pin, folder)
    (file,) = folder.iterdir()
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    fix = f"delete {folder} to download it again; a new version needs its new sha256 in {LOCK}"
    require(found == pin.sha256, f"{file} has the SHA-256 {found}, but {LOCK} pins {pin.sha256}", fix=fix)
    return file


def _download(pin: Pin, folder: Path) -> None:
    """Download to a folder beside `folder`, and rename it once the file is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fix = f"check the network and {'npm' if pin.registry == 'npm' else 'pip'}'s configuration"
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        try:
            done = subprocess.run(pin.command(part), capture_output=True, text=True, timeout=WAIT_S)
        except FileNotFoundError:
            raise LabkitError("npm is missing; it downloads Pyodide", remedy="apt-get install nodejs npm") from None
        except subprocess.TimeoutExpired:
            raise LabkitError(f"{pin.name} was not downloaded within {WAIT_S} s", remedy=fix) from None
        if done.returncode or len(list(part.iterdir())) != 1:
            raise LabkitError(f"{pin.name} {pin.version} cannot be downloaded:\n{done.stderr[-1500:]}", remedy=fix)
        part.rename(folder)


def put_pyodide(folder: Path, cache: Path) -> Path:
    """Put Pyodide into the new `folder`. Return the wheel of pydantic's core for it, in the cache."""
    pinned = pins()
    core, installed = pinned["pydantic-core"], version("pydantic-core")
    fix = f"pin {installed} in {LOCK}"
    require(core.version == installed, f"{LOCK} pins pydantic-core {core.version}, installed is {installed}", fix=fix)
    folder.mkdir(parents=True)
    with tarfile.open(cached(pinned["pyodide"], cache)) as package:
        for name in PYODIDE:
            content = package.extractfile(f"package/{name}")
            require(content is not None, f"Pyodide's package has no {name}", fix=f"correct PYODIDE in {__file__}")
            if content:
                (folder / name).write_bytes(content.read())
    return cached(core, cache)
