"""What is read of an in-process vLLM engine between two steps, and its log in a file."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labkit.errors import UsageError
from labkit.serving.vllm_steps import Watch, log_to, scheduler
from labkit.theory.kv_allocation import Extent, Holding


def engine(*requests: tuple[str, int, list[int], int], waiting: int = 0) -> Any:
    """An object with what is read of vLLM's in-process engine."""
    running = [
        SimpleNamespace(request_id=name, num_computed_tokens=stored, num_preemptions=times)
        for name, stored, _, times in requests
    ]
    blocks = {name: (held,) for name, _, held, _ in requests}
    manager = SimpleNamespace(block_pool=SimpleNamespace(num_gpu_blocks=13), get_block_ids=blocks.__getitem__)
    found = SimpleNamespace(
        running=running,
        waiting=[None] * waiting,
        requests={one.request_id: one for one in running},
        kv_cache_manager=manager,
        block_size=32,
    )
    return SimpleNamespace(
        llm_engine=SimpleNamespace(engine_core=SimpleNamespace(engine_core=SimpleNamespace(scheduler=found)))
    )


def test_a_look_at_an_engine() -> None:
    """Blocks become places (the first that a request can have is at 0), and requests go by the number in their id."""
    llm = engine(("0-ab12", 40, [1, 4], 0), ("3-cd34", 32, [2], 2), waiting=1)
    watch = Watch(llm)
    snapshot = watch.look()
    assert (snapshot.step, snapshot.running, snapshot.waiting, snapshot.preemptions) == (0, 2, 1, 2)
    assert snapshot.capacity_tokens == 12 * 32
    assert snapshot.holdings == {0: Holding(40, (Extent(0, 32), Extent(96, 32))), 3: Holding(32, (Extent(32, 32),))}
    assert watch.look(7).step == 7
    assert [seen.step for seen in watch.snapshots] == [0, 7]


def test_preemptions_of_finished_requests_still_count() -> None:
    """A request that left the scheduler takes its count along; the watch keeps it."""
    llm = engine(("0-ab12", 40, [1, 4], 2))
    watch = Watch(llm)
    watch.look()
    found = scheduler(llm)
    found.running, found.requests = [], {}
    assert watch.look().preemptions == 2


def test_an_engine_elsewhere_cannot_be_looked_at() -> None:
    """An engine in a process of its own is refused, with the setting that brings it here."""
    llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=SimpleNamespace()))
    with pytest.raises(UsageError, match="separate process") as caught:
        Watch(llm)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING=0" in caught.value.remedy


def test_the_log_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is told of a configuration that Python's logging takes, with the file in it; an older log is gone."""
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "")
    file = tmp_path / "logs" / "engine.log"
    file.parent.mkdir()
    file.write_text("of an earlier run")
    assert log_to(file) == file
    assert not file.exists()
    found = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    assert found["loggers"]["vllm"]["propagate"] is False
    handler = found["handlers"]["file"]
    assert (handler["filename"], handler["level"]) == (str(file), "INFO")
    assert logging.getLevelName(handler["level"]) == logging.INFO
