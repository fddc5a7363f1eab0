"""Show HTML with its plain text, tables and source code, in a notebook or on a terminal."""

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
    """Whether this code runs in a Jupyter kernel, which can show a form."""
    shell = _shell()
    return shell is not None and hasattr(shell, "kernel")


def cell_number() -> int | None:
    """Return Jupyter's number of the running cell; None outside a notebook."""
    shell = _shell()
    return int(shell.execution_count) if shell is not None and hasattr(shell, "kernel") else None


def show(bundle: dict[str, Any]) -> None:
    """Display a mime bundle with `text/plain`; print that text outside IPython."""
    if _shell() is None:
        print(bundle["text/plain"])
        return
    from IPython.display import display

    display(bundle, raw=True)


def card(title: str, body: str, *, colour: str) -> str:
    """Return a bordered box. `body` is HTML, `title` text. Screen readers announce it (`role=status`)."""
    return f'<div role="status" style="{CARD.format(colour=colour)}"><b>{code_spans(escape(title))}</b>{body}</div>'


def folded(summary: str, body: str) -> str:
    """Return HTML that is collapsed until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def inline(text: str) -> str:
    """Return text as HTML: escaped, `code` in backticks as code, an empty line as a paragraph break."""
    return "".join(f"<p>{part}</p>" for part in code_spans(escape(text, quote=False)).split("\n\n"))


def code_spans(html: str) -> str:
    """Return HTML with `code` in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html)


def code(source: str) -> str:
    """Return source code as preformatted HTML."""
    return f"<pre><code>{escape(source.strip())}</code></pre>"


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a left-aligned table of HTML cells; cells beyond the heads are left out."""
    style = "text-align:left;vertical-align:top;white-space:normal"
    head = "".join(f"<th style='{style}'>{name}</th>" for name in heads)
    lines = ("".join(f"<td style='{style}'>{cell}</td>" for cell in row[: len(heads)]) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table(*columns: str, title: str = "") -> "Table":
    """Return an empty table for a terminal. Print it with markup=False, so that brackets are not markup."""
    from rich import box
    from rich.table import Table

    rows = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        rows.add_column(column, overflow="fold")
    return rows


def _shell() -> Any:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:  # plain Python
        return None
    return get_ipython()


# Keep arrow keys in a form's fields, which JupyterLab would use for its cell commands.
# JupyterLab's shortcuts skip a focused element with this attribute. The listener sets it for an arrow key and removes
# it for other keys, so that other shortcuts (run this cell, save) still work. A capturing listener on the window runs
# before JupyterLab's. A style sheet's load event installs it, because untrusted notebooks do not run scripts.
_LISTEN = (
    "window.labkitArrows || window.addEventListener('keydown', window.labkitArrows = event =&gt; {"
    " if (event.target.closest('.jupyter-widgets')) event.target.toggleAttribute("
    "'data-lm-suppress-shortcuts', event.key.startsWith('Arrow')) }, true)"
)
LEAVE_ARROWS = f'<style onload="{_LISTEN}">.labkit-form {{}}</style>'  # part of a form's HTML


# --- sources ---


def source_of(module: ModuleType | Path, *names: str) -> str:
    """Return the source of the module, or of the named classes, functions and methods (`Class.method`), in that order.

    Decorators are included. A path is a file that is not imported, for example because that takes seconds. UsageError:
    an unknown name.
    """
    text = module.read_text(encoding="utf-8") if isinstance(module, Path) else inspect.getsource(module)
    if not names:
        return text.strip()
    lines, spans = text.splitlines(), dict(_definitions(ast.parse(text)))
    if unknown := [name for name in names if name not in spans]:
        raise UsageError(f"{_name(module)} has no {', '.join(unknown)}", remedy=f"choose from {', '.join(spans)}")
    return "\n\n".join("\n".join(lines[first - 1 : last]) for first, last in (spans[name] for name in names))


def show_source(module: ModuleType | Path, *names: str) -> None:
    """Show `source_of` below the file's name."""
    text = f"# {_name(module)}\n\n{source_of(module, *names)}"
    show({"text/plain": text, "text/markdown": f"```python\n{text}\n```"})


def _name(module: ModuleType | Path) -> str:
    """Return the file's path in the repository, or its name."""
    if isinstance(module, Path):
        return str(module.relative_to(root()) if module.is_relative_to(root()) else module.name)
    return f"{module.__name__.replace('.', '/')}.py"


def _definitions(tree: ast.AST, prefix: str = "") -> list[tuple[str, tuple[int, int]]]:
    """Return (name, first and last line) of every class, function and method, decorators included."""
    definitions = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            definitions.append((prefix + node.name, (first, node.end_lineno or node.lineno)))
            if isinstance(node, ast.ClassDef):
                definitions += _definitions(node, f"{node.name}.")
    return definitions
