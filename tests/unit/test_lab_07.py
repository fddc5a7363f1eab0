"""Lab 07: its repaired handlers without a model, and its exercises against independent rules."""

import itertools
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_07
from labkit.serving.torchserve import handlers_path
from labkit.theory import queues

pytest.importorskip("torch")
from handlers.steps import chat, rows

LIMITS = {"max_prompt_tokens": 5, "max_new_tokens": 8}


class Statuses:
    """TorchServe's context, as far as statuses go."""

    def __init__(self) -> None:
        self.told: dict[int, int] = {}

    def set_response_status(self, *, code: int, phrase: str, idx: int) -> None:
        assert phrase
        self.told[idx] = code


def chat_handler() -> chat.ChatHandler:
    """Its tokenizer makes a token of each word, its model writes nothing."""
    handler = chat.ChatHandler()
    handler.settings = LIMITS
    handler.tokenizer = SimpleNamespace(
        apply_chat_template=lambda turns, **_: list(range(len(turns[0]["content"].split())))
    )
    return handler


def test_a_bad_body_is_told_to_its_client_alone() -> None:
    """Whatever a row holds, its client gets a 422 and the reason; the neighbours' rows get their answers, in order."""
    bad: tuple[Any, ...] = ({}, {"prompt": 7}, ["a"], b"[", b"", "", b"\xff", None, '{"prompt', "7")
    makers: tuple[Any, ...] = (rows.RowsHandler, chat_handler)
    for make, body in itertools.product(makers, bad):
        handler, context = make(), Statuses()
        handler.write = lambda *asked, make=make: {"saw": asked[0]} if make is chat_handler else f"saw {asked[0]}"
        good, told = map(json.loads, handler.handle([{"body": {"prompt": "hi"}}, {"body": body}], context))
        assert "saw" in json.dumps(good)
        assert told["error"]
        assert context.told == {1: 422}


def test_a_body_may_be_decoded_or_not() -> None:
    """Bytes, text and a dict are the same request, under either of TorchServe's names."""
    for row in ({"body": b'{"prompt": "hi"}'}, {"data": '{"prompt": "hi"}'}, {"body": {"prompt": "hi"}}):
        assert rows.RowsHandler().read(row) == "hi"
        assert chat_handler().read(row) == ([0], LIMITS["max_new_tokens"])


def test_what_is_too_long_is_refused() -> None:
    """Neither a prompt nor an answer is cut: the limit is told."""
    with pytest.raises(ValueError, match="6 tokens; up to 5"):
        chat_handler().read({"body": {"prompt": "a b c d e f"}})
    for tokens in (9, 0, True, "4"):
        with pytest.raises(ValueError, match="from 1 to 8"):
            chat_handler().read({"body": {"prompt": "a", "max_tokens": tokens}})


def test_the_steps_can_be_archived() -> None:
    """Each has its settings beside it, with the four that the lab changes, and imports nothing of this repository."""
    for path in (handlers_path() / "steps" / name for name in ("rows.py", "chat.py")):
        assert "labkit" not in path.read_text()
        settings = path.with_suffix(".yaml").read_text()
        assert all(f"{name}:" in settings for name in ("batchSize", "maxBatchDelay", "model_path", "max_new_tokens"))


@pytest.mark.parametrize(
    ("handler", "gpu"), [(rows.RowsHandler, True), (chat.ChatHandler, True), (rows.RowsHandler, False)]
)
def test_the_steps_use_the_gpu(handler: Any, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU the model and its tokens are on it, as in the handler that they lead to: else the lab would
    compare a CPU with a GPU."""
    moved: list[str] = []
    model = SimpleNamespace(to=lambda device: moved.append(f"model on {device}"))
    module = sys.modules[handler.__module__]
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(module.torch, "set_default_device", lambda device: moved.append(f"tokens on {device}"))
    monkeypatch.setattr(module, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda _: None))
    monkeypatch.setattr(module, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=lambda *_, **__: model))
    settings = {"model_path": ".", "dtype": "float32"}
    handler().initialize(SimpleNamespace(model_yaml_config={"handler": settings}))
    device = "cuda" if gpu else "cpu"
    assert moved == [f"model on {device}", f"tokens on {device}"]


# --- exercises


seconds = st.floats(0.001, 5)


@given(st.integers(1, 64), st.integers(1, 64), seconds, seconds, seconds)
def test_the_exercise_is_the_law(clients: int, batch: int, delay_s: float, fixed_s: float, per_row_s: float) -> None:
    """What learners are asked for is what is drawn over the measurements."""
    cost = queues.BatchCost(fixed_s=fixed_s, per_row_s=per_row_s)
    expected = queues.law(cost, clients=clients, batch_size=batch, delay_s=delay_s).throughput
    assert lab_07.requests_per_s(clients, batch, delay_s, fixed_s, per_row_s) == pytest.approx(expected)


@given(st.integers(1, 600), st.sampled_from([0.25, 0.5, 1.0]), st.integers(0, 8), st.integers(1, 16))
def test_the_longest_answer_fits_and_one_token_more_does_not(
    timeout_s: int, share: float, first_s: int, eighths: int
) -> None:
    """Counted step by step, the answer ends within the share of the timeout; the next token would come after it."""
    step_s, end_s = eighths / 8, share * timeout_s
    tokens = lab_07.longest_answer(timeout_s, share, first_s, step_s, 4)
    assert first_s + step_s * (tokens - 1) <= end_s < first_s + step_s * tokens
    assert (tokens >= 1) == (first_s <= end_s)
