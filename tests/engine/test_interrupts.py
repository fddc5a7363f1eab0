"""An engine in a process of its own, as every `LLM` on a GPU is: what an interrupt of a cell does to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from labkit.serving.vllm import EngineSettings
from tests.unit.standin import survivors

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

SCENE = """
import json, os, signal, sys, time
import psutil
from labkit.serving.interrupts import shielded

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
    from vllm import LLM, SamplingParams

    folder, options = sys.argv[1], json.loads(sys.argv[2])
    with shielded():
        llm = LLM(folder, max_model_len=256, max_num_seqs=2, **options)
    engine = [one.pid for one in psutil.Process().children(recursive=True) if "EngineCore" in one.name()]
    interrupted = False
    try:
        os.killpg(os.getpgid(0), signal.SIGINT)  # what JupyterLab does to the kernel and all its processes
        time.sleep(30)
    except KeyboardInterrupt:
        interrupted = True
    time.sleep(2)
    answer = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)
    tokens = len(answer[0].outputs[0].token_ids)
    print("FOUND", json.dumps({"engine": engine, "interrupted": interrupted, "tokens": tokens}))
"""


def test_an_interrupt_stops_the_cell_and_not_the_engine(
    chat_model: Path, engine_settings: EngineSettings, tmp_path: Path
) -> None:
    """SIGINT to the whole group raises in the caller, the engine answers the next prompt, and ends with the caller."""
    script = tmp_path / "scene.py"
    script.write_text(SCENE)
    env = {**os.environ, **engine_settings.env, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [sys.executable, str(script), str(chat_model), json.dumps(engine_settings.llm)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert found["interrupted"]
    assert found["tokens"] == 8
    assert len(found["engine"]) == 1
    left = [psutil.Process(pid) for pid in found["engine"] if psutil.pid_exists(pid)]
    assert not survivors(left, within_s=20)
