"""The selector: every combination of answers, no dead rule, flips that flip, and bad input in words."""

import json
import math
import random
import shutil
from collections.abc import Iterable
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from course.survey import Survey, article_frameworks, mask, survey
from labkit.advice import selector
from labkit.advice.selector import catalogue, complete, configure, read_state, select
from labkit.advice.selector.catalogue import Entry
from labkit.advice.selector.choose import exclusions, first, points
from labkit.files import data_path
from labkit.records.ledger import load_claims
from tests.unit.refusals import not_refused

KNOWN = catalogue()
STACKS = list(KNOWN.stacks)
QUESTIONS = list(KNOWN.questions)
OPTIONS = {name: list(question.options) for name, question in KNOWN.questions.items()}
ANSWERS = st.fixed_dictionaries({name: st.sampled_from(options) for name, options in OPTIONS.items()})
OUT = 5000  # points: more than all rules together


@pytest.fixture(scope="module")
def surveyed() -> Survey:
    """The winners of all situations."""
    return survey()


def situation(index: tuple[int, ...]) -> dict[str, str]:
    """The answers at a place of the survey's arrays."""
    return {name: options[n] for (name, options), n in zip(OPTIONS.items(), index, strict=True)}


def anywhere(entries: Iterable[Entry]) -> Any:
    """Where at least one of the entries holds."""
    nowhere = np.zeros([len(options) for options in OPTIONS.values()], dtype=bool)
    return reduce(np.logical_or, (mask(KNOWN, entry.when) for entry in entries), nowhere)


def drawn(count: int, *, seed: int) -> list[tuple[int, ...]]:
    """So many places of the survey's arrays, at random."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(len(options)) for options in OPTIONS.values()) for _ in range(count)]


# --- every combination of answers


def test_every_combination_is_won_and_explained(surveyed: Survey) -> None:
    """In more than a million situations the winner is not excluded and a rule speaks for it.

    Each other stack has a reason, too: an exclusion, or a rule that gave or took points."""
    assert surveyed.winners.shape == tuple(map(len, OPTIONS.values()))
    assert surveyed.situations > 1_000_000
    for number, name in enumerate(STACKS):
        wins = surveyed.winners == number
        excluded = anywhere(entry for entry in KNOWN.exclusions if name in entry.stacks)
        praised = anywhere(rule for rule in KNOWN.rules if rule.points.get(name, 0) > 0)
        blamed = anywhere(rule for rule in KNOWN.rules if rule.points.get(name, 0) < 0)
        assert wins.any(), f"{name} never wins"
        assert not (wins & excluded).any(), f"{name} wins although it is excluded"
        assert praised[wins].all(), f"{name} wins without a reason"
        assert (excluded | praised | blamed).all(), f"nothing is said of {name}"


def test_the_survey_and_the_selector_agree(surveyed: Survey) -> None:
    """Over a thousand situations drawn at random the arrays name the selector's winner and its branch of the tree."""
    frameworks = article_frameworks(KNOWN)
    for index in drawn(1000, seed=7):
        answers = situation(index)
        branch = next(branch for branch in KNOWN.tree if branch.holds(answers))
        assert (STACKS[surveyed.winners[index]], frameworks[index]) == (first(KNOWN, answers), branch.framework)


def test_nothing_in_the_rules_is_dead(surveyed: Survey) -> None:
    """Without any one rule or exclusion the winner is another one somewhere; each warning is shown somewhere."""
    sums = np.zeros((len(STACKS), *surveyed.winners.shape), dtype=np.int16)
    weights = [(rule.id, rule.when, rule.points) for rule in KNOWN.rules]
    weights += [(entry.id, entry.when, dict.fromkeys(entry.stacks, -OUT)) for entry in KNOWN.exclusions]
    for _, when, values in weights:
        for name, value in values.items():
            sums[STACKS.index(name)] += mask(KNOWN, when) * np.int16(value)
    assert (sums.argmax(axis=0) == surveyed.winners).all()
    dead = []
    for entry, when, values in weights:
        without = sums.copy()
        for name, value in values.items():
            without[STACKS.index(name)] -= mask(KNOWN, when) * np.int16(value)
        dead += [entry] if (without.argmax(axis=0) == surveyed.winners).all() else []
    for warning in KNOWN.warnings:
        numbers = [STACKS.index(name) for name in warning.winner or STACKS]
        dead += [] if np.isin(surveyed.winners[mask(KNOWN, warning.when)], numbers).any() else [warning.id]
    assert not dead


def test_what_must_never_be_recommended(surveyed: Survey) -> None:
    """TorchServe, archived: only to those who run it, with the warning. A hosted API: never where data must stay."""
    kept = surveyed.winners == STACKS.index("torchserve")
    assert not (kept & ~mask(KNOWN, {"team": ("torchserve",)})).any()
    shown = select(situation(tuple(np.argwhere(kept)[0]))).warnings
    assert "archived" in {warning.id for warning in shown}
    assert not ((surveyed.winners == STACKS.index("hosted-api")) & mask(KNOWN, {"host": ("must",)})).any()


def test_the_surveys_shares_are_counted_right(surveyed: Survey) -> None:
    """Shares add up to one, agreement is a part of them, and a question's flips are those of its pairs of answers."""
    assert math.isclose(sum(surveyed.shares().values()), 1)
    parts = surveyed.against_article().values()
    assert math.isclose(sum(share for shares in parts for share in shares.values()), 1)
    assert 0 < surveyed.agreement() < 1
    no, yes = (surveyed.winners.take(n, axis=QUESTIONS.index("prefixes")) for n in (0, 1))
    assert math.isclose(surveyed.flip_shares()["prefixes"], (no != yes).mean())


# --- one selection


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_a_selection_ranks_explains_and_configures(answers: dict[str, str]) -> None:
    """Each stack has one place, in order, explained; the configuration explains what it sets; all is plain data."""
    selection = select(answers)
    assert sorted(ranked.name for ranked in selection.ranking) == sorted(STACKS)
    scores = [ranked.score for ranked in selection.ranking if ranked.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert selection.winner.pros
    for ranked in selection.ranking:
        assert (ranked.score is None) == bool(ranked.excluded)
        assert sum(reason.points for reason in ranked.reasons) == points(KNOWN, answers)[ranked.name]
        assert ranked.excluded or ranked.behind or ranked.score == selection.winner.score
    config = configure(selection.winner.name, selection.answers)
    assert all(file.text.strip() and file.settings for file in config)
    data = json.loads(json.dumps(selector.to_json(selection, config)))
    assert data["ranking"][0]["name"] == data["recommended"] == selection.winner.name
    assert selection.winner.title in selector.to_text(selection, config)


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_a_flip_really_flips_and_none_is_left_out(answers: dict[str, str]) -> None:
    """Changing the named answer alone gives the named winner; every other single change leaves the winner."""
    selection = select(answers)
    flips = {(flip.question, flip.answer): flip.winner for flip in selection.flips}
    for question, option in ((name, option) for name, options in OPTIONS.items() for option in options):
        winner = select({**answers, question: option}).winner.name
        assert winner == flips.get((question, option), selection.winner.name)


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_without_opinions_only_what_was_measured_or_read_counts(answers: dict[str, str]) -> None:
    """The second opinion is the winner by the reasons that are no opinions, summed up here once more."""
    selection, excluded = select(answers), exclusions(KNOWN, answers)
    sums = {
        ranked.name: sum(reason.points for reason in ranked.reasons if reason.evidence != "opinion")
        for ranked in selection.ranking
        if not excluded[ranked.name]
    }
    best = max(sums.values())
    assert selection.without_opinions == next(name for name in STACKS if sums.get(name) == best)


def test_plain_cases_are_as_a_practitioner_would_say() -> None:
    """Cases whose answer is beyond dispute, so that a changed weight cannot turn the selector upside down."""
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "vllm"),
        ({"prefixes": "yes"}, "vllm"),
        ({"rate": "high", "hardware": "several"}, "vllm-replicas"),
        ({"pattern": "pipeline", "kind": "both", "complexity": "features"}, "vllm-ray-serve"),
        ({"kind": "other"}, "own-ray-serve"),
        ({"rate": "low", "host": "may"}, "hosted-api"),
        ({"team": "torchserve", "kind": "other", "releases": "versions"}, "torchserve"),
        ({"team": "torchserve"}, "vllm"),
    ]
    assert [select(answers).winner.name for answers, _ in cases] == [winner for _, winner in cases]


def test_the_article_beside_ours() -> None:
    """A difference is said for each of the article's patterns that ours answers otherwise."""
    rows = selector.compare_patterns()
    assert {row.pattern.id for row in rows if not row.same} == {"enterprise", "lifecycle"}
    assert all("archived" in row.pattern.difference for row in rows if not row.same)


# --- the data


def test_reasons_rest_on_what_they_say() -> None:
    """Each named claim exists; what is measured is measured by a lab of its claim; what is cited has a figure."""
    claims, offenders = load_claims(), []
    for entry in (*KNOWN.rules, *KNOWN.exclusions):
        claim = claims[entry.claim] if entry.claim else None
        if claim and entry.evidence == "measured":
            settled = claim.settled_by in {"measurement", "arithmetic"} and entry.lab in claim.labs
        else:
            settled = entry.evidence != "cited" or any(map(str.isdigit, entry.source)) or "nginx" in entry.source
        offenders += [] if settled else [entry.id]
    assert not offenders
    used = {warning.claim for warning in KNOWN.warnings} | {name for row in KNOWN.patterns for name in row.claims}
    assert used - {None} <= claims.keys()


def test_labels_fit_the_form() -> None:
    """No label or option is longer than the form has room for."""
    labels = [question.label for question in KNOWN.questions.values()]
    options = [label for question in KNOWN.questions.values() for label in question.options.values()]
    assert not [label for label in labels if len(label) > 18]
    assert not [label for label in options if len(label) > 21]


def test_a_broken_entry_is_named(tmp_path: Path) -> None:
    """Names that do not exist, evidence without its ground and misspelt keys are refused with their place."""
    folder = tmp_path / "selector"
    shutil.copytree(data_path("selector"), folder)
    rules = folder / "rules.yaml"
    text = rules.read_text()

    def edited(change: tuple[str, str]) -> None:
        assert change[0] in text
        rules.write_text(text.replace(*change))
        catalogue(folder)

    bad = [
        (("when: {kind: [llm, both]}", "when: {knd: [x]}"), "question 'knd'"),
        (("when: {kind: [llm, both]}", "when: {kind: [x]}"), "option of kind 'x'"),
        (("points: {vllm: 2", "points: {vlm: 2"), "stack 'vlm'"),
        (("lab: 01_first_deployment", ""), "names its lab"),
        (("checked: 2026-11-24", ""), "source and day"),
        (("- id: data-stays", "- id: torchserve-archived"), "stands there twice"),
        (("points:", "pionts:"), "rules.yaml is not valid: rules[0].points: Field required"),
    ]
    assert not_refused(edited, bad) == []


# --- answers in and out


@given(ANSWERS, st.sampled_from([None, "Qwen/Qwen2.5-7B-Instruct", "~/models/mine"]))
def test_a_state_comes_back_as_it_went(answers: dict[str, str], model: str | None) -> None:
    """What is exported is one line, and read again it is the same answers and model."""
    text = selector.write_state(answers, model)
    assert "\n" not in text
    assert read_state(text) == (answers, model)


def test_a_bad_state_is_told_what_is_wrong() -> None:
    """JSON that is none, unknown questions and options, odd model names, and settings that set nothing or twice."""
    states = [
        ("[1]", "no object"),
        ("{", "no JSON"),
        ("[" * 9000, "no JSON"),
        ("x" * 20_000, "20,000 characters"),
        ('{"knd": "llm"}', "did you mean kind"),
        ('{"kind": "lmm"}', "did you mean llm"),
        ('{"kind": ["llm"]}', "must be one of"),
        ('{"kind": null}', "must be one of"),
        ('{"model": "a b; rm -rf /"}', "no model's name"),
        ('{"model": "../../etc"}', "no model's name"),
        ('{"model": 3}', "no model's name"),
    ]
    assert not_refused(read_state, states) == []
    set_nothing = [(["kind"], "sets nothing"), (["=x"], "sets nothing"), (["a=1", "a=2"], "twice")]
    assert not_refused(selector.from_settings, set_nothing) == []


def test_labels_and_truth_values_are_understood() -> None:
    """An option's label works like its value; YAML's yes and no are the options of that name; nothing is defaults."""
    assert complete({"hardware": "several machines"})["hardware"] == "cluster"
    assert complete({"prefixes": True})["prefixes"] == "yes"
    assert read_state("")[0] == KNOWN.defaults


# --- configurations


def test_the_model_is_in_the_configuration() -> None:
    """The model that was asked for is started, whatever YAML would read in its name; the default suits the hardware."""
    for model in ("org/mine", "1.5", "true", "x:", "~"):
        (config,) = configure("vllm-ray-serve", complete(), model=model)
        (entry,) = yaml.safe_load(config.text)["applications"][0]["args"]["llm_configs"]
        assert entry["model_loading_config"]["model_source"] == model
        assert f"vllm serve {model} " in configure("vllm", complete(), model=model)[0].text
    assert "Qwen2.5-7B" in configure("vllm-ray-serve", complete())[0].text
    assert "SmolLM2-135M" in configure("vllm", complete({"hardware": "cpu"}))[0].text


def test_no_configuration_listens_to_strangers_and_all_settings_are_explained() -> None:
    """For every stack, hardware, kind and number of models, the other answers at random.

    Servers bind to loopback, a vLLM server asks for a key, and what is explained is set in the file."""
    asked = ("hardware", "gpu", "models", "kind", "pattern")
    combinations = list(product(*(OPTIONS[name] for name in asked)))
    for values, index in zip(combinations, drawn(len(combinations), seed=5), strict=True):
        answers = {**situation(index), **dict(zip(asked, values, strict=True))}
        for file in (file for stack in STACKS for file in configure(stack, answers)):
            assert "0.0.0.0" not in file.text
            for command in file.text.split("vllm serve")[1:]:
                assert "--host 127.0.0.1" in command
                assert '--api-key "$VLLM_API_KEY"' in command
            for setting in file.settings:
                name = setting.name.split(".")[-1]
                assert name in file.text or name.replace("-", "_") in file.text, (file.name, setting.name)
                assert setting.why
