"""The selector's form and command, without a browser: they show what `select` says, and take what they export."""

import json
from pathlib import Path
from typing import Any

import pytest

from labkit.advice.selector import catalogue, compare_patterns, configure, read_state, select, write_state
from labkit.advice.selector import form as views
from labkit.advice.selector.form import TIPS, SelectorForm, show
from labkit.cli.main import main
from labkit.errors import UsageError

KNOWN = catalogue()


def field(form: SelectorForm, name: str) -> Any:
    """The drop-down of a question."""
    return form._fields[name]


# --- the form


def test_the_form_starts_with_the_defaults() -> None:
    """Nothing answered: the default answers, their result, and a state that says so."""
    form = SelectorForm()
    assert form.answers == KNOWN.defaults
    assert form.selection == select()
    assert read_state(form.state) == (KNOWN.defaults, None)


def test_an_answer_changes_result_and_state() -> None:
    """Choosing another option changes the shown winner, the configuration and the exported state."""
    form = SelectorForm()
    before = form._detail.value
    field(form, "kind").value = "other"
    assert form.selection.winner.name == "own-ray-serve"
    assert form.selection.winner.title in form._summary.value
    assert form._detail.value != before
    assert json.loads(form._state.value)["kind"] == "other"


def test_a_state_goes_from_one_form_to_another() -> None:
    """Pasted into another form, or given at its start, the state sets every answer and the model."""
    first = SelectorForm({"pattern": "pipeline", "kind": "both", "model": "org/mine"})
    second = SelectorForm()
    second._state.value = first.state
    assert (second.answers, second.model) == (first.answers, "org/mine")
    assert field(second, "kind").value == "both"
    assert SelectorForm(first.state).selection == first.selection


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "lmm"}', '{"knd": 1}', '{"model": "a b"}'])
def test_a_state_that_cannot_be_read_is_told_and_changes_nothing(text: str) -> None:
    """The message says what is wrong; answers, result and model stay."""
    form = SelectorForm({"rate": "high"})
    form._state.value = text
    assert "Not taken" in form._message.value
    assert form.answers["rate"] == "high"
    field(form, "rate").value = "low"  # and the form still works
    assert form._message.value == ""
    assert form.answers["rate"] == "low"


def test_a_models_name_stands_in_the_configuration() -> None:
    """A hub id is taken; what is no name is told and not taken."""
    form = SelectorForm()
    form._model.value = "org/mine"
    assert "org/mine" in form.config[0].text
    form._model.value = "mine; rm -rf /"
    assert "no model" in form._message.value
    assert form.model == "org/mine"


def test_every_view_draws_for_each_winner() -> None:
    """All views draw something for six situations with six winners, and the shown one follows its button."""
    situations: list[dict[str, str]] = [
        {},
        {"rate": "high", "hardware": "several"},
        {"pattern": "pipeline", "kind": "both"},
        {"kind": "other"},
        {"rate": "low", "host": "may"},
        {"team": "torchserve", "kind": "other", "releases": "versions"},
    ]
    for answers in situations:
        form = SelectorForm(answers)
        drawn = set()
        for name in TIPS:
            form._buttons[name].click()
            assert form._buttons[name].button_style == "primary"
            drawn.add(form._detail.value)
        assert len(drawn) == len(TIPS)


def test_verdicts_of_this_machine_stand_beside_the_reasons() -> None:
    """A claim's verdict from the learner's own run is shown where a reason rests on that claim."""
    assert "claim refuted" in views.why(select(), {"C01": "refuted"})
    assert "claim refuted" not in views.why(select(), {})


def test_what_a_learner_types_is_no_html() -> None:
    """A state with markup in it is shown as text."""
    form = SelectorForm()
    form._state.value = '{"<script>": 1}'
    assert "<script>" not in form._message.value


def test_shown_without_a_notebook_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a kernel the result is printed, and the form can still be asked."""
    assert show({"kind": "both"}).selection.winner.name == "vllm-ray-serve"
    assert "vLLM inside Ray Serve" in capsys.readouterr().out


def test_a_bad_state_is_refused_before_anything_is_shown() -> None:
    """From Python it is a UsageError."""
    with pytest.raises(UsageError, match="did you mean"):
        show('{"kind": "lmm"}')


def test_a_table_has_a_row_for_each_pattern() -> None:
    """Six situations, with the reason for the difference in the long form."""
    rows = compare_patterns()
    assert views.patterns(rows).count("<tr") == 1 + len(rows)
    assert rows[0].pattern.difference[:20] in views.patterns(rows)


# --- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints on stdout."""
    with pytest.raises(SystemExit) as ended:
        main(["select", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_select_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """`labkit select --json` has the keys that scripts rely on, and agrees with Python."""
    data = json.loads(run(capsys, "--set", "kind=both", "--set", "model=org/mine", "--json"))
    assert [one["name"] for one in data["ranking"]] == [one.name for one in select({"kind": "both"}).ranking]
    assert {"name", "score", "reasons", "excluded"} <= set(data["ranking"][0])
    assert data["flips"] == [flip.model_dump() for flip in select({"kind": "both"}).flips]
    assert "org/mine" in data["config"]["serve_config.yaml"]["text"]
    assert {one["name"] for one in data["landscape"]} >= {"SGLang", "KServe"}


def test_select_says_it_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Ranking, reasons, the others, flips, the article, the configuration, and the way back."""
    text = run(capsys)
    for part in ("Ranking", "Why not the others", "What single answer", "What the article says", "vllm serve"):
        assert part in text
    assert f"--answers '{write_state(KNOWN.defaults)}'" in text


def test_select_takes_what_the_form_exports(capsys: pytest.CaptureFixture[str]) -> None:
    """`--answers` reads a state, and `--set` changes one answer of it."""
    state = write_state({**KNOWN.defaults, "kind": "other", "team": "torchserve"})
    data = json.loads(run(capsys, "--answers", state, "--set", "team=ray", "--json"))
    assert data["answers"]["team"] == "ray"
    assert data["recommended"] == "own-ray-serve"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "kind=lmm"], "did you mean llm"),
        (["--set", "knd=llm"], "did you mean kind"),
        (["--set", "kind"], "sets nothing"),
        (["--answers", "{"], "no JSON"),
        (["--set", "model=a b"], "no model's name"),
        (["--runs", "/nowhere"], "not a folder"),
    ],
)
def test_bad_input_ends_with_two_and_a_remedy(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message on stderr, nothing on stdout, exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(["select", *arguments])
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert message in told.err
    assert told.out == ""


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """Selector, form and command need no engine, no torch and no Ray."""
    import subprocess
    import sys

    code = (
        "import sys; from labkit.advice.selector.form import SelectorForm; SelectorForm(); "
        "from course.survey import survey; survey(); "
        "print([name for name in ('torch', 'vllm', 'ray', 'transformers', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_the_article_view_agrees_with_the_configuration_of_its_rows() -> None:
    """Each of the article's situations has a configuration, too."""
    for row in compare_patterns():
        assert configure(row.name, {**KNOWN.defaults, **row.pattern.answers})
