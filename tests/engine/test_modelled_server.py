"""`labkit serve vllm --gpu`: an OpenAI server on a modelled card, in real time, ended without a trace."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
import requests

from labkit import modelled
from labkit.load import run_blocking
from labkit.load.metrics import summarise
from labkit.load.workloads import chat
from labkit.modelled.step_time import Step
from labkit.serving.process import free_port
from tests.unit.standin import survivors

pytestmark = pytest.mark.engine
KEY = "a-key"


@dataclass(frozen=True)
class Serving:
    """A running command: its address, and its process."""

    url: str
    process: "subprocess.Popen[str]"

    def ask(self, **body: object) -> requests.Response:
        asked = {"model": "llama-3.1-8b", "prompt": "hello", "max_tokens": 8, **body}
        headers = {"Authorization": f"Bearer {KEY}"}
        return requests.post(f"{self.url}/v1/completions", json=asked, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The users' command, ready; Ctrl-C ends it with every process that it had, and with its folder."""
    port, temporary = free_port(), tmp_path_factory.mktemp("serve")
    command = [sys.executable, "-m", "labkit", "serve", "vllm", "--gpu", "h100-sxm", "--port", str(port)]
    env = {**os.environ, "LABKIT_API_KEY": KEY, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:  # ends with the process, should it die
        said += line
        if line.startswith("ready:"):
            break
    else:
        pytest.fail(f"the server did not come up:\n{said}", pytrace=False)
    assert "filler" in said
    family = psutil.Process(process.pid).children(recursive=True)
    yield Serving(f"http://127.0.0.1:{port}", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not survivors(family, within_s=10)
    assert list(temporary.glob("labkit-serve-*")) == []


def test_an_answer_says_that_it_is_filler(serving: Serving) -> None:
    """The text of an answer says that no model computed it; without a key there is none."""
    assert "filler from a modelled GPU" in serving.ask(max_tokens=20).json()["choices"][0]["text"]
    assert requests.get(f"{serving.url}/v1/models", timeout=30).status_code == 401


def test_an_answer_ends_by_itself(serving: Serving) -> None:
    """Without ignore_eos an answer that may be long ends with `stop`, as a model's would."""
    found = serving.ask(max_tokens=2000).json()
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] < 400


def test_log_probabilities_are_refused(serving: Serving) -> None:
    """There are none on a modelled card: the request is refused in words, and the server goes on."""
    refused = serving.ask(logprobs=2)
    assert refused.status_code == 400
    assert "logprobs" in refused.text
    assert serving.ask().ok


def test_the_load_client_meets_the_modelled_card(serving: Serving) -> None:
    """No token comes faster than the card would give it, and each request gets the tokens that it asked for."""
    result = run_blocking(serving.url, "llama-3.1-8b", chat(8, max_tokens=32), concurrency=4, api_key=KEY)
    summary = summarise(result)
    assert (summary.completed, summary.output_tokens) == (8, 8 * 32)
    gpu = modelled.gpu("h100-sxm")
    step = Step()
    step.add(1, prefix=0, decode=True, sampled=True)
    fastest_s = gpu.step_time().seconds(step) + gpu.overhead_ms / 1e3
    assert summary.tpot_s.mean >= 0.98 * fastest_s


def test_metrics_are_vllms_own(serving: Serving) -> None:
    """/metrics has vLLM's counters, which have counted what was asked."""
    text = requests.get(f"{serving.url}/metrics", timeout=30).text
    (count,) = re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", text, re.MULTILINE)
    assert float(count) > 0
