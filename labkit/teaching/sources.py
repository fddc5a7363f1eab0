"""The code that runs, shown as it stands in its file: a lab quotes no code that could differ from what was deployed."""

import ast
import inspect
from pathlib import Path
from types import ModuleType

from labkit.errors import UsageError
from labkit.paths import root
from labkit.teaching import show


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
    show.show({"text/plain": text, "text/markdown": f"```python\n{text}\n```"})


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
