"""The course: what data/labs.yaml declares, what profiles give, what runs where, and a lab's session."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course.lab_09 import check_shares
from labkit import labs, session
from labkit.errors import UsageError
from labkit.experiments import paired_ratio
from labkit.files import data_path, notebooks_path, root
from labkit.labs import Lab, Parameter, check_gpu_memory, count_parameters, load_labs, parse_overrides
from labkit.machine import Machine
from labkit.records import read
from labkit.records.ledger import NOT_MEASURED, load_claims
from labkit.runs.plan import read_defaults
from tests.unit import synthetic

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


# --- data/labs.yaml and the notebooks


@pytest.mark.parametrize(("lab", "notebook"), EXISTING, ids=lambda each: getattr(each, "name", ""))
def test_declared_names_are_those_that_the_notebook_assigns(lab: Lab, notebook: Path) -> None:
    """labs.yaml and the cell tagged `parameters` name the same, by papermill's own reading of the notebook."""
    assert set(papermill.inspect_notebook(str(notebook))) == set(lab.parameters)


@pytest.mark.parametrize(("lab", "notebook"), EXISTING, ids=lambda each: getattr(each, "name", ""))
def test_a_notebooks_own_defaults_are_allowed_values(lab: Lab, notebook: Path) -> None:
    """What a notebook runs with when nobody says anything passes the check that is made of everybody else."""
    defaults = read_defaults(notebook)
    assert labs.check_parameters(lab, defaults) == defaults


@pytest.mark.parametrize("lab", labs.LABS.values(), ids=lambda lab: lab.name)
def test_labs_test_claims_that_the_ledger_has(lab: Lab) -> None:
    """Every claim that a lab is said to test stands in the ledger; an engine's lab has the common parameters (one on
    Ray may serve no model of its own; a plain handler on TorchServe takes what its model takes, and no share)."""
    assert set(lab.claims) <= set(load_claims())
    assert lab.engine == "none" or {"seed", "out_dir"} <= set(lab.parameters)
    share = set() if lab.engine == "torchserve" else {"gpu_memory_share"}
    assert lab.engine in {"none", "ray"} or {"model", *share} <= set(lab.parameters)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("00_a: {title: A, question: Q, minutes: 1, engine: none, parameters: {}, colour: red}", "colour"),
        ("00_a: {title: A, question: Q, minutes: 1, engine: steam, parameters: {}}", "engine"),
        ("00_a: {title: A, question: Q, minutes: 0, engine: none, parameters: {}}", "minutes"),
        ("start: {title: A, question: Q, minutes: 1, engine: none, parameters: {}}", "name"),
        (
            "00_a: {title: A, question: Q, minutes: 1, engine: none, "
            "parameters: {n: {type: int, min: 2, max: 1, help: h}}}",
            "min 2.0 is above max 1.0",
        ),
        (
            "00_a: {title: A, question: Q, minutes: 1, engine: none, parameters: {n: {type: str, min: 2, help: h}}}",
            "str",
        ),
        ("00_a: [", "expected"),
        ("00_a: 3", "dictionary"),
    ],
)
def test_a_wrong_list_of_labs_is_refused_by_the_entrys_name(tmp_path: Path, text: str, named: str) -> None:
    """A misspelt key, an unknown engine, an empty range or broken YAML is named together with the file."""
    file = tmp_path / "labs.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"labs\.yaml") as caught:
        load_labs(file)
    assert named in str(caught.value)


# --- parameters


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("whole", "16", 16),
        ("whole", 16.0, 16),
        ("real", 1, 1.0),
        ("real", "0.25", 0.25),
        ("flag", "yes", True),
        ("flag", False, False),
        ("word", "none", "none"),
        ("choice", "b", "b"),
        ("levels", "1,2, 4", [1, 2, 4]),
        ("levels", "[1, 2]", [1, 2]),
        ("levels", (3,), [3]),
        ("levels", 8, [8]),
        ("rates", [1, 2], [1.0, 2.0]),
        ("names", "a,b", ["a", "b"]),
        ("maybe", None, None),
        ("maybe", "none", None),
    ],
)
def test_values_get_the_declared_type(name: str, given: object, expected: object) -> None:
    """Text from the command line, integers for floats and single values for lists come out as what is declared."""
    found = labs.check_parameters(KINDS, {name: given})[name]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("whole", 0, "an int from 1 to 256 (requests)"),
        ("whole", 257, "from 1 to 256"),
        ("whole", 1.5, "an int"),
        ("whole", True, "an int"),
        ("whole", "many", "an int"),
        ("whole", None, "an int"),
        ("real", 1.01, "a float from 0 to 1"),
        ("real", float("nan"), "from 0 to 1"),
        ("real", [0.5], "a float"),
        ("flag", 2, "a bool"),
        ("flag", "maybe", "a bool"),
        ("word", 3, "a str"),
        ("choice", "c", "one of a, b"),
        ("levels", [], "a list of ints from 1 to 256"),
        ("levels", "1,300", "from 1 to 256"),
        ("levels", "[1, ", "a list of ints"),
        ("rates", [0.4], "of at least 0.5"),
        ("rates", [float("inf")], "of at least 0.5"),
        ("maybe", -1, "or none"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(name: str, given: object, allowed: str) -> None:
    """The message has the parameter, the value, the allowed range and a remedy."""
    with pytest.raises(UsageError) as caught:
        labs.check_parameters(KINDS, {name: given})
    assert f"77_made.{name} is {given!r}" in caught.value.what
    assert allowed in caught.value.what
    assert caught.value.remedy


def test_an_unknown_name_gets_the_nearest_one() -> None:
    """A misspelt parameter or lab is answered with the name that was probably meant, a strange one with all of them."""
    with pytest.raises(UsageError, match="did you mean concurrencies"):
        labs.check_parameters(FIRST, {"concurencies": [1]})
    with pytest.raises(UsageError, match="whole, real, flag"):
        labs.check_parameters(KINDS, {"zzz": 1})
    with pytest.raises(UsageError, match=f"did you mean {FIRST}"):
        labs.find_lab("01_first_deploymnet")


@pytest.mark.parametrize("name", [FIRST, "01", "1", "01_first"])
def test_a_lab_is_found_by_name_number_and_beginning(name: str) -> None:
    """`labkit run 1` is enough; what could be two labs, or none, is refused."""
    assert labs.find_lab(name).name == FIRST
    with pytest.raises(UsageError, match="no lab called"):
        labs.find_lab("")


@given(st.integers(-1000, 1000))
def test_range_bounds_are_inclusive_and_nothing_else_passes(value: int) -> None:
    """An integer passes exactly when it is in the declared range, and the same for its text and for a list of it."""
    for name, shown in (("whole", value), ("whole", str(value)), ("levels", [value]), ("levels", f"{value}")):
        if 1 <= value <= 256:
            assert labs.check_parameters(KINDS, {name: shown})[name] in (value, [value])
        else:
            with pytest.raises(UsageError):
                labs.check_parameters(KINDS, {name: shown})


@given(st.lists(st.floats(0.5, 1e9), min_size=1), st.floats(0, 1))
def test_checking_twice_changes_nothing(rates: list[float], real: float) -> None:
    """A checked set of parameters is its own check; written as text, as a command line does, it reads back the same."""
    once = labs.check_parameters(KINDS, {"rates": rates, "real": real})
    assert labs.check_parameters(KINDS, once) == once
    assert labs.check_parameters(KINDS, {name: str(value) for name, value in once.items()}) == once


# --- profiles


def profile(tmp_path: Path, text: str, machine: Machine) -> labs.Profile:
    """A profile file with this text, loaded for the synthetic labs."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return labs.load_profile(str(file), machine, synthetic.LABS)


def test_the_profile_that_fits_is_the_gpus_where_there_is_one() -> None:
    """With a GPU the default is gpu, without one cpu."""
    assert labs.profile_for(synthetic.machine()) == "cpu"
    assert labs.profile_for(synthetic.machine(gpu_gib=79.6)) == "gpu-80"


SMALL_EVERYWHERE = {"08_torchserve_lifecycle", "09_head_to_head"}
"""Labs that hold the model in several servers at the same time: the 7B would not fit."""


@pytest.mark.parametrize("machine", [synthetic.machine(), synthetic.machine(gpu_gib=80)], ids=["cpu", "gpu"])
def test_the_courses_profiles_give_every_lab_allowed_parameters(machine: Machine) -> None:
    """Both profiles load and pass the check for each lab; the model is the embedded one, or the ungated 7B."""
    chosen = labs.load_profile(labs.profile_for(machine), machine)
    for each in labs.LABS.values():
        found = chosen.parameters(each)
        if "model" in each.parameters:
            large = machine.gpus and each.name not in SMALL_EVERYWHERE
            assert found["model"] == ("Qwen/Qwen2.5-7B-Instruct" if large else "smollm2-135m")
        check_gpu_memory(found, machine, chosen.weights)


def test_a_gpu_profile_without_a_gpu_says_why_there_is_none() -> None:
    """The reason that NVML gave stands in the message, with the profile that would work."""
    with pytest.raises(UsageError, match=synthetic.NO_GPU) as caught:
        labs.load_profile("gpu", synthetic.machine())
    assert "--profile cpu" in caught.value.remedy


@pytest.mark.parametrize(
    ("card", "gpu_gib", "profile"),
    [
        ("T4", 15.0, "gpu-16"),
        ("L4", 22.5, "gpu-24"),
        ("RTX 4090", 24.0, "gpu-24"),
        ("A100 40", 40.0, "gpu-48"),
        ("L40S", 45.0, "gpu-48"),
        ("H100", 79.6, "gpu-80"),
        ("H200", 140.4, "gpu-141"),
    ],
)
def test_every_lab_fits_the_card_that_its_profile_is_for(card: str, gpu_gib: float, profile: str) -> None:
    """On an empty card of each size the profile that is chosen serves models whose weights fit, in every lab, with as
    many engines as part the card there."""
    machine = synthetic.machine(gpu_gib=gpu_gib)
    assert labs.profile_for(machine) == profile, card
    chosen = labs.load_profile("gpu", machine)
    assert chosen.name == profile
    for lab in labs.LABS.values():
        check_gpu_memory(chosen.parameters(lab), machine, chosen.weights, engines=lab.needs.engines)


@pytest.mark.parametrize("name", ["08_torchserve_lifecycle", "09_head_to_head"])
def test_labs_with_two_engines_and_handlers_start_with_their_own_defaults_on_a_gpu(name: str) -> None:
    """`--profile cpu` on a GPU machine leaves the share to the notebook: two of them leave room for the handlers."""
    share = read_defaults(root() / "notebooks" / f"{name}.ipynb")["gpu_memory_share"]
    check_shares(share, gpus=1)


def test_what_lab_06_promises_is_little_of_the_hosts_memory() -> None:
    """Ray reserves `promised_mib` of the host for each of six replicas, on a GPU too: at most a tenth of 24 GiB."""
    for gpu_gib in (15.0, 24.0, 48.0, 80.0, 141.0):
        chosen = labs.load_profile("gpu", synthetic.machine(gpu_gib=gpu_gib))
        found = chosen.parameters(labs.find_lab("06"))
        assert 6 * found["promised_mib"] <= 2400


def test_lab_05_finds_no_room_for_greedy_on_a_large_server_either() -> None:
    """The application asks for five GPUs; Ray counts fewer, however many the machine has."""
    cells = json.loads((root() / "notebooks" / labs.find_lab("05").notebook).read_text())["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    told = next(line for line in lines if line.startswith("gpus_here = "))
    assert "num_gpus=gpus_here" in "\n".join(lines)
    with_eight: dict[str, Any] = {"lab": SimpleNamespace(machine=SimpleNamespace(gpus=[object()] * 8))}
    exec(told, with_eight)
    assert with_eight["gpus_here"] < 5


@given(total=st.floats(8, 200), used=st.floats(0, 1))
def test_an_automatic_share_is_free_on_the_gpu(total: float, used: float) -> None:
    """`auto` never asks for more than is free, unless less than the smallest allowed share is free."""
    free = total * (1 - used)
    machine = synthetic.machine(gpu_gib=total, gpu_free_gib=free)
    share = labs.load_profile("gpu", machine).parameters(labs.find_lab(FIRST))["gpu_memory_share"]
    assert 0.05 <= share <= 0.92
    assert share * total <= free or share == 0.05


@pytest.mark.parametrize(
    ("share", "free_gib", "model", "says"),
    [
        (0.9, 20.0, "org/Some-1B", ("0.9 asks for 72.0 GiB", "only 20.0 of its 80.0 GiB", "at most 0.25")),
        (0.9, 2.0, "org/Some-1B", ("only 2.0 of its 80.0 GiB", "nvidia-smi")),
        (0.1, 80.0, "Qwen/Qwen2.5-7B-Instruct", ("14.2 GiB", "is 8.0 GiB", "smaller model")),
        (0.1, 80.0, "org/Other-8B-chat", ("14.9 GiB", "is 8.0 GiB")),
    ],
)
def test_too_little_gpu_memory_is_told_with_the_numbers(
    share: float, free_gib: float, model: str, says: tuple[str, ...]
) -> None:
    """What is asked, what is free, what the weights take, and what to change."""
    machine = synthetic.machine(gpu_gib=80, gpu_free_gib=free_gib)
    weights = labs.load_profile("gpu", synthetic.machine(gpu_gib=80)).weights
    with pytest.raises(UsageError) as caught:
        check_gpu_memory({"gpu_memory_share": share, "model": model}, machine, weights)
    assert all(words in str(caught.value) for words in says), str(caught.value)


def test_two_engines_part_a_share() -> None:
    """Labs 01 and 03 hold two engines at once: a 7B that fits a card of 24 GB alone is refused there, with the numbers;
    48 GB are enough."""
    seven = {"gpu_memory_share": 0.9, "model": "Qwen/Qwen2.5-7B-Instruct"}
    weights = labs.load_profile("gpu", synthetic.machine(gpu_gib=80)).weights
    assert {name for name, lab in labs.LABS.items() if lab.needs.engines == 2} == {FIRST, "03_prefix_caching"}
    check_gpu_memory(seven, synthetic.machine(gpu_gib=24), weights)
    with pytest.raises(UsageError, match=r"parted by 2 engines, is 10\.8 GiB"):
        check_gpu_memory(seven, synthetic.machine(gpu_gib=24), weights, engines=2)
    check_gpu_memory(seven, synthetic.machine(gpu_gib=48), weights, engines=2)


def test_gpu_memory_is_not_checked_where_it_does_not_matter() -> None:
    """No GPU, no share, or a model of unknown size: nothing is refused on a guess."""
    big = {"gpu_memory_share": 0.9, "model": "org/Huge-400B"}
    check_gpu_memory(big, synthetic.machine(), {})
    check_gpu_memory({"model": "org/Huge-400B"}, synthetic.machine(gpu_gib=8), {})
    check_gpu_memory({**big, "model": "org/unknown"}, synthetic.machine(gpu_gib=8), {})


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("org/X-7B-Instruct", 7_000_000_000),
        ("org/X-0.5b", 500_000_000),
        ("smollm2-135m", 135_000_000),
        ("org/X2B", None),
    ],
)
def test_the_size_is_read_from_a_models_name(model: str, count: int | None) -> None:
    """Where nothing better is known the name's own "7B" counts, and a name without one tells nothing."""
    assert count_parameters(model, {}) == count


def test_later_layers_win(tmp_path: Path) -> None:
    """all < the lab's own < -p all.… < -p LAB.…, and a shared value reaches only labs that have the parameter."""
    text = "{name: mine, description: d, all: {number: 1, seed: 1}, labs: {90_good: {number: 2}}}"
    chosen = profile(tmp_path, text, synthetic.machine())
    good, other = synthetic.LABS["90_good"], synthetic.LABS["91_fails"]
    assert chosen.parameters(good) == {"number": 2.0, "seed": 1}
    assert chosen.parameters(other)["number"] == 1.0
    shared = parse_overrides(["all.number=3"], synthetic.LABS)
    assert chosen.parameters(good, shared)["number"] == 3.0
    both = parse_overrides(["all.number=3", "90.number=4"], synthetic.LABS)
    assert chosen.parameters(good, both)["number"] == 4.0
    assert chosen.parameters(other, both)["number"] == 3.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{name: mine, description: d, all: {numbr: 1}}", "did you mean number"),
        ("{name: mine, description: d, labs: {90_god: {number: 1}}}", "did you mean 90_good"),
        ("{name: mine, description: d, labs: {90_good: {number: 11}}}", "from 0 to 10"),
        ("{name: mine, description: d, all: {number: auto}}", synthetic.NO_GPU),
        ("{name: mine, descripton: d}", "descripton"),
        ("[", "not valid YAML"),
        ("", "not valid"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """Unknown labs, parameters and keys, values out of range and broken YAML are each named."""
    with pytest.raises(UsageError) as caught:
        profile(tmp_path, text, synthetic.machine())
    assert says in str(caught.value)


def test_an_unknown_profile_is_answered_with_those_that_exist() -> None:
    """The names of the course's profiles stand in the remedy."""
    with pytest.raises(UsageError, match="did you mean gpu"):
        labs.load_profile("gppu", synthetic.machine())


@pytest.mark.parametrize("setting", ["x", "90_good.number", "number=3", "90_good.=3", ".number=3", "90_good=3"])
def test_a_setting_that_sets_nothing_is_refused(setting: str) -> None:
    """-p takes LAB.NAME=VALUE and says so."""
    with pytest.raises(UsageError, match=r"LAB\.NAME=VALUE"):
        parse_overrides([setting], synthetic.LABS)


# --- what runs where


def needs(**needs: Any) -> Lab:
    """A vLLM lab with these needs."""
    return labs.find_lab(FIRST).model_copy(update={"needs": labs.Needs(**needs), "engine": "vllm"})


@pytest.mark.parametrize(
    ("lab", "machine", "versions", "runs", "says"),
    [
        (needs(), synthetic.machine(gpu_gib=80), {"vllm": "1"}, "yes", ""),
        (needs(), synthetic.machine(), {"vllm": "1"}, "small", synthetic.NO_GPU),
        (needs(), synthetic.machine(), {}, "no", "vllm not installed"),
        (needs(gpu=True), synthetic.machine(), {"vllm": "1"}, "no", synthetic.NO_GPU),
        (needs(memory_gib=5), synthetic.machine(memory_gib=3), {"vllm": "1"}, "no", "5 GiB of memory and 3.0 of 32.0"),
        (KINDS, synthetic.machine(), {}, "yes", ""),
    ],
)
def test_readiness_has_a_reason_and_a_fix(
    lab: Lab, machine: Machine, versions: Mapping[str, str], runs: str, says: str
) -> None:
    """A lab runs, runs small or does not; whenever it is not a plain yes, reason and fix are given."""
    found = labs.readiness(lab, machine, versions)
    assert found.runs == runs
    assert says in found.reason
    assert bool(found.reason) == bool(found.fix) == (runs != "yes")


def test_readiness_asks_for_java_where_a_lab_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Java runtime the lab does not run, for the reason that the search gave."""
    monkeypatch.setattr(labs, "java", lambda: (None, "no java on PATH"))
    found = labs.readiness(needs(java=True), synthetic.machine(), {"vllm": "1"})
    assert (found.runs, found.reason) == ("no", "no java on PATH")


# --- where files stand


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


# --- a lab's session


def parameters_of(name: str) -> dict[str, Any]:
    """Some allowed value for every parameter of a lab."""
    values: dict[str, Any] = {
        "int": 3,
        "float": 0.5,
        "bool": True,
        "str": "some",
        "list[int]": [2],
        "list[float]": [0.5],
    }
    found = labs.find_lab(name).parameters
    chosen = {key: None if each.optional else values[each.type] for key, each in found.items()}
    return {**chosen, "model": "smollm2-135m", "out_dir": ""}


def test_a_session_records_everything_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a lab adds is in its record, complete at every moment; out_dir is no parameter of what is measured."""
    lab = session.start(FIRST, parameters_of(FIRST), out_dir=tmp_path)
    assert read(tmp_path / f"{FIRST}.json").status == "running"
    guess = lab.predict("gain", "How many times as fast?", unit="x", guess=2.0, confidence=0.7)
    gain = lab.ratio(paired_ratio([4.0, 4.4, 4.2], [2.0, 2.0, 2.0], name="gain"), tolerance=0.3)
    lab.exact("tokens", [1, 2])
    lab.measure("ttft", "s", [0.1, 0.12, 0.11])
    shown = lab.reveal(guess, gain, article=3.0)
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


def test_a_lab_that_starts_again_starts_afresh(tmp_path: Path) -> None:
    """Running all cells a second time in one kernel replaces the record instead of adding to it."""
    for round_ in range(2):
        lab = session.start(FIRST, parameters_of(FIRST), out_dir=tmp_path)
        lab.exact(f"round_{round_}", round_)
        lab.finish()
    assert read(tmp_path / f"{FIRST}.json").exact == {"round_1": 1}


def test_a_notebooks_globals_give_the_declared_names(tmp_path: Path) -> None:
    """From `globals()` only the lab's parameters are taken; one that is missing is named."""
    everything = {"__name__": "__main__", "something": object(), **parameters_of(FIRST), "out_dir": str(tmp_path)}
    lab = session.start(FIRST, everything)
    assert lab.out_dir == tmp_path
    assert "something" not in lab.parameters
    del everything["seed"]
    with pytest.raises(UsageError, match="without seed"):
        session.start(FIRST, everything)


def test_without_a_folder_each_start_gets_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty out_dir means a fresh folder under runs/notebook, also for two starts in one second."""
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    folders = [session.start(FIRST, parameters_of(FIRST)).out_dir for _ in range(3)]
    assert len(set(folders)) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "runs" / "notebook"}


def test_evidence_belongs_to_a_claim_of_the_lab(tmp_path: Path) -> None:
    """A lab cannot record evidence on a claim that labs.yaml does not give it."""
    lab = session.start(FIRST, parameters_of(FIRST), out_dir=tmp_path)
    with pytest.raises(UsageError, match="does not test claim C02"):
        lab.evidence("C02", 1.0)


def test_a_block_that_raises_leaves_a_failed_record(tmp_path: Path) -> None:
    """As a context manager a session marks its record when the block does not end well."""
    with pytest.raises(ZeroDivisionError), session.start(FIRST, parameters_of(FIRST), out_dir=tmp_path):
        raise ZeroDivisionError
    assert read(tmp_path / f"{FIRST}.json").status == "failed"


def test_every_chart_carries_the_machine(tmp_path: Path) -> None:
    """Shown or recorded, a chart has the machine's line below its title, once, and the caption after it."""
    from labkit import charts

    lab = session.start(FIRST, parameters_of(FIRST), out_dir=tmp_path)
    drawn = charts.bars_with_intervals([charts.Bar("a", 1.0)], title="A bar", unit="s", caption=lab.machine_line)
    lab.chart(drawn, "captioned", key=True, caption="three repeats")
    lab.chart({"mark": "bar", "description": "a bar", "data": {"values": []}, "title": "Plain"}, "plain")
    first, second = read(tmp_path / f"{FIRST}.json").charts
    assert first.spec["title"] == {"text": "A bar", "subtitle": [lab.machine_line, "three repeats"]}
    assert second.spec["title"] == {"text": "Plain", "subtitle": [lab.machine_line]}
    assert (first.key, second.key) == (True, False)
    assert "smollm2-135m" in lab.machine_line
