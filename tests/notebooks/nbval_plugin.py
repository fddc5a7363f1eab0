"""What nbval does not compare here: cells tagged `timed`, and of a chart the specification; it does compare the words.

The specification carries floating-point numbers to the last bit and the machine's line in its title.
"""

import pytest

from tests.notebooks.outputs import CHART
from tools import notebooks as tool


def pytest_itemcollected(item: pytest.Item) -> None:
    """Adds charts to what the cells of a notebook are not compared by; a timed cell is only executed."""
    notebook = item.parent
    skipped: tuple[str, ...] = getattr(notebook, "skip_compare", ())
    if notebook is not None and CHART not in skipped:
        notebook.skip_compare = (*skipped, CHART)  # type: ignore[attr-defined]
    cell, options = getattr(item, "cell", None), getattr(item, "options", None)
    if cell is not None and options is not None and tool.TIMED in tool.tags(cell):
        options["check"] = False
