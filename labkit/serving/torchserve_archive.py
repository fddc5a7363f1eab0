"""Handlers as archives (.mar), by TorchServe's own archiver: the code and its configuration, weights by path."""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import UsageError
from labkit.paths import root
from labkit.serving.vllm import executable

CONFIG = "model-config.yaml"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive file, the model name and version in it, and the archiver's command that makes it, with short paths."""

    path: Path
    model_name: str
    version: str
    command: str = ""


def handlers_path() -> Path:
    """The folder of the course's own handlers."""
    folder = root() / "handlers"
    if not folder.is_dir():
        raise UsageError(
            f"the handlers are missing: {folder}",
            remedy="run labkit from a clone of the repository, or set LABKIT_ROOT to the folder that holds them",
        )
    return folder


def archive(
    handler: str | Path,
    *,
    folder: Path,
    model_name: str,
    version: str = "1.0",
    settings: Mapping[str, Any] | None = None,
    handler_settings: Mapping[str, Any] | None = None,
) -> Archive:
    """Archives a handler into `folder` as NAME-VERSION.mar.

    `handler`: the name of one of ours ("text_generation"), or a .py file beside which its configuration lies as .yaml.
    `settings` replace what the configuration says (batchSize, maxBatchDelay, ...), `handler_settings` what its section
    `handler` says. UsageError for a handler that is not there, a setting that it does not have, or an archiver that
    fails.
    """
    code = handlers_path() / f"{handler}.py" if isinstance(handler, str) else handler
    config = _changed(_configuration(code), dict(settings or {}), dict(handler_settings or {}), code.name)
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{model_name}-{version}.mar"
    with tempfile.TemporaryDirectory(prefix="labkit-archive-") as work:
        config_file = Path(work) / CONFIG
        config_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        named = ["torch-model-archiver", "--model-name", model_name, "--version", version]
        _run([*named, "--handler", str(code), "--config-file", str(config_file), "--export-path", work, "--force"])
        shutil.move(Path(work) / f"{model_name}.mar", made)
    shown = [*named, "--handler", code.name, "--config-file", CONFIG, "--export-path", folder.name]
    return Archive(path=made, model_name=model_name, version=version, command=shlex.join(shown))


def _configuration(code: Path) -> dict[str, Any]:
    beside = code.with_suffix(".yaml")
    if not code.is_file() or not beside.is_file():
        ours = ", ".join(sorted(path.stem for path in handlers_path().glob("*.yaml")))
        raise UsageError(f"{code} and {beside.name} beside it are not both there", remedy=f"ours are: {ours}")
    found: dict[str, Any] = yaml.safe_load(beside.read_text(encoding="utf-8"))
    return found


def _changed(
    config: dict[str, Any], settings: dict[str, Any], handler_settings: dict[str, Any], name: str
) -> dict[str, Any]:
    """The configuration with the changes; one that it does not know would change nothing, in silence."""
    inner = config.get("handler", {})
    for known, changes in ((config, settings), (inner, handler_settings)):
        for unknown in changes.keys() - known.keys():
            raise UsageError(f"{name} has no setting {unknown!r}", remedy=f"it has: {', '.join(key for key in known)}")
    return {**config, **settings, "handler": {**inner, **handler_settings}}


def _run(words: list[str]) -> None:
    ended = subprocess.run([str(executable(words[0])), *words[1:]], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        raise UsageError(f"{words[0]} failed: {''.join(last)}", remedy="see `torch-model-archiver --help`")
