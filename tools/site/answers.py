"""Answer the questions of the site's calculator and selector. Runs in the browser, in Pyodide, on labkit's own code.

`plain` returns what `labkit cost --json` and `labkit select --json` print; `shown` is what a page shows.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from html import escape
from typing import Any

from labkit import files
from labkit.errors import UsageError

Given = Mapping[str, Any]
Reply = dict[str, Any]
LAB = re.compile(r"href='(\d\d\w*)\.ipynb'")


class JsonLoader:
    """Load the course's YAML files, which the site stores as JSON: YAML takes seconds in a browser."""

    def __init__(self, text: str) -> None:
        self.text = text

    def get_single_data(self) -> Any:
        return json.loads(self.text)

    def dispose(self) -> None:
        """Called by yaml.load; there is nothing to dispose of."""


def start() -> None:
    """Prepare the answers. Call once in the browser, before any question."""
    files.FAST_LOADER = JsonLoader


def reply(request: str) -> str:
    """Answer a page's request; both are JSON. A refused request gets `error`, with the remedy."""
    asked = json.loads(request)
    answer = {"shown": shown, "plain": plain}[asked["kind"]]
    try:
        return json.dumps(answer(asked["page"], asked["given"], asked.get("view", "")), allow_nan=False)
    except UsageError as error:
        remedy = f" To fix it: {error.remedy}." if error.remedy else ""
        return json.dumps({"error": f"{error.what}.{remedy}"})


def plain(page: str, given: Given, _: str = "") -> Reply:
    """Return the same object as `labkit cost --json` or `labkit select --json` with these settings."""
    return {"calculator": _plain_cost, "selector": _plain_selection}[page](given)


def shown(page: str, given: Given, view: str = "") -> Reply:
    """Return what the page shows: `answer` and `parts` (HTML by heading), `chart` (Vega-Lite, or None)."""
    if page == "selector":
        return _shown_selection(given)
    return _shown_cost(given, view)


def _plain_cost(given: Given) -> Reply:
    from labkit.advice import costs
    from labkit.advice.costs.words import to_json

    return to_json(costs.calculate(costs.settings_from(given)))


def _plain_selection(given: Given) -> Reply:
    from labkit.advice import selector

    answers, model = selector.read_state(given)
    selection = selector.select(answers)
    config = selector.configure(selection.winner.name, selection.answers, model=model)
    return selector.to_json(selection, config, model=model)


def _shown_cost(given: Given, view: str) -> Reply:
    from labkit.advice import costs
    from labkit.advice.costs.explain import explain
    from labkit.advice.costs.form import CHARTS, answer_html

    result = costs.calculate(costs.settings_from(given))
    notes = filter(None, (result.compared, *result.warnings))
    return {
        "answer": answer_html(result) + _list("ul", notes),
        "chart": CHARTS[view or next(iter(CHARTS))](result),
        "parts": {"The sums": _list("ol", explain(result))},
    }


def _shown_selection(given: Given) -> Reply:
    from labkit.advice import selector
    from labkit.advice.selector.configs import proof
    from labkit.advice.selector.form import CONFIGURATION, VIEWS, configuration, summary

    answers, model = selector.read_state(given)
    selection = selector.select(answers)
    config = selector.configure(selection.winner.name, selection.answers, model=model)
    parts = {name: view(selection, {}) for name, view in VIEWS.items()}
    tried = f"<p>{escape(proof(selection.winner.name))}</p>"
    linked = partial(LAB.sub, r"href='labs/\1.html'")
    parts = {name: linked(html) for name, html in (parts | {CONFIGURATION: tried + configuration(config)}).items()}
    return {"answer": linked(summary(selection)), "chart": None, "parts": parts}


def _list(tag: str, items: Any) -> str:
    return f"<{tag}>{''.join(f'<li>{escape(item)}</li>' for item in items)}</{tag}>"
