"""What every command prints: lines on stderr, and on stdout one JSON object or words."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def say(text: str) -> None:
    """One line on stderr."""
    typer.echo(text, err=True)


def answer(as_json: bool, value: Callable[[], dict[str, Any]], show: Callable[[], object]) -> None:
    """`value` as the one object on stdout (ValueError for NaN and infinity, which JSON lacks), or `show` it."""
    if as_json:
        typer.echo(json.dumps(value(), indent=2, allow_nan=False))
    else:
        show()
