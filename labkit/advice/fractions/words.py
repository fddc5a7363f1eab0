"""An audit for people (lines, HTML) and for scripts (JSON)."""

from html import escape
from typing import Any

from labkit.advice.fractions.audit import Audit
from labkit.advice.fractions.deployments import as_entry, as_yaml
from labkit.advice.fractions.findings import gib
from labkit.advice.fractions.replicas import Replica

HEADS = ("replica", "num_gpus", "GPU", "takes", "finds free", "KV tokens", "start")
CELL = "text-align:left;vertical-align:top;padding:2px 10px 2px 0"
MARKS = {"error": "ERROR", "warning": "WARNING", "note": "note"}


def lines(audit: Audit) -> list[str]:
    """The audit as text: a row for each replica, a line for each GPU, the findings, and numbers that would work."""
    rows = [HEADS, *map(_row, audit.replicas)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    findings = [
        f"{MARKS[finding.level]} {finding.subject}: {finding.text}\n  change: {finding.change}"
        for finding in audit.findings
    ]
    return [*table, "", *_gpu_lines(audit), "", *findings, in_a_sentence(audit), *_advice(audit)]


def in_a_sentence(audit: Audit) -> str:
    """Whether it fits, and what does not."""
    starting = sum(replica.starts for replica in audit.replicas)
    waiting = sum(not replica.gpus for replica in audit.replicas)
    if audit.ok:
        return f"It fits: all {starting} replicas are placed, start one after the other, and fit at rest."
    return f"It does not fit: of {len(audit.replicas)} replicas {starting} start, {waiting} are not placed."


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit as plain data. Sizes in bytes."""
    suggestion = audit.suggestion
    return {
        "ok": audit.ok,
        "verdict": in_a_sentence(audit),
        "replicas": [
            {
                **replica.model_dump(mode="json", exclude={"deployment"}),
                "deployment": replica.deployment.name,
                "num_gpus": replica.deployment.num_gpus,
                "engine_share": replica.deployment.engine_share,
                "starts": replica.starts,
            }
            for replica in audit.replicas
        ],
        "gpus": [
            {**gpu.model_dump(mode="json"), "num_gpus": round(gpu.num_gpus, 4), "fits": gpu.fits} for gpu in audit.gpus
        ],
        "findings": [finding._asdict() for finding in audit.findings],
        "suggestion": suggestion
        and {**suggestion.model_dump(), "deployments": [as_entry(entry) for entry in suggestion.deployments]},
    }


def as_html(audit: Audit) -> str:
    """The same as `lines`, as tables."""
    head = "".join(f"<th style='{CELL}'>{name}</th>" for name in HEADS)
    rows = ("".join(f"<td style='{CELL}'>{escape(text)}</td>" for text in _row(replica)) for replica in audit.replicas)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    gpus = "".join(f"<p style='margin:.2em 0'>{escape(line)}</p>" for line in _gpu_lines(audit))
    findings = "".join(
        f"<li><b>{MARKS[finding.level]}</b> {escape(finding.subject)}: {escape(finding.text)}.<br>"
        f"<i>Change:</i> {escape(finding.change)}.</li>"
        for finding in audit.findings
    )
    advice = "".join(f"<pre style='margin:.3em 0'>{escape(line)}</pre>" for line in _advice(audit))
    return (
        f"<p role='status'><b>{escape(in_a_sentence(audit))}</b></p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{gpus}<ul>{findings}</ul>{advice}"
    )


def _row(replica: Replica) -> tuple[str, ...]:
    tokens = "-" if replica.kv_tokens is None else f"{replica.kv_tokens:,}"
    start = "waits" if not replica.gpus else "starts" if replica.starts else "refused"
    where = ", ".join(map(str, replica.gpus)) or "-"
    free = gib(replica.free_bytes) if replica.gpus else "-"
    return replica.name, f"{replica.deployment.num_gpus:g}", where, gib(replica.rest_bytes), free, tokens, start


def _gpu_lines(audit: Audit) -> list[str]:
    return [
        f"GPU {gpu.index}: num_gpus {gpu.num_gpus:.2f}, memory at rest {gib(gpu.rest_bytes)} of {gib(gpu.total_bytes)}"
        f"{'' if gpu.fits else ' - too much'}"
        for gpu in audit.gpus
    ]


def _advice(audit: Audit) -> list[str]:
    suggestion = audit.suggestion
    if suggestion is None:
        return []
    if suggestion.deployments:
        numbers = as_yaml(suggestion.deployments, audit.gpus_asked).rstrip()
        return ["Numbers that fit, to be deployed in this order:", numbers]
    if suggestion.impossible:
        ways_out = "Take a larger GPU, a shorter max_model_len, or more than one GPU."
        return [f"No numbers help: {suggestion.impossible}. {ways_out}"]
    needed = suggestion.gpus_needed or "many more"
    return [f"No numbers help on {audit.gpus_asked.count} of these GPUs; {needed} would do."]
