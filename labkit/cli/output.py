"""What every command prints: one line on stderr, one JSON object on stdout."""

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def say(text: str) -> None:
    """One line on stderr."""
    typer.echo(text, err=True)


def print_json(value: dict[str, Any]) -> None:
    """The one object on stdout. ValueError for NaN and infinity, which JSON does not know."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
