"""The token budget of a running engine, and lab 04's rule of the chunks, against an engine started with the budget."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit.serving.vllm import EngineSettings
from labkit.theory.steps import chunk_sizes

pytestmark = pytest.mark.engine

PROMPT, STREAMS = 300, 3
SCENE = """
import json, sys
from vllm import LLM, SamplingParams
from labkit.theory.steps import StepLog
from labkit.serving import vllm as serving

model, options, runs = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
options |= {"enable_prefix_caching": False, "async_scheduling": False, "seed": 0}
llm = LLM(model, max_model_len=512, max_num_seqs=8, **options)
engine, scheduler, plans = llm.llm_engine, llm.llm_engine.engine_core.engine_core.scheduler, []
schedule = scheduler.schedule
def noted(*args, **kwargs):
    output = schedule(*args, **kwargs)
    plans.append({name.rsplit("-", 1)[0]: tokens for name, tokens in output.num_scheduled_tokens.items()})
    return output
scheduler.schedule = noted

def ask(name, tokens, wanted):
    ids = {"prompt_token_ids": [100 + (7 * n + len(name)) % 4000 for n in range(tokens)]}
    engine.add_request(name, ids, SamplingParams(temperature=0, max_tokens=wanted, ignore_eos=True))

found = []
for budget, threshold in runs:
    if budget:
        scheduler.max_num_scheduled_tokens = budget
        scheduler.scheduler_config.long_prefill_token_threshold = threshold
    trace = StepLog()
    trace.arrives("a", "bb", "ccc")
    for name in trace.streams:
        ask(name, 12, 14)
    while engine.has_unfinished_requests():
        if len(trace.steps) == 3:
            trace.arrives("long")
            ask("long", PROMPT, 2)
        outputs = engine.step()
        trace.record(1.0, plans.pop(), {one.request_id: one.outputs[0].token_ids for one in outputs})
    found.append({"schedule": trace.schedule, "tokens": trace.token_ids, "chunks": trace.chunks("long")})
serving.close(llm)
print("FOUND", json.dumps(found))
"""


def scene(model: Path, settings: EngineSettings, options: dict[str, Any], runs: list[tuple[int, int]]) -> list[Any]:
    """What an engine in a process of its own does with a long prompt among streams; budget 0 leaves it as started."""
    code = SCENE.replace("PROMPT", str(PROMPT))
    env = {**os.environ, **settings.env, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    arguments = [str(model), json.dumps({**settings.llm, **options}), json.dumps(runs)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found: list[Any] = json.loads(line.removeprefix("FOUND "))
    return found


def test_a_lowered_budget_is_the_budget_of_an_engine_started_with_it(
    chat_model: Path, engine_settings: EngineSettings
) -> None:
    """Same schedule and same tokens, bit by bit, for a small budget and a threshold; the rule gives the chunks."""
    lowered = scene(chat_model, engine_settings, {"max_num_batched_tokens": 512}, [(64, 0), (512, 50), (512, 0)])
    started = scene(chat_model, engine_settings, {"max_num_batched_tokens": 64}, [(0, 0)])
    limited = {"max_num_batched_tokens": 512, "long_prefill_token_threshold": 50}
    started += scene(chat_model, engine_settings, limited, [(0, 0)])
    assert lowered[:2] == started
    assert [one["chunks"] for one in lowered] == [
        chunk_sizes(PROMPT, 64, STREAMS),
        chunk_sizes(PROMPT, 512, STREAMS, 50),
        chunk_sizes(PROMPT, 512, STREAMS),
    ]
