"""Write docs/workshop/prediction-sheet.md, all labs' predictions on paper: `make prediction-sheet`.

Numbers in a question come from the notebook's parameters; numbers that only a run yields are blanks.
"""

import ast
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from labkit.files import notebooks_path, root
from labkit.labs import Lab, load_labs
from labkit.records import write_atomic

PAGE = root() / "docs" / "workshop" / "prediction-sheet.md"
BLANK = r"\_\_\_\_"
HEAD = f"""# Prediction sheet

Name: {4 * BLANK}

Write your answer, and how sure you are of it, *before* you run the cells below the question. Then enter both in the
notebook's form. A number is a hit within a factor of 1.25 of the measurement, or inside its interval. A choice, and the
rate in lab 01, have to be exactly right. Copy a blank in a question ({BLANK}) from your screen.
(`make prediction-sheet` wrote this page from the notebooks.)
"""
COLUMNS = "| question | your answer | how sure |\n|---|---|---|\n"
BUILTINS = {function.__name__: function for function in (len, list, max, min, round, sorted, sum)}


def predictions(lab: Lab) -> Iterator[tuple[str, str]]:
    """Yield each question of the lab's notebook, in order, with the form of its answer."""
    names: dict[str, Any] = {"__builtins__": BUILTINS}
    cells = json.loads((notebooks_path() / lab.notebook).read_text(encoding="utf-8"))["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Assign):
                with suppress(Exception):  # values that need an import or a run stay unknown
                    exec(ast.unparse(node), names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lab.predict":
                question, given = node.args[1], {keyword.arg: keyword.value for keyword in node.keywords}
                parts = question.values if isinstance(question, ast.JoinedStr) else [question]
                choices = "<br>".join(f"☐ {choice}" for choice in lab.parameters[ast.unparse(given["guess"])].choices)
                answer = choices or f"{BLANK} {ast.literal_eval(given['unit'])}"
                yield "".join(_filled(part, names) for part in parts).replace("|", r"\|"), answer


def _filled(part: ast.expr, names: dict[str, Any]) -> str:
    try:
        return str(part.value) if isinstance(part, ast.Constant) else eval(ast.unparse(ast.JoinedStr([part])), names)
    except Exception:
        return BLANK


def page() -> str:
    """Return the sheet: a table for each lab with predictions."""
    text = HEAD
    for lab in load_labs().values():
        if rows := [f"| {question} | {answer} | {BLANK}% |\n" for question, answer in predictions(lab)]:
            text += f"\n## {lab.number} · {lab.title}\n\n{COLUMNS}"
            text += "".join(rows)
    return text


if __name__ == "__main__":
    write_atomic(PAGE, page())
