"""What is recorded of vLLM's CUDA build and of requirements/gpu.lock: of this lock and these notebooks, and fine."""

import json
import re
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from labkit.files import notebooks_path
from labkit.labs import GPU_PROFILES, LABS
from tools import gpu_arguments, gpu_lock

RENEW = "run `make gpu-arguments` and commit data/gpu_arguments.jsonl"
RECORD = gpu_arguments.read_record()
CALLS = [line for line in RECORD if "card" in line]
LOCK_LINES = [line for line in RECORD if "python" in line]


def test_the_record_is_of_this_lock() -> None:
    """A changed lock has to be checked anew."""
    assert RECORD[0] == {"lock_sha256": gpu_lock.sha256()}, RENEW


@pytest.mark.parametrize("card", gpu_arguments.CARDS)
def test_the_record_is_of_these_notebooks(card: str) -> None:
    """The engines that the labs start on each card are those whose arguments were checked."""
    found = [
        {"card": card, "profile": profile, "lab": lab, **call.to_dict()}
        for profile, lab, call in gpu_arguments.harvest(gpu_arguments.CARDS[card])
    ]
    answers = ("resolved", "refused")
    known = [{name: value for name, value in line.items() if name not in answers} for line in CALLS]
    assert found == [line for line in known if line["card"] == card], RENEW


def test_each_profile_and_each_lab_is_there() -> None:
    """Every GPU profile has a card, and every notebook that starts an engine itself has its calls."""
    sources = {lab.name: json.loads((notebooks_path() / lab.notebook).read_text())["cells"] for lab in LABS.values()}
    text = {lab: "".join("".join(cell["source"]) for cell in cells) for lab, cells in sources.items()}
    real = re.compile(r' LLM\((?!gpu\.model)|f"vllm serve \{')  # not on a modelled card
    starting = {lab for lab, source in text.items() if real.search(source)}
    assert {line["lab"] for line in CALLS} == starting
    assert {line["profile"] for line in CALLS} == {name for _, name in GPU_PROFILES}


def test_nothing_is_refused() -> None:
    """The CUDA build takes every call on every card, with what was asked for."""
    for line in CALLS:
        assert "refused" not in line, line
        asked: Mapping[str, Any] = line.get("arguments", {})
        for name in line["resolved"].keys() & asked.keys():
            assert line["resolved"][name] == asked[name] or asked[name] == -1, (name, line)


def test_the_lock_is_whole() -> None:
    """On each Python every requirement is met, by wheels whose hashes are in the lock, and no file is written twice."""
    assert tuple(line["python"] for line in LOCK_LINES) == gpu_lock.PYTHONS
    for line in LOCK_LINES:
        assert line["packages"] > 300
        assert (line["unmet"], line["collisions"]) == ([], [])


def package(folder: Path, name: str, version: str, *, requires: str = "", record: str = "") -> Distribution:
    """An installed package that is only metadata."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
    (info / "RECORD").write_text(record)
    return Distribution.at(info)


def test_what_a_lock_lacks(tmp_path: Path) -> None:
    """A package that is missing or of another version is named, also where only an extra or a Python asks for it."""
    made = {
        "a": package(tmp_path, "a", "1", requires="b[fast]>=2"),
        "b": package(tmp_path, "b", "2", requires='c>3; extra == "fast"'),
        "c": package(tmp_path, "c", "3", requires='d; python_version < "3.12"'),
    }
    assert list(gpu_lock.unmet(made, "3.12.9")) == ['b[fast] needs c>3; extra == "fast", and there is 3']
    assert 'c needs d; python_version < "3.12", and there is none' in gpu_lock.unmet(made, "3.11.9")


def test_files_of_two_packages(tmp_path: Path) -> None:
    """The same path with other content is named; the same content, and a stray build script, are not."""
    record = "x/one.py,sha256={0},1\nx/__init__.py,sha256=0,0\nbuild_backend.py,sha256={0},1\n"
    made = {name: package(tmp_path, name, "1", record=record.format(name)) for name in ("a", "b")}
    assert list(gpu_lock.collisions(made)) == ["x/one.py of a and b"]
