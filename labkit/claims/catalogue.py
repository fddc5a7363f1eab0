"""The claims of data/claims.yaml, validated."""

from collections.abc import Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from labkit.claims.rules import Frozen, Rule
from labkit.errors import UsageError
from labkit.paths import data_path
from labkit.records.files import first_errors

FILE = "claims.yaml"

Section = Literal["performance", "configuration", "api", "status", "prices"]
Kind = Literal["performance", "default", "api", "status", "price", "arithmetic", "advice"]
LiteratureVerdict = Literal["true", "outdated", "wrong", "depends", "unsourced"]
SettledBy = Literal["measurement", "text", "gpu", "arithmetic"]


class Literature(Frozen):
    """What sources say of a claim, with versions and names, as checked on a day."""

    verdict: LiteratureVerdict
    evidence: str = Field(min_length=1)
    checked: date


class Claim(Frozen):
    """One claim of the article in our words. `labs`: where it is tested, first the lab that settles it."""

    id: str = Field(pattern=r"^C\d{2}$")
    section: Section
    short: str = Field(min_length=1)
    article_figure: str | None
    kind: Kind
    literature: Literature
    settled_by: SettledBy
    labs: tuple[str, ...]
    rule: Rule | None


def load_claims(path: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the file's order; of the course's own file when no path is given.

    Raises:
        UsageError: a file that cannot be read, or an entry that is not valid: the message names the claim and the key.
    """
    return dict(_load(path or data_path(FILE)))


@cache
def _load(path: Path) -> dict[str, Claim]:
    claims: dict[str, Claim] = {}
    for claim in map(_claim, _entries(path)):
        if claim.id in claims:
            raise UsageError(f"{path.name}: claim {claim.id} stands there twice", remedy="remove or renumber one")
        claims[claim.id] = claim
    return claims


def _entries(path: Path) -> Iterator[Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="restore it from the repository") from error
    entries = tree.get("claims") if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        raise UsageError(f"{path} has no list under `claims`", remedy="restore it from the repository")
    yield from entries


def _claim(entry: Any) -> Claim:
    try:
        return Claim.model_validate(entry)
    except ValidationError as error:
        name = entry.get("id", "without an id") if isinstance(entry, dict) else repr(entry)
        raise UsageError(f"{FILE}: claim {name}: {first_errors(error)}", remedy="correct that entry") from error


def find_claim(claim_id: str) -> Claim:
    """The claim with this id. UsageError for an unknown one."""
    claims = load_claims()
    if claim_id not in claims:
        known = f"{min(claims)} to {max(claims)}"
        raise UsageError(f"there is no claim {claim_id!r}", remedy=f"use {known}: `labkit claims` lists them")
    return claims[claim_id]
