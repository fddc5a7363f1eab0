"""Which stack for which workload: rules that are data, an answer with its reasons, and what would change it.

`select(answers)` is a pure function over `data/selector/`; the command line, lab 10 and the form show what it returns.
"""

from labkit.selector.answers import check_model, complete, from_settings, read_state, write_state
from labkit.selector.article import ArticleSays, Comparison, compare_patterns
from labkit.selector.catalogue import Catalogue, catalogue
from labkit.selector.choose import Flip, Ranked, Reason, Selection, select
from labkit.selector.configs import ConfigFile, Setting, configure
from labkit.selector.survey import Survey, survey
from labkit.selector.words import to_json, to_text

__all__ = [
    "ArticleSays",
    "Catalogue",
    "Comparison",
    "ConfigFile",
    "Flip",
    "Ranked",
    "Reason",
    "Selection",
    "Setting",
    "Survey",
    "catalogue",
    "check_model",
    "compare_patterns",
    "complete",
    "configure",
    "from_settings",
    "read_state",
    "select",
    "survey",
    "to_json",
    "to_text",
    "write_state",
]
