"""Ray Serve configs and RayServices as files of deployments, with the open ends that they leave to code."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from labkit.advice import fractions as auditor
from labkit.advice.fractions.serve_config import to_deployments
from labkit.errors import UsageError
from tests.unit.refusals import not_refused
from tests.unit.test_fraction_cases import CASES

GPUS = {"memory_gib": 24.0, "count": 8}


def entries(*deployments: dict[str, Any], **application: Any) -> dict[str, dict[str, Any]]:
    """Return the entries read from an application, by name."""
    config = {"applications": [{"name": "app", "import_path": "a:b", "deployments": [*deployments], **application}]}
    return {entry["name"]: entry for entry in to_deployments(config, Path())[0]["deployments"]}


def llm(**config: Any) -> dict[str, Any]:
    """Return the entry read from an LLMConfig."""
    config = {"model_loading_config": {"model_id": "m"}, **config}
    (entry,) = entries(import_path="ray.serve.llm:build_openai_app", args={"llm_configs": [config]}).values()
    return entry


def test_a_deployments_numbers() -> None:
    """Most replicas, bundles with GPUs, strategies, limits and types are read; without a GPU there is no entry."""
    assert entries(
        {"name": "plain", "num_replicas": 3, "ray_actor_options": {"num_gpus": 0.5, "accelerator_type": "L4"}},
        {"name": "auto", "num_replicas": "auto", "ray_actor_options": {"num_gpus": 1}},
        {"name": "scaled", "autoscaling_config": {"min_replicas": 2, "max_replicas": 6},
         "ray_actor_options": {"num_gpus": 1}, "max_replicas_per_node": 2},
        {"name": "group", "placement_group_bundles": [{"CPU": 1}, {"GPU": 0.5, "CPU": 1}, {"GPU": 1}],
         "placement_group_strategy": "STRICT_PACK"},
        {"name": "on CPUs", "ray_actor_options": {"num_cpus": 1}},
    ) == {
        "plain": {"name": "plain", "num_gpus": 0.5, "replicas": 3, "accelerator_type": "L4"},
        "auto": {"name": "auto", "num_gpus": 1, "replicas": 100, "min_replicas": 1},
        "scaled": {"name": "scaled", "num_gpus": 1, "replicas": 6, "min_replicas": 2, "max_replicas_per_node": 2},
        "group": {"name": "group", "num_gpus": [0.5, 1], "strategy": "STRICT_PACK"},
    }  # fmt: skip


def test_an_llm_configs_numbers() -> None:
    """Each rank has a bundle, the first also the replica's own GPUs; vLLM's default share; no sizes for pipelines."""
    assert llm() == {"name": "m", "num_gpus": [1], "tensor_parallel": 1, "engine_share": 0.92, "model": "m"}
    split = llm(
        engine_kwargs={"tensor_parallel_size": 2, "kv_cache_dtype": "fp8", "gpu_memory_utilization": 0.4},
        placement_group_config={"bundle_per_worker": {"GPU": 0.6, "CPU": 1}, "strategy": "SPREAD"},
        deployment_config={"num_replicas": 2, "ray_actor_options": {"num_gpus": 0.1}},
    )
    assert split == {
        "name": "m", "num_gpus": [pytest.approx(0.7), 0.6], "tensor_parallel": 2, "strategy": "SPREAD", "replicas": 2,
        "kv_cache_dtype": "fp8", "engine_share": 0.4, "model": "m",
    }  # fmt: skip
    staged = llm(engine_kwargs={"tensor_parallel_size": 2, "pipeline_parallel_size": 2})
    assert (staged["num_gpus"], "model" in staged) == ([1] * 4, False)
    on_cpus = {"model_loading_config": {"model_id": "m"}, "placement_group_config": {"bundles": [{"CPU": 1}]}}
    assert entries(args={"llm_configs": [on_cpus]}) == {}


@pytest.mark.filterwarnings("ignore:The `dict` method")
def test_data_parallel_groups_have_as_many_replicas_as_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the builders for groups the replicas are those of Ray's DPServer, packed and of unknown memory; in
    llm_configs, whose builder does not start them, the ranks are an open end."""
    server = pytest.importorskip("ray.llm._internal.serve.serving_patterns.data_parallel.dp_server")
    # The class above it needs a running cluster for the rest of the options.
    monkeypatch.setattr(server.LLMServer, "get_deployment_options", lambda config: dict(config.deployment_config))
    deployments: list[dict[str, Any]] = [
        {}, {"num_replicas": 2}, {"num_replicas": "auto"}, {"autoscaling_config": {"min_replicas": 2}},
        {"autoscaling_config": {"min_replicas": 0, "max_replicas": 3}},
    ]  # fmt: skip
    for options in deployments:
        engine = {"data_parallel_size": 4, "tensor_parallel_size": 2}
        config = {"model_loading_config": {"model_id": "m"}, "engine_kwargs": engine, "deployment_config": options}
        config["placement_group_config"] = {"bundle_per_worker": {"GPU": 1}, "strategy": "SPREAD"}
        theirs = server.DPServer.get_deployment_options(
            SimpleNamespace(engine_kwargs=engine, deployment_config=options)
        )
        scaling = theirs.get("autoscaling_config")
        most, least = (scaling["max_replicas"], scaling["min_replicas"]) if scaling else (theirs["num_replicas"], None)
        entry = entries(import_path="ray.serve.llm:build_dp_openai_app", args={"llm_config": config})["m"]
        assert (entry["replicas"], entry.get("min_replicas")) == (most, least)
        assert (entry["num_gpus"], entry.keys() & {"strategy", "model"}) == ([1, 1], set())
        in_list = {"applications": [{"args": {"llm_configs": [config]}}]}
        assert "data_parallel_size 4 in llm_configs" in to_deployments(in_list, Path())[2].unread[0]
    config["deployment_config"] = {"num_replicas": 2}
    app = {"applications": [{"args": {"llm_config": config}}]}
    found = [auditor.audit(*auditor.parse(app, gpu={"memory_gib": 80, "count": count})).fails for count in (15, 16)]
    assert found == [True, False]


def test_other_forms(tmp_path: Path) -> None:
    """A single application, prefill and decode configs, an LLMConfig in a file, and a RayService are read, too."""
    single = {"import_path": "a:b", "deployments": [{"name": "x", "ray_actor_options": {"num_gpus": 1}}]}
    assert to_deployments(single, Path())[0]["deployments"] == [{"name": "x", "num_gpus": 1}]
    configs = {"prefill_config": {"model_loading_config": {"model_id": "p"}},
               "decode_config": {"model_loading_config": {"model_id": "d"}}}  # fmt: skip
    assert list(entries(args=configs)) == ["p", "d"]
    (tmp_path / "m.yaml").write_text("model_loading_config: {model_id: m}\naccelerator_type: L4\n")
    beside = {"applications": [{"args": {"llm_configs": ["m.yaml"]}}]}
    (path := tmp_path / "serve.yaml").write_text(yaml.safe_dump(beside))
    (deployment,), cluster = auditor.read(path, gpu={"count": 2})
    assert (deployment.accelerator_type, cluster.cards[0].total_bytes) == ("L4", 22.5 * 2**30)
    service = yaml.safe_load((CASES / "rayservice_two_workers.yaml").read_text())
    container = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["nvidia.com/gpu"] = 4
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    workers |= {"numOfHosts": 2, "maxReplicas": 3}
    assert auditor.parse(service, gpu={"memory_gib": 24.0})[1].gpus_per_node == [4, 1, 1, 1, 1]
    service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] = True
    assert auditor.parse(service, gpu={"memory_gib": 24.0})[1].gpus_per_node == [4] + [1] * 6


def test_unknown_numbers_are_never_ok() -> None:
    """Unknown weights and numbers left to code are findings; the exported file lacks only the weights."""
    deployments = [{"name": "x", "ray_actor_options": {"num_gpus": 0.5}}, {"name": "y"}]
    config = {"applications": [{"deployments": deployments}]}
    audit = auditor.audit(*auditor.parse(config, gpu=GPUS))
    assert (audit.ok, audit.fails, [finding.level for finding in audit.findings]) == (False, False, ["unknown"] * 2)
    exported = yaml.safe_load(auditor.as_yaml(audit.deployments, audit.gpus_asked))
    assert not_refused(auditor.parse, [(exported, "x has neither model nor weight_gib")]) == []
    exported["deployments"][0]["weight_gib"] = 3
    assert auditor.audit(*auditor.parse(exported)).ok


def test_what_changes_an_engines_memory_leaves_it_undecided() -> None:
    """Arguments that are not part of the arithmetic, another deployment's options and mixed cards are named as open;
    an engine without a GPU is no entry; what an autoscaler adds comes after every minimum."""

    def application(engine: dict[str, Any], **more: Any) -> dict[str, Any]:
        models = [{"model_loading_config": {"model_id": "org/m.1"}, "engine_kwargs": engine, **more.pop("llm", {})}]
        models += more.pop("models", [])
        app = {"name": "llm", "import_path": "ray.serve.llm:build_openai_app", "args": {"llm_configs": models}, **more}
        return {"applications": [app]}

    undecided: list[dict[str, Any]] = [
        {"kv_cache_memory_bytes": 2**35}, {"dtype": "float32"}, {"quantization": "fp8"}, {"enable_lora": True},
        {"speculative_config": {"model": "draft"}}, {"cpu_offload_gb": 1}, {"max_model_len": -1},
    ]  # fmt: skip
    for engine in undecided:
        (reason,) = to_deployments(application(engine), Path())[1].values()
        assert f"{next(iter(engine))}: " in reason
    computed: list[dict[str, Any]] = [{"dtype": "bfloat16"}, {"cpu_offload_gb": 0}, {"speculative_config": {}}]
    for engine in computed:
        assert "not computed here" not in "".join(to_deployments(application(engine), Path())[1].values())
    changed = application({}, deployments=[{"name": "LLMServer:org--m_1", "num_replicas": 4}])
    assert "changes options of org/m.1" in " ".join(to_deployments(changed, Path())[2].unread)
    other = {"model_loading_config": {"model_id": "b"}, "accelerator_type": "H100"}
    mixed = application({}, llm={"accelerator_type": "L4"}, models=[other])
    assert "several types (H100, L4)" in " ".join(to_deployments(mixed, Path())[2].unread)
    assert to_deployments(application({}, llm={"accelerator_config": {"kind": "cpu"}}), Path())[0]["deployments"] == []
    scaled = [
        {"name": "chat", "num_gpus": 1, "weight_gib": 1, "replicas": 4, "min_replicas": 1},
        {"name": "embed", "num_gpus": 1, "weight_gib": 1},
    ]
    audit = auditor.audit(*auditor.parse({"gpu": GPUS | {"count": 4}, "deployments": scaled}))
    assert [replica.name for replica in audit.replicas if not replica.gpus] == ["chat#3"]


def test_a_serve_config_beside_other_documents_is_read(tmp_path: Path) -> None:
    """Of a RayService with its Secret the former is read; two of them, or none, are refused with the count. GPUs of
    other makers and MIG slices count as KubeRay counts them; a length of -1 is vLLM's own choice."""
    app = {"import_path": "a:b", "deployments": [{"name": "m", "ray_actor_options": {"num_gpus": 1}}]}
    groups = [
        {
            "replicas": 2,
            "rayStartParams": None,
            "template": {"spec": {"containers": [{"resources": {"limits": limits}}]}},
        }
        for limits in ({"amd.com/gpu": "4"}, {"nvidia.com/mig-3g.40gb": 1, "cpu": 8})
    ]
    spec = {"serveConfigV2": yaml.safe_dump({"applications": [app]}), "rayClusterConfig": {"workerGroupSpecs": groups}}
    service = {"kind": "RayService", "spec": spec}
    assert to_deployments(service, Path())[0]["gpu"] == [{"count": 4, "nodes": 2}, {"count": 1, "nodes": 2}]
    file = tmp_path / "service.yaml"
    file.write_text(f"# of KubeRay\n---\n{yaml.safe_dump(service)}---\n{yaml.safe_dump({'kind': 'Secret'})}")
    assert [one.name for one in auditor.read(file, gpu={"memory_gib": 80})[0]] == ["m"]
    for one in (
        f"%YAML 1.2\n---\n{yaml.safe_dump(service)}",
        f"\ufeff# one\n---\n{yaml.safe_dump(service)}---\nnull\n",
    ):
        file.write_text(one, encoding="utf-8")
        assert [deployment.name for deployment in auditor.read(file, gpu={"memory_gib": 80})[0]] == ["m"]
    file.write_text(f"{yaml.safe_dump(service)}---\n{yaml.safe_dump(service)}")
    with pytest.raises(UsageError, match="2 documents, of which 2 are Serve configs"):
        auditor.read(file)
    assert "max_model_len" not in llm(engine_kwargs={"max_model_len": -1})


def test_deployments_without_a_gpu_are_named() -> None:
    """Their code may add bundles that the file does not show; without others there is nothing to audit."""
    cpu = {"name": "Ingress", "ray_actor_options": {"num_cpus": 1}}
    gpu = {"name": "x", "ray_actor_options": {"num_gpus": 0.5}}
    says = "request no GPU, unless their code has placement_group_bundles: Ingress"
    audit = auditor.audit(*auditor.parse({"applications": [{"deployments": [cpu, gpu]}]}, gpu=GPUS))
    assert any(says in finding.text for finding in audit.findings)
    alone = {"applications": [{"deployments": [cpu]}]}
    assert not_refused(lambda content: auditor.parse(content, gpu=GPUS), [(alone, says)]) == []


def test_bad_configs_are_refused_by_name() -> None:
    """Each message has the place or the deployment."""
    plain = {"name": "x", "ray_actor_options": {"num_gpus": 1}}
    applications: list[tuple[Any, str]] = [
        ("x", "applications is 'x'"),
        ([3], "applications[0] is 3"),
        ([{"deployments": {}, "import_path": "a:b", "name": "n"}], "application n names no deployment"),
        ([{"deployments": "x"}], "deployments is 'x'"),
        ([{"deployments": [{"name": "x", "ray_actor_options": 3}]}], "x: ray_actor_options is 3"),
        ([{"deployments": [{**plain, "autoscaling_config": 3}]}], "x: autoscaling_config is 3"),
        ([{"deployments": [{**plain, "num_replicas": "many"}]}], "x: replicas is 'many'"),
        ([{"deployments": [{**plain, "placement_group_bundles": 3}]}], "x: bundles are 3"),
        ([{"args": {"llm_configs": 3}}], "llm_configs is 3"),
        ([{"args": {"llm_configs": [{"engine_kwargs": {"tensor_parallel_size": 0}}]}}], "tensor_parallel_size is 0"),
        ([{"args": {"llm_config": {"engine_kwargs": {"data_parallel_size": "2"}}}}], "data_parallel_size is '2'"),
        ([{"args": {"llm_configs": ["none.yaml"]}}], "none.yaml cannot be read"),
    ]
    bad = [({"applications": given}, says) for given, says in applications]
    bad += [({"kind": "Deployment"}, "Deployment without the text serveConfigV2")]
    bad += [({"kind": "RayService", "spec": {"serveConfigV2": "[" * 1_000}}, "serveConfigV2 is not valid YAML")]
    assert not_refused(lambda content: auditor.parse(content, gpu=GPUS), bad) == []
    no_gpus = ({"applications": [{"deployments": [plain]}]}, "the number of GPUs")
    assert not_refused(auditor.parse, [no_gpus]) == []


def test_ray_takes_the_configs_of_the_cases() -> None:
    """The cases are valid by Ray's own schema."""
    schema = pytest.importorskip("ray.serve.schema")
    for path in CASES.glob("*serve_*.yaml"):
        schema.ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    service = yaml.safe_load((CASES / "rayservice_two_workers.yaml").read_text())
    schema.ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
