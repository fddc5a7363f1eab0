"""Predictions, reveals, calibration, the form, and what is shown."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import display
from labkit.errors import UsageError
from labkit.teaching import Prediction, Source, ask, calibration, check, is_hit, predict, reveal
from labkit.teaching.predictions import build
from labkit.words import amount, factor_between, number, off_by, span

positive = st.floats(1e-6, 1e9)


# --- numbers in words ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (46592, "46,592"),
        (46592.3, "46,600"),
        (1.5, "1.5"),
        (12.345, "12.3"),
        (0.001234, "0.00123"),
        (-2.0, "-2"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    """Integers stay exact, other numbers keep three significant digits and no trailing zeros."""
    assert number(value) == text


@given(positive)
def test_a_short_number_is_within_half_a_percent(value: float) -> None:
    """Reading the text back gives the number to three significant digits."""
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


def test_small_times_are_milliseconds() -> None:
    """Seconds below a tenth are given in milliseconds, and both ends of an interval in the same unit."""
    assert amount(0.0345, "s") == "34.5 ms"
    assert amount(1.2, "s") == "1.2 s"
    assert span(0.01, 0.05, "s") == "10 to 50 ms"
    assert span(0.01, 0.5, "s") == "0.01 to 0.5 s"
    assert amount(12, "%") == "12%"


@given(positive, positive)
def test_off_by_names_factor_and_direction(guess: float, truth: float) -> None:
    """The factor is never below 1, and its direction is the guess's."""
    factor = factor_between(guess, truth)
    assert factor is not None
    assert factor >= 1
    text = off_by(guess, truth)
    assert ("half a percent" in text) == (factor < 1.005)
    assert factor < 1.005 or ("high" in text) == (guess > truth)


def test_off_by_zero_is_a_difference() -> None:
    """Where a factor means nothing the difference is given, with its unit."""
    assert off_by(3, 0, "blocks") == "off by 3 blocks"
    assert off_by(0, 0) == "exact"


# --- predictions ---


def test_nobody_predicts() -> None:
    """Without a click and without a parameter there is no prediction, and nothing fails."""
    prediction = predict("q", "How many?", unit="tok/s")
    assert (prediction.value, prediction.confidence, prediction.source) == (None, None, Source.NONE)
    assert prediction.in_words() == "no prediction made"
    assert reveal(prediction, 100.0).hit is None


def test_the_parameter_counts_until_somebody_commits() -> None:
    """The parameter's guess counts in batch; a committed answer replaces it."""
    prediction = predict("q", "How many?", unit="tok/s", guess=120, confidence=0.6)
    assert (prediction.guess, prediction.confidence, prediction.source) == (120, 0.6, Source.PARAMETER)
    prediction.commit("1,500", 0.9)
    assert (prediction.guess, prediction.confidence, prediction.source) == (1500, 0.9, Source.WIDGET)


def test_a_commitment_is_made_once() -> None:
    """A second answer is refused and the first one stays."""
    prediction = predict("q", "Which?", options=["yes", "no"])
    prediction.commit("yes", 0.5)
    with pytest.raises(UsageError, match="committed already: yes"):
        prediction.commit("no", 0.5)
    assert prediction.value == "yes"


@pytest.mark.parametrize("value", ["", "many", None, float("nan"), float("inf"), "1.2.3"])
def test_what_is_no_number_is_refused(value: object) -> None:
    """A number question takes finite numbers only, and says in which unit."""
    with pytest.raises(UsageError, match="is not a number") as caught:
        Prediction("q", "How many?", "tok/s").commit(value)
    assert "tok/s" in caught.value.remedy


@pytest.mark.parametrize("confidence", [-0.1, 1.1, 70.0])
def test_confidence_is_a_share(confidence: float) -> None:
    """A confidence outside 0 to 1 is refused: 70 is not 70%."""
    with pytest.raises(UsageError, match="confidence"):
        predict("q", "How many?", unit="s", guess=1, confidence=confidence)


def test_a_guess_that_is_no_option_is_refused() -> None:
    """A choice takes its options only, and names them."""
    with pytest.raises(UsageError) as caught:
        predict("q", "Which?", options=["yes", "no"], guess="perhaps")
    assert "yes, no" in caught.value.remedy


@pytest.mark.parametrize("kind", [{}, {"unit": "s", "options": ["a"]}])
def test_a_question_is_a_number_or_a_choice(kind: dict[str, Any]) -> None:
    """Neither and both are refused."""
    with pytest.raises(UsageError, match="unit or options"):
        predict("q", "?", **kind)


def test_the_record_holds_what_was_asked_and_answered() -> None:
    """The dictionary for the record is plain data."""
    assert predict("q", "Which?", options=["a", "b"], guess="a").to_dict() == {
        "id": "q",
        "question": "Which?",
        "unit": None,
        "options": ["a", "b"],
        "guess": "a",
        "confidence": None,
        "source": "parameter",
    }


# --- the form ---


def fields(form: Any) -> tuple[Any, Any, Any, Any]:
    """Answer, confidence, button and status of a form."""
    _, answer, confidence, button, status = form.children
    return answer, confidence, button, status


def test_the_form_commits_what_it_shows() -> None:
    """Pick, set the confidence, commit: the prediction reads it and the form is locked."""
    prediction = Prediction("q", "Which?", options=("yes", "no"))
    answer, confidence, button, status = fields(build(prediction))
    assert answer.value is None
    answer.value, confidence.value = "no", 80
    button.click()
    assert (prediction.value, prediction.confidence, prediction.source) == ("no", 0.8, Source.WIDGET)
    assert answer.disabled
    assert confidence.disabled
    assert button.disabled
    assert "no (80% sure)" in status.value


@pytest.mark.parametrize("options", [(), ("yes", "no")])
def test_an_empty_form_is_not_committed(options: tuple[str, ...]) -> None:
    """Commit without an answer says so and leaves the form open."""
    prediction = Prediction("q", "?", None if options else "s", options)
    answer, _, button, status = fields(build(prediction))
    button.click()
    assert prediction.source is Source.NONE
    assert "Not committed" in status.value
    assert not answer.disabled


def test_the_form_starts_at_the_parameter() -> None:
    """A guess from the parameters stands in the form, and is said to count."""
    prediction = predict("q", "How many?", unit="tok/s", guess=1234.5, confidence=0.7)
    answer, confidence, _, status = fields(build(prediction))
    assert (answer.value, confidence.value) == ("1,234.5", 70)
    assert "the lab's parameter counts" in status.value


def test_no_label_is_cut() -> None:
    """Every described widget takes the width that its description needs."""
    for options in ((), ("yes", "no")):
        answer, confidence, _, _ = fields(build(Prediction("q", "?", None if options else "tok/s", options)))
        assert answer.style.description_width == confidence.style.description_width == "initial"


def test_a_question_is_text_not_markup() -> None:
    """A question with angle brackets is shown as it is written."""
    form = build(Prediction("q", "is a < b & b > c?", "s"))
    assert "is a &lt; b &amp; b &gt; c?" in form.children[0].value


# --- reveals ---


def test_a_reveal_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """Guess, measurement with interval, article and model stand in the card, each compared with the measurement."""
    prediction = predict("q", "How many?", unit="tok/s", guess=50, confidence=0.7)
    result = reveal(prediction, 100.0, 90.0, 110.0, article="2-4x", model=105.0)
    shown = capsys.readouterr().out
    for part in (
        "50 tok/s",
        "70% sure",
        "100 tok/s",
        "interval 90 to 110 tok/s",
        "2-4x",
        "2 times too low",
        "105 tok/s",
    ):
        assert part in shown
    assert result.hit is False
    assert result.to_dict()["measured"] == 100.0


def test_a_reveal_displays_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the card is HTML with plain text beside it, and its texts are escaped."""
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr(display, "show", bundles.append)
    reveal(predict("q", "a < b?", options=["<b>", "no"], guess="no"), "<b>")
    html = bundles[-1]["text/html"]
    assert "a &lt; b?" in html
    assert "<b>&lt;b&gt;</b>" in html
    assert "<b><b>" not in html
    assert set(bundles[-1]) == {"text/html", "text/plain"}


@given(guess=positive, measured=positive)
def test_a_hit_is_symmetric_in_factor(guess: float, measured: float) -> None:
    """A guess counts as right exactly when it is within the tolerated factor, in either direction."""
    assert is_hit(guess, measured, None, None, tolerance=0.5) is (max(guess / measured, measured / guess) <= 1.5)
    assert is_hit(guess, measured, None, None) == is_hit(measured, guess, None, None)


def test_inside_the_interval_is_a_hit() -> None:
    """A wide interval makes hits of guesses that the factor alone would not."""
    assert is_hit(10, 100, 5, 200)
    assert not is_hit(10, 100, 50, 200)
    assert is_hit(0, 0, None, None)
    assert not is_hit(1, 0, None, None)


def test_a_choice_is_revealed_among_its_options() -> None:
    """Revealing something that was no option, or a word where a number was asked, is a usage error."""
    with pytest.raises(UsageError, match="no option"):
        reveal(predict("q", "?", options=["a", "b"]), "c")
    with pytest.raises(UsageError, match="asks for a number"):
        reveal(predict("q", "?", unit="s"), "c")


# --- calibration ---


def test_calibration_of_known_predictions() -> None:
    """Two predictions, one right: by hand, (0.2 squared + 0.6 squared) / 2."""
    made: list[dict[str, Any]] = [
        {"hit": True, "confidence": 0.8},
        {"hit": False, "confidence": 0.6},
        {"hit": None, "confidence": None},
    ]
    result = calibration(made)
    assert (result.asked, result.n, result.hit_share, result.mean_confidence) == (3, 2, 0.5, 0.7)
    assert result.brier == pytest.approx(0.2)
    assert "2 of 3" in result.sentence()


def test_calibration_of_nothing() -> None:
    """No predictions give no numbers, and a sentence that says so."""
    assert calibration([]).brier is None
    nobody: list[dict[str, Any]] = [{"hit": None}]
    assert calibration(nobody).sentence() == "No prediction was made for 1 questions."


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_brier_score_lies_between_0_and_1(made: list[tuple[bool, float]]) -> None:
    """Whatever is predicted, the scores are shares; certainty that is right scores 0."""
    result = calibration([{"hit": hit, "confidence": confidence} for hit, confidence in made])
    assert result.brier is not None
    assert 0 <= result.brier <= 1
    assert calibration([{"hit": hit, "confidence": float(hit)} for hit, _ in made]).brier == 0


# --- what check and ask show ---


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Everything that is displayed during a test."""
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr(display, "show", bundles.append)
    return bundles


def test_a_wrong_answer_shows_the_misconception_and_folds_the_rest(shown: list[dict[str, str]]) -> None:
    """The misconception's name is in sight; each hint and the solution are folded."""
    result = check("01.tpot", 1.2 / 5)
    html = shown[-1]["text/html"]
    assert result.misconceptions[0] in html
    assert html.count("<details>") == html.count("</details>") == 4
    assert html.index("<details>") < html.index("Hint 1") < html.index("Solution")
    assert result.outcome == "not yet"


def test_a_right_answer_shows_no_hints(shown: list[dict[str, str]]) -> None:
    """After a pass there is only the solution to compare with."""
    assert check("01.tpot", 0.08).passed
    assert shown[-1]["text/html"].count("<details>") == 1
    assert shown[-1]["text/plain"].endswith("passed\nThat is right.")


def test_nothing_shown_uses_emoji(shown: list[dict[str, str]]) -> None:
    """Passed and not passed are words, for fonts and screen readers."""
    for answer in (None, 1, 0.08):
        check("01.tpot", answer)
    ask("01.tpots")
    assert all(ord(letter) < 0x2000 for bundle in shown for text in bundle.values() for letter in text)


def test_ask_fills_in_the_context(shown: list[dict[str, str]]) -> None:
    """The question shows the context's numbers, and a worked example where there is one."""
    ask("01.tpot", {"started_s": 5.0, "chunk_times_s": [6.0, 7.25], "output_tokens": 99})
    assert "7.25" in shown[-1]["text/plain"]
    assert "99" in shown[-1]["text/plain"]
    ask("01.tpots")
    assert "def ttfts_s" in shown[-1]["text/markdown"]


def test_a_result_as_a_cells_last_value_is_not_shown_twice() -> None:
    """Prediction, reveal and check display themselves; IPython's display hook adds nothing."""
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    prediction = predict("q", "How many?", unit="s", guess=1)
    for value in (prediction, reveal(prediction, 1.0), check("01.tpot", None)):
        assert formatter.format(value) == ({}, {})
