"""The code that runs, shown as it stands in its file: a lab quotes no code that could differ from what was deployed."""

import ast
import inspect
from types import ModuleType

from labkit.errors import UsageError
from labkit.teaching import show


def source_of(module: ModuleType, *names: str) -> str:
    """The source of the module, or of the classes, functions and methods (`Class.method`) named, in that order.

    Decorators belong to it: they are what makes a deployment of a class. UsageError for a name that is not there.
    """
    text = inspect.getsource(module)
    if not names:
        return text.strip()
    lines, found = text.splitlines(), dict(_definitions(ast.parse(text)))
    if unknown := [name for name in names if name not in found]:
        raise UsageError(f"{module.__name__} has no {', '.join(unknown)}", remedy=f"choose from {', '.join(found)}")
    return "\n\n".join("\n".join(lines[first - 1 : last]) for first, last in (found[name] for name in names))


def show_source(module: ModuleType, *names: str) -> None:
    """Shows it, with the file's name above."""
    text = f"# {module.__name__.replace('.', '/')}.py\n\n{source_of(module, *names)}"
    show.show({"text/plain": text, "text/markdown": f"```python\n{text}\n```"})


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
