"""A selection in words for a terminal, and as plain data for scripts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labkit.advice.selector.catalogue import Catalogue, catalogue, write_state
from labkit.advice.selector.choose import Flip, Ranked, Reason, Selection, compare_patterns
from labkit.advice.selector.configs import ConfigFile

PROS = 5


def to_json(found: Selection, config: Sequence[ConfigFile], *, model: str | None = None) -> dict[str, Any]:
    """Everything as plain data. Scripts rely on `ranking`, `flips` and `config`."""
    return {
        "recommended": found.winner.name,
        "engine": found.winner.stack.engine,
        "orchestrator": found.winner.stack.orchestrator,
        "margin": found.margin,
        "without_opinions": found.without_opinions,
        "answers": dict(found.answers),
        "state": write_state(found.answers, model),
        "ranking": [one.to_json() for one in found.ranking],
        "flips": [one.to_json() for one in found.flips],
        "warnings": [{"id": one.id, "text": one.text, "claim": one.claim, "lab": one.lab} for one in found.warnings],
        "config": {one.name: one.to_json() for one in config},
        "article": {
            "tree": found.article.framework,
            "question": found.article.question,
            "contained": found.article.in_stack(found.winner.stack),
            "patterns": [one.to_json() for one in compare_patterns()],
        },
        "landscape": [one.model_dump(mode="json") for one in catalogue().landscape],
    }


def grounds(reason: Reason, verdicts: Mapping[str, str] | None = None) -> str:
    """What a reason rests on, in a few words: "measured, C06, lab 03", with this machine's verdict if there is one."""
    cited = f"cited: {reason.source}, read {reason.checked}"
    parts: list[str] = [cited if reason.evidence == "cited" else reason.evidence]
    parts += [reason.claim] if reason.claim else []
    parts += [f"lab {reason.lab[:2]}"] if reason.lab else []
    verdict = (verdicts or {}).get(reason.claim or "")
    return ", ".join(parts) + (f"; here: claim {verdict}" if verdict else "")


def in_words(flip: Flip, *, using: Catalogue | None = None) -> str:
    """The other answer of a flip: "Hardware: several machines"."""
    known = using or catalogue()
    question = known.questions[flip.question]
    return f"{question.label}: {question.options[flip.answer]}"


def by_winner(flips: Iterable[Flip]) -> dict[str, list[Flip]]:
    """Flips by the stack that they bring to the first place."""
    found: dict[str, list[Flip]] = {}
    for one in flips:
        found.setdefault(one.winner, []).append(one)
    return found


def to_text(
    found: Selection,
    config: Sequence[ConfigFile],
    *,
    verdicts: Mapping[str, str] | None = None,
    model: str | None = None,
) -> str:
    """The whole result for a terminal. `verdicts`: of this machine's runs, by claim."""
    winner = found.winner
    parts = [f"{winner.title}\n  engine: {winner.stack.engine}; orchestrator: {winner.stack.orchestrator}"]
    parts += [f"warning: {one.text}" for one in found.warnings]
    parts.append("Ranking\n" + "\n".join(_rank(one) for one in found.ranking))
    parts.append("Why\n" + "\n".join(_line(one, verdicts) for one in winner.pros[:PROS]))
    if winner.cons:
        parts.append("What speaks against it\n" + "\n".join(_line(one, verdicts) for one in winner.cons))
    parts.append("Why not the others\n" + "\n".join(_why_not(one, verdicts) for one in found.ranking[1:]))
    parts.append("What single answer would change it\n" + _flips(found))
    parts.append(_article(found))
    parts += [_config(one) for one in config]
    parts.append(f"The answers, to be given again:\n  labkit select --answers '{write_state(found.answers, model)}'")
    return "\n\n".join(parts)


def _rank(one: Ranked) -> str:
    return f"  {'out' if one.score is None else one.score:>4}  {one.title}"


def _line(one: Reason, verdicts: Mapping[str, str] | None) -> str:
    return f"  {one.points:+d}  {one.text} [{grounds(one, verdicts)}]"


def _why_not(one: Ranked, verdicts: Mapping[str, str] | None) -> str:
    if one.excluded:
        return f"  {one.title}: out. " + " ".join(f"{why.text} [{grounds(why, verdicts)}]" for why in one.excluded)
    ahead = "".join(f"\n    {why.points:+d} for the first one: {why.text}" for why in one.behind)
    return f"  {one.title}:{ahead}"


def _flips(found: Selection) -> str:
    if not found.flips:
        return "  none: the result stands whichever single answer is changed"
    titles = {one.name: one.title for one in found.ranking}
    lines = (
        f"  {titles[winner]}: " + "; ".join(in_words(one) for one in flips)
        for winner, flips in by_winner(found.flips).items()
    )
    return "\n".join(lines)


def _article(found: Selection) -> str:
    contained = found.article.in_stack(found.winner.stack)
    titles = {one.name: one.title for one in found.ranking}
    return (
        f'What the article says: {found.article.framework} ("{found.article.question}"), '
        f"{'which is a layer of this' if contained else 'which is no part of this'}.\n"
        f"With all opinions left out: {titles[found.without_opinions]}."
    )


def _config(one: ConfigFile) -> str:
    settings = "\n".join(f"  # {each.name}: {each.why}" for each in one.settings)
    return f"{one.name}\n" + "".join(f"  {line}\n" for line in one.text.splitlines()) + settings
