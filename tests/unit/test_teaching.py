"""Predictions, reveals, calibration, the form, and what is shown."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import display
from labkit.errors import UsageError
from labkit.teaching import Prediction, ask, calibration, check, is_hit, predict, reveal
from labkit.teaching.exercises import _answers
from labkit.teaching.predictions import TOLERANCE, Bucket, Reveal, form
from labkit.words import amount, factor_between, number, off_by, span
from tests.unit.refusals import not_refused

positive = st.floats(1e-6, 1e9)


@given(positive)
def test_a_short_number_is_within_half_a_percent(value: float) -> None:
    """Reading the text back gives the number to three significant digits; integers stay exact."""
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)
    assert number(int(value)) == f"{int(value):,}"


def test_numbers_in_words() -> None:
    """No trailing zeros; small times in milliseconds, both ends of an interval in one unit; no factor of zero."""
    assert [number(value) for value in (0.0, 46592.3, 1.5, 0.001234, -2.0)] == ["0", "46,600", "1.5", "0.00123", "-2"]
    assert [amount(0.0345, "s"), amount(1.2, "s"), amount(12, "%")] == ["34.5 ms", "1.2 s", "12%"]
    assert (amount(6460.0, "$"), span(5650, 7000, "$")) == ("$6,460", "$5,650 to $7,000")
    assert [span(0.01, 0.05, "s"), span(0.01, 0.5, "s")] == ["10 to 50 ms", "0.01 to 0.5 s"]
    assert [off_by(3, 0, "blocks"), off_by(0, 0)] == ["off by 3 blocks", "exact"]


@given(positive, positive)
def test_off_by_names_factor_and_direction(guess: float, truth: float) -> None:
    """The factor is never below 1, and its direction is the guess's."""
    factor = factor_between(guess, truth)
    assert factor is not None
    assert factor >= 1
    text = off_by(guess, truth)
    assert ("half a percent" in text) == (factor < 1.005)
    assert factor < 1.005 or ("high" in text) == (guess > truth)


def test_a_guess_is_the_parameter_until_somebody_commits() -> None:
    """Without either there is none; the parameter counts in batch; a committed answer replaces it, once."""
    nobody = predict("q", "How many?", unit="tok/s")
    assert (nobody.value, nobody.confidence, nobody.source) == (None, None, "none")
    assert nobody.in_words() == "no prediction made"
    assert reveal(nobody, 100.0).hit is None
    prediction = predict("q", "How many?", unit="tok/s", guess=120, confidence=0.6)
    assert (prediction.value, prediction.confidence, prediction.source) == (120, 0.6, "parameter")
    prediction.commit("1,500", 0.9)
    assert (prediction.value, prediction.confidence, prediction.source) == (1500, 0.9, "widget")
    with pytest.raises(UsageError, match="committed already: 1,500 tok/s"):
        prediction.commit(3, 0.5)
    assert prediction.value == 1500


def test_what_does_not_fit_the_question_is_refused() -> None:
    """A number is finite, its unit in the remedy; a choice is an option; a confidence is a share: 70 is not 70%."""
    no_numbers = ("", "many", None, float("nan"), float("inf"), "1.2.3")
    says = [(value, words) for value in no_numbers for words in ("is not a number", "tok/s")]
    assert not_refused(Prediction("q", "How many?", "tok/s").commit, says) == []
    refused: list[tuple[dict[str, Any], str]] = [
        *(({"unit": "s", "guess": 1, "confidence": share}, "confidence") for share in (-0.1, 1.1, 70.0)),
        ({"options": ["yes", "no"], "guess": "perhaps"}, "yes, no"),
        ({}, "unit or options"),
        ({"unit": "s", "options": ["a"]}, "unit or options"),
        ({"options": ["a", "b"]}, "not an option"),
        ({"unit": "s"}, "asks for a number"),
    ]
    assert not_refused(lambda question: reveal(predict("q", "?", **question), "c"), refused) == []


def test_the_form_commits_what_it_shows_and_nothing_without_an_answer() -> None:
    """Commit without an answer says so and leaves the form open; with one the prediction reads it and the form is
    locked. Labels have the width that they need, and the question is escaped."""
    for options, given_answer, value in (((), "3", 3), (("yes", "no"), "no", "no")):
        prediction = Prediction("q", "is a < b & b > c?", None if options else "s", options)
        question, answer, confidence, button, status = form(prediction).children
        assert "is a &lt; b &amp; b &gt; c?" in question.value
        assert answer.style.description_width == confidence.style.description_width == "initial"
        button.click()
        assert (prediction.source, answer.disabled) == ("none", False)
        assert "Not committed" in status.value
        answer.value, confidence.value = given_answer, 80
        button.click()
        assert (prediction.value, prediction.confidence, prediction.source) == (value, 0.8, "widget")
        assert [field.disabled for field in (answer, confidence, button)] == [True] * 3
        assert "(80% sure)" in status.value


def test_the_form_starts_at_the_parameter() -> None:
    """A guess from the parameters is in the form, and is said to count."""
    _, answer, confidence, _, status = form(predict("q", "?", unit="tok/s", guess=1234.5, confidence=0.7)).children
    assert (answer.value, confidence.value) == ("1,234.5", 70)
    assert "the guess is the lab's parameter" in status.value


def test_a_reveal_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """Guess, measurement with interval, article and model are in the card, each compared with the measurement; the
    record has what was asked, guessed and measured, as it was: a later commit changes nothing."""
    prediction = predict("q", "How many?", unit="tok/s", guess=50, confidence=0.7)
    capsys.readouterr()
    result = reveal(prediction, 100.0, 90.0, 110.0, article="2-4x", model=105.0, recorded=90.0, recorded_from="2 CPUs")
    prediction.commit(100)
    rows = (
        "How many?",
        "Your guess     50 tok/s, 70% sure (the lab's parameter)  [2 times too low]",
        "Measured here  100 tok/s  [interval 90 to 110 tok/s]",
        "Recorded       90 tok/s  [2 CPUs]",
        "The article    2-4x",
        "By formula     105 tok/s  [inside the interval]",
        "Your prediction was 2 times too low.",
    )
    assert capsys.readouterr().out == "\n".join(rows) + "\n"
    asked = {"id": "q", "question": "How many?", "unit": "tok/s", "guess": 50, "confidence": 0.7, "source": "parameter"}
    told = {
        "measured": 100.0,
        "low": 90.0,
        "high": 110.0,
        "article": "2-4x",
        "model": 105.0,
        "hit": False,
        "modelled": "",
    }
    assert result.to_dict() == asked | told


@given(guess=positive, measured=positive)
def test_a_hit_is_within_a_factor_or_inside_the_interval(guess: float, measured: float) -> None:
    """The tolerated factor counts in either direction; a wide interval makes hits that the factor alone would not."""
    assert is_hit(guess, measured, None, None) is (max(guess / measured, measured / guess) <= 1 + TOLERANCE)
    assert is_hit(guess, measured, guess, 2 * guess)
    assert (is_hit(10, 100, 5, 200), is_hit(10, 100, 50, 200)) == (True, False)
    assert (is_hit(0, 0, None, None), is_hit(1, 0, None, None)) == (True, False)


def test_of_few_numbers_only_the_right_one_is_a_hit() -> None:
    """Where the numbers to choose from lie close together, a neighbour is no hit."""
    for guess, hit, said in ((48.0, True, "was right"), (40.0, False, "1.2"), (None, None, "No prediction")):
        prediction = Prediction("q", "Which rate?", unit="requests/s", value=guess)
        result = Reveal(prediction=prediction, measured=48, exact=True)
        assert (result.hit, said in result.sentence()) == (hit, True)


def test_calibration_of_known_predictions() -> None:
    """Two predictions, one right: by hand, (0.2 squared + 0.6 squared) / 2. Of none there are no numbers."""
    made: list[dict[str, Any]] = [
        {"hit": True, "confidence": 0.8},
        {"hit": False, "confidence": 0.6},
        {"hit": None, "confidence": None},
    ]
    result = calibration(made)
    assert (result.asked, result.n, result.hit_share, result.mean_confidence) == (3, 2, 0.5, 0.7)
    assert result.brier == pytest.approx(0.2)
    assert "2 of 3" in result.sentence()
    assert result.buckets == (Bucket(0.5, 0.7, 1, 0), Bucket(0.7, 0.9, 1, 1))
    assert calibration([]).brier is None
    assert calibration(made[2:]).sentence() == "No prediction was made for 1 questions."


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_brier_score_lies_between_0_and_1(made: list[tuple[bool, float]]) -> None:
    """Whatever is predicted, the scores are shares; certainty that is right scores 0; each counts in one bucket."""
    result = calibration([{"hit": hit, "confidence": confidence} for hit, confidence in made])
    assert sum(bucket.predictions for bucket in result.buckets) == len(made)
    assert sum(bucket.hits for bucket in result.buckets) == sum(hit for hit, _ in made)
    assert result.brier is not None
    assert 0 <= result.brier <= 1
    assert calibration([{"hit": hit, "confidence": float(hit)} for hit, _ in made]).brier == 0


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Everything that is displayed during a test."""
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr(display, "show", bundles.append)
    return bundles


def test_a_card_escapes_what_it_shows(shown: list[dict[str, str]]) -> None:
    """In a notebook the card is HTML with plain text beside it, and its texts are escaped."""
    reveal(predict("q", "a < b?", options=["<b>", "no"], guess="no"), "<b>")
    html = shown[-1]["text/html"]
    assert set(shown[-1]) == {"text/html", "text/plain"}
    assert "a &lt; b?" in html
    assert "<b>&lt;b&gt;</b>" in html
    assert "<b><b>" not in html


def test_a_judgement_names_the_misconception_and_folds_the_rest(shown: list[dict[str, str]]) -> None:
    """The misconception is in sight, hints are folded, and from the second wrong answer on the solution too, which no
    untouched starter shows; after a pass there is only the solution."""
    _answers.clear()
    for answer in (..., ..., 1.2 / 5):
        result = check("01.tpot", answer)
        assert "Solution" not in shown[-1]["text/html"]
    check("01.tpot", 1.2 / 5)
    html = shown[-1]["text/html"]
    assert result.misconceptions[0] in html
    assert html.count("<details>") == html.count("</details>") == 4
    assert html.index("<details>") < html.index("Hint 1") < html.index("Solution")
    assert result.outcome == "not yet"
    _answers.clear()
    assert check("01.tpot", 0.08).passed
    assert shown[-1]["text/html"].count("<details>") == 1
    assert shown[-1]["text/plain"].endswith("passed\nThat is right.")


def test_ask_fills_in_the_context(shown: list[dict[str, str]]) -> None:
    """The question shows the context's numbers, and a worked example where there is one; and no emoji anywhere."""
    ask("01.tpot", {"started_s": 5.0, "chunk_times_s": [6.0, 7.25], "output_tokens": 99})
    assert "7.25" in shown[-1]["text/plain"]
    assert "99" in shown[-1]["text/plain"]
    ask("03.hit_tokens")
    assert "def common_tokens" in shown[-1]["text/markdown"]
    check("01.tpot", None)
    assert all(ord(letter) < 0x2000 for bundle in shown for text in bundle.values() for letter in text)


def test_a_result_as_a_cells_last_value_is_not_shown_twice() -> None:
    """Prediction, reveal and check display themselves; IPython's display hook adds nothing."""
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    prediction = predict("q", "How many?", unit="s", guess=1)
    for value in (prediction, reveal(prediction, 1.0), check("01.tpot", None)):
        assert formatter.format(value) == ({}, {})
