"""Format an audit as text, HTML and JSON."""

from html import escape
from typing import Any

from labkit.advice.fractions.audit import Audit
from labkit.advice.fractions.deployments import as_entry, as_yaml
from labkit.advice.fractions.findings import gib
from labkit.advice.fractions.replicas import Replica

HEADS = ("replica", "num_gpus", "GPU", "takes", "finds free", "KV tokens", "start")
CELL = "text-align:left;vertical-align:top;padding:2px 10px 2px 0"
MARKS = {"error": "ERROR", "unknown": "UNKNOWN", "warning": "WARNING", "note": "note"}


def lines(audit: Audit, *, suggest: bool = True) -> list[str]:
    """Return the audit as text: a row for each replica, a line for each GPU, the findings, and with `suggest` numbers
    that fit."""
    rows = [HEADS, *map(_row, audit.replicas)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    findings = [
        f"{MARKS[finding.level]} {finding.subject}: {finding.text}\n  change: {finding.change}"
        for finding in audit.findings
    ]
    return [*table, "", *_gpu_lines(audit), "", *findings, verdict(audit), *(_advice(audit) if suggest else ())]


def verdict(audit: Audit) -> str:
    """Return a sentence: whether the deployments fit, and what does not."""
    starting = sum(replica.starts for replica in audit.replicas)
    waiting = sum(not replica.gpus for replica in audit.replicas)
    all_start = starting == len(audit.replicas)
    if audit.ok:
        return f"It fits: all {starting} replicas are placed, start one after the other, and fit at rest."
    if audit.fails and audit.waits_if_packed and all_start:
        waiting = len(audit.waits_if_packed)
        return f"It fits only if Ray spreads replicas over the nodes: packed, {waiting} of {len(audit.replicas)} wait."
    if not audit.fails:
        unknown = sum(finding.level == "unknown" for finding in audit.findings)
        return f"Undecided: Ray places all {starting} replicas, but {unknown} findings are unknown (UNKNOWN)."
    unplaced = f"; not placed: {waiting}" if waiting else ""
    return f"It does not fit: {starting} of {len(audit.replicas)} replicas start{unplaced}."


def as_json(audit: Audit) -> dict[str, Any]:
    """Return the audit as plain data, sizes in bytes."""
    suggestion = audit.suggestion
    return {
        "ok": audit.ok,
        "verdict": verdict(audit),
        "waits_if_packed": list(audit.waits_if_packed),
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
    """Return the content of `lines` as HTML."""
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
        f"<p role='status'><b>{escape(verdict(audit))}</b></p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{gpus}<ul>{findings}</ul>{advice}"
    )


def _row(replica: Replica) -> tuple[str, ...]:
    tokens = "-" if replica.kv_tokens is None else f"{replica.kv_tokens:,}"
    start = "waits" if not replica.gpus else "starts" if replica.starts else "refused"
    gpus = ", ".join(map(str, replica.gpus)) or "-"
    free = gib(replica.free_bytes) if replica.gpus else "-"
    takes = "?" if replica.rest_bytes is None else gib(replica.rest_bytes)
    return replica.name, replica.deployment.asks, gpus, takes, free, tokens, start


def _gpu_lines(audit: Audit) -> list[str]:
    several = len(audit.gpus_asked.gpus_per_node) > 1
    return [
        f"GPU {gpu.index}{f' (node {gpu.node})' if several else ''}: num_gpus {gpu.num_gpus:.2f}, memory at rest "
        f"{gib(gpu.rest_bytes)} of {gib(gpu.total_bytes)}{f' and {len(gpu.unknown)} unknown' if gpu.unknown else ''}"
        f"{'' if gpu.fits else ' - too much'}"
        for gpu in audit.gpus
    ]


def _advice(audit: Audit) -> list[str]:
    suggestion, cluster = audit.suggestion, audit.gpus_asked
    if any(deployment.unknown for deployment in audit.deployments):
        return ["As a file, to add the missing weight_gib:", as_yaml(audit.deployments, cluster).rstrip()]
    if suggestion is None:
        return []
    if suggestion.deployments:
        return ["Numbers that fit, to deploy in this order:", as_yaml(suggestion.deployments, cluster).rstrip()]
    if suggestion.impossible:
        remedies = "Use a larger GPU, a shorter max_model_len, or more than one GPU."
        return [f"No numbers help: {suggestion.impossible}. {remedies}"]
    nothing = f"No numbers were found for {len(cluster.cards)} of these GPUs"
    if suggestion.gpus_needed:
        return [f"{nothing}; {suggestion.gpus_needed} would be enough."]
    limits = "max_replicas_per_node and a STRICT strategy limit a node; accelerator_type excludes small cards"
    return [f"{nothing}: {limits}."]
