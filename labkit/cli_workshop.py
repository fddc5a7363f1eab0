"""The commands for whoever teaches: how far learners are, the solutions, and whether a room's machines are ready."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli_output import Json, print_json, say
from labkit.errors import UsageError


def progress(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One folder of records for each learner.")],
    as_json: Json = False,
) -> None:
    """Where each learner of a workshop is."""
    from labkit.workshop import learners

    names = learners.names_of(folders)
    found = [learners.read_learner(folder, name=name) for folder, name in zip(folders, names, strict=True)]
    hurdles = learners.hurdles(found)
    if as_json:
        print_json({"learners": [one.to_json() for one in found], "exercises": [one.to_json() for one in hurdles]})
    else:
        from labkit.workshop.shown import show_learners

        show_learners(found, hurdles)


def solutions(
    labs: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """The exercises' solutions, as Markdown."""
    from labkit.workshop import solutions as solved

    found = solved.solutions(labs or ())
    if as_json:
        print_json(solved.to_json(found))
    else:
        typer.echo(solved.to_markdown(found), nl=False)


def workshop_check(
    labs: Annotated[list[str] | None, typer.Option("--lab", metavar="LAB", help="Only for these labs.")] = None,
    answer: Annotated[bool, typer.Option("--answer", help="Also get a first answer from an engine.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write DIR/<host name>.json.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="DIR", help="Instead: sum up the files in DIR.")] = None,
    as_json: Json = False,
) -> None:
    """Is this machine, or this room, ready?

    Exit 0: no problem anywhere; else 1."""
    from labkit.workshop import readiness, room, shown

    if summary is not None:
        if labs or answer or save:
            raise UsageError("--summary looks at no machine", remedy="leave --lab, --answer and --save out")
        whole = room.read_room(summary)
        print_json(whole.to_json()) if as_json else shown.show_room(whole)
        ready = whole.ok
    else:
        found = readiness.check_room(labs=labs, answer=_first_answer if answer else None)
        if save is not None:
            say(f"written: {room.write_check(found, save)}")
        print_json(found.to_json()) if as_json else shown.show_check(found)
        ready = found.ok
    if not ready:
        raise typer.Exit(1)


def _first_answer() -> str:
    from labkit.progress import now_and_then
    from labkit.workshop.answer import first_answer

    return first_answer(now_and_then(say))
