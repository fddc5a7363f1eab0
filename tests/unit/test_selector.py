"""The selector: every combination of answers, no dead rule, flips that flip, and bad input in words."""

import json
import math
import random
import shutil
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.advice.selector import (
    ConfigFile,
    catalogue,
    compare_patterns,
    complete,
    configure,
    from_settings,
    read_state,
    select,
    survey,
    to_json,
    to_text,
    write_state,
)
from labkit.advice.selector.choose import article_frameworks, exclusions, first, mask, points
from labkit.errors import UsageError
from labkit.records.ledger import load_claims

KNOWN = catalogue()
ALL = survey()
OUT = 5000  # points: more than all rules together
SHAPE = tuple(len(one.options) for one in KNOWN.questions.values())
STACKS = list(KNOWN.stacks)
ANSWERS = st.fixed_dictionaries({name: st.sampled_from(list(one.options)) for name, one in KNOWN.questions.items()})


def situation(index: tuple[int, ...]) -> dict[str, str]:
    """The answers at a place of the survey's arrays."""
    return {name: list(one.options)[n] for (name, one), n in zip(KNOWN.questions.items(), index, strict=True)}


def anywhere(when: Any) -> dict[str, str]:
    """Answers for which a condition holds."""
    return {**KNOWN.defaults, **{name: options[0] for name, options in when.items()}}


# --- every combination of answers


def test_every_combination_has_a_winner_that_is_not_excluded() -> None:
    """In each of the situations, more than a million, the first stack is not excluded."""
    assert ALL.winners.shape == SHAPE
    assert ALL.situations == math.prod(SHAPE) > 1_000_000
    for number, name in enumerate(STACKS):
        out = np.zeros(SHAPE, dtype=bool)
        for one in KNOWN.exclusions:
            if name in one.stacks:
                out |= mask(KNOWN, one.when)
        assert not (out & (ALL.winners == number)).any(), name


def test_every_combination_is_explained() -> None:
    """Everywhere each stack has a reason: why it is excluded, or at least one rule that gave or took points.

    And the winner has at least one that speaks for it."""
    for number, name in enumerate(STACKS):
        said, praised = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
        for rule in KNOWN.rules:
            if name in rule.points:
                said |= mask(KNOWN, rule.when)
                praised |= mask(KNOWN, rule.when) & (rule.points[name] > 0)
        for one in KNOWN.exclusions:
            if name in one.stacks:
                said |= mask(KNOWN, one.when)
        assert said.all(), name
        assert praised[ALL.winners == number].all(), name


def test_the_survey_and_the_selector_agree() -> None:
    """Over a thousand situations drawn at random, the arrays and the plain sum of points name the same winner."""
    rng = random.Random(7)
    for _ in range(1000):
        index = tuple(rng.randrange(size) for size in SHAPE)
        assert STACKS[ALL.winners[index]] == first(KNOWN, situation(index)), situation(index)


def test_every_stack_wins_somewhere() -> None:
    """No stack stands there for nothing."""
    assert all(share > 0 for share in ALL.shares().values())
    assert math.isclose(sum(ALL.shares().values()), 1)


@pytest.fixture(scope="module")
def sums() -> Any:
    """Each stack's points in every situation, summed up here once more; far below all others where it is excluded."""
    found = np.zeros((len(STACKS), *SHAPE), dtype=np.int16)
    for rule in KNOWN.rules:
        for name, value in rule.points.items():
            found[STACKS.index(name)] += np.where(mask(KNOWN, rule.when), value, 0).astype(np.int16)
    for one in KNOWN.exclusions:
        for name in one.stacks:
            found[STACKS.index(name)] -= np.where(mask(KNOWN, one.when), OUT, 0).astype(np.int16)
    return found


def test_the_survey_adds_up_the_rules(sums: Any) -> None:
    """The survey's winners are the first of the highest sums."""
    assert (sums.argmax(axis=0) == ALL.winners).all()


@pytest.mark.parametrize("rule", KNOWN.rules, ids=lambda one: one.id)
def test_no_rule_is_dead(rule: Any, sums: Any) -> None:
    """Without any one rule the winner is another one somewhere."""
    without = sums.copy()
    for name, value in rule.points.items():
        without[STACKS.index(name)] -= np.where(mask(KNOWN, rule.when), value, 0).astype(np.int16)
    assert (without.argmax(axis=0) != ALL.winners).any()


@pytest.mark.parametrize("exclusion", KNOWN.exclusions, ids=lambda one: one.id)
def test_no_exclusion_is_dead(exclusion: Any, sums: Any) -> None:
    """Without any one exclusion a stack that it names wins somewhere."""
    without = sums.copy()
    for name in exclusion.stacks:
        without[STACKS.index(name)] += np.where(mask(KNOWN, exclusion.when), OUT, 0).astype(np.int16)
    assert (without.argmax(axis=0) != ALL.winners).any()


@pytest.mark.parametrize("warning", KNOWN.warnings, ids=lambda one: one.id)
def test_every_warning_is_shown_somewhere(warning: Any) -> None:
    """Its condition holds somewhere, beside a winner for which it is meant."""
    here = np.broadcast_to(mask(KNOWN, warning.when), SHAPE)
    numbers = {STACKS.index(name) for name in warning.winner} or set(range(len(STACKS)))
    assert np.isin(ALL.winners[here], list(numbers)).any()


def test_torchserve_is_never_recommended_anew() -> None:
    """Archived: only who runs it already is ever told to keep it, and then with the warning."""
    place = list(KNOWN.questions).index("team")
    kept = np.argwhere(ALL.winners == STACKS.index("torchserve"))
    teams = list(KNOWN.questions["team"].options)
    assert {teams[index[place]] for index in kept} == {"torchserve"}
    found = select(situation(tuple(kept[0])))
    assert "archived" in {one.id for one in found.warnings}


def test_what_must_stay_never_leaves() -> None:
    """A hosted API is never named where requests must stay."""
    place = list(KNOWN.questions).index("host")
    here = ALL.winners.take(list(KNOWN.questions["host"].options).index("must"), axis=place)
    assert not (here == STACKS.index("hosted-api")).any()


# --- one selection


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_a_selection_ranks_explains_and_configures(answers: dict[str, str]) -> None:
    """Each stack stands there once, in order, explained; the configuration explains what it sets; all is plain data."""
    found = select(answers)
    assert sorted(one.name for one in found.ranking) == sorted(STACKS)
    scores = [one.score for one in found.ranking if one.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert found.winner.score is not None
    assert found.winner.pros
    for one in found.ranking:
        assert (one.score is None) == bool(one.excluded)
        assert sum(reason.points for reason in one.reasons) == points(KNOWN, answers)[one.name]
        assert one is found.winner or one.excluded or one.behind or one.score == found.winner.score
    config = configure(found.winner.name, found.answers)
    assert config
    assert all(file.text.strip() and file.settings and all(each.why for each in file.settings) for file in config)
    data = json.loads(json.dumps(to_json(found, config)))
    assert data["ranking"][0]["name"] == data["recommended"] == found.winner.name
    assert found.winner.title in to_text(found, config)


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_a_flip_really_flips_and_none_is_left_out(answers: dict[str, str]) -> None:
    """Changing the named answer alone gives the named winner; every other single change leaves the winner."""
    found = select(answers)
    named = {(one.question, one.answer): one.winner for one in found.flips}
    for question, one in KNOWN.questions.items():
        for option in set(one.options) - {answers[question]}:
            winner = select({**answers, question: option}).winner.name
            assert winner == named.get((question, option), found.winner.name)


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_without_opinions_only_what_was_measured_or_read_counts(answers: dict[str, str]) -> None:
    """The second opinion is the winner by the reasons that are no opinions, summed up here once more."""
    out = exclusions(KNOWN, answers)
    sums = {
        name: sum(one.points for one in ranked.reasons if one.evidence != "opinion")
        for name, ranked in {one.name: one for one in select(answers).ranking}.items()
        if name not in out
    }
    best = max(sums.values())
    assert select(answers).without_opinions == next(name for name in STACKS if sums.get(name) == best)


def test_the_same_answers_give_the_same_result() -> None:
    """Two selections are equal, texts and order included."""
    config = configure("vllm", complete())
    assert to_json(select(), config) == to_json(select({}), config)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ({}, "vllm"),
        ({"prefixes": "yes"}, "vllm"),
        ({"rate": "high", "hardware": "several"}, "vllm-replicas"),
        ({"pattern": "pipeline", "kind": "both", "complexity": "features"}, "vllm-ray-serve"),
        ({"kind": "other"}, "own-ray-serve"),
        ({"rate": "low", "host": "may"}, "hosted-api"),
        ({"team": "torchserve", "kind": "other", "releases": "versions"}, "torchserve"),
        ({"team": "torchserve"}, "vllm"),
    ],
)
def test_plain_cases_are_as_a_practitioner_would_say(answers: dict[str, str], winner: str) -> None:
    """Cases whose answer is beyond dispute, so that a changed weight cannot turn the selector upside down."""
    assert select(answers).winner.name == winner


# --- the article beside ours


def test_the_articles_questions_and_patterns_are_all_there() -> None:
    """Five questions are the article's, with its own selection as default; it has six patterns and four branches."""
    article = {name: one for name, one in KNOWN.questions.items() if one.asked_by == "article"}
    assert list(article) == ["pattern", "gpu", "framework", "priority", "complexity"]
    assert [one.default for one in article.values()] == ["single", "dedicated", "pytorch", "throughput", "simple"]
    assert len(KNOWN.patterns) == 6
    assert [one.framework for one in KNOWN.tree] == ["Ray Serve", "vLLM", "TorchServe", "vLLM"]


def test_each_pattern_says_how_ours_differs() -> None:
    """All six are compared; where the article's framework is no layer of ours, the text says why."""
    rows = compare_patterns()
    assert {row.pattern.id for row in rows if not row.same} == {"enterprise", "lifecycle"}
    assert all(row.pattern.difference for row in rows)
    assert all("archived" in row.pattern.difference for row in rows if not row.same)


def test_the_tree_is_walked_alike_by_the_survey() -> None:
    """For a thousand situations the arrays and the walk give the same framework."""
    found, rng = np.broadcast_to(article_frameworks(KNOWN), SHAPE), random.Random(3)
    for _ in range(1000):
        index = tuple(rng.randrange(size) for size in SHAPE)
        assert found[index] == select(situation(index)).article.framework


def test_agreement_is_a_share_of_all_situations() -> None:
    """The parts by the article's answer add up to the whole, and agreement is one part of it."""
    parts = ALL.against_article()
    assert math.isclose(sum(share for shares in parts.values() for share in shares.values()), 1)
    assert 0 < ALL.agreement() < 1


def test_a_questions_flip_share_is_counted_right() -> None:
    """Counted in plain Python over a small catalogue's grid it is the same."""
    place = list(KNOWN.questions).index("prefixes")
    pairs = ALL.winners.take(0, axis=place) != ALL.winners.take(1, axis=place)
    assert math.isclose(ALL.flip_shares()["prefixes"], pairs.mean())
    assert set(ALL.flip_shares()) == set(KNOWN.questions)


# --- the data


@pytest.mark.parametrize("one", [*KNOWN.rules, *KNOWN.exclusions], ids=lambda one: one.id)
def test_a_reason_rests_on_what_it_says(one: Any) -> None:
    """Measured: a lab that the claim names, too. Cited: a source with a figure and a day. One sentence or two."""
    claims = load_claims()
    if one.evidence == "measured" and one.claim:
        assert one.lab in claims[one.claim].labs
        assert claims[one.claim].settled_by in {"measurement", "arithmetic"}
    if one.evidence == "cited":
        assert any(character.isdigit() for character in one.source) or "nginx" in one.source
        assert one.checked.isoformat() == "2026-11-24"
    assert one.reason.endswith(".")
    assert all(one.when) or not one.when


def test_labels_fit_the_form() -> None:
    """No label or option is longer than the form has room for, and each question has a tooltip."""
    for one in KNOWN.questions.values():
        assert len(one.label) <= 18
        assert all(len(label) <= 21 for label in one.options.values())
        assert one.help.endswith(".")
        assert one.question.endswith("?")


def test_the_landscape_is_dated() -> None:
    """Engines and orchestrators that the article leaves out, one line each, with the day on which it was true."""
    names = " ".join(one.name for one in KNOWN.landscape)
    assert all(name in names for name in ("SGLang", "Dynamo", "KServe", "llm-d", "TGI"))
    assert all(len(one.line) < 120 and one.checked.year == 2026 for one in KNOWN.landscape)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("rules.yaml", lambda t: t["rules"][0]["when"].update(knd=["x"]), "question 'knd'"),
        ("rules.yaml", lambda t: t["rules"][0]["when"].update(kind=["x"]), "option of kind 'x'"),
        ("rules.yaml", lambda t: t["rules"][0]["points"].update(vlm=1), "stack 'vlm'"),
        ("rules.yaml", lambda t: t["rules"][0].update(claim="C99"), "claim 'C99'"),
        ("rules.yaml", lambda t: t["rules"][0].pop("lab"), "names its lab"),
        ("rules.yaml", lambda t: t["exclusions"][0].pop("source"), "source and day"),
        ("rules.yaml", lambda t: t["rules"][1].update(id=t["rules"][0]["id"]), "twice"),
        ("rules.yaml", lambda t: t["rules"][0].update(evidence="rumour"), "evidence"),
        ("rules.yaml", lambda t: t["rules"][0].update(wehn={}), "Extra inputs"),
        ("questions.yaml", lambda t: t["kind"].update(default="x"), "is no option"),
        ("article.yaml", lambda t: t["patterns"][0]["answers"].update(rate="x"), "option of rate"),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, file: str, change: Change, message: str) -> None:
    """Names that do not exist, evidence without its ground and misspelt keys are refused with their place."""
    from labkit.files import data_path

    folder = tmp_path / "selector"
    shutil.copytree(data_path("selector"), folder)
    tree = yaml.safe_load((folder / file).read_text())
    change(tree)
    (folder / file).write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(UsageError, match=message):
        catalogue(folder)


# --- answers in and out


@given(ANSWERS, st.sampled_from([None, "Qwen/Qwen2.5-7B-Instruct", "~/models/mine"]))
def test_a_state_comes_back_as_it_went(answers: dict[str, str], model: str | None) -> None:
    """What is exported is one line, and read again it is the same answers and model."""
    text = write_state(answers, model)
    assert "\n" not in text
    assert read_state(text) == (answers, model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
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
    ],
)
def test_a_bad_state_is_told_what_is_wrong(text: str, message: str) -> None:
    """JSON that is none, unknown questions and options, and odd model names: a UsageError with the way out."""
    with pytest.raises(UsageError, match=message):
        read_state(text)


def test_labels_and_truth_values_are_understood() -> None:
    """An option's label works like its value; YAML's yes and no are the options of that name."""
    assert complete({"hardware": "several machines"})["hardware"] == "cluster"
    assert complete({"prefixes": True})["prefixes"] == "yes"
    assert read_state("")[0] == KNOWN.defaults


@pytest.mark.parametrize(
    ("given", "message"), [(["kind"], "sets nothing"), (["=x"], "sets nothing"), (["kind=llm", "kind=both"], "twice")]
)
def test_settings_that_set_nothing_are_refused(given: list[str], message: str) -> None:
    """KEY=VALUE, each once."""
    with pytest.raises(UsageError, match=message):
        from_settings(given)


# --- configurations


@cache
def many_configs() -> list[tuple[ConfigFile, ...]]:
    """Configurations of every stack, for every hardware, kind and number of models, the other answers at random."""
    rng, asked = random.Random(5), ("hardware", "gpu", "models", "kind", "pattern")
    found = []
    for values in product(*(KNOWN.questions[name].options for name in asked)):
        drawn = situation(tuple(rng.randrange(size) for size in SHAPE))
        answers = {**drawn, **dict(zip(asked, values, strict=True))}
        found += [configure(stack, answers) for stack in STACKS]
    return found


def test_the_model_stands_in_the_configuration() -> None:
    """The model that was asked for is the one that is started; without one it suits the hardware."""
    assert "org/mine" in configure("vllm", complete(), model="org/mine")[0].text
    assert "Qwen2.5-7B" in configure("vllm-ray-serve", complete())[0].text
    assert "SmolLM2-135M" in configure("vllm", complete({"hardware": "cpu"}))[0].text


def test_no_configuration_listens_to_strangers() -> None:
    """Whatever is answered, servers bind to loopback, and a vLLM server asks for a key."""
    for files in many_configs():
        for file in files:
            assert "0.0.0.0" not in file.text
            for command in file.text.split("vllm serve")[1:]:
                assert "--host 127.0.0.1" in command
                assert '--api-key "$VLLM_API_KEY"' in command


def test_every_setting_explained_is_in_its_file() -> None:
    """What is explained is set: the last part of its name stands in the text."""
    for files in many_configs():
        for file in files:
            for one in file.settings:
                name = one.name.split(".")[-1]
                assert name in file.text or name.replace("-", "_") in file.text, (file.name, one.name)
