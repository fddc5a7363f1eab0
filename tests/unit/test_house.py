"""The house: the table of rooms in CONTRIBUTING.md and the imports of labkit agree, and nothing imports in a circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "labkit"
OUTSIDE = {"course", "applications", "handlers", "benchmarks", "tools", "tests"}
MAY_START_SERVERS = PACKAGE / "cli" / "serve.py"  # `labkit serve` starts what applications/ and handlers/ hold


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside of functions: labkit's own as far down as they are named."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


def room(module: str) -> str:
    """The part after labkit: a module on the top floor or a package; `python -m labkit` is the command line."""
    return (*module.split("."), "")[1].replace("__main__", "cli")


def floors() -> dict[str, int]:
    """The table's rooms with their floors."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ((?:`\w+` ?)+) \|", text, re.MULTILINE)
    return {name: int(floor) for floor, rooms in rows for name in re.findall(r"\w+", rooms)}


def test_the_table_names_every_room_and_no_other() -> None:
    """A room that is added, renamed or removed changes the table; there are nine floors at most."""
    assert set(floors()) == {room(module) for module in MODULES} - {""}
    assert max(floors().values()) <= 9


def test_imports_go_to_lower_floors_only() -> None:
    """Each import is from the same room or from one on a lower floor."""
    floor = floors()
    wrong = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in imports(path)
        if room(imported) and imported in MODULES and room(imported) != room(module)
        if floor[room(imported)] >= floor[room(module)]
    ]
    assert wrong == []


def test_no_module_imports_itself_by_a_detour() -> None:
    """There is no circle of modules."""
    graph = {module: {name for name in imports(path) if name in MODULES} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_the_library_does_not_import_what_stands_on_it() -> None:
    """labkit imports nothing of the course, its applications, tools or tests; `labkit serve` starts the applications."""
    wrong = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in imports(path)
        if imported.split(".")[0] in OUTSIDE and path != MAY_START_SERVERS
    ]
    assert wrong == []
