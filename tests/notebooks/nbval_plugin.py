"""What nbval does not compare here: a chart's specification, whose description in words it does compare.

The specification carries floating-point numbers to the last bit and the machine's line in its title.
"""

import pytest

CHART = "application/vnd.vegalite.v5+json"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Adds charts to what the cells of a notebook are not compared by."""
    notebook = item.parent
    skipped: tuple[str, ...] = getattr(notebook, "skip_compare", ())
    if notebook is not None and CHART not in skipped:
        notebook.skip_compare = (*skipped, CHART)  # type: ignore[attr-defined]
