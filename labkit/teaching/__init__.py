"""Predictions that are revealed beside a measurement, and exercises whose diagnosis names the misconception."""

from labkit.teaching.exercises import (
    CheckResult,
    ChoiceExercise,
    Context,
    Exercise,
    SolvedExercise,
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
    "Prediction",
    "Reveal",
    "SolvedExercise",
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
