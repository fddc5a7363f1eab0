"""The labs' first cells, before an engine is started: they end well, and they refuse parameters that cannot work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# By lab: a text in the cell that starts the engine; parameters, and what the refusal has to say.
REFUSED: dict[str, tuple[str, list[tuple[dict[str, object], str]]]] = {
    "02_paged_attention": (
        "from vllm import",
        [
            ({"block_size": 100}, "block_size is 100; vLLM on a"),
            ({"prompt_tokens": 240}, "a prompt and an answer of 262 tokens are longer than max_model_len, 256"),
            ({"max_model_len": 9000}, "max_model_len is 9,000; the model supports 8,192 positions"),
            ({"tiny_blocks": 8}, "8 blocks of 32 cannot hold a request of max_model_len 256"),
            ({"tiny_blocks": 64}, "nothing would be preempted"),
            ({"crowd": 8}, "from 48 to 512 (requests)"),
            ({"log_file": "nowhere.log"}, "there is no log file nowhere.log"),
        ],
    ),
    "03_prefix_caching": (
        "from vllm import",
        [
            ({"block_size": 20}, "block_size is 20; vLLM on a"),
            ({"replicas": 1}, "from 2 to 16 (engines)"),
            ({"page_tokens": 20}, "page_tokens is 20: a page does not fill a block of 32"),
            ({"cached_pages": 1}, "cached_pages is 1"),
        ],
    ),
    "04_chunked_prefill": (
        "from vllm import",
        [
            ({"budgets": [64, 2048], "max_num_seqs": 128}, "the budget 64 is below max_num_seqs, 128"),
            (
                {"long_prompt_tokens": 4000},
                "a prompt of 4000 tokens and its answer are longer than max_model_len, 2048",
            ),
            ({"max_model_len": 9000}, "max_model_len is 9000; the model supports 8192 positions"),
            ({"budgets": [256]}, "budgets is [256]: nothing to compare"),
            ({"budgets": [4, 256]}, "from 8 to 131072 (tokens)"),
            ({"streams": 8}, "8 streams, the long prompt and a newcomer are 10 sequences; max_num_seqs is 8"),
        ],
    ),
    "05_ray_serve_pipelines": (
        "ray_serve.start(",
        [
            ({"short_tokens": 129}, "from 1 to 128 (tokens)"),
            ({"model": "no-such-model"}, "no-such-model"),
        ],
    ),
    "05b_ray_serve_operations": (
        "ray_serve.start(",
        [
            ({"short_s": 1.0}, "8 requests/s of 1 s ask for 4 replicas before the step"),
            ({"long_s": 0.1}, "8 requests/s of 0.1 s ask for one replica: nothing would happen"),
            ({"step_rate": 30.0, "short_s": 0.01}, "the step asks for 11 replicas and max_replicas is 3"),
            ({"max_replicas": 1}, "from 2 to 64 (replicas)"),
            ({"guess_lost": "all"}, "none of them"),
        ],
    ),
    "06_fractional_gpus": (
        "ray_serve.start(",
        [
            ({"fractions": [0.6, 0.6, 0.6, 0.6]}, "do not all find room: 0.6 would wait"),
            ({"late_fraction": 0.4}, "late_fraction is 0.4, and a GPU of 3 has 0.4 left"),
            ({"fractions": [0.3, 0.6, 0.7, 0.25], "gpus": 2}, "its GPU has 0.4 left"),
            ({"fractions": [0.6, 0.6, 0.7]}, "no two different fractions of [0.6, 0.6, 0.7] share a GPU"),
            ({"fractions": [0.5, 1.5, 0.6]}, "from 0.01 to 1 (GPUs)"),
            ({"models": ["a", "b"]}, "2 names, 4 memories and 4 loads"),
            ({"card": "h1000"}, "h1000"),
            ({"audit_file": "nowhere.yaml"}, "there is no file nowhere.yaml"),
        ],
    ),
    "07_torchserve_handlers": (
        "torchserve.archive(",
        [
            ({"batch_sizes": [4, 8]}, "batch_sizes is [4, 8], with 8 clients"),
            ({"batch_sizes": [1, 16]}, "batch_sizes is [1, 16], with 8 clients"),
            ({"batch_sizes": [1, 65]}, "from 1 to 64 (rows)"),
            ({"guess_together": "all of them"}, "all four get an answer"),
            ({"model": "no-such-model"}, "no-such-model"),
        ],
    ),
    "08_torchserve_lifecycle": (
        "torchserve.start(",
        [
            ({"rate": 110.0}, "110 requests/s are too many for one worker, which answers 114 in batches of 8"),
            ({"answer_tokens": 65}, "from 2 to 64 (tokens)"),
            ({"guess_crash": "bad"}, "no answer at all"),
            ({"model": "no-such-model"}, "no-such-model"),
        ],
    ),
    "08b_canary": (
        "torchserve.start(",
        [
            ({"canary_share": 0.02}, "of 400 requests a share of 0.02 leaves the canary 8"),
            ({"canary_fail_share": 0.05}, "both versions fail in 5% of their answers"),
            ({"rate": 200.0}, "from 1 to 100 (requests/s)"),
            ({"guess_canary": "bad"}, "cannot tell"),
        ],
    ),
    "09_head_to_head": (
        "background.submit(serving.start",
        [
            ({"tokens_low": 13}, "answers of 13 to 8 tokens"),
            ({"requests_per_client": 2}, "from 3 to 1000 (requests)"),
            ({"dtype": "int8"}, "float32, bfloat16"),
            ({"model": "no-such-model"}, "no-such-model"),
        ],
    ),
    "10_framework_selector": (
        "",
        [
            ({"answers": '{"kind": "lmm"}'}, "did you mean llm?"),
            ({"answers": "pipeline"}, "the state is not JSON"),
            ({"served_model": "a b"}, "'a b' is not a model name"),
            ({"requests_per_s": -1}, "from 0.001 to 1e+06 (requests/s)"),
            ({"runs_dir": "nowhere"}, "nowhere is not a folder"),
        ],
    ),
    "11_cost_calculator": (
        "",
        [
            ({"state": '{"instance": "g7"}'}, "there is no instance 'g7'"),
            ({"throughput_from": "/nowhere/at/all"}, "holds no measured throughput"),
            ({"places": 1}, "from 2 to 4096"),
            ({"guess_matters": "luck"}, "guess_matters is 'luck'"),
        ],
    ),
    "12_capstone": (
        "from vllm import",
        [
            ({"brief": "film"}, "one of rag, chat, vision"),
            ({"stack": "sglang"}, "one of vllm, vllm-gateway"),
            ({"machine": "g7"}, "there is no instance 'g7'"),
            ({"machine": "g5.xlarge"}, "the modelled GPU has no A10G"),
            ({"served": "gpt-9"}, "gpt-9"),
            ({"hours": [24]}, "from 0 to 23"),
            ({"prices_on": "soon"}, "prices_on is 'soon'"),
            ({"guess_router": "luck"}, "prefix-aware"),
            ({"model": "no-such-model"}, "no-such-model"),
        ],
    ),
}
READY = {"03_prefix_caching": {"guess_short_prefix": "nothing"}}  # parameters with which the cells end well
TO_THE_END = ("10_framework_selector", "11_cost_calculator")  # start no engine: test_without_engine.py runs them


@pytest.mark.notebook
@pytest.mark.parametrize("lab", REFUSED)
def test_first_cells_refuse_what_cannot_work_before_an_engine(lab: str, tmp_path: Path) -> None:
    """Each refusal says what is wrong with which number; no engine is imported, nothing packed, no log begun."""
    stop, refused = REFUSED[lab]
    ready = [] if lab in TO_THE_END else [(READY.get(lab, {}), "")]
    cases = [*ready, *refused]
    command = [sys.executable, "-m", "tests.notebooks.first_cells", f"{lab}.ipynb", stop, str(tmp_path)]
    given = json.dumps([parameters for parameters, _ in cases])
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [
        (parameters, message, outcome)
        for (parameters, message), outcome in zip(cases, found, strict=True)
        if {"ray", "ts", "vllm"} & {*outcome["imported"]}
        or message not in outcome["refusal"]
        or bool(message) != bool(outcome["refusal"])
    ]
    assert wrong == []
    if "import" not in stop:  # an engine in a process of its own has its log there
        assert [*tmp_path.glob("*/logs"), *tmp_path.glob("*/archives")] == []
