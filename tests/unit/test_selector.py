"""The selector: public questions, random answers, no dead rule, correct flips, and refusals of bad input."""

import json
import random
import re
import shutil
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.advice import selector
from labkit.advice.selector import catalogue, complete, configure, read_state, select
from labkit.advice.selector.catalogue import Entry, Exclusion, Rule
from labkit.advice.selector.choose import exclusions, first, points
from labkit.advice.selector.configs import GPU_MODELS, LONG_MODELS
from labkit.advice.selector.fit import FITS, LARGEST_CARD_GB, SMALLEST_MODEL_B, cards_needed, fit, number
from labkit.files import data_path, read_yaml
from labkit.records.ledger import load_claims
from tests.unit.refusals import not_refused

KNOWN = catalogue()
STACKS = list(KNOWN.stacks)
OPTIONS = {name: list(question.options) for name, question in KNOWN.questions.items()}
ANSWERS = st.fixed_dictionaries({name: st.sampled_from(options) for name, options in OPTIONS.items()})
CASES = read_yaml(Path(__file__).parents[1] / "data" / "cases" / "select" / "cases.yaml", dict[str, dict[str, Any]])

BASES = [complete(case["answers"]) for case in CASES.values()]


def drawn(rng: random.Random, when: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, str]:
    """Draw answers for which the conditions hold, some of them those of a public question."""
    while True:
        base, kept = rng.choice(BASES), rng.random()
        wide = {name: [base[name]] if rng.random() < kept else options for name, options in OPTIONS.items()}
        if "fit" in (when or {}):
            wide |= {name: OPTIONS[name] for name in ("size", "card", "hardware")}
        answers = {name: rng.choice((when or {}).get(name) or options) for name, options in wide.items()}
        if fit(answers) in (when or {}).get("fit", FITS):
            return answers


# --- public questions


def test_public_questions_get_a_knowledgeable_answer() -> None:
    """The first place is one that an engineer would choose, and the expected projects are ranked or suggested."""
    offenders = []
    for name, case in CASES.items():
        selection = select(case["answers"])
        text = selector.to_text(selection, configure(selection.winner.name, selection.answers))
        data = selector.to_json(selection, ())
        suggested = [project["name"] for project in data["landscape"] if project["why"]]
        ranked = [f"{place['title']} {place['orchestrator']}" for place in data["ranking"] if not place["excluded"]]
        shown = " ".join((*suggested, *ranked, *(warning["text"] for warning in data["warnings"])))
        missing = [project for project in case["named"] if project not in text or project not in shown]
        if missing or selection.winner.name not in case["first"]:
            offenders.append((name, selection.winner.name, missing))
    assert offenders == []


# --- drawn answers


def test_every_stack_wins_somewhere_and_with_a_reason() -> None:
    """In 3,000 random situations the winner is not excluded and has a reason; each stack wins somewhere."""
    rng, winners = random.Random(3), set()
    for _ in range(3000):
        answers = drawn(rng)
        winner = first(KNOWN, answers)
        winners.add(winner)
        holding = [rule for rule in KNOWN.rules if rule.holds(answers)]
        assert not exclusions(KNOWN, answers)[winner]
        assert any(rule.points.get(winner, 0) > 0 for rule in holding), answers
        if winner == "torchserve":
            assert answers["team"] == "torchserve"
            assert "archived" in {warning.id for warning in select(answers).warnings}
        if winner in ("hosted-api", "managed-endpoint"):
            assert answers["host"] != "must"
    assert winners == set(STACKS)


def test_nothing_in_the_rules_is_dead() -> None:
    """Each rule and exclusion decides some situation; each warning and neighbour is shown in some situation."""
    rng = random.Random(5)

    def decides(entry: Rule | Exclusion) -> bool:
        without = KNOWN.model_copy(
            update={
                "rules": tuple(rule for rule in KNOWN.rules if rule is not entry),
                "exclusions": tuple(exclusion for exclusion in KNOWN.exclusions if exclusion is not entry),
            }
        )
        tried = (drawn(rng, entry.when) for _ in range(3000))
        return any(first(KNOWN, answers) != first(without, answers) for answers in tried)

    def shown(entry: Entry, winner: tuple[str, ...]) -> bool:
        return any(first(KNOWN, drawn(rng, entry.when)) in (winner or STACKS) for _ in range(1000))

    entries: list[Rule | Exclusion] = [*KNOWN.rules, *KNOWN.exclusions]
    dead = [entry.id for entry in entries if not decides(entry)]
    dead += [warning.id for warning in KNOWN.warnings if not shown(warning, warning.winner)]
    dead += [
        f"{project.name}: {entry.why}"
        for project in KNOWN.landscape
        for entry in project.here
        if all(project.why(drawn(rng, entry.when)) != entry.why for _ in range(1000))
    ]
    assert dead == []


def test_a_model_gets_the_cards_that_hold_it() -> None:
    """Calculated by hand: 2 bytes per parameter and a tenth more, in 92% of each card, a power of two."""
    table = [
        ("9b", "24gb", 1),  # 19.8 GB in 22.1
        ("15b", "24gb", 2),  # 33 in 44.2
        ("34b", "80gb", 2),  # 74.8 in 147.2
        ("80b", "80gb", 4),  # 176 in 294.4
        ("250b", "80gb", 8),  # 550 in 588.8
        ("700b", "141gb", 16),  # 1,540 in 2,075.5
        ("700b", "180gb", 16),  # 1,540 in 2,649.6; eight hold 1,324.8
        ("9b", "8gb", 4),  # 19.8 in 29.4
    ]
    for size, card, cards in table:
        answers = complete({"size": size, "card": card, "hardware": "several"})
        assert cards_needed(answers) == cards, (size, card)
        assert fit(answers) == ("one" if cards == 1 else "cards" if cards <= 8 else "machines")
    one_card = [("9b", "24gb"), ("15b", "24gb"), ("34b", "24gb"), ("34b", "80gb"), ("80b", "80gb"), ("250b", "141gb")]
    # 13B on 32 GB: 28.6 in 29.4; 16B on 32: 35.2; 32B on 80: 70.4 in 73.6; 35B on 128: 77 in 117.8; 81B on 141: 178.2
    fits = [fit(complete({"size": size, "card": card})) for size, card in one_card]
    assert fits == ["one", "some", "none", "some", "some", "none"]
    assert fit(complete({"size": "700b", "hardware": "cpu"})) == "one"
    assert list(GPU_MODELS) == OPTIONS["size"]
    assert [number(option) for option in OPTIONS["context"]] == [8, 32, 128]


def test_bounds_of_the_options_are_those_of_their_labels() -> None:
    """A label's first figure is its smallest model, and its last one its largest card."""
    sizes, cards = (
        {option: [int(figure) for figure in re.findall(r"\d+", label)] for option, label in question.options.items()}
        for question in (KNOWN.questions["size"], KNOWN.questions["card"])
    )
    assert {option: figures[0] for option, figures in sizes.items()} | {"4b": 1} == SMALLEST_MODEL_B
    assert {option: figures[-1] for option, figures in cards.items()} | {"180gb": 288} == LARGEST_CARD_GB


@settings(max_examples=50, deadline=None)
@given(ANSWERS)
def test_vllm_is_not_ranked_for_a_model_that_no_single_card_holds(answers: dict[str, str]) -> None:
    """On one card vLLM's stacks are excluded, with the memory in numbers, exactly if no model of the size fits; the
    suitable model of a configuration for one card fits it."""
    answers |= {"hardware": "one"}
    if answers["kind"] == "other":
        answers["kind"] = "llm"
    selection = select(answers)
    for ranked in selection.ranking:
        texts = [reason.text for reason in ranked.excluded if reason.rule == "none-fits-the-card"]
        assert bool(texts) == (fit(answers) == "none" and ranked.stack.engine == "vLLM")
        assert all(f"{2 * SMALLEST_MODEL_B[answers['size']]} to " in text for text in texts)
    if fit(answers) == "none":
        assert selection.winner.stack.engine != "vLLM"
        assert {"size", "hardware"} & {flip.question for flip in selection.flips} or answers["kind"] != "llm"
    command = configure("vllm", {**answers, "kind": "llm"})[0].text
    served = [size for size, name in (*GPU_MODELS.items(), *LONG_MODELS.items()) if f"serve {name} " in command]
    assert all(cards_needed({**answers, "size": size}) == 1 for size in served)


# --- one selection


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_a_selection_ranks_explains_and_configures(answers: dict[str, str]) -> None:
    """Each stack has one place, in order and with reasons; the configuration is explained; the result is plain data."""
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
def test_the_flips_are_correct_and_complete(answers: dict[str, str]) -> None:
    """Each flip's answer gives its winner; every other single change keeps the winner."""
    selection = select(answers)
    flips = {(flip.question, flip.answer): flip.winner for flip in selection.flips}
    for question, option in ((name, option) for name, options in OPTIONS.items() for option in options):
        winner = select({**answers, question: option}).winner.name
        assert winner == flips.get((question, option), selection.winner.name)


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_without_opinions_only_evidence_counts(answers: dict[str, str]) -> None:
    """`without_opinions` is the winner by the points of the other reasons."""
    selection, excluded = select(answers), exclusions(KNOWN, answers)
    sums = {
        ranked.name: sum(reason.points for reason in ranked.reasons if reason.evidence != "opinion")
        for ranked in selection.ranking
        if not excluded[ranked.name]
    }
    best = max(sums.values())
    assert selection.without_opinions == next(name for name in STACKS if sums.get(name) == best)


def test_the_article_beside_ours() -> None:
    """Our first choice differs in two of the article's patterns, with the reason."""
    rows = selector.compare_patterns()
    assert {row.pattern.id for row in rows if not row.same} == {"enterprise", "lifecycle"}
    assert all("archived" in row.pattern.difference for row in rows if not row.same)


# --- the data


def test_reasons_have_their_evidence() -> None:
    """Each named claim exists; measured reasons name a lab of their claim; cited sources have a figure."""
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


def test_a_broken_entry_is_named(tmp_path: Path) -> None:
    """Unknown names, evidence without a source and misspelt keys are refused with their place."""
    folder = tmp_path / "selector"
    shutil.copytree(data_path("selector"), folder)
    rules = folder / "rules.yaml"
    text = rules.read_text()

    def edited(change: tuple[str, str]) -> None:
        assert change[0] in text
        rules.write_text(text.replace(*change))
        catalogue(folder)

    bad = [
        (("when: {kind: [llm, rag, both]}", "when: {knd: [x]}"), "question 'knd'"),
        (("when: {kind: [llm, rag, both]}", "when: {kind: [x]}"), "option of kind 'x'"),
        (("fit: [cards]", "fit: [crads]"), "option of fit 'crads'"),
        (("points: {vllm: 2", "points: {vlm: 2"), "stack 'vlm'"),
        (("lab: 01_first_deployment", ""), "names its lab"),
        (("checked: 2026-11-24", ""), "source and day"),
        (("- id: no-api", "- id: torchserve-archived"), "torchserve-archived twice"),
        (("points:", "pionts:"), "rules.yaml is not valid: rules[0].points: Field required"),
    ]
    assert not_refused(edited, bad) == []


# --- answers in and out


@given(ANSWERS, st.sampled_from([None, "Qwen/Qwen2.5-7B-Instruct", "~/models/mine"]))
def test_a_state_comes_back_as_it_went(answers: dict[str, str], model: str | None) -> None:
    """The export is one line, and reading it returns the same answers and model."""
    text = selector.write_state(answers, model)
    assert "\n" not in text
    assert read_state(text) == (answers, model)


def test_a_bad_state_is_refused() -> None:
    """Invalid JSON, unknown questions and options, and invalid model names are refused."""
    states = [
        ("[1]", "a list, not an object"),
        ("{", "not JSON"),
        ("[" * 9000, "not JSON"),
        ("x" * 20_000, "20,000 characters"),
        ('{"knd": "llm"}', "did you mean kind"),
        ('{"kind": "lmm"}', "did you mean llm"),
        ('{"kind": ["llm"]}', "must be one of"),
        ('{"kind": null}', "must be one of"),
        ('{"model": "a b; rm -rf /"}', "not a model name"),
        ('{"model": "../../etc"}', "not a model name"),
        ('{"model": 3}', "not a model name"),
    ]
    assert not_refused(read_state, states) == []


def test_labels_booleans_and_numbers_are_read() -> None:
    """Labels and YAML's booleans are options; models and requests round up to the next option, cards down."""
    assert read_state("")[0] == KNOWN.defaults
    table = {
        ("hardware", "several machines"): "cluster", ("prefixes", True): "yes", ("size", "70b"): "80b",
        ("size", "0.6B"): "4b", ("size", 8): "9b", ("context", "16k"): "32k", ("context", "131072"): "128k",
        ("card", "48GB"): "40gb", ("card", "96 gb"): "80gb", ("card", 192): "180gb", ("card", "141GiB"): "141gb",
    }  # fmt: skip
    assert {(name, value): complete({name: value})[name] for name, value in table} == table
    refused = [
        {"size": "1000b"},
        {"card": "4gb"},
        {"rate": "5"},
        {"size": "16gb"},
        {"context": "100"},
        {"context": "1024k"},
        {"card": "24b"},
    ]
    assert not_refused(complete, [(answers, "must be one of") for answers in refused]) == []


# --- configurations


def test_the_model_is_in_the_configuration() -> None:
    """The given model is served even if YAML would read its name as another type; the default suits the hardware."""
    for model in ("org/mine", "1.5", "true", "x:", "~"):
        (config,) = configure("vllm-ray-serve", complete(), model=model)
        (entry,) = yaml.safe_load(config.text)["applications"][0]["args"]["llm_configs"]
        assert entry["model_loading_config"]["model_source"] == model
        assert f"vllm serve {model} " in configure("vllm", complete(), model=model)[0].text
    assert "Qwen3-8B" in configure("vllm-ray-serve", complete())[0].text


def test_a_configuration_asks_for_what_the_answers_have() -> None:
    """No replica waits for a GPU that is not there, no model is asked for more tokens than it takes, and none is named
    for a kind that has no standard model; a hosted model has its size whatever hardware is here."""

    def text(stack: str, **answers: str) -> str:
        return "".join(file.text for file in configure(stack, complete(answers)))

    assert "num_replicas: 2" not in text("own-ray-serve", kind="other", slo="p99", hardware="one")
    assert "num_replicas: 2" in text("own-ray-serve", kind="other", slo="p99", hardware="several")
    assert "replicas: 2" not in text("vllm-kubernetes", rate="high", platform="kubernetes", hardware="one")
    assert "Ministral-3-8B" in text("vllm", context="128k")
    assert "Qwen3-4B" in text("vllm", context="128k", hardware="cpu", size="700b")
    assert "--rope-scaling yarn" in text("llama-cpp", context="128k", hardware="laptop")
    pipeline = text("vllm-ray-serve", hardware="one", pattern="pipeline", models="few", slo="p99")
    assert "num_replicas: 2" not in pipeline
    assert "YOUR/MODEL" in text("hosted-api", kind="other")
    assert "72B" in text("managed-endpoint", size="80b", hardware="laptop")
    assert "MAX_MODEL_LEN" not in text("managed-endpoint", kind="speech")
    assert "ollama" not in "".join(file.text for file in configure("llama-cpp", complete(), model="org/mine"))
    assert "Qwen2.5-0.5B" in configure("vllm", complete({"hardware": "cpu"}))[0].text


def test_configurations_are_local_and_their_settings_are_explained() -> None:
    """Servers bind to loopback, vLLM requires a key, and each explained setting is in the file, for every stack,
    hardware, kind and number of models."""
    varied = ("hardware", "gpu", "models", "kind", "pattern")
    rng = random.Random(5)
    for values in product(*(OPTIONS[name] for name in varied)):
        answers = {**drawn(rng), **dict(zip(varied, values, strict=True))}
        for file in (file for stack in STACKS for file in configure(stack, answers)):
            assert "0.0.0.0" not in file.text
            assert "--api-key" not in file.text  # ps would show it
            for command in file.text.split("vllm serve")[1:]:
                assert "--host 127.0.0.1" in command
                assert "export VLLM_API_KEY=$(cat vllm.key)" in file.text
            for setting in file.settings:
                name = setting.name.split(".")[-1]
                assert name in file.text or name.replace("-", "_") in file.text, (file.name, setting.name)
                assert setting.why
