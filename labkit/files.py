"""Atomic writes, typed data files, paths, and values from a command line."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json

from labkit.errors import RecordError, UsageError, require, shortened

FORMAT = 1
"""The format version of records and of run.json. Readers refuse other versions."""

FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CORRECT_IT = "correct the entry named above"
MOST_BYTES = 10_000_000  # of a YAML file
MOST_STATE = 10_000  # characters of an exported state

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


class Frozen(BaseModel):
    """Immutable data that refuses unknown fields, such as misspelt keys in data files."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_yaml(path: Path, kind: type[T], *, remedy: str = CORRECT_IT) -> T:
    """Read the YAML file `path` as `kind`: a pydantic model or a type of models, such as dict[str, Price].

    UsageError has the file, the position and `remedy`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")  # editors on Windows add a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="restore it, or name another file") from None
    require(len(content) <= MOST_BYTES, f"{path} has more than {MOST_BYTES:,} bytes", fix="name a shorter file")
    trusted = path.is_relative_to(root() / "data")
    return parse_yaml(text, kind, where=str(path), remedy=remedy, trusted=trusted)


def parse_yaml(text: str, kind: type[T], *, where: str, remedy: str = CORRECT_IT, trusted: bool = False) -> T:
    """Parse YAML `text` as `kind`; see `read_yaml`. `where`: its name in errors; `trusted`: skip the size checks."""
    try:
        if trusted:
            tree = yaml.load(text, Loader=FAST_LOADER)
        else:
            from labkit.checked_yaml import load

            tree = load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, too much nesting
        raise UsageError(f"{where} is not valid YAML: {shortened(str(error), 600)}", remedy=remedy) from None
    require(tree is not None, f"{where} is not valid: it is empty", fix=remedy)
    return validated(tree, kind, where=where, remedy=remedy)


def read_named(path: Path, kind: type[Model], *, remedy: str = CORRECT_IT) -> dict[str, Model]:
    """Return the entries of a YAML file by name, in the file's order; each model's `name` is its key."""
    entries = read_yaml(path, dict[str, dict[str, Any]], remedy=remedy)
    return {
        name: validated({"name": name, **entry}, kind, where=f"{path}: {name}", remedy=remedy)
        for name, entry in entries.items()
    }


def validated(tree: Any, kind: type[T], *, where: str, remedy: str = CORRECT_IT) -> T:
    """Validate plain data as `kind`. UsageError has its origin `where`, the wrong positions and `remedy`."""
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise UsageError(f"{where} is not valid: {first_errors(error)}", remedy=remedy) from None


def write_atomic(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically: after a crash the file is either the old one or the new one.

    The text goes to a hidden file in the same folder, is flushed to the disk and then renamed to `path`.

    Raises:
        RecordError: no such folder, no permission, no space, not a regular file (a rename would replace a device).
            `path` is unchanged and the hidden file is removed.
    """
    if path.exists() and not path.is_file():
        what = f"{path} cannot be written: it is not a regular file"
        raise RecordError(what, remedy="name a file, in a folder with write access")
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(hidden, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the rename survives a power cut
        finally:
            os.close(folder)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise RecordError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="free space there, or choose a folder with write access (--out DIR); the old file is unchanged",
        ) from error
    except BaseException:  # Ctrl-C in the middle
        hidden.unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the hidden files of interrupted writes to `path`."""
    for hidden in path.parent.glob(f".{path.name}.*.tmp"):
        hidden.unlink(missing_ok=True)


def write_model(path: Path, model: BaseModel) -> None:
    """Write a record or run.json as JSON; floats keep their exact value."""
    write_atomic(path, json.dumps(model.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")


def read_model(path: Path, kind: type[Model], *, remedy: str) -> Model:
    """Read and validate a record or run.json. RecordError has the file, the position and `remedy`."""
    try:
        tree: JsonValue = from_json(path.read_bytes(), allow_inf_nan=False)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}", remedy=remedy) from error
    except ValueError as error:
        raise RecordError(f"{path} is not valid JSON: {error}", remedy=remedy) from error
    if not isinstance(tree, dict):
        raise RecordError(f"{path} holds {type(tree).__name__}, not an object", remedy=remedy)
    if tree.get("format") != FORMAT:
        raise RecordError(f"{path} has format {tree.get('format')!r}; this labkit reads format {FORMAT}", remedy=remedy)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise RecordError(f"{path} is not a valid {kind.__name__}: {first_errors(error)}", remedy=remedy) from error


def first_errors(error: ValidationError, *, most: int = 3) -> str:
    """Return the first validation errors, each with its position, in one line."""
    problems = error.errors(include_url=False)
    listed = "; ".join(f"{position(*item['loc'])}: {item['msg']}".removeprefix(": ") for item in problems[:most])
    return listed + (f"; and {len(problems) - most} more" if len(problems) > most else "")


def position(*steps: str | int) -> str:
    """Return a position in a tree: position("exact", "tokens", 3) is "exact.tokens[3]"."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.replace("-", "_").isidentifier():
            text += f".{step}" if text else step
        else:
            text += f"[{step!r}]"
    return text


# --- paths ---

CLONE = (
    "install labkit from a clone of the repository (make, or pip install -e .), "
    "or set LABKIT_ROOT to the folder that holds data/ and notebooks/"
)


PACKAGE = Path(__file__).resolve().parent
BUNDLED = PACKAGE / "bundled"  # data, handlers and applications in a wheel; a clone has them beside labkit


def root() -> Path:
    """Return the folder with `data/`: `LABKIT_ROOT`, or else the repository or the wheel's files."""
    chosen = os.environ.get("LABKIT_ROOT")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return BUNDLED if BUNDLED.is_dir() else PACKAGE.parent


def data_path(name: str = "") -> Path:
    """Return the path of `name` in the data folder, or of the folder. UsageError: one of them is missing."""
    folder = root() / "data"
    require(folder.is_dir(), f"the course's data folder is missing: {folder}", fix=CLONE)
    path = folder / name
    require(path.exists(), f"the data file {name} is missing: {path}", fix="restore it from the repository")
    return path


def notebooks_path() -> Path:
    """Return the folder of the course's notebooks. UsageError: it is missing."""
    folder = root() / "notebooks"
    require(folder.is_dir(), f"the notebooks are missing: {folder}", fix=CLONE)
    return folder


def runs_path() -> Path:
    """Return the folder for runs: `LABKIT_RUNS`, or `runs/` in the repository (for a wheel, in the current folder)."""
    chosen = os.environ.get("LABKIT_RUNS")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return (Path.cwd() if root() == BUNDLED else root()) / "runs"


# --- values on the command line: KEY=VALUE ---

# vLLM 0.32's default block sizes.
CPU_BLOCK_SIZE, GPU_BLOCK_SIZE = 128, 16


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse `["prefix_words=400"]` as names and values: numbers, true, false or text. UsageError: no `=`."""
    from labkit.checked_yaml import load

    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        require(bool(equals and name.strip()), f"{shortened(setting)!r} sets nothing", fix="write KEY=VALUE")
        key = name.strip().replace("-", "_")
        try:
            values[key] = load(text)
        except yaml.YAMLError:
            values[key] = text
        except ValueError as error:  # an impossible date, thousands of digits
            raise UsageError(f"{shortened(setting)}: {error}", remedy="give another value") from None
    return values


def read_state(state: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a form's exported state, given as a line of JSON or a mapping ({} for None). UsageError: not a state."""
    fix = "paste what the form exported, one line of JSON"
    if isinstance(state, str):
        require(len(state) <= MOST_STATE, f"the state has {len(state):,} characters", fix=fix)
        try:
            state = json.loads(state.strip() or "{}")
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the state is not JSON: {error}", remedy=fix) from error
    if state is not None and not isinstance(state, Mapping):
        raise UsageError(f"the state is a {type(state).__name__}, not an object", remedy=fix)
    return dict(state or {})
