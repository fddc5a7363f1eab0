"""Deployments from public reports and Ray's documentation, each with its right answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.advice import fractions as auditor

CASES = Path(__file__).parent.parent / "data" / "cases" / "fractions"
L4, A10 = {"memory_gib": 22.5, "count": 4}, {"memory_gib": 24.0, "count": 4}
# File: (source, GPUs if the file has none, right answer). `gpus`: of each replica; `kv`: tokens of each replica.
RIGHT: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "ray_docs_smolvlm_8_on_4_l4": ("docs.ray.io, fractional GPUs", {}, {"gpus": [0, 0, 1, 1, 2, 2, 3, 3]}),
    "ray_62553_two_halves_h100": ("ray#62553", {}, {"gpus": [0, 0]}),
    "ray_62553_util_0_6": ("ray#62553", {}, {"starts": 1, "says": ["less memory is free", "engine_share: 0.48"]}),
    "ray_23492_six_times_0_6": ("ray#23492", {}, {"waits": 2, "suggests": {"ml_model": 0.5}}),
    "vllm_4242_two_tinyllama": ("vllm#4242", {}, {"gpus": [0, 0]}),
    "ray_41432_two_diffusers_3090": ("ray#41432", {}, {"starts": 1, "says": ["out of memory"], "needs": 2}),
    "vllm_14109_bnb_0_6": ("vllm#14109", {}, {"gpus": [0]}),
    "ray_20933_two_nodes_of_8": (
        "ray#20933; by Serve's default (SPREAD) all find room",
        {},
        {"ok": False, "starts": 10, "packed": 2, "says": ["sum of what its GPUs have"], "suggests": {"actor": 1.0}},
    ),
    "ray_20933_packed": (
        "ray#20933",
        {},
        {"waits": 2, "says": ["Ray chose node 0 for them, where 3.20 GPUs are left"], "suggests": {"actor": 1.0}},
    ),
    "ray_52133_80_times_0_18": ("ray#52133: 0.2 passes", {}, {"waits": 4, "suggests": {"noop": 0.2}}),
    "vllm_1821_tp2_fraction": ("vllm#1821: a part of each of two GPUs", {}, {"gpus": [(0, 1)]}),
    "ray_58949_tp2_two_small_bundles": (
        "ray#58949: Ray's best fit puts both bundles on one GPU",
        {},
        {"starts": 0, "says": ["NCCL refuses two ranks", "num_gpus above 0.5"]},
    ),
    "unequal_cards": ("hand: 0.9 of 24 GiB is less than the weights", {}, {"starts": 1, "says": ["on GPU 0"]}),
    "llm_app_cross_node_tp16": ("docs.ray.io, cross-node parallelism", {}, {"gpus": [tuple(range(16))]}),
    "actor_of_16_over_two_nodes": ("an actor is on one node", {}, {"waits": 1, "says": ["tensor_parallel: 16"]}),
    "deepseek_on_8_h200": (
        "hand: (0.9 x 139.7 - 80 - 3) GiB / 70,272 bytes, the same on each rank",
        {},
        {"gpus": [tuple(range(8))], "kv": [652_896]},
    ),
    "falcon7b_on_a10": ("hand: (0.9 x 22 - 13.4 - 3) GiB / 8,192 bytes", {}, {"gpus": [0], "kv": [445_632]}),
    "ray_serve_config_as_is": (
        "ray: serve build",
        A10,
        {"ok": False, "gpus": [0, 0, 1, 1, 2, 2], "unknown": ["Translator", "Summarizer"]},
    ),
    "rayservice_two_workers": (
        "KubeRay; the nodes are its worker groups",
        {"memory_gib": 24.0},
        {"ok": False, "gpus": [0, 1], "unknown": ["Translator", "the file"], "says": ["Unsaid has no ray_actor"]},
    ),
    "serve_llm_docs_fractional": ("docs.ray.io, as a config", L4, {"gpus": [0, 0, 1, 1, 2, 2, 3, 3]}),
    "serve_llm_hub_id": ("ray.serve.llm", L4, {"ok": False, "gpus": [(0, 1)], "unknown": ["qwen"]}),
}


def test_every_case_has_its_right_answer() -> None:
    """Places, starts, KV tokens, findings and suggestions are right; `ok` only if all fits and nothing is unknown."""
    assert {path.stem for path in CASES.glob("*.yaml")} == set(RIGHT)
    offenders = []
    for name, (_, gpus, right) in RIGHT.items():
        audit = auditor.audit(*auditor.read(CASES / f"{name}.yaml", gpu=gpus))
        answer = {key: value for key, value in _answer(audit).items() if key in right}
        expected = {"ok": not {"starts", "waits"} & set(right), **right}
        text = "\n".join(auditor.lines(audit))
        missing = [words for words in expected.pop("says", []) if words not in text]
        if missing or {**answer, "ok": audit.ok} != expected:
            offenders.append((name, missing, answer, audit.ok))
    assert offenders == []


def _answer(audit: auditor.Audit) -> dict[str, Any]:
    suggestion = audit.suggestion
    return {
        "gpus": [replica.gpus[0] if len(replica.gpus) == 1 else replica.gpus for replica in audit.replicas],
        "starts": sum(replica.starts for replica in audit.replicas),
        "waits": sum(not replica.gpus for replica in audit.replicas),
        "packed": len(audit.waits_if_packed),
        "kv": [replica.kv_tokens for replica in audit.replicas],
        "unknown": [finding.subject for finding in audit.findings if finding.level == "unknown"],
        "suggests": suggestion and {entry.name: entry.part for entry in suggestion.deployments},
        "needs": suggestion and suggestion.gpus_needed,
    }
