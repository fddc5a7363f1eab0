"""The output of every command: progress on stderr, and one JSON object or text on stdout."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def say(text: str) -> None:
    """Print a line on stderr."""
    typer.echo(text, err=True)


def answer(as_json: bool, value: Callable[[], dict[str, Any]], show: Callable[[], object]) -> None:
    """Print `value` as one JSON object on stdout (ValueError: NaN or infinity), or call `show`."""
    if as_json:
        typer.echo(json.dumps(value(), indent=2, allow_nan=False))
    else:
        show()
