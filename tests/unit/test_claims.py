"""The ledger: its data file, its verdict rules, its rows."""

import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.labs import load_labs
from labkit.records import Record, Scalar, Status
from labkit.records.ledger import NOT_MEASURED, ClaimRule, ledger, load_claims, verdict

CLAIMS = load_claims()
RULES = {claim.id: claim.rule for claim in CLAIMS.values() if claim.rule is not None}
FIRST_LAB = "01_first_deployment"


def test_the_ledger_holds_the_claims_of_the_article_in_order() -> None:
    """C01 to C65, each text once; each is one sentence with dated evidence that holds a figure."""
    assert list(CLAIMS) == [f"C{number:02d}" for number in range(1, 66)]
    assert len({claim.short for claim in CLAIMS.values()}) == 65
    wrong = [
        claim.id
        for claim in CLAIMS.values()
        if not re.fullmatch(r"[^\n]*[.]", claim.short)
        or re.search(r"[.!?] [A-Z]", claim.short)
        or not re.search(r"\d.*\.$", claim.literature.evidence, re.DOTALL)
    ]
    assert wrong == []


def test_labs_and_claims_name_each_other() -> None:
    """A lab's claims know that lab; a claim with a rule is on its first lab's list and not settled by sources alone;
    only those may be without a lab."""
    named = {(name, claim_id) for name, lab in load_labs().items() for claim_id in lab.claims}
    assert [pair for pair in named if pair[0] not in CLAIMS[pair[1]].labs] == []
    assert [claim_id for claim_id in RULES if (CLAIMS[claim_id].labs[0], claim_id) not in named] == []
    by_text = {claim.id for claim in CLAIMS.values() if claim.settled_by == "text"}
    assert {claim.id for claim in CLAIMS.values() if not claim.labs} <= by_text
    assert by_text.isdisjoint(RULES)


Tree = dict[str, Any]
C07, C08 = (CLAIMS[name].model_dump(mode="json") for name in ("C07", "C08"))
RULE: Tree = C07["rule"]
CASE: Tree = RULE["cases"][0]


def with_case(**changes: Any) -> Tree:
    return {**C07, "rule": {**RULE, "cases": [{**CASE, **changes}, *RULE["cases"][1:]]}}


def with_condition(*condition: Any) -> Tree:
    return with_case(when=[*CASE["when"], [*condition]])


BROKEN = [
    (with_case(verdict="maybe"), r"C07 .*rule\.cases\[0\]\.verdict"),
    (with_case(when=[]), r"C07 .*rule\.cases\[0\]\.when"),
    (with_case(because="It is {much}."), "C07 .*much: used, but not among"),
    (with_case(because="{tail_growth_low:.2f}"), "C07 .*not a plain evidence name"),
    (with_case(because="{tail_growth_low.real}"), "C07 .*not a plain evidence name"),
    (with_case(because="{"), "C07 .*rule"),
    (with_condition("tail_growth_low", "~", 1), r"C07 .*when\[\d\]"),
    (with_condition("tail", ">", 1), "C07 .*tail: used, but not among"),
    (with_condition("tail_growth_low", ">", "tail"), "C07 .*tail: used, but not"),
    (with_condition("tail_growth_low", ">", True), "C07 .*have no order"),
    ({**C07, "rule": {**RULE, "needs": [*RULE["needs"], "spare"]}}, "C07 .*spare: among .* needs, but never used"),
    ({**C07, "rule": {key: RULE[key] for key in ("needs", "cases")}}, r"C07 .*rule\.default: Field required"),
    ({**C07, "sort": "x"}, "C07 .*sort: Extra inputs"),
    ({**C07, "id": "C08"}, "has claim C08 twice"),
    ({**C07, "id": "7"}, "claim 7 is not valid: id"),
]


def test_a_broken_ledger_is_refused_naming_the_claim_and_the_key(tmp_path: Path) -> None:
    """Bad YAML, entries that are no claims, unknown verdicts, operators, names, placeholders and keys."""
    texts = [(text, r"\.yaml") for text in ("claims: [", "claims: 3", "- 1", "claims: [7]", "claims: []", "\ufeff")]
    texts += [(yaml.safe_dump({"claims": [entry, C08]}), message) for entry, message in BROKEN]
    for number, (text, message) in enumerate(texts):
        path = tmp_path / f"{number}.yaml"  # a file is read once
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_claims(path)


TRIPLE = re.compile(r"(.+)_(low|value|high)")


def some_evidence(rule: ClaimRule, rng: random.Random) -> dict[str, Scalar]:
    """Random evidence for a rule, near its own thresholds, with low <= value <= high."""
    thresholds = [right for case in rule.cases for _, _, right in case.when]
    truths = {name for case in rule.cases for name, _, right in case.when if isinstance(right, bool)}
    compared = {side for case in rule.cases for left, _, right in case.when for side in (left, right)}
    numbers = [float(right) for right in thresholds if not isinstance(right, bool | str)] or [1.0]
    found: dict[str, Scalar] = {}
    for name in rule.needs:
        if name in truths:
            found[name] = rng.random() < 0.5
        elif name in compared or TRIPLE.fullmatch(name):
            found[name] = max(0.0, rng.choice(numbers) + rng.choice([-1, -0.01, 0, 0.01, 1, 5]))
        else:
            found[name] = "5.19"
    for stem in {match[1] for name in rule.needs if (match := TRIPLE.fullmatch(name))}:
        names = [f"{stem}_{end}" for end in ("low", "value", "high") if f"{stem}_{end}" in found]
        scale = rng.choice([0.2, 1, 1, 4])  # sets one triple well apart from another
        found |= zip(names, sorted(scale * float(found[name]) for name in names), strict=True)
    return found


def test_every_case_of_a_rule_can_be_reached() -> None:
    """For each case and the default there is consistent evidence that leads to it: no line of a rule is dead."""
    for claim_id, rule in RULES.items():
        rng = random.Random(0)
        cases = tuple(case.model_copy(update={"because": str(index)}) for index, case in enumerate(rule.cases))
        default = rule.default.model_copy(update={"because": "default"})
        numbered = rule.model_copy(update={"cases": cases, "default": default})
        missed = {*(str(index) for index in range(len(cases))), "default"}
        for _ in range(5_000):
            missed.discard(numbered.decide(some_evidence(rule, rng)).because)
            if not missed:
                break
        assert not missed, claim_id


def test_every_verdict_is_a_filled_in_sentence_or_names_what_is_missing() -> None:
    """The same evidence gives the same reason, whatever else was recorded; without any one name nothing is decided."""
    rng = random.Random(1)
    for claim_id, rule in RULES.items():
        for _ in range(50):
            evidence = some_evidence(rule, rng)
            found = verdict(claim_id, evidence)
            assert re.fullmatch(r"[^{}]*\.", found.because), claim_id
            assert verdict(claim_id, {**evidence, "something_else": 1}) == found, claim_id
        for name in rule.needs:
            found = verdict(claim_id, {key: value for key, value in evidence.items() if key != name})
            assert (found.verdict, found.missing) == ("inconclusive", (name,)), claim_id
            assert name in found.because, claim_id


def bounds(**triples: tuple[float, float, float]) -> dict[str, Scalar]:
    ends = ("low", "value", "high")
    return {f"{name}_{end}": x for name, triple in triples.items() for end, x in zip(ends, triple, strict=True)}


CODE, VERSION = "transformers_has_continuous_batching", "transformers_version"
RATIO = "article_formula_over_true"
FIRST_LABS_VERDICTS: list[tuple[str, dict[str, Scalar], str, str]] = [
    ("C01", bounds(sequential=(9, 11, 12), static=(2.1, 2.3, 2.6)), "supported", "inside the claimed 2 to 4"),
    ("C01", bounds(sequential=(9, 11, 12), static=(3.5, 4.2, 5)), "supported", "perhaps more than 4"),
    ("C01", bounds(sequential=(1.2, 1.5, 1.9), static=(0.9, 1, 1.1)), "refuted", "below 2 against both"),
    ("C01", bounds(sequential=(3, 3.5, 4), static=(1.2, 1.4, 1.6)), "depends", "1.4x (at most 1.6) against"),
    ("C01", bounds(sequential=(9, 11, 12), static=(1.7, 2.1, 2.6)), "depends", "more than the claimed 4"),
    ("C01", bounds(sequential=(3, 3.5, 4), static=(1.7, 2.1, 2.6)), "inconclusive", "straddle 2"),
    ("C04", {CODE: True, VERSION: "5.19.0"}, "refuted", "5.19.0"),
    ("C04", {CODE: False, VERSION: "4.40"}, "supported", "4.40"),
    ("C07", bounds(tail_growth=(1, 1.1, 1.2), throughput_gain=(3, 4, 5)), "supported", "at most 1.2"),
    ("C07", bounds(tail_growth=(2, 2.2, 2.5), throughput_gain=(7, 8, 9)), "depends", "batching still paid"),
    ("C07", bounds(tail_growth=(4, 5, 6), throughput_gain=(1.5, 2, 2.5)), "refuted", "buys throughput with latency"),
    ("C07", bounds(tail_growth=(4, 5, 6), throughput_gain=(0.9, 1, 1.1)), "inconclusive", "too uncertain"),
    ("C07", bounds(tail_growth=(1.1, 1.4, 1.8), throughput_gain=(7, 8, 9)), "inconclusive", "too uncertain"),
    ("C28", {"listening_ports": 0}, "refuted", "no client can send"),
    ("C28", {"listening_ports": 1}, "supported", "listens on 1"),
    ("C29", {RATIO: 0.25, "batch_size": 4}, "refuted", "0.25 of the true"),
    ("C29", {RATIO: 1.2, "batch_size": 4}, "refuted", "1.2 times the true"),
    ("C29", {RATIO: 0.96, "batch_size": 4}, "supported", "within 5 percent"),
    ("C29", {RATIO: 1.0, "batch_size": 1}, "inconclusive", "batch of 1"),
]


def test_the_first_labs_rules() -> None:
    """What each finding of the first lab means for its claims."""
    found = [(case, verdict(*case[:2])) for case in FIRST_LABS_VERDICTS]
    assert [(case, said) for case, said in found if said.verdict != case[2] or case[3] not in said.because] == []


positive = st.floats(0.1, 50)


def ordered(*values: float) -> tuple[float, float, float]:
    low, value, high = sorted(values)
    return low, value, high


@given(st.tuples(positive, positive, positive), st.tuples(positive, positive, positive))
def test_more_gain_never_turns_the_first_claim_from_supported(
    sequential: tuple[float, float, float], static: tuple[float, float, float]
) -> None:
    """Raising the whole gain over a static batch keeps a supported claim supported, and refuted needs both below 2."""
    evidence = bounds(sequential=ordered(*sequential), static=ordered(*static))
    more = evidence | {name: value * 2 for name, value in evidence.items() if name.startswith("static")}
    found = verdict("C01", evidence).verdict
    if found == "supported":
        assert verdict("C01", more).verdict == "supported"
    if found == "refuted":
        assert max(*sequential, *static) < 2


def test_evidence_of_the_wrong_type_is_refused() -> None:
    """Text or truth for a number, NaN, a claim without a rule and an unknown id name the claim."""
    refused: list[tuple[str, dict[str, Scalar], str]] = [
        ("C28", {"listening_ports": "none"}, "claim C28: listening_ports == 0: 'none' is not a number"),
        ("C28", {"listening_ports": False}, "claim C28: listening_ports == 0: False is not a number"),
        ("C28", {"listening_ports": float("nan")}, "claim C28: listening_ports is nan"),
        ("C04", {CODE: 1, VERSION: "5"}, "claim C04: .* 1 is not a truth value"),
        ("C02", {}, "claim C02 has no rule"),
        ("C99", {}, "no claim 'C99'(.|\n)*C01 to C65"),
    ]
    for claim_id, evidence, message in refused:
        with pytest.raises(UsageError, match=message):
            verdict(claim_id, evidence)


def test_evidence_is_compared_with_evidence_and_shown_readably() -> None:
    """A condition's right side may be another evidence name, numbers or texts. Reasons have three significant digits,
    thousands with commas, shares in percent, truth as yes and no."""
    case = {"verdict": "supported", "when": [["a", ">", "b"], ["x", "==", "y"]], "because": "{x}"}
    default = {"verdict": "refuted", "because": "{empty_share}"}
    rule = ClaimRule.model_validate({"needs": ["a", "b", "x", "y", "empty_share"], "cases": [case], "default": default})
    shown: dict[Scalar, str] = {0.12345: "0.123", 1234.5: "1,234", 2.0: "2", 12345: "12,345", True: "yes", "s": "s"}
    for value, text in shown.items():
        found = rule.decide({"a": 2, "b": 1.5, "x": value, "y": value, "empty_share": 0.5})
        assert (found.verdict, found.because) == ("supported", text)
    for a, b, x, y in ((2, 3, "s", "s"), (2, 1, "s", "t")):
        found = rule.decide({"a": a, "b": b, "x": x, "y": y, "empty_share": 0.00534})
        assert (found.verdict, found.because) == ("refuted", "0.534%")


NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def record(hours: float, claims: dict[str, dict[str, Scalar]], *, status: Status = "done") -> Record:
    facts: dict[str, Any] = {
        "machine": {"line": f"machine of hour {hours}"},
        "versions": {},
        "parameters": {},
        "seed": 0,
    }
    ended = NOON + timedelta(hours=hours)
    return Record(lab=FIRST_LAB, status=status, **facts, started=NOON, ended=ended, claims=claims)


def test_an_empty_ledger_says_why_nothing_is_measured() -> None:
    """Without records every claim has its row: what the literature says, and what it would take to measure it."""
    rows = {row.id: row for row in ledger([])}
    assert list(rows) == list(CLAIMS)
    assert {(row.verdict, row.measured) for row in rows.values()} == {(NOT_MEASURED, False)}
    assert rows["C02"].literature == "wrong"
    because = {"C01": f"labkit run {FIRST_LAB}", "C02": "sources", "C13": "GPU", "C59": "arithmetic"}
    assert [claim_id for claim_id, words in because.items() if words not in rows[claim_id].because] == []


def test_the_newest_evidence_decides_and_older_evidence_is_noted() -> None:
    """Whatever the order of the records, the row has the newest one's verdict, numbers, machine and time; a note says
    of each older one whether it agreed."""
    records = [record(hour, {"C28": {"listening_ports": ports}}) for hour, ports in ((3, 0), (2, 2), (1, 0))]
    for order in (records, records[::-1]):
        row = next(row for row in ledger(order) if row.id == "C28")
        assert (row.verdict, row.measured, row.lab) == ("refuted", True, FIRST_LAB)
        assert row.evidence == {"listening_ports": 0}
        assert (row.machine, row.date) == ("machine of hour 3", "2026-11-24T15:00:00+00:00")
        assert len(row.notes) == 2
        assert "machine of hour 2) has the verdict supported" in row.notes[0]
        assert "machine of hour 1) agrees" in row.notes[1]
        assert row.model_dump(mode="json")["measured"] is True


def test_evidence_of_a_stopped_lab_counts_with_a_note() -> None:
    """A lab's evidence decides though it failed or still runs, and the row says so; half of it decides nothing."""
    notes: dict[Status, tuple[str, ...]] = {
        "done": (),
        "failed": ("From a lab that failed.",),
        "running": ("From a lab that has not ended yet.",),
    }
    for status, expected in notes.items():
        stopped = record(1, {"C28": {"listening_ports": 0}, "C29": {}}, status=status)
        rows = {row.id: row for row in ledger([stopped])}
        assert (rows["C28"].verdict, rows["C28"].notes) == ("refuted", expected)
        assert rows["C29"].verdict == "inconclusive"


def test_evidence_without_a_rule_or_a_claim() -> None:
    """Evidence recorded before the ledger has a rule for it is not measured, and the reason says so; evidence on a
    claim that the ledger lacks is refused, naming lab and claim."""
    without_rule = CLAIMS["C28"].model_copy(update={"rule": None})
    [row] = ledger([record(1, {"C28": {"listening_ports": 0}})], claims={"C28": without_rule})
    assert (row.verdict, row.measured) == (NOT_MEASURED, False)
    assert "no rule yet" in row.because
    with pytest.raises(UsageError, match="record of 01_first_deployment has evidence on C99"):
        ledger([record(1, {"C99": {"value": 1}})])
