"""The real engine's memory: it does step by step what the model of allocation says, and its log adds up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit import models
from labkit.serving import vllm, vllm_log
from labkit.theory import kv_allocation

pytestmark = pytest.mark.engine

BLOCKS, BLOCK_SIZE, MAX_LEN, PLACES = 10, 32, 256, 5
LENGTHS = [(0, 50, 30), (0, 90, 12), (1, 33, 40), (1, 64, 9), (3, 20, 25), (4, 70, 33), (4, 5, 2)]
STEPS = """
import json, sys
from pathlib import Path
from labkit.serving import vllm_steps
folder, log, settings, lengths = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
vllm_steps.log_to(log)
from vllm import LLM, SamplingParams
llm = LLM(folder, seed=0, async_scheduling=False, **settings)
watch, step, todo = vllm_steps.Watch(llm), 0, list(enumerate(lengths))
while todo or llm.llm_engine.has_unfinished_requests():
    while todo and todo[0][1][0] <= step:
        number, (_, prompt, output) = todo.pop(0)
        wanted = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        ids = [7 * number + k + 11 for k in range(prompt)]
        llm.llm_engine.add_request(str(number), {"prompt_token_ids": ids}, wanted)
    llm.llm_engine.step()
    watch.look()
    step += 1
stored = lambda s: sorted((n, h.stored_tokens) for n, h in s.holdings.items())
told = [[s.running, s.waiting, s.preemptions, s.given_tokens, stored(s)] for s in watch.snapshots]
print("TOLD" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(chat_model: Path, engine_settings: vllm.EngineSettings, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an engine with a tiny cache did with requests of mixed lengths, step by step, and its log."""
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    sizes = {"block_size": BLOCK_SIZE, "num_gpu_blocks_override": BLOCKS, "max_model_len": MAX_LEN}
    settings = {**engine_settings.llm, **sizes, "max_num_seqs": PLACES}
    arguments = [str(chat_model), str(log), json.dumps(settings), json.dumps(LENGTHS)]
    env = {**os.environ, **engine_settings.env, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *arguments], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("TOLD"))
    return json.loads(line.removeprefix("TOLD")), log.read_text()


def test_the_engine_does_what_the_model_says(told: Any) -> None:
    """Running, waiting, preempted, blocks and stored tokens of each request are the simulation's, in every step."""
    sequences = [kv_allocation.TokenSequence(arrival=a, prompt_tokens=p, output_tokens=o) for a, p, o in LENGTHS]
    snapshots = kv_allocation.allocate(
        sequences,
        policy=kv_allocation.Policy.PAGED,
        memory_tokens=(BLOCKS - 1) * BLOCK_SIZE,
        max_model_len=MAX_LEN,
        block_size=BLOCK_SIZE,
        max_num_seqs=PLACES,
    )
    modelled = [
        [one.running, one.waiting, one.preemptions, one.given_tokens,
         sorted([n, holding.stored_tokens] for n, holding in one.holdings.items())]
        for one in snapshots
    ]  # fmt: skip
    assert told[0] == modelled
    assert snapshots[-1].preemptions > 0
    assert any(one.waiting for one in snapshots)


def test_the_engines_own_log_adds_up(told: Any, chat_model: Path) -> None:
    """Every memory line of a live log that can be recomputed agrees with the model's config."""
    reading = vllm_log.read(told[1], architecture=models.architecture(chat_model))
    assert reading.of("cache_size")
    assert reading.of("override")
    assert reading.agrees, str(reading)
