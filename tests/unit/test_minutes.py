"""Minutes of the labs on a GPU before they run: from declared work, profiles and the modelled card alone."""

import operator
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.files import notebooks_path, root
from labkit.labs import LABS, Lab, Work, load_profile
from labkit.machine import Gpu, Machine
from labkit.modelled import cards
from labkit.modelled.shapes import dense_shape, model_folder
from labkit.modelled.step_time import Formula
from labkit.runs import minutes, workspace
from labkit.runs.minutes import MODELLED, RECORDED, estimate
from labkit.runs.plan import read_defaults
from tests.unit import synthetic
from tests.unit.test_gpu_machines import CARDS

PROFILES = ("gpu-16", "gpu-24", "gpu-48", "gpu-80", "gpu-141")
WITH_WORK = [lab for lab in LABS.values() if lab.work]
PACED = [card.name for card in cards.known().values() if card.efficiency]
COUNTS = re.compile(r"requests|repeats|(output|prompt|reply)_tokens|prompts$")


def machine_with(name: str, *, gib: float = 141) -> Machine:
    """A machine whose one GPU NVML reports by this name."""
    machine = synthetic.machine(gpu_gib=gib)
    return replace(machine, gpus=(replace(machine.gpus[0], name=name),))


def gpu(card: str) -> Gpu:
    return machine_with(cards.find(card).nvml).gpus[0]


def sizes(lab: Lab, profile: str) -> dict[str, Any]:
    """What the lab runs with in a GPU profile."""
    given = load_profile(profile, machine_with("any")).parameters(lab)
    return {**read_defaults(notebooks_path() / lab.notebook), **given}


SIZES = {(lab.name, profile): sizes(lab, profile) for lab in WITH_WORK for profile in PROFILES}


def test_work_is_declared_where_vllm_serves_and_names_parameters_that_exist() -> None:
    """Labs with vLLM and without TorchServe declare work, less host time than the whole, and only names of numbers."""
    for lab in LABS.values():
        serves = lab.engine in ("vllm", "ray") and "model" in lab.parameters
        assert bool(lab.work) == serves, lab.name
        assert 0 < lab.host_minutes < lab.minutes if lab.work else lab.host_minutes == 0, lab.name
        numbers = {name for name, parameter in lab.parameters.items() if parameter.scalar != "str"}
        lists = {name for name in numbers if lab.parameters[name].type.startswith("list")}
        for part in lab.work:
            quantities = [quantity if isinstance(quantity, tuple) else (quantity,) for _, quantity in part]
            names = {factor for quantity in quantities for factor in quantity if isinstance(factor, str)}
            assert (names <= numbers, set(part.each) <= lists) == (True, True), lab.name


def test_a_slower_card_never_takes_fewer_minutes() -> None:
    """Whatever the lab and profile, with the same sizes; slower in arithmetic and in memory at once."""

    def pace(name: str) -> tuple[float, float]:
        card = cards.find(name)
        assert card.efficiency is not None
        assert card.flops is not None
        return card.flops * card.efficiency.mfu, card.bytes_per_s * card.efficiency.mbu

    budget = {name: minutes.pace_of("qwen2.5-7b", gpu(name)).budget for name in PACED}
    ordered = [
        (slow, fast)
        for slow in PACED
        for fast in PACED
        if all(map(operator.le, pace(slow), pace(fast))) and budget[slow] <= budget[fast]
    ]
    assert len(ordered) > len(PACED)
    for (lab, profile), values in SIZES.items():
        by_card = {name: estimate(LABS[lab], values, gpu(name)) for name in PACED}
        assert {expected.basis for expected in by_card.values()} == {MODELLED}
        seconds = {name: expected.seconds for name, expected in by_card.items()}
        assert [pair for pair in ordered if seconds[pair[0]] < seconds[pair[1]]] == [], (lab, profile)


@given(profile=st.sampled_from(PROFILES), lab=st.sampled_from(WITH_WORK), card=st.sampled_from(PACED), data=st.data())
def test_more_work_never_takes_fewer_minutes(profile: str, lab: Lab, card: str, data: st.DataObject) -> None:
    """A parameter that counts requests, rounds or tokens, raised; clients and loads are none of these."""
    values = SIZES[lab.name, profile]
    raised = [name for name, value in values.items() if COUNTS.search(name) and isinstance(value, int)]
    if raised:
        name = data.draw(st.sampled_from(raised))
        more = {**values, name: values[name] + data.draw(st.integers(0, 500))}
        assert estimate(lab, more, gpu(card)).seconds >= estimate(lab, values, gpu(card)).seconds


@given(st.integers(0, 200), st.integers(1, 20_000), st.integers(1, 300), st.integers(1, 64), st.integers(0, 50))
def test_a_longer_loop_takes_longer(requests: int, prompt: int, answer: int, concurrency: int, more: int) -> None:
    """More requests, longer prompts and longer answers never take less, on any card."""
    for card in PACED:
        pace = minutes.pace_of("Qwen/Qwen2.5-7B-Instruct", gpu(card))
        least = pace.loop_s(requests, prompt, answer, concurrency)
        assert least <= pace.loop_s(requests + more, prompt, answer, concurrency)
        assert least <= pace.loop_s(requests, prompt + more, answer, concurrency)
        assert least <= pace.loop_s(requests, prompt, answer + more, concurrency)


def test_a_single_answer_by_hand() -> None:
    """One request is a prefill and a step per further token; each reads all weights but the embedding."""
    shape, card = dense_shape(model_folder("qwen2.5-7b")), cards.find("h100-sxm")
    assert shape is not None
    pace = minutes.pace_of("Qwen/Qwen2.5-7B-Instruct", gpu("h100-sxm"))
    assert pace.formula == Formula.of(card, shape)
    read_s = shape.read_bytes / (card.bytes_per_s * 0.850) + 0.042e-3 * 28
    assert pace.loop_s(1, 16, 101, 1) == pytest.approx(101 * read_s, rel=0.02)


def test_what_counts_as_work() -> None:
    """Starts, eager starts, repeats, a list's largest value, an open loop's rate and its share, to the second."""
    parameters = {"model": "Qwen/Qwen2.5-7B-Instruct", "levels": [1, 4], "repeats": 3, "late": False}
    declared = {name: {"type": "int", "help": "for the test"} for name in ("repeats", "late")}
    declared |= {"levels": {"type": "list[int]", "help": "for the test"}}

    def seconds(*work: dict[str, Any]) -> float:
        lab = Lab.model_validate(
            {"name": "77_made", "title": "", "question": "", "minutes": 1, "engine": "vllm", "host_minutes": 0.5}
            | {"parameters": declared, "work": [Work.model_validate(part) for part in work]}
        )
        return estimate(lab, parameters, gpu("h100-sxm")).seconds - 30

    assert seconds({"starts": 1}) == minutes.START_S
    assert seconds({"starts": [2, "repeats"], "eager": True}) == 6 * minutes.EAGER_START_S
    assert seconds({"starts": 1, "times": "late"}) == 0
    assert seconds({"each": ["levels"], "starts": "levels"}) == 5 * minutes.START_S
    assert seconds({"starts": "levels"}) == 4 * minutes.START_S
    assert seconds({"requests": 100, "rate": 0.5}) == pytest.approx(200)
    load = {"requests": 64, "input_tokens": 100, "output_tokens": 100, "concurrency": "levels"}
    assert seconds({**load, "load_share": 0.5}) == pytest.approx(2 * seconds(load))
    assert seconds({**load, "load_share": 1.5}) == pytest.approx(seconds(load))


def test_cards_by_the_name_that_nvml_reports() -> None:
    """The names of tests/fake_nvml find their card; old cards and MIG instances find none."""
    for name, card in CARDS.items():
        reported = card.gpus.split(" x ")[1].split(" (")[0]
        unknown = any(word in reported for word in ("V100", "GTX", "MIG"))
        assert (cards.reported_as(reported) is None) == unknown, name


def test_what_has_no_step_times_keeps_the_cpus_minutes() -> None:
    """A card, and a model of unknown size, as the embedded one is here; said lab by lab, and nothing is modelled."""
    for name in ("Tesla T4", "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "Test GPU"):
        said = workspace.expected_minutes(load_profile("gpu-16", machine_with(name)), machine_with(name))
        assert sum(f"not modelled (no step times for {name}): {RECORDED}" in line for line in said) == len(WITH_WORK)
        rows = [line.split()[:2] for line in said[1:-1]]
        assert rows == [[f"{lab.minutes:.1f}", lab.name] for lab in LABS.values()]
    lab = LABS["00_start_here"]
    found = estimate(lab, {**SIZES[lab.name, "gpu-80"], "model": "smollm2-135m"}, gpu("h100-sxm"))
    assert found.seconds == 60 * lab.minutes
    assert found.basis == f"not modelled (there is no modelled model 'smollm2-135m'): {RECORDED}"


def test_the_table_says_what_is_modelled_and_what_it_rests_on() -> None:
    """Each lab once, TorchServe's with the CPU's minutes; below, the card, its evidence and what was assumed. It needs
    neither torch nor transformers nor vLLM: it appears before a plan is carried out."""
    code = (
        "import sys; from tests.unit.test_minutes import machine_with; "
        "from labkit import labs; from labkit.runs import workspace; "
        "m = machine_with('NVIDIA GeForce RTX 4090', gib=24); "
        "print(*workspace.expected_minutes(labs.load_profile('gpu', m), m), sep='\\n');"
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root(), capture_output=True, text=True, check=True)
    _, *rows, _, rests_on = done.stdout.splitlines()
    assert [row.split()[1] for row in rows] == list(LABS)
    assert {row.split()[1] for row in rows if row.endswith(f" {MODELLED}")} == {lab.name for lab in WITH_WORK}
    assert "not modelled (TorchServe)" in next(row for row in rows if "07_" in row)
    assert rests_on.startswith("modelled: step times of NVIDIA GeForce RTX 4090 24 GB by formula (evidence: served;")
