"""How a lab teaches: commit to a prediction, see it revealed, answer exercises that name the misconception."""

from labkit.teaching.exercises import (
    CheckResult,
    ChoiceExercise,
    Context,
    Exercise,
    FunctionExercise,
    ValueExercise,
    ask,
    check,
    exercises,
    find,
    listen,
    solution,
)
from labkit.teaching.predictions import (
    Calibration,
    Prediction,
    Reveal,
    Source,
    calibration,
    is_hit,
    predict,
    reveal,
)

__all__ = [
    "Calibration",
    "CheckResult",
    "ChoiceExercise",
    "Context",
    "Exercise",
    "FunctionExercise",
    "Prediction",
    "Reveal",
    "Source",
    "ValueExercise",
    "ask",
    "calibration",
    "check",
    "exercises",
    "find",
    "is_hit",
    "listen",
    "predict",
    "reveal",
    "solution",
]
