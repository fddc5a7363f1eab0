"""Files that are either the old one or the new one, whole: never half of it."""

import json
import os
import uuid
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from labkit.errors import RecordError

FORMAT = 1
"""The format version of records and of run.json. A reader refuses another."""

Model = TypeVar("Model", bound=BaseModel)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` so that a reader, a crash or a power cut sees the old file or the new one, whole.

    The text goes to a hidden file in the same folder, is flushed to the disk and then renamed over `path`.

    Raises:
        RecordError: no such folder, no permission, no space: `path` is as it was and the hidden file is gone.
    """
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_through(hidden, text)
        os.replace(hidden, path)
        _flush_folder(path.parent)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise RecordError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="free space there, or choose a folder that you may write to (--out DIR); what it held is untouched",
        ) from error
    except BaseException:  # Ctrl-C in the middle
        hidden.unlink(missing_ok=True)
        raise


def _write_through(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Remove the hidden files of writes to `path` that were killed half-way."""
    for hidden in path.parent.glob(f".{path.name}.*.tmp"):
        hidden.unlink(missing_ok=True)


def write_model(path: Path, model: BaseModel) -> None:
    """A record or run.json as JSON; floats are written so that the same bits come back."""
    write_atomic(path, json.dumps(model.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")


def read_model(path: Path, kind: type[Model], *, remedy: str) -> Model:
    """Read and validate. RecordError names the file, the position and `remedy`."""
    tree = _parse(path, remedy=remedy)
    if not isinstance(tree, dict):
        raise RecordError(f"{path} holds {type(tree).__name__}, not an object", remedy=remedy)
    if tree.get("format") != FORMAT:
        raise RecordError(f"{path} has format {tree.get('format')!r}; this labkit reads format {FORMAT}", remedy=remedy)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise RecordError(f"{path} is not a valid {kind.__name__}: {first_errors(error)}", remedy=remedy) from error


def first_errors(error: ValidationError, *, most: int = 3) -> str:
    """The first few validation errors, each with its position, as one line."""
    found = error.errors(include_url=False)
    listed = "; ".join(f"{position(*item['loc'])}: {item['msg']}" for item in found[:most])
    return listed + (f"; and {len(found) - most} more" if len(found) > most else "")


def position(*steps: str | int) -> str:
    """A place in a tree: position("exact", "tokens", 3) is "exact.tokens[3]"."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.replace("-", "_").isidentifier():
            text += f".{step}" if text else step
        else:
            text += f"[{step!r}]"
    return text


def _parse(path: Path, *, remedy: str) -> JsonValue:
    try:
        text = path.read_text(encoding="utf-8")
        tree: JsonValue = json.loads(text, parse_constant=_refuse)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}", remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text: byte {error.start} ({error.reason})", remedy=remedy) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RecordError(f"{path} is not valid JSON: {error.msg} at {where}", remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not valid JSON: {error}", remedy=remedy) from error
    return tree


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which JSON does not have")
