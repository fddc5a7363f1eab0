"""Two engines in one process that take turns, against vLLM's own `LLM.generate`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit.serving.vllm import EngineSettings

pytestmark = pytest.mark.engine

SCENE = """
import json, sys
from vllm import LLM, SamplingParams
from labkit.experiments import in_turns
from labkit.serving import vllm_steps
from labkit.serving import vllm as serving

model, options = sys.argv[1], json.loads(sys.argv[2]) | {"block_size": 32, "seed": 0, "max_model_len": 256}
engines = {"off": LLM(model, enable_prefix_caching=False, **options), "on": LLM(model, **options)}
page = [100 + 7 * n for n in range(70)]
prompts = [page + [5000 + 11 * n + k for k in range(20)] for n in range(3)]
wanted = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

def own(llm):
    outputs = llm.generate([{"prompt_token_ids": one} for one in prompts], wanted, use_tqdm=False)
    return [[list(one.outputs[0].token_ids), one.num_cached_tokens] for one in outputs]

def all_at_once():
    engines["on"].reset_prefix_cache()
    return {name: own(llm) for name, llm in engines.items()}

def by_turns():
    engines["on"].reset_prefix_cache()
    found = in_turns({name: vllm_steps.generate(llm, prompts, wanted) for name, llm in engines.items()}, seed=0)
    answers = {name: [[list(a.token_ids), a.cached_tokens] for a in turns.result] for name, turns in found.items()}
    return answers, {name: [len(turns.steps_s), [a.first_step for a in turns.result]] for name, turns in found.items()}

whole = all_at_once()
turned, steps = by_turns()
left_early = vllm_steps.generate(engines["on"], prompts, wanted)
next(left_early), next(left_early)
in_flight = engines["on"].llm_engine.get_num_unfinished_requests()
left_early.close()
left = [engines["on"].llm_engine.get_num_unfinished_requests(), engines["on"].llm_engine.has_unfinished_requests()]
again, _ = by_turns()
for llm in engines.values():
    serving.close(llm)
left = [in_flight, *left]
print("FOUND", json.dumps({"whole": whole, "turned": turned, "again": again, "steps": steps, "left": left}))
"""


@pytest.fixture(scope="module")
def scene(chat_model: Path, engine_settings: EngineSettings) -> dict[str, Any]:
    """What two engines answer: each at once, by turns, and by turns after a run that was closed early."""
    env = {**os.environ, **engine_settings.env, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    arguments = [str(chat_model), json.dumps(engine_settings.llm)]
    done = subprocess.run(
        [sys.executable, "-c", SCENE, *arguments], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return found


def test_answers_and_cache_hits_by_turns_are_those_of_generate(scene: dict[str, Any]) -> None:
    """Token by token and hit by hit, for the engine with a prefix cache and the one without."""
    assert scene["turned"] == scene["whole"]
    assert [hits for _, hits in scene["turned"]["off"]] == [0, 0, 0]
    assert sum(hits for _, hits in scene["turned"]["on"]) > 0


def test_each_engine_takes_one_step_for_each_token_and_the_first_token_comes_with_the_prompt(
    scene: dict[str, Any],
) -> None:
    """Prompts that fit one step together: it brings all first tokens; the turn after the last step only ends."""
    assert scene["steps"] == {"off": [6 + 1, [0, 0, 0]], "on": [6 + 1, [0, 0, 0]]}


def test_a_run_closed_early_leaves_no_request_in_the_engine(scene: dict[str, Any]) -> None:
    """What was in flight is gone, and the next run has the same answers as ever."""
    assert scene["left"] == [3, 0, False]
    assert scene["again"] == scene["whole"]
