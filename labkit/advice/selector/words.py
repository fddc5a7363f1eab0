"""Format a selection as text for a terminal and as plain data for scripts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labkit.advice.selector.answers import write_state
from labkit.advice.selector.catalogue import Neighbour, catalogue
from labkit.advice.selector.choose import Flip, Ranked, Reason, Selection, compare_patterns
from labkit.advice.selector.configs import ConfigFile, proof
from labkit.advice.selector.fit import cards_needed, in_words

PROS = 5
Verdicts = Mapping[str, str]
"""The verdicts of this machine's runs, by claim."""


def to_json(selection: Selection, config: Sequence[ConfigFile], *, model: str | None = None) -> dict[str, Any]:
    """Return everything as plain data. Scripts rely on `ranking`, `flips`, `config` and `landscape`.

    In `landscape`, `why` is the reason why a neighbour is worth a look for these answers, or null.
    """
    stack, article = selection.winner.stack, selection.article
    suggested = {project.name: why for project, why in selection.neighbours}
    return {
        "recommended": selection.winner.name,
        "engine": stack.engine,
        "orchestrator": stack.orchestrator,
        "margin": selection.margin,
        "cards_per_replica": cards_needed(selection.answers),
        "without_opinions": selection.without_opinions,
        "answers": dict(selection.answers),
        "state": write_state(selection.answers, model),
        "ranking": [ranked.to_json() for ranked in selection.ranking],
        "flips": [flip.model_dump() for flip in selection.flips],
        "warnings": [warning.model_dump(include={"id", "text", "claim", "lab"}) for warning in selection.warnings],
        "config": {file.name: file.model_dump() for file in config},
        "config_proof": proof(selection.winner.name),
        "article": {
            "tree": article.framework,
            "question": article.question,
            "contained": article.in_stack(stack),
            "patterns": [row.to_json() for row in compare_patterns()],
        },
        "landscape": [
            {**project.model_dump(mode="json", exclude={"here"}), "why": suggested.get(project.name)}
            for project in catalogue().landscape
        ],
    }


def grounds(reason: Reason, verdicts: Verdicts | None = None) -> str:
    """Describe the evidence for a reason: "measured, C06, lab 03", with this machine's verdict if there is one."""
    cited = reason.evidence == "cited"
    parts = [f"cited: {reason.source}, read {reason.checked}" if cited else str(reason.evidence)]
    parts += [reason.claim] if reason.claim else []
    parts += [f"lab {reason.lab.partition('_')[0]}"] if reason.lab else []
    verdict = (verdicts or {}).get(reason.claim or "")
    return ", ".join(parts) + (f"; here: claim {verdict}" if verdict else "")


def by_winner(flips: Iterable[Flip]) -> dict[str, list[Flip]]:
    """Group flips by the stack that they bring to the first place."""
    grouped: dict[str, list[Flip]] = {}
    for flip in flips:
        grouped.setdefault(flip.winner, []).append(flip)
    return grouped


def to_text(
    selection: Selection,
    config: Sequence[ConfigFile],
    *,
    verdicts: Verdicts | None = None,
    model: str | None = None,
) -> str:
    """Format the whole result for a terminal."""
    winner, others = selection.winner, selection.ranking[1:]
    layers = f"  engine: {winner.stack.engine}; orchestrator: {winner.stack.orchestrator}"
    ranking = (
        f"  {'out' if ranked.score is None else ranked.score:>4}  {ranked.title}" for ranked in selection.ranking
    )
    parts = [_section(winner.title, filter(None, (layers, in_words(selection.answers))))]
    parts += [f"warning: {warning.text}" for warning in selection.warnings]
    parts.append(_section("Ranking", ranking))
    parts.append(_section("Why", (_line(reason, verdicts) for reason in winner.pros[:PROS])))
    if winner.cons:
        parts.append(_section("What speaks against it", (_line(reason, verdicts) for reason in winner.cons)))
    parts.append(_section("Why not the others", (_why_not(ranked, verdicts) for ranked in others)))
    if selection.neighbours:
        heading = "Look at these too (that they suit is our judgement)"
        parts.append(_section(heading, (_neighbour(*pair) for pair in selection.neighbours)))
    parts.append(_section("Single answers that would change it", _flips(selection)))
    parts.append(_article(selection))
    parts += [proof(winner.name), *(_config(file) for file in config)]
    parts.append(f"To repeat these answers:\n  labkit select --answers '{write_state(selection.answers, model)}'")
    return "\n\n".join(parts)


def _section(heading: str, lines: Iterable[str]) -> str:
    return "\n".join((heading, *lines))


def _line(reason: Reason, verdicts: Verdicts | None) -> str:
    return f"  {reason.points:+d}  {reason.text} [{grounds(reason, verdicts)}]"


def _why_not(ranked: Ranked, verdicts: Verdicts | None) -> str:
    if ranked.excluded:
        reasons = " ".join(f"{reason.text} [{grounds(reason, verdicts)}]" for reason in ranked.excluded)
        return f"  {ranked.title}: out. {reasons}"
    ahead = "".join(f"\n    {reason.points:+d} for the first one: {reason.text}" for reason in ranked.behind)
    return f"  {ranked.title}:{ahead}"


def _neighbour(project: Neighbour, why: str) -> str:
    return f"  {project.name}: {why}\n    {project.line} [{project.status}; {project.source}, read {project.checked}]"


def _flips(selection: Selection) -> Iterable[str]:
    known = catalogue()
    for winner, flips in by_winner(selection.flips).items():
        questions = ((known.questions[flip.question], flip.answer) for flip in flips)
        answers = "; ".join(f"{question.label}: {question.options[answer]}" for question, answer in questions)
        yield f"  {known.stacks[winner].title}: {answers}"
    if not selection.flips:
        yield "  none"


def _article(selection: Selection) -> str:
    contained = selection.article.in_stack(selection.winner.stack)
    return (
        f'What the article says: {selection.article.framework} ("{selection.article.question}"), '
        f"{'which is part of this' if contained else 'which is not part of this'}.\n"
        f"Without opinions: {catalogue().stacks[selection.without_opinions].title}."
    )


def _config(file: ConfigFile) -> str:
    text = "".join(f"  {line}\n" for line in file.text.splitlines())
    settings = "\n".join(f"  # {setting.name}: {setting.why}" for setting in file.settings)
    return f"{file.name}\n{text}{settings}"
