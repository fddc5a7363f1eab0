"""The API of labkit on a page: its public modules, classes and functions, read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment
from markdown_it import MarkdownIt

from labkit.files import Frozen, root

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
PROPERTIES = ("property", "cached_property")
MARKDOWN = MarkdownIt("commonmark", {"html": False})


class Entry(Frozen):
    """A class, function or method: its signature, and its docstring as HTML."""

    signature: str
    docstring: str
    methods: tuple["Entry", ...] = ()


class Module(Frozen):
    name: str
    docstring: str
    entries: tuple[Entry, ...]


def put_api(site: Path, templates: Environment) -> None:
    html = templates.get_template("api.html.j2").render(base="", title="API of labkit", modules=list(modules()))
    (site / "api.html").write_text(html, encoding="utf-8")


def modules() -> Iterator[Module]:
    """Yield the public modules of labkit that define something."""
    for file in sorted((root() / "labkit").rglob("*.py")):
        parts = file.relative_to(root()).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        entries = tuple(entry(node) for node in tree.body if isinstance(node, Definition) and _public(node))
        if entries:
            name = ".".join(part for part in parts if part != "__init__")
            yield Module(name=name, docstring=_docstring(tree), entries=entries)


def entry(node: Definition) -> Entry:
    """Return one definition; for a class, with its public methods that have a docstring."""
    if not isinstance(node, ast.ClassDef):
        return Entry(signature=signature(node), docstring=_docstring(node))
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    methods = [child for child in node.body if isinstance(child, Definition) and _public(child)]
    documented = tuple(entry(method) for method in methods if ast.get_docstring(method))
    heading = f"class {node.name}({bases})" if bases else f"class {node.name}"
    return Entry(signature=heading, docstring=_docstring(node), methods=documented)


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return a function's first line without `def`, `self` and the colon; for a property, its name and type."""
    returns = ast.unparse(node.returns) if node.returns else ""
    if any(isinstance(name, ast.Name) and name.id in PROPERTIES for name in node.decorator_list):
        return f"{node.name}: {returns}"
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("cls, ")
    arguments = "" if arguments in ("self", "cls") else arguments
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{prefix}{node.name}({arguments}){f' -> {returns}' if returns else ''}"


def _public(node: Definition) -> bool:
    return not node.name.startswith("_")


def _docstring(node: ast.AST) -> str:
    text = ast.get_docstring(node) if isinstance(node, ast.Module | Definition) else ""
    return str(MARKDOWN.render(text or ""))
