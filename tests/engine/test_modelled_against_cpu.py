"""The modelled GPU schedules as the real engine of this machine: the same traffic on both, compared step by step.

The real engine writes other tokens than the modelled one's filler, so a block with tokens of an answer has another hash
in each. That cannot change what is compared: no two prompts are equal and no prompt contains an answer, so only the
request that wrote such a block can look for it, when it comes back after a preemption; each engine then finds its own
tokens. All answers have their full length (ignore_eos).

Run as a module it prints both histories: python -m tests.engine.test_modelled_against_cpu MODEL OPTIONS
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from labkit import modelled
from labkit.serving.vllm import EngineSettings

pytestmark = pytest.mark.engine

BLOCK_SIZE = 32
LONGEST = 1000  # steps; no scenario takes a quarter of that
SIZES = {"block_size": BLOCK_SIZE, "max_model_len": 256, "num_gpu_blocks_override": 200, "max_num_seqs": 8}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Comes before the engine's step `arrival`. The first `shared` tokens are those of every prompt that shares any."""

    arrival: int
    prompt: int
    output: int
    shared: int = 0

    def token_ids(self, number: int) -> list[int]:
        own = [1000 + 211 * number + place for place in range(self.shared, self.prompt)]
        return [*range(200, 200 + self.shared), *own]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Requests, and the options of both engines beside SIZES."""

    requests: Sequence[Request]
    options: Mapping[str, Any]


def mixed(count: int, *, seed: int) -> list[Request]:
    """Requests of many lengths that come at many times; some share a prefix of two or three blocks."""
    rng, arrival, requests = Random(seed), 0, list[Request]()
    for _ in range(count):
        shared = rng.choice([0, 64, 96])
        lengths = {"prompt": shared + rng.randint(1, 90), "output": rng.randint(1, 40)}
        requests.append(Request(arrival=arrival, shared=shared, **lengths))
        arrival += rng.choice([0, 0, 1, 5])
    return requests


SCENARIOS = {
    "plain": Scenario(
        requests=[Request(arrival=2 * (n // 3), prompt=1 + 13 * n, output=3 + 5 * (n % 4)) for n in range(8)],
        options={"max_num_seqs": 4},
    ),
    "chunked prefill": Scenario(
        requests=[
            *(Request(arrival=0, prompt=10 + n, output=20) for n in range(4)),
            Request(arrival=3, prompt=200, output=4),
            Request(arrival=4, prompt=50, output=4),
        ],
        options={"max_num_batched_tokens": 48},
    ),
    "preemption": Scenario(
        requests=[Request(arrival=n // 2, prompt=80 - 12 * n, output=50) for n in range(6)],
        options={"num_gpu_blocks_override": 10, "max_num_batched_tokens": 32, "enable_prefix_caching": False},
    ),
    "prefix sharing": Scenario(
        requests=[
            Request(arrival=0, prompt=120, output=6, shared=100),
            *(Request(arrival=20, prompt=105 + 3 * n, output=6, shared=100) for n in range(3)),
            Request(arrival=20, prompt=90, output=6),
        ],
        options={"enable_prefix_caching": True},
    ),
    "all at once": Scenario(
        requests=mixed(16, seed=3),
        options={"max_num_batched_tokens": 64, "num_gpu_blocks_override": 12, "max_num_seqs": 6},
    ),
}


# In a process of its own: both engines, and what their schedulers gave.


class Watched:
    """An in-process `LLM` whose scheduler's every answer is written down, with the blocks that requests then hold."""

    def __init__(self, llm: Any) -> None:
        self.engine, self.steps = llm.llm_engine, list[dict[str, Any]]()
        self._scheduler = self.engine.engine_core.engine_core.scheduler
        self._schedule = self._scheduler.schedule
        self._scheduler.schedule = self._watch

    def _watch(self, *args: Any, **kwargs: Any) -> Any:
        found = self._schedule(*args, **kwargs)
        held, blocks = self._scheduler.requests, self._scheduler.kv_cache_manager
        self.steps.append(
            {
                "scheduled": {number(name): count for name, count in found.num_scheduled_tokens.items()},
                "preempted": sorted(number(name) for name in found.preempted_req_ids or ()),
                "computed": {number(name): request.num_computed_tokens for name, request in held.items()},
                "blocks": {number(name): blocks.get_block_ids(name) for name in held},
                "free_blocks": blocks.block_pool.get_num_free_blocks(),
                "running": [number(request.request_id) for request in self._scheduler.running],
                "written": {},
            }
        )
        return found

    def run(self, requests: Sequence[Request]) -> dict[str, Any]:
        """All requests to their end: what happened in each step, and the cached tokens of each request."""
        from vllm import SamplingParams

        cached, tick, todo = dict[str, int](), 0, list(enumerate(requests))
        while todo or self.engine.has_unfinished_requests():
            while todo and todo[0][1].arrival <= tick:
                index, request = todo.pop(0)
                wanted = SamplingParams(temperature=0, max_tokens=request.output, ignore_eos=True)
                self.engine.add_request(str(index), {"prompt_token_ids": request.token_ids(index)}, wanted)
            for output in self.engine.step():
                name = number(output.request_id)
                self.steps[-1]["written"][name] = len(output.outputs[0].token_ids)
                cached[name] = output.num_cached_tokens
            tick += 1
            assert tick < LONGEST, "the engine does not come to an end"
        return {"steps": self.steps, "cached": cached}


def number(name: str) -> str:
    """A request's number: vLLM appends a suffix to it."""
    return name.split("-")[0]


def histories(folder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """By scenario, what the real engine did, what the modelled one did, and the steps its card was charged for."""
    from vllm import LLM

    from labkit.serving import vllm as serving

    card = modelled.gpu("h100-sxm", model=folder, source="formula")
    both = dict[str, Any]()
    for name, scenario in SCENARIOS.items():
        sizes = {**SIZES, **scenario.options, "seed": 0, "async_scheduling": False}
        real = LLM(folder, **{**options, **sizes})
        done = Watched(real).run(scenario.requests)
        serving.close(real)
        model = LLM(card.model, **{**card.llm, **sizes})
        card_done = Watched(model).run(scenario.requests)
        executor = model.llm_engine.model_executor
        charged = [[step.tokens, step.sampled, step.context, step.decodes] for _, _, step in executor.steps]
        both[name] = {"real": done, "modelled": card_done, "charged": charged, "count": executor.tracker.preemptions}
        serving.close(model)
    return both


@pytest.fixture(scope="module")
def seen(chat_model: Path, engine_settings: EngineSettings) -> dict[str, Any]:
    """Both engines' histories of every scenario."""
    env = {**os.environ, **engine_settings.env, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(chat_model), json.dumps(engine_settings.llm)],
        env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    found: dict[str, Any] = json.loads(line.removeprefix("SEEN "))
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_engines_schedule_the_same_in_every_step(seen: dict[str, Any], name: str) -> None:
    """Tokens, preempted requests, block ids, free blocks, order and written tokens agree; at the end the cache hits."""
    real, card = seen[name]["real"], seen[name]["modelled"]
    for index, (theirs, ours) in enumerate(zip(real["steps"], card["steps"], strict=False)):
        assert ours == theirs, f"step {index}"
    assert len(card["steps"]) == len(real["steps"])
    assert card["cached"] == real["cached"]


def test_each_scenario_shows_what_it_is_for(seen: dict[str, Any]) -> None:
    """Queues, chunks, preemptions and cache hits do happen, and every request has its whole answer."""

    def steps(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = seen[name]["real"]["steps"]
        return found

    for name, scenario in SCENARIOS.items():
        written = {key: count for step in steps(name) for key, count in step["written"].items()}
        assert written == {str(n): request.output for n, request in enumerate(scenario.requests)}
    assert max(len(step["computed"]) - len(step["running"]) for step in steps("plain")) > 0  # a queue
    chunks = [step["scheduled"]["4"] for step in steps("chunked prefill") if step["scheduled"].get("4", 1) > 1]
    assert len(chunks) > 3
    assert sum(chunks) == 200
    assert seen["prefix sharing"]["real"]["cached"] == {"0": 0, "1": 96, "2": 96, "3": 96, "4": 0}
    for name in ("preemption", "all at once"):
        assert sum(len(step["preempted"]) for step in steps(name)) > 2
    again, before = 0, dict[str, int]()
    for step in steps("preemption"):  # chunks that end within what a preempted request had written
        ends = {n: step["computed"][n] - SCENARIOS["preemption"].requests[int(n)].prompt for n in step["scheduled"]}
        again += sum(0 <= end < before.get(n, 0) for n, end in ends.items())
        before |= step["written"]
    assert again > 0
    assert sum(seen["all at once"]["real"]["cached"].values()) > 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_card_is_charged_for_what_the_real_engine_computes(seen: dict[str, Any], name: str) -> None:
    """Tokens, context and sampled tokens of each modelled step are those of the real engine's step, and preemptions."""
    expected = list[list[int]]()
    before = dict[str, int]()
    for step in seen[name]["real"]["steps"]:
        scheduled = step["scheduled"]
        if not scheduled:  # the engine had nothing to do but to hear what has ended
            continue
        sampled = {key for key, count in step["written"].items() if count > before.get(key, 0)}
        decodes = sum(scheduled[key] == 1 and before.get(key, 0) > 0 for key in sampled)
        context = sum(step["computed"][key] for key in scheduled)
        expected.append([sum(scheduled.values()), len(sampled), context, decodes])
        before |= step["written"]
    assert seen[name]["charged"] == expected
    assert seen[name]["count"] == sum(len(step["preempted"]) for step in seen[name]["real"]["steps"])


if __name__ == "__main__":
    print("SEEN", json.dumps(histories(sys.argv[1], json.loads(sys.argv[2]))))
