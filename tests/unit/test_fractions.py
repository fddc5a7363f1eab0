"""The fraction auditor: placement, starts, memory at rest, and suggestions that fit."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.advice import fractions as auditor
from labkit.advice.fractions import Cluster, Deployment, Gpus
from tests.unit.command import Labkit
from tests.unit.refusals import not_refused
from tests.unit.synthetic import GIB
from tests.unit.test_cli import CONFIG

quick = settings(max_examples=120)
EXAMPLE = """
gpu: {memory_gib: 80, count: 1}
deployments:
- {name: chat, model: Qwen2.5-7B, num_gpus: 0.5, engine_share: 0.92, max_model_len: 8192, max_num_seqs: 64}
- {name: code, model: Qwen2.5-7B, num_gpus: 0.5, engine_share: 0.92, max_model_len: 8192}
"""


def question(text: str = EXAMPLE, **gpu: float) -> tuple[list[Deployment], Cluster]:
    return auditor.parse(yaml.safe_load(text), gpu=gpu)


def audited(text: str = EXAMPLE, **gpu: float) -> auditor.Audit:
    return auditor.audit(*question(text, **gpu))


def single(**keys: Any) -> str:
    """Return a file with a single deployment on a GPU of 80 GiB."""
    entry = {"name": "chat", "model": "Qwen2.5-7B", "num_gpus": 0.5, "engine_share": 0.45, "max_model_len": 4096}
    entry = {key: value for key, value in {**entry, **keys}.items() if value is not None}
    return yaml.safe_dump({"gpu": {"memory_gib": 80}, "deployments": [entry]})


engines = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["SmolLM2-135M", "Qwen2.5-7B", "Llama-3.1-8B"]),
        "weight_gib": st.sampled_from([None, 7.5]),
        "num_gpus": st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 1, 2]),
        "engine_share": st.sampled_from([0.2, 0.3, 0.45, 0.92]),
        "max_model_len": st.sampled_from([512, 4096, 8192]),
        "replicas": st.integers(1, 3),
    }
)
plain = st.fixed_dictionaries(
    {"weight_gib": st.sampled_from([0.1, 2, 10]), "num_gpus": st.sampled_from([0.05, 0.25, 1]), "replicas": st.just(1)}
)
contents = st.builds(
    lambda entries, memory, count, used: {
        "gpu": {"memory_gib": memory, "count": count, "used_gib": used},
        "deployments": [{"name": f"d{n}", **entry} for n, entry in enumerate(entries)],
    },
    st.lists(st.one_of(engines, plain), min_size=1, max_size=4),
    st.sampled_from([16, 24, 40, 80, 141.5]),
    st.integers(1, 4),
    st.sampled_from([0, 0.7, 6]),
)

split = st.fixed_dictionaries(
    {},
    optional={
        "num_gpus": st.sampled_from([[0.45, 0.45], [0.6, 0.6], [1, 1]]),
        "strategy": st.sampled_from(["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"]),
        "max_replicas_per_node": st.integers(1, 2),
    },
)
rows = st.fixed_dictionaries(
    {
        "memory_gib": st.sampled_from([16, 80, [24, 48], [80, 16]]),
        "nodes": st.integers(1, 3),
        "used_gib": st.sampled_from([0, 0.7]),
    }
)
clusters = st.builds(
    lambda entries, row, scheduling: {
        "gpu": row,
        "scheduling": scheduling,
        "deployments": [{"name": f"d{n}", **entry, **more} for n, (entry, more) in enumerate(entries)],
    },
    st.lists(st.tuples(st.one_of(engines, plain), split), min_size=1, max_size=3),
    st.lists(rows, min_size=1, max_size=2),
    st.sampled_from([None, "spread", "pack"]),
)


# --- properties


@quick
@given(st.one_of(contents, clusters))
def test_no_gpu_is_overcommitted_and_suggestions_pass_the_audit(content: dict[str, Any]) -> None:
    """Fractions on a GPU add up to at most one, replicas that start fit into its memory, and ok means that all fit.

    Suggested numbers pass the audit without a mismatch, or more GPUs are suggested, or a reason is given. The exported
    file has the same audit."""
    deployments, gpus = auditor.parse(content)
    result = auditor.audit(deployments, gpus)
    for gpu, card in zip(result.gpus, gpus.cards, strict=True):
        assert gpu.num_gpus <= 1 + 1e-9
        running = [(replica, n) for replica in result.replicas if replica.starts for n in replica.gpus]
        held = [replica.deployment.rest_bytes(card) or 0 for replica, n in running if n == gpu.index]
        assert card.used_bytes + sum(held) <= card.total_bytes
    assert not result.ok or all(part.starts for part in result.replicas)
    assert not result.ok or all(gpu.fits for gpu in result.gpus)
    if (suggestion := result.suggestion) is None:
        assert result.ok
    elif not suggestion.deployments:
        simple = len({card[1:] for card in gpus.cards}) == len(gpus.gpus_per_node) == 1
        simple = simple and not any(entry.max_replicas_per_node or entry.is_group for entry in deployments)
        assert suggestion.gpus_needed > len(gpus.cards) or suggestion.impossible or not simple
    else:
        repaired = auditor.audit(suggestion.deployments, gpus)
        assert repaired.ok, auditor.lines(repaired)
        warned = [finding for finding in repaired.findings if finding.level == "warning"]
        assert all("one after the other" in finding.change for finding in warned), warned
    again = auditor.audit(*auditor.parse(yaml.safe_load(auditor.as_yaml(deployments, gpus))))
    assert json.dumps(auditor.as_json(again), allow_nan=False) == json.dumps(auditor.as_json(result), allow_nan=False)


@quick
@given(contents, st.sampled_from([1.01, 1.5, 3]))
def test_more_memory_never_hurts(content: dict[str, Any], times: float) -> None:
    """With larger GPUs and the same shares, replicas that started still start, and no cache shrinks."""
    deployments, gpus = auditor.parse(content)
    small = auditor.audit(deployments, gpus)
    content["gpu"]["memory_gib"] *= times
    large = auditor.audit(*auditor.parse(content))
    assert large.ok or not small.ok
    if small.ok:
        for before, after in zip(small.replicas, large.replicas, strict=True):
            assert (after.kv_tokens or 0) >= (before.kv_tokens or 0)


# --- the numbers


def test_without_an_architecture_the_tokens_are_unknown() -> None:
    (unknown,) = audited(single(model=None, weight_gib=10)).replicas
    assert unknown.kv_bytes > 0
    assert (unknown.kv_tokens, unknown.starts) == (None, True)


def test_two_halves_of_a_gpu() -> None:
    """With vLLM's default share the second engine is refused; 0.49 each fits, 0.46 beside another process's 4 GiB."""
    default = audited()
    assert [replica.starts for replica in default.replicas] == [True, False]
    assert default.gpus[0].rest_bytes > default.gpus[0].total_bytes
    halves = audited(EXAMPLE.replace("0.92", "0.49"))
    assert (halves.ok, halves.suggestion) == (True, None)
    assert [finding.level for finding in halves.findings if finding.level != "note"] == ["warning"]  # order of starts
    assert not audited(EXAMPLE.replace("0.92", "0.49"), used_gib=4).ok
    assert audited(EXAMPLE.replace("0.92", "0.46"), used_gib=4).ok


def test_groups_of_a_single_bundle_may_share_a_gpu() -> None:
    """Only bundles of the same replica are kept apart: two replicas of one bundle each get half of a GPU."""
    result = audited(EXAMPLE.replace("num_gpus: 0.5", "num_gpus: [0.6]"))
    assert [replica.gpus for replica in result.replicas] == [(0,), ()]
    assert result.suggestion is not None
    assert [deployment.num_gpus for deployment in result.suggestion.deployments] == [[0.5], [0.5]]


def test_each_fault_has_a_finding_with_its_numbers() -> None:
    """Each fault has one finding, with its level, its numbers and a change."""
    faults: list[tuple[dict[str, Any], str, str]] = [
        ({"num_gpus": 1.5}, "error", "Ray takes a part of one GPU or whole GPUs"),
        ({"num_gpus": 0}, "error", "Ray reserves no GPU"),
        ({"num_gpus": 0.25}, "warning", "asks Ray for 0.25 of a GPU and takes 0.45"),
        ({"num_gpus": 1}, "note", "stay unused"),
        ({"replicas": 3}, "error", "waiting: 1 of 3 replicas; none of the GPUs has 0.5 left"),
        ({"num_gpus": 2}, "error", "waiting: 1 of 1 replicas"),
        ({"engine_share": 0.2}, "error", "leaves nothing for the KV cache"),
        ({"engine_share": 0.23, "max_model_len": 32768}, "error", "the longest request that fits has"),
        ({"max_num_seqs": 400}, "note", "fit at their full 4,096 tokens"),
        ({"engine_share": None, "num_gpus": 0.1}, "warning", "asks Ray for 0.10 of a GPU and takes 0.18"),
        ({"model": "Llama-3.1-405B", "engine_share": None}, "error", "out of memory"),
    ]
    for keys, level, says in faults:
        findings = [finding for finding in audited(single(**keys)).findings if says in finding.text]
        assert [finding.level for finding in findings] == [level], keys
        assert findings[0].change


def test_the_remedies_are_right() -> None:
    """The length and the share that a finding names work; a hundredth less of the share does not."""
    findings = audited(single(engine_share=0.23, max_model_len=32768)).findings
    (finding,) = (finding for finding in findings if "max_model_len" in finding.change)
    words = finding.change.replace(",", "").replace(":", "").split()
    length, share = int(words[1]), float(words[4])
    assert audited(single(engine_share=0.23, max_model_len=length)).ok
    assert audited(single(engine_share=share, max_model_len=32768)).ok
    assert not audited(single(engine_share=round(share - 0.01, 2), max_model_len=32768)).ok


def test_an_impossible_deployment_gets_a_number_of_gpus() -> None:
    """A model larger than the GPU, or too many replicas: the suggestion is a number of GPUs that is enough."""
    result = audited(single(model="Llama-3.1-70B", engine_share=0.9, num_gpus=1))
    assert result.suggestion is not None
    assert "split over 2 GPUs (num_gpus: 2) it would fit" in result.suggestion.impossible
    more = audited(single(replicas=9))
    assert more.suggestion is not None
    assert not more.suggestion.deployments
    assert audited(single(replicas=9), count=more.suggestion.gpus_needed).suggestion.deployments  # type: ignore[union-attr]


@quick
@given(st.integers(1, 12), st.integers(1, 6), st.sampled_from([None, 0.9]))
def test_suggestions_use_all_gpus(replicas: int, count: int, share: float | None) -> None:
    """Equal replicas get the largest part with which all are placed, and an engine at most vLLM's default share."""
    entry = {"name": "a", "num_gpus": 1.5, "weight_gib": 1, "replicas": replicas, "engine_share": share}
    content = {"gpu": {"memory_gib": 80, "count": count}, "deployments": [entry]}
    suggestion = auditor.audit(*auditor.parse(content)).suggestion
    assert suggestion is not None
    (proposed,) = suggestion.deployments
    assert proposed.part == math.floor(100 / math.ceil(replicas / count)) / 100
    assert (proposed.engine_share or 0) <= 0.92


def test_suggested_nodes_are_enough() -> None:
    """Nine replicas, of which a GPU holds one, need ten GPUs in nodes of two."""
    gpu = {"memory_gib": 80, "count": 2, "nodes": 3}
    entry = {"name": "a", "num_gpus": 0.6, "weight_gib": 70, "replicas": 9}
    suggestion = auditor.audit(*auditor.parse({"gpu": gpu, "deployments": [entry]})).suggestion
    assert suggestion is not None
    assert suggestion.gpus_needed == 10
    more = auditor.parse({"gpu": {**gpu, "nodes": 5}, "deployments": [{**entry, "num_gpus": 1}]})
    assert auditor.audit(*more).ok


def test_weights_are_as_stored(tmp_path: Path) -> None:
    """Packed integers count as stored, 32-bit floats as served. All files in an index count, and no others."""
    from safetensors.numpy import save_file

    packed = {"torch_dtype": "float16", "vocab_size": 8, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **packed}))
    save_file({"q": np.zeros(1000, np.int32), "s": np.zeros(10, np.float16)}, tmp_path / "model-1.safetensors")
    save_file({"f": np.zeros(100, np.float32)}, tmp_path / "model-2.safetensors")
    save_file({"q": np.zeros(1000, np.int32)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"q": "model-1.safetensors", "s": "model-1.safetensors", "f": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    content = {"gpu": {"memory_gib": 8}, "deployments": [{"name": "a", "num_gpus": 0.5, "model": str(tmp_path)}]}
    assert auditor.parse(content)[0][0].model_bytes == 4_000 + 20 + 200
    (tmp_path / "model-2.safetensors").unlink()
    assert not_refused(auditor.parse, [(content, "no weights beside the config")]) == []


def test_notes_of_the_cache_are_shown() -> None:
    audit = audited(single(max_model_len=65_536, engine_share=0.9))
    plan = audit.deployments[0].kv_plan(audit.replicas[0].kv_bytes)
    assert plan.notes
    assert all(note in "\n".join(auditor.lines(audit)) for note in plan.notes)


# --- bad input


def test_a_bad_file_is_refused_with_the_place() -> None:
    """A missing, unknown or wrong key is named with its place in the file and its value."""
    plain = {"num_gpus": 1, "weight_gib": 1}
    bad: list[tuple[Any, str]] = [
        (3, "the file is 3"),
        ({"gpu": {"memory_gib": 8}}, "no deployments"),
        ({"gpu": {"memory_gib": 8}, "deployments": [4]}, "deployments[0] is 4"),
        ({"gpu": {}, "deployments": [plain]}, "no gpu.memory_gib"),
        ({"gpu": {"memory_gib": 8, "used_gib": 8}, "deployments": [plain]}, "nothing is free"),
        ({"gpu": {"memory": 8}, "deployments": [plain]}, "no key called gpu.memory"),
        ({"gpu": {"memory_gib": [8, 8], "count": 3}, "deployments": [plain]}, "memory_gib lists 2 cards, count is 3"),
        ({"gpu": [{"memory_gib": 8}, {"memory_gib": math.inf}], "deployments": [plain]}, "gpu[1].memory_gib is inf"),
        ({"gpu": {"memory_gib": 8, "count": 900, "nodes": 900}, "deployments": [plain]}, "at most 1,024"),
    ]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"num_gpus": None}, "no deployments[1].num_gpus"),
        ({"num_gpus": "x"}, "b: num_gpus is 'x' (deployments[1].num_gpus)"),
        ({"weight_gib": None}, "b has neither model nor weight_gib"),
        ({"model": "nothing"}, "no model 'nothing'"),
        ({"share": 1}, "no key called deployments[1].share"),
        ({"architecture": {}}, "no key called deployments[1].architecture"),
        ({"name": "a"}, "two deployments are called a"),
        ({"num_gpus": [0.5, "x"]}, "num_gpus is 'x' (deployments[1].num_gpus[1])"),
        ({"num_gpus": 4, "tensor_parallel": 2}, "tensor_parallel is 2, and a replica requests 4 GPUs"),
        ({"strategy": "CROWD"}, "give 'PACK'"),
        ({"kv_cache_dtype": "int3"}, "the KV cache's type is 'int3'"),
        ({"model": "z" * 5_000}, "(5,002 characters)"),
    ]
    for keys, says in wrong:
        deployments = [{**plain, "name": "a"}, {**plain, "name": "b", **keys}]
        bad.append(({"gpu": {"memory_gib": 8}, "deployments": deployments}, says))
    assert not_refused(auditor.parse, bad) == []
    full = Cluster(rows=(Gpus(memory_gib=1, used_gib=1),))
    refused = [(([], question()[1]), "no deployments"), ((question()[0], full), "nothing is free")]
    assert not_refused(lambda parts: auditor.audit(*parts), refused) == []


def test_this_machines_gpu_is_the_last_resort() -> None:
    """Options take precedence over the file; this machine's GPU, with its used memory, fills in only without a card."""
    content = {"gpu": {"count": 2}, "deployments": [{"name": "a", "num_gpus": 1, "weight_gib": 1}]}
    machine = {"memory_gib": 24, "count": 1, "used_gib": 2}

    def gpus(options: dict[str, Any] | None = None) -> Gpus:
        return auditor.parse(content, gpu=options, default=machine)[1].rows[0]

    assert gpus() == Gpus(memory_gib=24, count=2, used_gib=2)
    assert gpus({"memory_gib": 80, "count": None}) == Gpus(memory_gib=80, count=2, used_gib=0)


def test_a_config_and_an_encoder(tmp_path: Path) -> None:
    """A config.json beside the file needs weight_gib; an encoder takes no engine share."""
    entry: dict[str, Any] = {"name": "a", "num_gpus": 0.5, "model": "config.json", "engine_share": 0.45}

    def parsed(changes: dict[str, Any]) -> tuple[list[Deployment], Cluster]:
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        return auditor.parse({"gpu": {"memory_gib": 8}, "deployments": [entry]}, folder=tmp_path)

    assert not_refused(parsed, [({}, "no weights beside")]) == []
    entry.update(weight_gib=0.1, other_gib=1)
    (result,) = auditor.audit(*parsed({})).replicas
    assert (result.starts, result.deployment.context_tokens) == (True, 512)
    assert not_refused(parsed, [({"model_type": "bert"}, "type bert is an encoder: it generates nothing")]) == []


# --- on the command line


def test_the_command_prints_the_audit(tmp_path: Path, labkit: Labkit) -> None:
    """Text and JSON are the function's; the exit code is 0 if all fits, 1 if not, 2 for a file that cannot be read.

    Options take precedence over the file."""
    path = tmp_path / "two.yaml"
    path.write_text(EXAMPLE)
    ended = labkit("fractions", path)
    assert (ended.code, ended.stdout.strip()) == (1, "\n".join(auditor.lines(audited())).strip())
    ended = labkit("fractions", path, "--json")
    assert (ended.code, ended.json, ended.stderr) == (1, auditor.as_json(audited()), "")
    path.write_text(EXAMPLE.replace("0.92", "0.49"))
    assert labkit("fractions", path).code == 0
    ended = labkit("fractions", path, "--gpu-gib", 24, "--gpus", 3, "--json")
    assert (ended.code, [gpu["total_bytes"] for gpu in ended.json["gpus"]]) == (1, [24 * GIB] * 3)
    path.write_text(EXAMPLE.replace("0.92", "0.49").replace("0.5,", "0.6,"))
    ended = labkit("fractions", path, "--gpus", 1, "--nodes", 2, "--json")
    assert (ended.code, ended.json["waits_if_packed"]) == (0, [])
    path.write_text("{")
    ended = labkit("fractions", path, "--json")
    assert (ended.code, ended.stdout, f"labkit: {path}" in ended.stderr) == (2, "", True)
