"""Shows things in a notebook or on a terminal: HTML with its plain text, tables, sources."""

import ast
import inspect
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labkit.errors import UsageError
from labkit.files import root

if TYPE_CHECKING:
    from rich.table import Table

CARD = "border:1px solid #8c8c8c;border-left:6px solid {colour};padding:.5em 1em;margin:.4em 0;max-width:60em"


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel, where a form can be shown."""
    shell = _shell()
    return shell is not None and hasattr(shell, "kernel")


def cell_number() -> int | None:
    """The number of the notebook's cell that runs now, as Jupyter shows it; None outside of a notebook."""
    shell = _shell()
    return int(shell.execution_count) if shell is not None and hasattr(shell, "kernel") else None


def show(bundle: dict[str, Any]) -> None:
    """Displays a mime bundle, which must hold `text/plain`; outside of IPython prints that text."""
    if _shell() is None:
        print(bundle["text/plain"])
        return
    from IPython.display import display

    display(bundle, raw=True)


def card(title: str, body: str, *, colour: str) -> str:
    """A bordered box. `body` is HTML, `title` is text. `role=status` lets a screen reader announce it."""
    return f'<div role="status" style="{CARD.format(colour=colour)}"><b>{escape(title)}</b>{body}</div>'


def folded(summary: str, body: str) -> str:
    """HTML that is closed until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def inline(text: str) -> str:
    """Our own texts as HTML: escaped, `code` in backticks set as code, an empty line makes a paragraph."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return "".join(f"<p>{part}</p>" for part in html.split("\n\n"))


def code(source: str) -> str:
    """Source code as preformatted HTML."""
    return f"<pre><code>{escape(source.strip())}</code></pre>"


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already, everything set left; cells beyond the heads are left out."""
    style = "text-align:left;vertical-align:top;white-space:normal"
    head = "".join(f"<th style='{style}'>{name}</th>" for name in heads)
    lines = ("".join(f"<td style='{style}'>{cell}</td>" for cell in row[: len(heads)]) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table(*columns: str, title: str = "") -> "Table":
    """An empty table for a terminal, in the style of all tables. Print it with markup=False: brackets are brackets."""
    from rich import box
    from rich.table import Table

    rows = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        rows.add_column(column, overflow="fold")
    return rows


def _shell() -> Any:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:  # a plain Python, as good as a terminal
        return None
    return get_ipython()


# The arrow keys for a form's fields, which JupyterLab takes for its own commands on cells.
# JupyterLab's shortcuts pass over an element with this mark, if it is the one that has the focus; it gets it for an
# arrow key and loses it for any other, so that the rest (run this cell, save) stays JupyterLab's. A window's capturing
# listener comes before JupyterLab's, and a style sheet's load event is the way to it from Python without an output
# that an untrusted notebook would refuse to draw.
_LISTEN = (
    "window.labkitArrows || window.addEventListener('keydown', window.labkitArrows = event =&gt; {"
    " if (event.target.closest('.jupyter-widgets')) event.target.toggleAttribute("
    "'data-lm-suppress-shortcuts', event.key.startsWith('Arrow')) }, true)"
)
LEAVE_ARROWS = f'<style onload="{_LISTEN}">.labkit-form {{}}</style>'  # to be part of a form's HTML


# --- sources ---


def source_of(module: ModuleType | Path, *names: str) -> str:
    """The source of the module, or of the classes, functions and methods (`Class.method`) named, in that order.

    A path is a file that must not be imported here, such as one that takes seconds to. Decorators belong to the source:
    they are what makes a deployment of a class. UsageError for a name that is not there.
    """
    text = module.read_text(encoding="utf-8") if isinstance(module, Path) else inspect.getsource(module)
    if not names:
        return text.strip()
    lines, found = text.splitlines(), dict(_definitions(ast.parse(text)))
    if unknown := [name for name in names if name not in found]:
        raise UsageError(f"{_name(module)} has no {', '.join(unknown)}", remedy=f"choose from {', '.join(found)}")
    return "\n\n".join("\n".join(lines[first - 1 : last]) for first, last in (found[name] for name in names))


def show_source(module: ModuleType | Path, *names: str) -> None:
    """Shows it, with the file's name above."""
    text = f"# {_name(module)}\n\n{source_of(module, *names)}"
    show({"text/plain": text, "text/markdown": f"```python\n{text}\n```"})


def _name(module: ModuleType | Path) -> str:
    """The file as the reader knows it: seen from the repository, where it is in there."""
    if isinstance(module, Path):
        return str(module.relative_to(root()) if module.is_relative_to(root()) else module.name)
    return f"{module.__name__.replace('.', '/')}.py"


def _definitions(tree: ast.AST, prefix: str = "") -> list[tuple[str, tuple[int, int]]]:
    """(name, first and last line) of every class, function and method, decorators included."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.append((prefix + node.name, (first, node.end_lineno or node.lineno)))
            if isinstance(node, ast.ClassDef):
                found += _definitions(node, f"{node.name}.")
    return found
