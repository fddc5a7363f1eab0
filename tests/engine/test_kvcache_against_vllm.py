"""The KV cache's arithmetic against vLLM's own classes, which need neither a model nor a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def test_sizes_are_vllms() -> None:
    """For random layers both plan the same blocks, tokens and concurrency; and vLLM's convertor reads the public
    configs as we do."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kvcache_oracle"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == []
    assert result["configs"] >= 20
