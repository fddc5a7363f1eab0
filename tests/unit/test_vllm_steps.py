"""What is read of an in-process vLLM engine between two steps, and its log in a file."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labkit.serving.vllm_steps import Watch, log_to
from labkit.theory.kv_allocation import Extent, Holding
from tests.unit.refusals import not_refused


def with_core(**core: Any) -> Any:
    """An object with what is read of vLLM's engine: where it is in this process, `engine_core` has its scheduler."""
    return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=SimpleNamespace(**core)))


def test_a_look_at_an_engine() -> None:
    """Blocks become places (the first that a request can have is at 0), and requests go by the number in their id."""
    running = [
        SimpleNamespace(request_id=name, num_computed_tokens=stored, num_preemptions=times)
        for name, stored, times in (("0-ab12", 40, 0), ("3-cd34", 32, 2))
    ]
    blocks = {"0-ab12": ([1, 4],), "3-cd34": ([2],)}
    manager = SimpleNamespace(block_pool=SimpleNamespace(num_gpu_blocks=13), get_block_ids=blocks.__getitem__)
    scheduler = SimpleNamespace(
        running=running,
        waiting=[None],
        requests={one.request_id: one for one in running},
        kv_cache_manager=manager,
        block_size=32,
    )
    watch = Watch(with_core(engine_core=SimpleNamespace(scheduler=scheduler)))
    snapshot = watch.look()
    assert (snapshot.step, snapshot.running, snapshot.waiting, snapshot.preemptions) == (0, 2, 1, 2)
    assert snapshot.capacity_tokens == 12 * 32
    assert snapshot.holdings == {0: Holding(40, (Extent(0, 32), Extent(96, 32))), 3: Holding(32, (Extent(32, 32),))}
    assert watch.look(7).step == 7
    assert [seen.step for seen in watch.snapshots] == [0, 7]


def test_an_engine_elsewhere_cannot_be_looked_at() -> None:
    """An engine in a process of its own is refused, with the setting that brings it here."""
    says = ("runs in a separate process", "VLLM_ENABLE_V1_MULTIPROCESSING=0")
    assert not_refused(Watch, [(with_core(), words) for words in says]) == []


def test_the_log_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logging configuration that vLLM gets contains the file; an older log is gone."""
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "")
    file = tmp_path / "logs" / "engine.log"
    file.parent.mkdir()
    file.write_text("of an earlier run")
    assert log_to(file) == file
    assert not file.exists()
    assert f'"{file}"' in Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text()
