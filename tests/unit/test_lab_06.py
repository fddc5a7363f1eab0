"""Lab 06: configs that fit a card and those that do not, two engines by turns, a plan, and its claims' rules."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from course import lab_06
from labkit import modelled
from labkit.records import Scalar
from labkit.teaching import find
from tests.unit.verdicts import judged_otherwise


def config(*, gpu: float = 0.5, share: float = 0.47, length: int = 8192) -> str:
    """The exercise's config with the same numbers for both engines."""
    right = lab_06.fitting().replace("GPU: 0.5", f"GPU: {gpu}").replace("utilization: 0.47", f"utilization: {share}")
    return right.replace("8192", str(length))


def test_a_config_passes_the_tests_that_it_keeps() -> None:
    """Any numbers that fit pass; a number off fails the test that it breaks, and whatever cannot be read that one."""
    table: list[tuple[Any, list[str]]] = [
        (config(), []),
        (config(share=0.5), []),
        (config(gpu=0.45, share=0.4), []),
        (config(gpu=0.51), ["Ray places every replica"]),
        (config(share=0.2), ["every engine starts"]),
        (config(length=4096), ["requests of 8,192 tokens are accepted"]),
        (config(gpu=0.4), ["no engine takes more of the card than Ray counts"]),
    ]
    broken = ("", ": :", "applications: 3", "gpu: {memory_gib: 80}", None, 7, [1])
    table += [(what, ["the config can be read"]) for what in broken]
    found = [(one, [test for test, what in lab_06.fits(one).items() if what]) for one, _ in table]
    assert found == table
    assert [one for one, failing in table if find("06.fits").judge(one).passed == bool(failing)] == []


def test_steps_by_turns_are_never_at_the_same_time() -> None:
    """Two engines with steps of 3 and 2 s: driven by the earlier clock, as the driver does it, they alternate."""
    cards = [SimpleNamespace(clock_s=0.0, step_s=3.0), SimpleNamespace(clock_s=0.0, step_s=2.0)]
    share = lab_06.in_turn([SimpleNamespace(llm_engine=SimpleNamespace(model_executor=card)) for card in cards])
    steps = []
    for _ in range(8):
        card = min(cards, key=lambda card: card.clock_s)
        begun, card.clock_s = card.clock_s, card.clock_s + card.step_s
        steps.append((begun, card.clock_s, card.step_s))
        share()
    assert [length for *_, length in steps] == [3.0, 2.0] * 4
    assert all(begun >= ended - 1e-6 for (_, ended, _), (begun, *_) in pairwise(steps))


def test_an_adapter_is_rank_times_inputs_and_outputs() -> None:
    """Llama-3.1-8B, rank 16: 41.9 million numbers, as PEFT counts them for all linear layers; half at rank 8."""
    gpu = modelled.gpu("h100-sxm", model="llama-3.1-8b")
    assert lab_06.adapter_bytes(gpu, 16) == 2 * 41_943_040 == 2 * lab_06.adapter_bytes(gpu, 8)


sizes = st.tuples(st.integers(1, 64).map(lambda n: n * 1.25), st.integers(1, 24).map(lambda n: n / 32))


@given(st.lists(sizes, min_size=1, max_size=8), st.sampled_from([0.75, float("inf")]))
def test_a_plan_keeps_memory_and_load(drawn: list[tuple[float, float]], most_load: float) -> None:
    """Every model is on one GPU, none has more than it takes, and the first two GPUs could not be one."""
    models = {f"m{n}": size for n, size in enumerate(drawn)}
    gpus = lab_06.plan(models, gpu_gib=80.0, most_load=most_load)
    assert sorted(name for gpu in gpus for name in gpu) == sorted(models)

    def total(names: list[str], of: int) -> float:
        return sum(models[name][of] for name in names)

    assert all(total(gpu, 0) <= 80 and total(gpu, 1) <= most_load for gpu in gpus)
    if len(gpus) > 1:
        assert total(gpus[0] + gpus[1], 0) > 80 or total(gpus[0] + gpus[1], 1) > most_load


def test_the_rules_of_the_labs_claims() -> None:
    """No modelled or computed evidence refutes the claim on sharing; only a limit by Ray refutes C36."""

    def c36(variables_apart: int, limits_apart: int, same_device: bool) -> dict[str, Scalar]:
        return {"variables_apart": variables_apart, "limits_apart": limits_apart, "same_device": same_device}

    def c08(saved_percent: float, lowest: float) -> dict[str, Scalar]:
        ratios = {"lowest_ratio": lowest, "highest_ratio": lowest + 0.1}
        return {"saved_percent": saved_percent, "gpus_dedicated": 4, "gpus_shared": 2, **ratios}

    table: list[tuple[str, dict[str, Scalar], str, str]] = [
        ("C36", c36(0, 0, True), "supported", ""),
        ("C36", c36(1, 0, True), "inconclusive", ""),
        ("C36", c36(0, 0, False), "inconclusive", ""),
        ("C36", c36(0, 1, True), "refuted", ""),
        ("C08", c08(50.0, 0.5), "depends", ""),
        ("C08", c08(0.0, 0.5), "depends", ""),
        ("C08", c08(30.0, 1.4), "supported", ""),
        ("C08", c08(10.0, 1.4), "inconclusive", ""),
    ]
    assert judged_otherwise(table) == []
