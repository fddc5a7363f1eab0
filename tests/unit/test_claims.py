"""The ledger: its data file, its verdict rules, its rows."""

import random
import re
from collections.abc import Callable
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
from labkit.records.ledger import NOT_MEASURED, ClaimRule, find_claim, ledger, load_claims, verdict

CLAIMS = load_claims()
RULES = {claim.id: claim.rule for claim in CLAIMS.values() if claim.rule is not None}
FIRST_LAB = "01_first_deployment"


# --- the data file


def test_every_claim_is_there_exactly_once() -> None:
    """C01 to C65, in order, no two with the same text."""
    assert list(CLAIMS) == [f"C{number:02d}" for number in range(1, 66)]
    assert len({claim.short for claim in CLAIMS.values()}) == 65


def test_sections_hold_the_claims_of_the_article_in_order() -> None:
    """The ledger's five sections follow each other and hold 15, 12, 21, 5 and 12 claims."""
    sections = [claim.section for claim in CLAIMS.values()]
    sizes = {"performance": 15, "configuration": 12, "api": 21, "status": 5, "prices": 12}
    assert sections == [name for name, size in sizes.items() for _ in range(size)]


def test_a_claim_is_one_sentence_with_dated_evidence() -> None:
    """The short text is one sentence, and the evidence holds a figure: a version, a date or a number."""
    wrong = [
        claim.id
        for claim in CLAIMS.values()
        if not re.fullmatch(r"[^\n]*[.]", claim.short)
        or re.search(r"[.!?] [A-Z]", claim.short)
        or not re.search(r"\d.*\.$", claim.literature.evidence, re.DOTALL)
        or claim.literature.checked.isoformat() != "2026-11-24"
    ]
    assert wrong == []


def test_a_claim_that_a_lab_settles_names_the_lab() -> None:
    """Only what sources alone can settle may be without a lab; a rule belongs to a claim that a lab settles."""
    for claim in CLAIMS.values():
        assert claim.labs or claim.settled_by == "text", claim.id
        assert claim.rule is None or claim.settled_by != "text", claim.id


def test_labs_and_claims_name_each_other() -> None:
    """A lab's claims in data/labs.yaml know that lab, and a claim with a rule is on its first lab's list."""
    labs = load_labs()
    for name, lab in labs.items():
        for claim_id in lab.claims:
            assert name in CLAIMS[claim_id].labs, (name, claim_id)
    for claim_id in RULES:
        assert claim_id in labs[CLAIMS[claim_id].labs[0]].claims, claim_id


# --- loading what is broken

Change = Callable[[dict[str, Any]], object]


def broken(folder: Path, change: Change, claim_id: str = "C07") -> Path:
    entries = [CLAIMS[name].model_dump(mode="json") for name in (claim_id, "C08")]
    change(entries[0])
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": entries}))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["rule"]["cases"][0].update(verdict="maybe"), r"C07 .*rule\.cases\[0\]\.verdict"),
        (lambda c: c["rule"]["cases"][1]["when"].append(["tail_growth_low", "~", 1]), r"C07 .*.*when\[2\]"),
        (lambda c: c["rule"]["cases"][0]["when"].append(["tail", ">", 1]), "C07 .*.*tail: used, but not among"),
        (
            lambda c: c["rule"]["cases"][0]["when"].append(["tail_growth_low", ">", "tail"]),
            "C07 .*.*tail: used, but not",
        ),
        (lambda c: c["rule"]["cases"][0].update(because="It is {much}."), "C07 .*.*much: used, but not among"),
        (lambda c: c["rule"]["default"].update(because="{tail_growth_low:.2f}"), "C07 .*.*not a plain evidence name"),
        (lambda c: c["rule"]["default"].update(because="{tail_growth_low.real}"), "C07 .*.*not a plain evidence name"),
        (lambda c: c["rule"]["default"].update(because="{"), "C07 .*rule"),
        (lambda c: c["rule"]["needs"].append("spare"), "C07 .*.*spare: among the rule's needs, but never used"),
        (lambda c: c["rule"]["cases"][0]["when"].append(["tail_growth_low", ">", True]), "C07 .*.*have no order"),
        (lambda c: c["rule"]["cases"][0].update(when=[]), r"C07 .*rule\.cases\[0\]\.when"),
        (lambda c: c["rule"].pop("default"), r"C07 .*rule\.default: Field required"),
        (lambda c: c.pop("short"), "C07 .*short: Field required"),
        (lambda c: c.update(sort="x"), "C07 .*sort: Extra inputs"),
        (lambda c: c["literature"].update(verdict=True), r"C07 .*literature\.verdict"),
        (lambda c: c.update(id="C08"), "claim C08 is there twice"),
        (lambda c: c.update(id="7"), "claim 7 is not valid: id"),
    ],
)
def test_a_broken_entry_fails_naming_the_claim(tmp_path: Path, change: Change, message: str) -> None:
    """Unknown verdicts, operators, names, placeholders and keys are refused at loading, with claim and key."""
    with pytest.raises(UsageError, match=message):
        load_claims(broken(tmp_path, change))


@pytest.mark.parametrize("text", ["claims: [", "claims: 3", "- 1", "claims: [7]", "claims: []", "\ufeff"])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, text: str) -> None:
    """Bad YAML, no list of claims and entries that are no claims are usage errors."""
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"claims\.yaml"):
        load_claims(path)


# --- rules

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


def test_a_verdict_gives_its_reason_in_numbers() -> None:
    """Every reason is a filled-in sentence, the same for the same evidence, whatever else was recorded."""
    rng = random.Random(1)
    for claim_id, rule in RULES.items():
        for _ in range(50):
            evidence = some_evidence(rule, rng)
            found = verdict(claim_id, evidence)
            assert found.because.endswith("."), claim_id
            assert not set("{}") & set(found.because), claim_id
            assert found.missing == (), claim_id
            assert verdict(claim_id, {**evidence, "something_else": 1}) == found, claim_id


def test_missing_evidence_is_inconclusive_and_named() -> None:
    """Without any one of the names that it needs, a rule decides nothing and says what is missing."""
    for claim_id, rule in RULES.items():
        evidence = some_evidence(rule, random.Random(2))
        for name in rule.needs:
            found = verdict(claim_id, {key: value for key, value in evidence.items() if key != name})
            assert (found.verdict, found.missing) == ("inconclusive", (name,)), claim_id
            assert name in found.because, claim_id


def bounds(**triples: tuple[float, float, float]) -> dict[str, Scalar]:
    ends = ("low", "value", "high")
    return {f"{name}_{end}": x for name, triple in triples.items() for end, x in zip(ends, triple, strict=True)}


@pytest.mark.parametrize(
    ("claim_id", "evidence", "expected", "words"),
    [
        ("C01", bounds(sequential=(9, 11, 12), static=(2.1, 2.3, 2.6)), "supported", "inside the claimed 2 to 4"),
        ("C01", bounds(sequential=(9, 11, 12), static=(3.5, 4.2, 5)), "supported", "perhaps more than 4"),
        ("C01", bounds(sequential=(1.2, 1.5, 1.9), static=(0.9, 1, 1.1)), "refuted", "below 2 against both"),
        (
            "C01",
            bounds(sequential=(3, 3.5, 4), static=(1.2, 1.4, 1.6)),
            "depends",
            "1.4x (at most 1.6) against",
        ),
        ("C01", bounds(sequential=(9, 11, 12), static=(1.7, 2.1, 2.6)), "depends", "more than the claimed 4"),
        ("C01", bounds(sequential=(3, 3.5, 4), static=(1.7, 2.1, 2.6)), "inconclusive", "lie across 2"),
        ("C04", {"transformers_has_continuous_batching": True, "transformers_version": "5.19.0"}, "refuted", "5.19.0"),
        ("C04", {"transformers_has_continuous_batching": False, "transformers_version": "4.40"}, "supported", "4.40"),
        ("C07", bounds(tail_growth=(1, 1.1, 1.2), throughput_gain=(3, 4, 5)), "supported", "at most 1.2"),
        ("C07", bounds(tail_growth=(2, 2.2, 2.5), throughput_gain=(7, 8, 9)), "depends", "batching still paid"),
        (
            "C07",
            bounds(tail_growth=(4, 5, 6), throughput_gain=(1.5, 2, 2.5)),
            "refuted",
            "buys throughput with latency",
        ),
        ("C07", bounds(tail_growth=(4, 5, 6), throughput_gain=(0.9, 1, 1.1)), "inconclusive", "too uncertain"),
        ("C07", bounds(tail_growth=(1.1, 1.4, 1.8), throughput_gain=(7, 8, 9)), "inconclusive", "too uncertain"),
        ("C28", {"listening_ports": 0}, "refuted", "nobody can send"),
        ("C28", {"listening_ports": 1}, "supported", "listens on 1"),
        ("C29", {"article_formula_over_true": 0.25, "batch_size": 4}, "refuted", "0.25 of the true"),
        ("C29", {"article_formula_over_true": 1.2, "batch_size": 4}, "refuted", "1.2 times the true"),
        ("C29", {"article_formula_over_true": 0.96, "batch_size": 4}, "supported", "within 5 percent"),
        ("C29", {"article_formula_over_true": 1.0, "batch_size": 1}, "inconclusive", "batch of 1"),
    ],
)
def test_the_first_labs_rules(claim_id: str, evidence: dict[str, Scalar], expected: str, words: str) -> None:
    """What each finding of the first lab means for its claims."""
    found = verdict(claim_id, evidence)
    assert found.verdict == expected
    assert words in found.because


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


@pytest.mark.parametrize(
    ("claim_id", "evidence", "message"),
    [
        ("C28", {"listening_ports": "none"}, "claim C28: listening_ports == 0: 'none' is no number"),
        ("C28", {"listening_ports": False}, "claim C28: listening_ports == 0: False is no number"),
        ("C28", {"listening_ports": float("nan")}, "claim C28: listening_ports is nan"),
        (
            "C04",
            {"transformers_has_continuous_batching": 1, "transformers_version": "5"},
            "claim C04: .* 1 is no truth value",
        ),
        ("C02", {}, "claim C02 has no rule"),
        ("C99", {}, "no claim 'C99'"),
    ],
)
def test_evidence_of_the_wrong_type_is_refused(claim_id: str, evidence: dict[str, Scalar], message: str) -> None:
    """Text or truth for a number, NaN, a claim without a rule and an unknown id name the claim."""
    with pytest.raises(UsageError, match=message):
        verdict(claim_id, evidence)


def test_evidence_can_be_compared_with_evidence() -> None:
    """A condition's right side may be another evidence name, numbers or texts."""
    case = {"verdict": "supported", "when": [["a", ">", "b"], ["x", "==", "y"]], "because": "{a} over {b}."}
    rule = ClaimRule.model_validate(
        {"needs": ["a", "b", "x", "y"], "cases": [case], "default": {"verdict": "refuted", "because": "No."}}
    )
    assert rule.decide({"a": 2, "b": 1.5, "x": "s", "y": "s"}).because == "2 over 1.5."
    assert rule.decide({"a": 2, "b": 3, "x": "s", "y": "s"}).verdict == "refuted"
    assert rule.decide({"a": 2, "b": 1, "x": "s", "y": "t"}).verdict == "refuted"


def test_evidence_is_shown_readably() -> None:
    """Three significant digits, thousands with commas, truth as yes and no."""
    rule = ClaimRule.model_validate(
        {
            "needs": ["v"],
            "cases": [{"verdict": "refuted", "when": [["v", "==", "v"]], "because": "{v}"}],
            "default": {"verdict": "supported", "because": "-"},
        }
    )
    shown: dict[Scalar, str] = {0.12345: "0.123", 1234.5: "1,234", 2.0: "2", 12345: "12,345", True: "yes", "a": "a"}
    assert [rule.decide({"v": value}).because for value in shown] == list(shown.values())


# --- the ledger

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def record(hours: float, claims: dict[str, dict[str, Scalar]], *, status: Status = "done") -> Record:
    return Record(
        lab=FIRST_LAB,
        status=status,
        machine={"line": f"machine of hour {hours}"},
        versions={},
        parameters={},
        seed=0,
        started=NOON,
        ended=NOON + timedelta(hours=hours),
        claims=claims,
    )


def test_an_empty_ledger_says_why_nothing_is_measured() -> None:
    """Without records every claim has its row: what the literature says, and what it would take to measure it."""
    rows = {row.id: row for row in ledger([])}
    assert list(rows) == list(CLAIMS)
    assert {row.verdict for row in rows.values()} == {NOT_MEASURED}
    assert not any(row.measured for row in rows.values())
    assert f"labkit run {FIRST_LAB}" in rows["C01"].because
    assert "sources" in rows["C02"].because
    assert "GPU" in rows["C13"].because
    assert "arithmetic" in rows["C59"].because
    assert rows["C02"].literature == "wrong"


def test_a_measured_claim_has_verdict_numbers_machine_and_date() -> None:
    """Evidence in a record becomes a verdict by the rule, with the lab, the machine's line and the time."""
    row = next(row for row in ledger([record(1, {"C28": {"listening_ports": 0}})]) if row.id == "C28")
    assert (row.verdict, row.measured, row.lab) == ("refuted", True, FIRST_LAB)
    assert row.evidence == {"listening_ports": 0}
    assert (row.machine, row.date) == ("machine of hour 1", "2026-11-24T13:00:00+00:00")
    assert row.notes == ()
    assert {"id", "verdict", "evidence", "lab", "measured"} <= row.model_dump(mode="json").keys()


@pytest.mark.parametrize("newest_first", [True, False])
def test_the_newest_of_conflicting_records_decides_and_says_so(newest_first: bool) -> None:
    """Whatever the order of the records, the newest wins; a note tells of each older one and whether it agreed."""
    found = [
        record(3, {"C28": {"listening_ports": 0}}),
        record(2, {"C28": {"listening_ports": 2}}),
        record(1, {"C28": {"listening_ports": 0}}),
    ]
    rows = ledger(found if newest_first else found[::-1])
    row = next(row for row in rows if row.id == "C28")
    assert (row.verdict, row.machine) == ("refuted", "machine of hour 3")
    assert len(row.notes) == 2
    assert "machine of hour 2) said: supported" in row.notes[0]
    assert "machine of hour 1) says the same" in row.notes[1]


def test_evidence_of_a_stopped_lab_counts_with_a_note() -> None:
    """A failed lab's evidence still decides, and the row says where it is from; half of it decides nothing."""
    rows = {row.id: row for row in ledger([record(1, {"C28": {"listening_ports": 0}, "C29": {}}, status="failed")])}
    assert rows["C28"].verdict == "refuted"
    assert rows["C28"].notes == ("From a lab that failed.",)
    assert rows["C29"].verdict == "inconclusive"
    rows = {row.id: row for row in ledger([record(1, {"C28": {"listening_ports": 0}}, status="running")])}
    assert rows["C28"].notes == ("From a lab that has not ended yet.",)


def test_evidence_without_a_rule_is_reported_as_such() -> None:
    """A lab may record evidence before the ledger has a rule for it: not measured, and the reason says so."""
    ruled_out = CLAIMS["C28"].model_copy(update={"rule": None})
    rows = ledger([record(1, {"C28": {"listening_ports": 0}})], claims={"C28": ruled_out})
    assert [(row.verdict, row.measured) for row in rows] == [(NOT_MEASURED, False)]
    assert "no rule yet" in rows[0].because


def test_evidence_on_an_unknown_claim_is_refused() -> None:
    """A record about a claim that the ledger lacks names lab and claim."""
    with pytest.raises(UsageError, match="record of 01_first_deployment has evidence on C99"):
        ledger([record(1, {"C99": {"value": 1}})])


def test_a_claim_is_found_by_its_id() -> None:
    """find_claim gives the claim, or says which ids exist."""
    assert find_claim("C65").id == "C65"
    with pytest.raises(UsageError, match="C01 to C65"):
        find_claim("c1")
