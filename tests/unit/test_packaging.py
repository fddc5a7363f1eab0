"""Packing a model for TorchServe (lab 07b), with the real archiver and weights of a few bytes."""

import tempfile
import zipfile
from pathlib import Path

import pytest

from course import lab_07b
from course.lab_07b import BY_PATH, DEFLATE, FOLDER, STORE, WAYS, pack
from labkit.errors import UsageError
from labkit.serving.torchserve import handlers_path

HANDLER = handlers_path() / "text_generation.py"
WEIGHT_BYTES = 300_000


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder that compresses well."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(WEIGHT_BYTES))
    return folder


def test_copies_hold_the_weights_and_a_path_does_not(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored and unpacked copies are as large as the weights, a deflated one is smaller, by path there is none. Each
    took CPU time; its command has no path of this machine; and nothing is left, the archiver's own files included."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    packed = {way: pack(way, handler=HANDLER, weights=weights) for way in WAYS}
    assert min(packed[STORE].size_bytes, packed[FOLDER].size_bytes) > WEIGHT_BYTES > packed[DEFLATE].size_bytes
    assert packed[BY_PATH].size_bytes < 2 * HANDLER.stat().st_size
    assert min(one.cpu_s for one in packed.values()) > 0.01
    for way, one in packed.items():
        assert str(tmp_path) not in one.command
        assert str(HANDLER.parent) not in one.command
        assert ("--extra-files tiny/" in one.command) == (way != BY_PATH)
    assert f"--archive-format {STORE}" in packed[STORE].command
    assert list(work.iterdir()) == []


def test_a_size_is_that_of_all_files(weights: Path, tmp_path: Path) -> None:
    """Sizes count files in folders too: an archive's is the file's."""
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.write(weights / "model.safetensors")
    assert lab_07b.size_bytes(tmp_path / "store") == lab_07b.size_bytes(path) == path.stat().st_size


def test_what_cannot_be_packed_is_refused(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways are named; a missing handler is told in the archiver's words, a full disk with both numbers."""
    with pytest.raises(UsageError, match="no way 'tgz'"):
        pack("tgz", handler=HANDLER, weights=weights)
    (tmp_path / "gone.yaml").write_text("handler: {}")
    with pytest.raises(UsageError, match="torch-model-archiver failed"):
        pack(BY_PATH, handler=tmp_path / "gone.py", weights=weights)
    monkeypatch.setattr(lab_07b, "disk_free_bytes", lambda _: 1000)
    with pytest.raises(UsageError, match=r"0\.0 GB are free"):
        pack(STORE, handler=HANDLER, weights=weights)
