"""Extract the engines that a lab starts, with their arguments, from its notebook, without starting them.

Finds each `LLM(...)` and `serving.start(command)` of a notebook, executes only the assignments, imports and functions
that their arguments need, and records the arguments. Engines that a Ray replica starts are not included.
"""

import ast
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

from labkit.errors import LabError
from labkit.files import notebooks_path
from labkit.labs import Lab, Profile
from labkit.machine import Machine
from labkit.modelled.shapes import model_folder, read_config
from labkit.models import Architecture
from labkit.models.examples import decoder_parameters, example_models
from labkit.runs.plan import read_defaults
from labkit.serving import vllm as serving

Loop = tuple[ast.expr, ast.expr]  # target and iterable


@dataclass(frozen=True, kw_only=True)
class EngineCall:
    """One start of an engine: `LLM(model, **arguments)`, or the command line of `vllm serve`."""

    model: str
    arguments: Mapping[str, Any] | None = None
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, for the record."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class _Site:
    call: ast.Call
    loops: tuple[Loop, ...]
    before: Sequence[ast.stmt]


def engine_calls(lab: Lab, profile: Profile, machine: Machine) -> list[EngineCall]:
    """Return the engines of `lab` with the profile's parameters on `machine`, without duplicates, in notebook order.

    Engines on a modelled card are not included. LabError if an argument depends on a run's results.
    """
    notebook = notebooks_path() / lab.notebook
    parameters = read_defaults(notebook) | profile.parameters(lab)
    calls: list[EngineCall] = []

    def llm(model: str, **arguments: Any) -> MagicMock:
        calls.append(EngineCall(model=model, arguments=arguments))
        return MagicMock()

    def start(command: str, **_: Any) -> MagicMock:
        calls.append(EngineCall(model=command.split()[2], command=command))
        return MagicMock()

    given = {
        **parameters,
        "LLM": llm,
        "serving": SimpleNamespace(settings=serving.settings, start=start, close=lambda _: None),
        "models": SimpleNamespace(resolve=_example, architecture=lambda folder: _architectures()[str(folder)]),
        "lab": SimpleNamespace(machine=machine, out_dir=Path("out")),
    }
    with patch.dict(os.environ):  # undo a cell's changes
        for site in _sites(_statements(notebook)):
            try:
                _evaluate(site, given)
            except Exception as error:
                remedy = "start the engine with arguments that depend only on parameters"
                where = f"{lab.name}: {ast.unparse(site.call)}"
                raise LabError(f"{where} cannot be read: {type(error).__name__}: {error}", remedy=remedy) from error
    return [call for index, call in enumerate(calls) if call not in calls[:index]]


def small_config() -> dict[str, Any]:
    """Return the config of the small GPU model, Qwen2.5-1.5B, with `qkv_bias`, which the model's class adds."""
    return {**read_config(model_folder("qwen2.5-1.5b")), "qkv_bias": True}


def _architectures() -> dict[str, Architecture]:
    known = example_models()
    config = small_config()
    small = Architecture(
        model_type=config["model_type"],
        layers=config["num_hidden_layers"],
        attention_heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        dtype_bytes=2,
        max_positions=config["max_position_embeddings"],
        parameters=decoder_parameters(config),
    )
    return known | {"Qwen2.5-1.5B": small}


def _example(name: str) -> Path:
    """The example model of the same shape: "Qwen2.5-7B" for "Qwen/Qwen2.5-7B-Instruct"."""
    short = name.split("/")[-1].removesuffix("-Instruct").casefold()
    return Path(next(example for example in _architectures() if example.casefold() == short))


def _statements(notebook: Path) -> list[ast.stmt]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return [statement for source in sources for statement in _flat(ast.parse(source).body)]


def _flat(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements, with each `with` replaced by its body."""
    for statement in body:
        if isinstance(statement, ast.With):
            yield from _flat(statement.body)
        else:
            yield statement


def _sites(statements: Sequence[ast.stmt]) -> Iterator[_Site]:
    """Calls that start an engine, also through a notebook's function that passes its arguments on."""
    starters = {"LLM", "serving.start"}
    for index, statement in enumerate(statements):
        for call, loops in _calls(statement, starters, ()):
            needed = _names(call) - _bound(loops)
            if isinstance(statement, ast.FunctionDef) and needed & _parameters(statement):
                starters.add(statement.name)
            else:
                yield _Site(call, loops, statements[: index + 1])


def _calls(node: ast.AST, starters: set[str], loops: tuple[Loop, ...]) -> Iterator[tuple[ast.Call, tuple[Loop, ...]]]:
    """Engine starts below `node`, each with its enclosing loops; `submit(f, x)` counts as `f(x)`."""
    if isinstance(node, ast.For):
        loops = (*loops, (node.target, node.iter))
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        loops = (*loops, *((part.target, part.iter) for part in node.generators))
    elif isinstance(node, ast.Call):
        if ast.unparse(node.func) in starters:
            if not (node.args and ast.unparse(node.args[0]).endswith("gpu.model")):  # modelled
                yield node, loops
        elif node.args and ast.unparse(node.args[0]) in starters:
            yield ast.Call(func=node.args[0], args=node.args[1:], keywords=node.keywords), loops
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, starters, loops)


def _evaluate(site: _Site, given: Mapping[str, Any]) -> None:
    """Execute the statements that the call needs, then the call, for each iteration of its enclosing loops."""
    needed = (_names(site.call) | {name for _, over in site.loops for name in _names(over)}) - _bound(site.loops)
    space = dict(given)
    for statement in _slice(site.before, needed, given.keys()):
        exec(compile(ast.Module([statement], []), "<notebook>", "exec"), space)
        space |= given  # an import may overwrite given names
    for _ in _in_loops(site.loops, space):
        eval(compile(ast.fix_missing_locations(ast.Expression(site.call)), "<notebook>", "eval"), space)


def _slice(before: Sequence[ast.stmt], needed: set[str], given: Set[str]) -> list[ast.stmt]:
    """The statements that bind the needed names, and recursively the names that they need, in order."""
    chosen: list[ast.stmt] = []
    needed = needed - given
    for statement in reversed(before):
        bound = _bound_names(statement)
        if bound & needed:
            chosen.insert(0, statement)
            if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
                needed -= bound
            needed |= _names(statement) - given
    return chosen


def _bound_names(statement: ast.stmt) -> set[str]:
    """Names that a statement binds or mutates; `x.pop(...)` mutates x."""
    match statement:
        case ast.Assign(targets=targets):
            return {name for target in targets for name in _names(target)}
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return _names(target)
        case ast.FunctionDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {name.asname or name.name.partition(".")[0] for name in names}
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="pop" | "update" | "append"))):
            return {name}
    return set()


def _in_loops(loops: tuple[Loop, ...], space: dict[str, Any]) -> Iterator[None]:
    if not loops:
        yield
        return
    (target, over), *inner = loops
    for item in list(eval(compile(ast.Expression(over), "<notebook>", "eval"), space)):
        assign = ast.Assign(targets=[target], value=ast.Name("_item", ast.Load()))
        space["_item"] = item
        exec(compile(ast.fix_missing_locations(ast.Module([assign], [])), "<notebook>", "exec"), space)
        yield from _in_loops(tuple(inner), space)


def _bound(loops: Sequence[Loop]) -> set[str]:
    return {name for target, _ in loops for name in _names(target)}


def _parameters(function: ast.FunctionDef) -> set[str]:
    return {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
