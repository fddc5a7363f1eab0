"""An audit for people (lines, HTML), for scripts (JSON), and its suggestion as a file to audit again (YAML)."""

from collections.abc import Sequence
from html import escape
from typing import Any

import yaml

from labkit.advice.fractions.asked import GIB, Deployment, Gpus
from labkit.advice.fractions.audit import Audit, Finding, Replica, Suggestion, gib

HEADS = ("replica", "num_gpus", "GPU", "takes", "finds free", "KV tokens", "start")
CELL = "text-align:left;vertical-align:top;padding:2px 10px 2px 0"
MARKS = {"error": "ERROR", "warning": "WARNING", "note": "note"}


def lines(audit: Audit) -> list[str]:
    """The audit as text: a row for each replica, a line for each GPU, the findings, and numbers that would work."""
    rows = [HEADS, *(_row(each) for each in audit.replicas)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*table, "", *_gpu_lines(audit), "", *map(_finding_line, audit.findings), verdict(audit), *_advice(audit)]


def verdict(audit: Audit) -> str:
    """The audit in one sentence."""
    errors = sum(one.level == "error" for one in audit.findings)
    waiting = sum(not each.gpus for each in audit.replicas)
    starting = sum(each.starts for each in audit.replicas)
    if not errors:
        return f"It fits: all {starting} replicas are placed, start one after the other, and fit at rest."
    return f"It does not fit: of {len(audit.replicas)} replicas {starting} start, {waiting} are not placed."


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit as plain data. Sizes in bytes."""
    return {
        "ok": audit.ok,
        "verdict": verdict(audit),
        "replicas": [_replica_json(each) for each in audit.replicas],
        "gpus": [
            {
                "index": gpu.index,
                "replicas": list(gpu.replicas),
                "num_gpus": round(gpu.fraction, 4),
                "rest_bytes": gpu.rest_bytes,
                "total_bytes": gpu.total_bytes,
                "fits": gpu.fits,
            }
            for gpu in audit.gpus
        ],
        "findings": [vars(one) for one in audit.findings],
        "suggestion": _suggestion_json(audit.suggestion),
    }


def as_yaml(deployments: Sequence[Deployment], gpus: Gpus) -> str:
    """The file that `labkit fractions` reads, for these deployments."""
    content = {"gpu": gpu_entry(gpus), "deployments": [deployment_entry(one) for one in deployments]}
    return str(yaml.safe_dump(content, sort_keys=False))


def as_html(audit: Audit) -> str:
    """The same as `lines`, as tables."""
    head = "".join(f"<th style='{CELL}'>{name}</th>" for name in HEADS)
    body = "".join(f"<tr>{''.join(_td(text) for text in _row(each))}</tr>" for each in audit.replicas)
    gpus = "".join(f"<p style='margin:.2em 0'>{escape(line)}</p>" for line in _gpu_lines(audit))
    found = "".join(
        f"<li><b>{MARKS[one.level]}</b> {escape(one.subject)}: {escape(one.text)}.<br>"
        f"<i>Change:</i> {escape(one.change)}.</li>"
        for one in audit.findings
    )
    advice = "".join(f"<pre style='margin:.3em 0'>{escape(line)}</pre>" for line in _advice(audit))
    return (
        f"<p role='status'><b>{escape(verdict(audit))}</b></p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{gpus}<ul>{found}</ul>{advice}"
    )


def gpu_entry(gpus: Gpus) -> dict[str, Any]:
    """The GPUs as the file has them."""
    return {"memory_gib": _gib(gpus.total_bytes), "count": gpus.count, "used_gib": _gib(gpus.used_bytes)}


def deployment_entry(one: Deployment) -> dict[str, Any]:
    """A deployment as the file has it."""
    known = one.model.architecture is not None
    entry: dict[str, Any] = {
        "name": one.name,
        "model": one.model.name if known else None,
        "weight_gib": None if known else _gib(one.model.weight_bytes),
        "num_gpus": one.num_gpus,
        "engine_share": one.engine_share,
        "replicas": one.replicas if one.replicas > 1 else None,
        "max_model_len": one.max_model_len,
        "max_num_seqs": one.max_num_seqs,
        "other_gib": None if one.other_bytes is None else _gib(one.other_bytes),
    }
    return {key: value for key, value in entry.items() if value is not None}


def _gib(count: int) -> float:
    return round(count / GIB, 6)


def _row(each: Replica) -> tuple[str, ...]:
    tokens = "" if each.kv_tokens is None else f"{each.kv_tokens:,}"
    start = "waits" if not each.gpus else "starts" if each.starts else "refused"
    where = ", ".join(map(str, each.gpus)) or "-"
    free = gib(each.free_bytes) if each.gpus else "-"
    return each.name, f"{each.deployment.num_gpus:g}", where, gib(each.rest_bytes), free, tokens or "-", start


def _gpu_lines(audit: Audit) -> list[str]:
    return [
        f"GPU {gpu.index}: num_gpus {gpu.fraction:.2f}, memory at rest {gib(gpu.rest_bytes)} of {gib(gpu.total_bytes)}"
        f"{'' if gpu.fits else ' - too much'}"
        for gpu in audit.gpus
    ]


def _finding_line(one: Finding) -> str:
    return f"{MARKS[one.level]} {one.subject}: {one.text}\n  change: {one.change}"


def _advice(audit: Audit) -> list[str]:
    found = audit.suggestion
    if found is None:
        return []
    if found.deployments:
        return [
            "Numbers that fit, to be deployed in this order:",
            as_yaml(found.deployments, audit.gpus_asked).rstrip(),
        ]
    if found.impossible:
        return [
            f"No numbers help: {found.impossible}. Take a larger GPU, a shorter max_model_len, or more than one GPU."
        ]
    return [f"No numbers help on {audit.gpus_asked.count} of these GPUs; {found.gpus_needed or 'many more'} would do."]


def _replica_json(each: Replica) -> dict[str, Any]:
    kept = ("name", "rest_bytes", "free_bytes", "kv_bytes", "kv_tokens", "longest_tokens", "at_full_length", "refused")
    found = {key: getattr(each, key) for key in kept}
    asked = {"num_gpus": each.deployment.num_gpus, "engine_share": each.deployment.engine_share}
    return {**found, **asked, "deployment": each.deployment.name, "gpus": list(each.gpus), "starts": each.starts}


def _suggestion_json(found: Suggestion | None) -> dict[str, Any] | None:
    if found is None:
        return None
    entries = [deployment_entry(one) for one in found.deployments]
    return {"deployments": entries, "gpus_needed": found.gpus_needed, "impossible": found.impossible}


def _td(text: str) -> str:
    return f"<td style='{CELL}'>{escape(text)}</td>"
