"""Writes docs/article.md, the map from the article's sections to claims and labs: `make article`; `--check` only reads.

Everything in it comes from data/article.yaml, data/claims.yaml and data/labs.yaml: when one of them
changes, run it again.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import Field

from labkit.errors import LabkitError, UsageError
from labkit.files import Frozen, data_path, read_yaml, root
from labkit.labs import Lab, load_labs
from labkit.records import write_atomic
from labkit.records.ledger import Claim, load_claims

PAGE = root() / "docs" / "article.md"
SETTLED = {
    "measurement": "measuring it",
    "arithmetic": "arithmetic",
    "gpu": "a GPU only",
    "text": "sources only",
}
HEAD = """# From the article to the labs

Which section of the article claims what, and which lab lets you find out. Written by `make article`, never by hand.
The sections are named in our words; where the article says a thing twice, the claim stands under both sections.
"""
NUMBERS = """
A lab **tests** a claim when it records evidence that a rule in [data/claims.yaml](../data/claims.yaml) turns into a
verdict. Of the {claims} claims, {tested} are tested so; for {told} more the ledger points to a lab that speaks of them
(*see also*) and has no rule; {nowhere}. `labkit claims` prints the whole ledger, with your own verdicts once you have
run something.
"""


class Section(Frozen):
    """A section of the article and the claims that it makes, by id."""

    section: str = Field(min_length=1)
    claims: tuple[str, ...] = Field(min_length=1)


def load_sections(path: Path | None = None) -> tuple[Section, ...]:
    """The article's sections in order. UsageError: the file is not such a list."""
    return read_yaml(path or data_path("article.yaml"), tuple[Section, ...])


def tested_in(claim: Claim, labs: Mapping[str, Lab]) -> list[str]:
    """The labs whose evidence a rule turns into this claim's verdict."""
    return [name for name, lab in labs.items() if claim.rule is not None and claim.id in lab.claims]


def told_in(claim: Claim, labs: Mapping[str, Lab]) -> list[str]:
    """The other labs that the ledger names for this claim, those that are still to be written among them."""
    return [name for name in claim.labs if name not in tested_in(claim, labs)]


def page(sections: Iterable[Section], claims: Mapping[str, Claim], labs: Mapping[str, Lab]) -> str:
    """The whole page. UsageError: a section names a claim that the ledger lacks."""
    sections = tuple(sections)
    for each in sections:
        if unknown := [name for name in each.claims if name not in claims]:
            raise UsageError(f"section {each.section!r}: no claim {', '.join(unknown)}", remedy="use the ledger's ids")
    parts = [HEAD, *_sections(sections, claims, labs), NUMBERS.format(**_numbers(claims, labs))]
    return "\n".join([*parts, *_claims(claims, labs)]) + "\n"


def _sections(sections: Iterable[Section], claims: Mapping[str, Claim], labs: Mapping[str, Lab]) -> Iterator[str]:
    yield "| | the article's section | claims | tested in | see also |\n|---|---|---|---|---|"
    for number, each in enumerate(sections, start=1):
        made = [claims[name] for name in each.claims]
        tested = sorted({name for claim in made for name in tested_in(claim, labs)})
        told = sorted({name for claim in made for name in told_in(claim, labs)} - set(tested))
        ids = ", ".join(f"[{name}](#{name.lower()})" for name in each.claims)
        yield f"| {number} | {each.section} | {ids} | {_links(tested, labs)} | {_links(told, labs)} |"


def _claims(claims: Mapping[str, Claim], labs: Mapping[str, Lab]) -> Iterator[str]:
    yield "| claim | in short | its figure | sources say | settled by | tested in | see also |"
    yield "|---|---|---|---|---|---|---|"
    for claim in claims.values():
        cells = (
            f'<a id="{claim.id.lower()}"></a>{claim.id}',
            claim.short,
            claim.article_figure or "",
            claim.literature.verdict,
            SETTLED[claim.settled_by],
            _links(tested_in(claim, labs), labs) or "no lab",
            _links(told_in(claim, labs), labs),
        )
        yield f"| {' | '.join(cells)} |"


def _links(names: Iterable[str], labs: Mapping[str, Lab]) -> str:
    """The labs by number; one that data/labs.yaml lacks is not there yet, and is said to be so."""
    return ", ".join(
        f"[{labs[name].number}](../notebooks/{labs[name].notebook})"
        if name in labs
        else f"{name.partition('_')[0]} (not written yet)"
        for name in names
    )


def _numbers(claims: Mapping[str, Claim], labs: Mapping[str, Lab]) -> dict[str, object]:
    tested = {name for name, claim in claims.items() if tested_in(claim, labs)}
    told = {name for name, claim in claims.items() if set(told_in(claim, labs)) & set(labs)} - tested
    left = [name for name in claims if name not in tested | told]
    nowhere = f"{', '.join(left)} stand in no lab" if left else "every one stands in some lab"
    return {"claims": len(claims), "tested": len(tested), "told": len(told), "nowhere": nowhere}


def current() -> str:
    """The page as the data files stand now."""
    return page(load_sections(), load_claims(), load_labs())


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when the page is not current")
    if parser.parse_args(arguments).check:
        is_current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == current()
        print(f"{PAGE.name} is current" if is_current else f"{PAGE.name} is out of date: make article", file=sys.stderr)
        return 0 if is_current else 1
    write_atomic(PAGE, current())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
