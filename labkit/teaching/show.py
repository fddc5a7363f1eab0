"""Shows a small piece of HTML with its plain text: in a notebook both, elsewhere the text is printed."""

import re
from html import escape
from typing import Any

CARD = "border:1px solid #8c8c8c;border-left:6px solid {colour};padding:.5em 1em;margin:.4em 0;max-width:60em"


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel, where a form can be shown."""
    shell = _shell()
    return shell is not None and hasattr(shell, "kernel")


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


def _shell() -> Any:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:  # a plain Python, as good as a terminal
        return None
    return get_ipython()
