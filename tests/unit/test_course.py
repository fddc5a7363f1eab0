"""The course: what data/labs.yaml declares, what profiles give, what runs where, and a lab's session."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from course.lab_09 import check_fits
from labkit import labs, session
from labkit.errors import UsageError
from labkit.experiments import paired_ratio
from labkit.files import data_path, notebooks_path, root
from labkit.labs import Lab, Parameter, check_gpu_memory, count_parameters, load_labs, parse_overrides
from labkit.records import read
from labkit.records.ledger import NOT_MEASURED, load_claims
from labkit.runs.plan import read_defaults
from tests.unit import synthetic
from tests.unit.refusals import not_refused

FIRST = "01_first_deployment"
NOTEBOOKS = [(lab, root() / "notebooks" / lab.notebook) for lab in labs.LABS.values()]
NOTEBOOKS += [(lab, synthetic.ROOT / "notebooks" / lab.notebook) for lab in synthetic.LABS.values()]
EXISTING = [(lab, path) for lab, path in NOTEBOOKS if path.exists()]


def lab(**parameters: dict[str, Any]) -> Lab:
    """A lab with these parameters; each needs no help text here."""
    declared = {name: Parameter(help="for the test", **each) for name, each in parameters.items()}
    return Lab(name="77_made", title="Made", question="Why?", minutes=1, engine="none", parameters=declared)


KINDS = lab(
    whole={"type": "int", "min": 1, "max": 256, "unit": "requests"},
    real={"type": "float", "min": 0.0, "max": 1.0},
    flag={"type": "bool"},
    word={"type": "str"},
    choice={"type": "str", "choices": ("a", "b")},
    levels={"type": "list[int]", "min": 1, "max": 256},
    rates={"type": "list[float]", "min": 0.5},
    names={"type": "list[str]"},
    maybe={"type": "float", "min": 0, "optional": True},
)


def test_labs_yaml_goes_with_the_notebooks_and_the_ledger() -> None:
    """Declared are the names that the cells tagged `parameters` and `defaults` assign; the values are allowed ones;
    claims are the ledger's; an engine's lab has the common parameters (one on Ray or TorchServe may serve no model
    of its own)."""
    wrong = []
    for lab, notebook in EXISTING:
        defaults = read_defaults(notebook)
        if set(defaults) != set(lab.parameters):
            wrong.append((lab.name, "names"))
        if labs.check_parameters(lab, defaults) != defaults:
            wrong.append((lab.name, "defaults"))
    for lab in labs.LABS.values():
        common = set() if lab.engine == "none" else {"seed", "out_dir"}
        if lab.engine not in ("none", "ray", "torchserve"):
            common |= {"model", "gpu_memory_share"}
        if not (set(lab.claims) <= set(load_claims()) and common <= set(lab.parameters)):
            wrong.append((lab.name, "claims or common parameters"))
    assert wrong == []


def test_a_wrong_list_of_labs_is_refused_by_the_entrys_name(tmp_path: Path) -> None:
    """A misspelt key, an unknown engine, an empty range and a wrong name are refused by the entry's name."""
    good: dict[str, Any] = {"title": "A", "question": "Q", "minutes": 1, "engine": "none", "parameters": {}}
    file = tmp_path / "labs.yaml"

    def load(entry: dict[str, Any]) -> object:
        file.write_text(yaml.safe_dump({entry.pop("name", "00_a"): {**good, **entry}}))
        return load_labs(file)

    n = {"type": "int", "help": "h", "min": 2}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"colour": "red"}, "labs.yaml: 00_a is not valid: colour"),
        ({"engine": "steam"}, "engine"),
        ({"minutes": 0}, "minutes"),
        ({"name": "start"}, "start is not valid: name"),
        ({"parameters": {"n": {**n, "max": 1}}}, "min 2.0 is above max 1.0"),
        ({"parameters": {"n": {**n, "type": "str"}}}, "a str has no min or max"),
    ]
    assert not_refused(load, bad) == []


def test_values_get_the_declared_type() -> None:
    """Text from the command line, integers for floats and single values for lists come out as what is declared."""
    values: list[tuple[str, list[object], object]] = [
        ("whole", ["16", 16.0], 16),
        ("real", [1, "1"], 1.0),
        ("flag", ["yes", "true", True], True),
        ("flag", [False, "no"], False),
        ("word", ["none"], "none"),
        ("choice", ["b"], "b"),
        ("levels", ["1,2", "1, 2 ", "[1, 2]", (1, 2)], [1, 2]),
        ("levels", [8, "8"], [8]),
        ("rates", [[1, 2], "1,2"], [1.0, 2.0]),
        ("names", ["a,b"], ["a", "b"]),
        ("maybe", [None, "none"], None),
    ]
    for name, given_values, expected in values:
        for value in given_values:
            assert repr(labs.check_parameters(KINDS, {name: value})) == repr({name: expected})


def test_a_wrong_value_is_refused_with_what_is_allowed() -> None:
    """The message has the parameter, the value, the allowed range and a remedy."""
    wrong: list[tuple[str, str, list[object]]] = [
        ("whole", "an int from 1 to 256 (requests)", [0, 257, 1.5, True, "many", None]),
        ("real", "a float from 0 to 1", [1.01, float("nan"), [0.5]]),
        ("flag", "a bool", [2, "maybe"]),
        ("word", "a str", [3]),
        ("choice", "a str, one of a, b", ["c"]),
        ("levels", "a list of ints from 1 to 256", [[], "1,300", "[1, "]),
        ("rates", "a list of floats of at least 0.5", [[0.4], [float("inf")]]),
        ("maybe", "a float of at least 0 or none", [-1]),
    ]
    bad = [
        ({name: value}, f"77_made.{name} is {value!r}; it must be {allowed}")
        for name, allowed, values in wrong
        for value in values
    ]
    halves: dict[str, object] = {"word": "\udcff", "names": ["a", "b\ud800"]}  # no file could store them
    bad += [({name: value}, f"{name} is {value!r}; it must be Unicode") for name, value in halves.items()]
    assert not_refused(lambda given: labs.check_parameters(KINDS, given), bad) == []


def test_names_of_labs_and_parameters() -> None:
    """`labkit run 1` is enough; a misspelt lab or parameter is answered with the name that was probably meant, a
    strange one with all of them, and none is refused."""
    assert {labs.find_lab(name).name for name in (FIRST, "01", "1", "01_first")} == {FIRST}
    meant = [("", "no lab called"), ("01_first_deploymnet", f"did you mean {FIRST}")]
    assert not_refused(labs.find_lab, meant) == []
    given = [((FIRST, {"concurencies": [1]}), "did you mean concurrencies"), ((KINDS, {"z": 1}), "whole, real, flag")]
    assert not_refused(lambda asked: labs.check_parameters(*asked), given) == []


@given(whole=st.integers(1, 256), rates=st.lists(st.floats(0.5, 1e9), min_size=1), real=st.floats(0, 1))
def test_checking_twice_changes_nothing(whole: int, rates: list[float], real: float) -> None:
    """A checked set of parameters is its own check; written as text, as a command line does, it reads back the same."""
    once = labs.check_parameters(KINDS, {"whole": whole, "rates": rates, "real": real})
    assert labs.check_parameters(KINDS, once) == once
    assert labs.check_parameters(KINDS, {name: str(value) for name, value in once.items()}) == once


SMALL_EVERYWHERE = {"08_torchserve_lifecycle"}
"""Holds the model in several servers at the same time: the 7B would not fit."""


CARDS = {
    0.0: "cpu",
    15.0: "gpu-16",  # T4
    22.5: "gpu-24",  # L4
    40.0: "gpu-48",  # A100
    79.6: "gpu-80",  # H100
    140.4: "gpu-141",  # H200
}


def test_every_lab_fits_the_card_that_its_profile_is_for() -> None:
    """On an empty card of each size the profile that is chosen gives every lab allowed parameters and a model whose
    weights fit, with as many engines as part the card there."""
    for gpu_gib, profile in CARDS.items():
        machine = synthetic.machine(gpu_gib=gpu_gib)
        chosen = labs.load_profile("gpu" if gpu_gib else "cpu", machine)
        assert labs.profile_for(machine) == chosen.name == profile
        parameters = {name: chosen.parameters(lab) for name, lab in labs.LABS.items()}
        for name, lab in labs.LABS.items():
            check_gpu_memory(parameters[name], machine, chosen.weights, engines=lab.needs.engines)
        large = [values for name, values in parameters.items() if name not in SMALL_EVERYWHERE]
        served = {values["model"] for values in large if "model" in values}
        if profile == "cpu":
            assert served == {"smollm2-135m"}
        elif gpu_gib > 70:
            assert served == {"Qwen/Qwen2.5-7B-Instruct"}


def test_a_gpu_profile_without_a_gpu_says_why_there_is_none() -> None:
    """The reason that NVML gave stands in the message, with the profile that would work."""
    with pytest.raises(UsageError, match=synthetic.NO_GPU) as caught:
        labs.load_profile("gpu", synthetic.machine())
    assert "--profile cpu" in caught.value.remedy


def test_two_engines_and_two_handlers_fit_the_card_that_lab_09s_profile_is_for() -> None:
    """Each profile's model and share leave room for both handlers; so does the notebook's default share (`--profile
    cpu` on a GPU machine)."""
    lab = labs.find_lab("09")
    default = read_defaults(root() / "notebooks" / lab.notebook)
    for gpu_gib in filter(None, CARDS):
        chosen = labs.load_profile("gpu", synthetic.machine(gpu_gib=gpu_gib))
        values = default | chosen.parameters(lab)
        count = labs.count_parameters(values["model"], chosen.weights)
        weights_gib = (count or 135e6) * (4 if values["dtype"] == "float32" else 2) / 2**30
        check_fits(values["gpu_memory_share"], weights_gib=weights_gib, gpu_gib=gpu_gib)
        check_fits(default["gpu_memory_share"], weights_gib=0.5, gpu_gib=gpu_gib)


@given(total=st.floats(8, 200), used=st.floats(0, 1))
def test_an_automatic_share_is_free_on_the_gpu(total: float, used: float) -> None:
    """`auto` never asks for more than is free, unless less than the smallest allowed share is free."""
    free = total * (1 - used)
    machine = synthetic.machine(gpu_gib=total, gpu_free_gib=free)
    share = labs.load_profile("gpu", machine).parameters(labs.find_lab(FIRST))["gpu_memory_share"]
    assert 0.05 <= share <= 0.92
    assert share * total <= free or share == 0.05


def test_too_little_gpu_memory_is_told_with_the_numbers() -> None:
    """What is asked, what is free, what the weights take - shared by the engines of lab 01, so that a 7B which
    fits a card of 24 GB alone is refused there - and what to change. Without a GPU, a share or a size, which may be
    read from the model's name, nothing is refused on a guess."""
    weights = labs.load_profile("gpu", synthetic.machine(gpu_gib=80)).weights
    seven = "Qwen/Qwen2.5-7B-Instruct"
    for card, free_gib, engines, share, model, says in (
        (80, 20.0, 1, 0.9, "org/Some-1B", ("0.9 asks for 72.0 GiB", "only 20.0 of its 80.0 GiB", "at most 0.25")),
        (80, 2.0, 1, 0.9, "org/Some-1B", ("only 2.0 of its 80.0 GiB", "nvidia-smi")),
        (80, 80.0, 1, 0.1, seven, ("14.2 GiB", "is 8.0 GiB", "smaller model")),
        (80, 80.0, 1, 0.1, "org/Other-8B-chat", ("14.9 GiB", "is 8.0 GiB")),
        (24, 24.0, 2, 0.9, seven, ("divided among 2 engines, is 10.8 GiB",)),
    ):
        machine = synthetic.machine(gpu_gib=card, gpu_free_gib=free_gib)
        with pytest.raises(UsageError) as caught:
            check_gpu_memory({"gpu_memory_share": share, "model": model}, machine, weights, engines=engines)
        assert [words for words in says if words not in str(caught.value)] == []
    assert {name for name, lab in labs.LABS.items() if lab.needs.engines == 2} == {FIRST}
    check_gpu_memory({"gpu_memory_share": 0.9, "model": seven}, synthetic.machine(gpu_gib=24), weights)
    big = {"gpu_memory_share": 0.9, "model": "org/Huge-400B"}
    check_gpu_memory(big, synthetic.machine(), {})
    check_gpu_memory({"model": "org/Huge-400B"}, synthetic.machine(gpu_gib=8), {})
    check_gpu_memory({**big, "model": "org/unknown"}, synthetic.machine(gpu_gib=8), {})
    names = {"org/X-7B-Instruct": 7e9, "org/X-0.5b": 5e8, "smollm2-135m": 135e6, "org/X2B": None}
    assert {name: count_parameters(name, {}) for name in names} == names


def test_later_layers_win(tmp_path: Path) -> None:
    """all < the lab's own < -p all.… < -p LAB.…, and a shared value reaches only labs that have the parameter."""
    text = "{name: mine, description: d, all: {number: 1, seed: 1}, labs: {90_good: {number: 2}}}"
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    chosen = labs.load_profile(str(file), synthetic.machine(), synthetic.LABS)
    good, other = synthetic.LABS["90_good"], synthetic.LABS["91_fails"]
    assert chosen.parameters(good) == {"number": 2.0, "seed": 1}
    assert chosen.parameters(other)["number"] == 1.0
    shared = parse_overrides(["all.number=3"], synthetic.LABS)
    assert chosen.parameters(good, shared)["number"] == 3.0
    both = parse_overrides(["all.number=3", "90.number=4"], synthetic.LABS)
    assert chosen.parameters(good, both)["number"] == 4.0
    assert chosen.parameters(other, both)["number"] == 3.0


def test_a_wrong_profile_is_refused(tmp_path: Path) -> None:
    """Unknown names and values out of range are each named; so is a setting on the command line that sets nothing."""
    file = tmp_path / "mine.yaml"

    def load(text: str) -> object:
        file.write_text(f"{{name: mine, description: d, {text}}}")
        return labs.load_profile(str(file), synthetic.machine(), synthetic.LABS)

    bad = {
        "all: {numbr: 1}": "did you mean number",
        "labs: {90_god: {number: 1}}": "did you mean 90_good",
        "labs: {90_good: {number: 11}}": "from 0 to 10",
        "all: {number: auto}": synthetic.NO_GPU,
        "descripton: d": "descripton",
        "[": "not valid YAML",
    }
    assert not_refused(load, bad.items()) == []
    with pytest.raises(UsageError, match="did you mean cpu"):
        labs.load_profile("cpuu", synthetic.machine(), synthetic.LABS)
    nothing = ("x", "90_good.number", "number=3", "90_good.=3", ".number=3", "90_good=3")
    settings = [([setting], "LAB.NAME=VALUE") for setting in nothing]
    assert not_refused(lambda setting: parse_overrides(setting, synthetic.LABS), settings) == []


def test_a_lab_that_cannot_run_has_a_reason_and_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its engine, its GPU, its memory or its Java; test_gpu_machines.py has the machines on which labs run."""
    monkeypatch.setattr(labs, "java", lambda: (None, "no java on PATH"))
    plain = labs.find_lab(FIRST).model_copy(update={"needs": labs.Needs(), "engine": "vllm"})
    here, vllm = synthetic.machine(memory_gib=3), {"vllm": "1"}
    for needs, versions, says in (
        (labs.Needs(), {}, "vllm not installed"),
        (labs.Needs(gpu=True), vllm, synthetic.NO_GPU),
        (labs.Needs(memory_gib=5), vllm, "5 GiB of memory and 3.0 of 32.0"),
        (labs.Needs(java=True), vllm, "no java on PATH"),
    ):
        found = labs.readiness(plain.model_copy(update={"needs": needs}), here, versions)
        assert (found.runs, says in found.reason, bool(found.fix)) == ("no", True, True)


def test_a_missing_data_folder_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An install without the repository names the folder that it looked for and the two ways to have one."""
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    for find in (data_path, notebooks_path):
        with pytest.raises(UsageError, match="LABKIT_ROOT") as caught:
            find()
        assert str(tmp_path) in str(caught.value)
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=r"labs\.yaml is missing"):
        data_path("labs.yaml")


def parameters_of(name: str) -> dict[str, Any]:
    """A lab's parameters as its notebook assigns them."""
    return read_defaults(root() / "notebooks" / labs.find_lab(name).notebook)


PARAMETERS = parameters_of(FIRST) | {"seed": 3}


def test_a_session_records_everything_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a lab adds is in its record, complete at every moment; a second start begins afresh; out_dir is not a
    parameter of what is measured."""
    session.start(FIRST, PARAMETERS, out_dir=tmp_path).exact("before", 1)
    lab = session.start(FIRST, PARAMETERS, out_dir=tmp_path)
    assert read(tmp_path / f"{FIRST}.json").status == "running"
    guess = lab.predict("gain", "How many times as fast?", unit="x", guess=2.0, confidence=0.7)
    gain = lab.ratio(paired_ratio([4.0, 4.4, 4.2], [2.0, 2.0, 2.0], name="gain"), tolerance=0.3)
    lab.exact("tokens", [1, 2])
    lab.measure("ttft", "s", [0.1, 0.12, 0.11])
    shown = lab.reveal(guess, gain, article=3.0)
    with pytest.raises(UsageError, match="does not test claim C02"):
        lab.evidence("C02", 1.0)
    lab.evidence("C29", article_formula_over_true=0.25, batch_size=4)
    rows = {row.id: row for row in lab.verdicts()}
    lab.finish()
    record = read(tmp_path / f"{FIRST}.json")
    assert (record.status, record.seed, record.exact) == ("done", 3, {"tokens": [1, 2]})
    assert "out_dir" not in record.parameters
    assert [item.name for item in record.measured] == ["gain", "ttft"]
    assert (shown.low, shown.high) == (gain.low, gain.high)
    assert record.predictions == (shown.to_dict(),)
    assert set(rows) == set(lab.lab.claims)
    assert rows["C29"].measured
    assert rows["C01"].verdict == NOT_MEASURED
    assert rows["C29"].because in capsys.readouterr().out
    assert any("C01" in warning for warning in record.warnings)


def test_a_notebooks_globals_give_the_declared_names(tmp_path: Path) -> None:
    """From `globals()` only the lab's parameters are taken; one that is missing is named."""
    everything = {"__name__": "__main__", "something": object(), **PARAMETERS, "out_dir": str(tmp_path)}
    lab = session.start(FIRST, everything)
    assert lab.out_dir == tmp_path
    assert "something" not in lab.parameters
    del everything["seed"]
    with pytest.raises(UsageError, match="without seed"):
        session.start(FIRST, everything)


def test_without_a_folder_each_start_gets_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty out_dir means a fresh folder under runs/notebook, also for two starts in one second."""
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    folders = [session.start(FIRST, PARAMETERS).out_dir for _ in range(3)]
    assert len(set(folders)) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "runs" / "notebook"}


def test_a_block_that_raises_leaves_a_failed_record(tmp_path: Path) -> None:
    """As a context manager a session marks its record when the block does not end well."""
    with pytest.raises(ZeroDivisionError), session.start(FIRST, PARAMETERS, out_dir=tmp_path):
        raise ZeroDivisionError
    assert read(tmp_path / f"{FIRST}.json").status == "failed"


def test_every_chart_carries_the_machine(tmp_path: Path) -> None:
    """Shown or recorded, a chart has the machine's line, with what answered, below its title once, then the caption."""
    from labkit import charts

    lab = session.start(FIRST, PARAMETERS, out_dir=tmp_path)
    drawn = charts.bars_with_intervals([charts.Bar("a", 1.0)], title="A bar", unit="s")
    lab.chart(drawn, "captioned", key=True, caption="three repeats")
    lab.chart({"mark": "bar", "description": "a bar", "data": {"values": []}, "title": "Plain"}, "plain")
    lab.chart(drawn, "asleep", caption="three repeats", served="a handler that sleeps")
    first, second, third = read(tmp_path / f"{FIRST}.json").charts
    assert first.spec["title"] == {"text": "A bar", "subtitle": [lab.machine_line, "three repeats"]}
    assert second.spec["title"] == {"text": "Plain", "subtitle": [lab.machine_line]}
    asleep = lab.machine_line.replace("smollm2-135m", "a handler that sleeps")
    assert third.spec["title"] == {"text": "A bar", "subtitle": [asleep, "three repeats"]}
    assert (first.key, second.key) == (True, False)
    assert "smollm2-135m" in lab.machine_line
