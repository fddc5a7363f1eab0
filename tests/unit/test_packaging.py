"""Packing a model for TorchServe, with the real archiver and weights of a few bytes."""

import tempfile
import zipfile
from pathlib import Path

import pytest

from course import lab_07
from course.lab_07 import BY_PATH, DEFLATE, FOLDER, STORE, WAYS, Packed, pack
from labkit.errors import UsageError
from labkit.serving.torchserve import handlers_path

HANDLER = handlers_path() / "text_generation.py"
WEIGHT_BYTES = 300_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that compresses well."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(WEIGHT_BYTES))
    return folder


@pytest.fixture(scope="module")
def packed(weights: Path) -> dict[str, Packed]:
    """The folder in every way."""
    return {way: pack(way, handler=HANDLER, weights=weights) for way in WAYS}


def test_copies_hold_the_weights_and_a_path_does_not(packed: dict[str, Packed]) -> None:
    """Stored and unpacked copies are as large as the weights; a deflated one is smaller; by path there is no copy."""
    assert packed[STORE].bytes > WEIGHT_BYTES
    assert packed[FOLDER].bytes > WEIGHT_BYTES
    assert packed[DEFLATE].bytes < WEIGHT_BYTES
    assert packed[BY_PATH].bytes < 2 * HANDLER.stat().st_size


def test_each_took_its_time(packed: dict[str, Packed]) -> None:
    """A Python process was started and timed: it took CPU, and the wall's time at least as long on one core."""
    for one in packed.values():
        assert one.cpu_s > 0.01
        assert one.wall_s > 0


def test_commands_are_shown_with_short_paths(packed: dict[str, Packed], weights: Path) -> None:
    """No path of this machine; the format where it matters, the weights where they are copied."""
    for way, one in packed.items():
        assert str(weights.parent) not in one.command
        assert ("--extra-files tiny/" in one.command) == (way != BY_PATH)
    assert f"--archive-format {STORE}" in packed[STORE].command


def test_nothing_is_left(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was packed is removed, and so are the archiver's own temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pack(STORE, handler=HANDLER, weights=weights)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_is_a_zip(weights: Path, tmp_path: Path) -> None:
    """Sizes count files in folders too: an archive's is the file's."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.write(weights / "model.safetensors")
    assert lab_07.size_bytes(tmp_path) == lab_07.size_bytes(path) == path.stat().st_size


def test_a_full_disk_is_told_before(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has both numbers."""
    monkeypatch.setattr(lab_07, "disk_free_bytes", lambda _: 1000)
    with pytest.raises(UsageError, match=r"0\.0 GB are free"):
        pack(STORE, handler=HANDLER, weights=weights)


def test_an_unknown_way_and_a_failing_archiver_are_usage_errors(weights: Path, tmp_path: Path) -> None:
    """The ways are named; a handler that is not there is told in the archiver's words."""
    with pytest.raises(UsageError, match="no way 'tgz'"):
        pack("tgz", handler=HANDLER, weights=weights)
    (tmp_path / "gone.yaml").write_text("handler: {}")
    with pytest.raises(UsageError, match="torch-model-archiver failed"):
        pack(BY_PATH, handler=tmp_path / "gone.py", weights=weights)
