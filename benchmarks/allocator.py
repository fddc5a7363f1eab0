"""How fast the allocation model is: 10,000 requests through each policy, and prompts through the prefix cache.

    python -m benchmarks.allocator [--requests N] [--repeats N] [--json]

It prints and gates nothing: CPU-seconds are the best of the repeats, since other work only ever adds to them.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from labkit.machine import inspect
from labkit.theory.kv_allocation import Policy, simulate, stream
from labkit.theory.prefix_cache import BlockPool, replay

MEMORY_TOKENS = 46_592  # what one GiB holds of the embedded model
MAX_MODEL_LEN = 2048


def best_cpu_s(work: Callable[[], Any], *, repeats: int) -> tuple[float, Any]:
    """The least CPU-seconds of the repeats, and what the work returned."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started_s = time.process_time()
        result = work()
        best = min(best, time.process_time() - started_s)
    return best, result


def measure_policy(policy: Policy, *, requests: int, repeats: int) -> dict[str, Any]:
    """One policy over one seeded stream, with the numbers that explain its cost."""
    # More arrive than the contiguous policies can serve, so that queues and preemption are part of the work.
    sequences = stream(requests, seed=0, per_step=0.3, max_model_len=MAX_MODEL_LEN)
    cpu_s, trace = best_cpu_s(
        lambda: simulate(sequences, policy=policy, memory_tokens=MEMORY_TOKENS, max_model_len=MAX_MODEL_LEN),
        repeats=repeats,
    )
    numbers = {name: trace.summary()[name] for name in ("mean_running", "preemptions", "waste_of_given")}
    return {"what": policy.value, "cpu_s": cpu_s, "steps": len(trace.steps), "tenures": len(trace.tenures), **numbers}


def measure_prefixes(*, requests: int, repeats: int) -> dict[str, Any]:
    """Prompts of 600 tokens over 50 documents, through a pool that holds about half of them."""
    chance = random.Random(0)
    documents = [[chance.randrange(50_000) for _ in range(540)] for _ in range(50)]
    prompts = [[*chance.choice(documents), *(chance.randrange(50_000) for _ in range(60))] for _ in range(requests)]
    cpu_s, hits = best_cpu_s(lambda: replay(prompts, pools=[BlockPool(900, block_size=16)]), repeats=repeats)
    return {"what": "prefix cache, 600-token prompts", "cpu_s": cpu_s, "hit_rate": hits.hit_rate}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    sizes = {"requests": options.requests, "repeats": options.repeats}
    rows = [*(measure_policy(policy, **sizes) for policy in Policy), measure_prefixes(**sizes)]
    if options.json:
        print(json.dumps({"machine": inspect().line(), **sizes, "rows": rows}))
        return 0
    print(f"{inspect().line()}; {options.requests:,} requests, best of {options.repeats}")
    for row in rows:
        others = ", ".join(f"{name} {value:,.4g}" for name, value in row.items() if name not in ("what", "cpu_s"))
        print(f"{row['cpu_s']:7.2f} CPU-s  {row['what']:32} {others}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
