"""Recommend a stack for a workload by the rules in `data/selector/`, with reasons and the answers that would change it.

`select(answers)` is a pure function; the command line, lab 10 and the form show its result.
"""

from labkit.advice.selector.answers import MODEL, check_model, complete, read_state, write_state
from labkit.advice.selector.catalogue import catalogue
from labkit.advice.selector.choose import Comparison, Selection, compare_patterns, select
from labkit.advice.selector.configs import ConfigFile, configure
from labkit.advice.selector.words import to_json, to_text

__all__ = [
    "MODEL",
    "Comparison",
    "ConfigFile",
    "Selection",
    "catalogue",
    "check_model",
    "compare_patterns",
    "complete",
    "configure",
    "read_state",
    "select",
    "to_json",
    "to_text",
    "write_state",
]
