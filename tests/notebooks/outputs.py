"""Holds what an executed notebook shows to what is stored, in all cells but those that are tagged `timed`.

Left out is what differs from run to run in any cell: execution counts, ids of widgets, the bytes of pictures, folders
of records, the machine's line, and what libraries and threads say on stderr.
"""

import json
import re
from collections.abc import Iterator
from itertools import groupby, takewhile
from typing import Any

from tools import notebooks as tool

# What may differ from machine to machine, for nbval too: its line with model and engine, the folder of the records,
# what the nearest recorded run found (its row in a reveal, which is not there where it has no such figure).
RULES = {
    "machine": (
        r"\d+ CPUs? \((?:[^()]|\([^()]*\))*\), \d+ GiB, (?:no GPU|\d+ x [^(]*\(\d+ GiB\))"
        r"(?: · (?!vllm |ray |torchserve )[\w./:+-]+)?(?: · (?:vllm|ray|torchserve) [\w.+-]+)?",
        "MACHINE",
    ),
    "records": (
        r'[^\s>"]*/(?:notebook/\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:-\d+)?|[^\s/>"]+(?=/\d\d[a-z]?_\w+\.json))',
        "RECORDS",
    ),
    "recorded": (r'recorded: [^"<\n]*', "RECORDED"),
    "recorded row": (r"<tr><th [^>]*>Recorded</th>.*?</tr>|\nRecorded  [^\n]*", ""),
}
CHART = "application/vnd.vegalite.v5+json"
NOT_COMPARED = {"application/vnd.jupyter.widget-view+json", "image/png", "image/jpeg"}
DIGITS = 6  # of a chart's numbers: mathematical functions differ in the last bits from processor to processor
AROUND = 60  # characters of context where two texts begin to differ


def for_nbval() -> str:
    """The rules in the form of nbval's --nbval-sanitize-with."""
    return "\n".join(f"[{name}]\nregex: {regex}\nreplace: {to}\n" for name, (regex, to) in RULES.items())


def sanitised(text: str) -> str:
    """The text without what may differ from machine to machine."""
    for regex, to in RULES.values():
        text = re.sub(regex, to, text)
    return text


def held(stored: Any) -> list[tuple[int, Any]]:
    """The code cells of a stored notebook whose outputs have to come out again, with their numbers."""
    return [(number, cell) for number, cell in _cells(stored) if tool.TIMED not in tool.tags(cell)]


def differences(lab: str, stored: Any, executed: Any) -> Iterator[str]:
    """What an executed notebook shows otherwise than the stored one, whose cells it has in the same order."""
    there, here = _cells(stored), [cell for _, cell in _cells(executed)]
    alike = list(takewhile(lambda pair: pair[0][1].source == pair[1].source, zip(there, here, strict=False)))
    if not len(alike) == len(there) == len(here):
        yield f"{lab}: of its code cells only the first {len(alike)} are those of the stored notebook"
        return
    for (number, cell), other in alike:
        before, now = shown(cell), shown(other)
        if tool.TIMED not in tool.tags(cell) and before != now:
            yield f"{lab}, cell {number} ({cell.source.splitlines()[0]}): {_first_difference(before, now)}"


def shown(cell: Any) -> str:
    """All that a cell shows, as one text that a second run repeats."""
    kinds = groupby(_pieces(cell.outputs), key=lambda piece: piece[0])
    return sanitised("\n".join(f"{kind}: {''.join(text for _, text in pieces)}" for kind, pieces in kinds))


def _cells(notebook: Any) -> list[tuple[int, Any]]:
    """The code cells with their numbers, without parameters: a run has its own."""
    given = {"parameters", "injected-parameters"}
    code = [(number, cell) for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    return [(number, cell) for number, cell in code if cell.source.strip() and not given & set(tool.tags(cell))]


def _pieces(outputs: list[Any]) -> Iterator[tuple[str, str]]:
    """(kind, text) of each thing shown. The kernel cuts a stream where it likes: pieces of one kind belong together."""
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stdout":
                yield "stdout", output.text
        elif output.output_type == "error":
            yield "error", f"{output.ename}: {output.evalue}"
        else:
            for kind in sorted(set(output.data) - NOT_COMPARED):
                yield kind, _chart(output.data[kind]) if kind == CHART else str(output.data[kind])


def _chart(spec: Any) -> str:
    return json.dumps(_rounded(spec), sort_keys=True, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _first_difference(before: str, now: str) -> str:
    parted = (place for place, (one, other) in enumerate(zip(before, now, strict=False)) if one != other)
    place = next(parted, min(len(before), len(now)))
    there, here = (text[max(0, place - AROUND) : place + AROUND] for text in (before, now))
    return f"from character {place} on\n  stored: {there!r}\n  now:    {here!r}"
