"""How a lab teaches: commit to a prediction, see it revealed, answer exercises that name the misconception."""

from labkit.teaching.checks import ask, check, exercises, find, listen
from labkit.teaching.exercises import (
    CheckResult,
    ChoiceExercise,
    Context,
    Exercise,
    FunctionExercise,
    Misconception,
    Option,
    ValueExercise,
    by_id,
)
from labkit.teaching.predictions import Answer, Prediction, Source, predict
from labkit.teaching.reveals import Calibration, Reveal, calibration, is_hit, reveal

__all__ = [
    "Answer",
    "Calibration",
    "CheckResult",
    "ChoiceExercise",
    "Context",
    "Exercise",
    "FunctionExercise",
    "Misconception",
    "Option",
    "Prediction",
    "Reveal",
    "Source",
    "ValueExercise",
    "ask",
    "by_id",
    "calibration",
    "check",
    "exercises",
    "find",
    "is_hit",
    "listen",
    "predict",
    "reveal",
]
