"""The TorchServe handlers as a worker of TorchServe calls them, on tiny models, without a server."""

import ast
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.files import root
from tests.unit.torchserve_worker import TEMPLATE, TEXT, Answer, Worker, attentive_model, scripted_model

HANDLERS = root() / "handlers"
COPIED = ("text_generation", "embedding", "sleep", "naive", "steps/rows", "steps/chat", "steps/batch")
LIMITS = {"max_prompt_tokens": 60, "max_new_tokens": 40}
COMPLETIONS, CHAT = "v1/completions", "v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def patched() -> Any:
    """A monkeypatch that lasts as long as the workers of this file."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that writes TEXT."""
    return scripted_model(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def worker(scripted: Path, tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> Worker:
    """text_generation.py with the model that writes TEXT."""
    settings = {"model_path": str(scripted), **LIMITS}
    return Worker(HANDLERS / "text_generation.py", settings, tmp_path_factory.mktemp("w") / "model", patched)


def test_each_handler_stands_alone() -> None:
    """A handler imports nothing of this repository: its file alone goes into an archive."""
    for name in COPIED:
        tree = ast.parse((HANDLERS / f"{name}.py").read_text())
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "transformers", "jinja2", "pydantic", "ts"}


def test_the_configuration_fits_the_settings(worker: Worker) -> None:
    """Every key of a section `handler` is used by its handler, and TorchServe's own keys are spelt its way."""
    for name in COPIED:
        config = yaml.safe_load((HANDLERS / f"{name}.yaml").read_text())
        code = (HANDLERS / f"{name}.py").read_text()
        assert [key for key in config.pop("handler") if key not in code] == []
        known = {"minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout"}
        assert set(config) == known
    worker.module.Settings(**yaml.safe_load((HANDLERS / "text_generation.yaml").read_text())["handler"])


# --- text_generation: the protocol ---


def test_a_whole_answer_of_each_api(worker: Worker) -> None:
    """Identity, text, reason and counts of a completion and of a chat; the plain route takes either."""
    completion, chat = (
        worker.ask(prompt="Hi", max_tokens=40),
        worker.ask(CHAT, messages=HELLO, model="m", n=1, user=None),
    )
    assert completion["choices"] == [{"index": 0, "text": TEXT, "finish_reason": "stop"}]
    assert completion["usage"] == {"prompt_tokens": 2, "completion_tokens": 13, "total_tokens": 15}
    message = {"role": "assistant", "content": TEXT}
    assert chat["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    for answer, prefix, kind in ((completion, "cmpl-", "text_completion"), (chat, "chatcmpl-", "chat.completion")):
        assert (answer["id"].startswith(prefix), answer["object"], answer["model"]) == (True, kind, "m")
    assert worker.ask("", prompt="Hi", max_tokens=40)["choices"] == completion["choices"]
    assert worker.ask("", messages=HELLO)["choices"] == chat["choices"]
    (models,) = worker.batch([None], "v1/models")
    assert [model["id"] for model in models.json["data"]] == ["m"]


def test_lengths(worker: Worker) -> None:
    """A completion has 16 tokens unless it asks for more, a chat what the settings allow; both names of the limit."""

    def used(path: str, **body: Any) -> Any:
        return worker.ask(path, ignore_eos=True, **body)["usage"]["completion_tokens"]

    assert [used(COMPLETIONS, prompt="a"), used(CHAT, messages=HELLO)] == [16, LIMITS["max_new_tokens"]]
    assert [used(CHAT, messages=HELLO, **{name: 3}) for name in ("max_tokens", "max_completion_tokens")] == [3, 3]


def streamed(worker: Worker, index: int) -> tuple[str, str]:
    """Text and reason of a stream: the role first, the reason in the last chunk and in no other, the head in all."""
    chunks = worker.stream(index)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len({(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    if chunks[0]["object"] == "chat.completion.chunk":
        assert [choice["delta"].pop("role", None) for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
    assert {choice["finish_reason"] for choice in choices[:-1]} <= {None}
    pieces = [choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices]
    return "".join(pieces), choices[-1]["finish_reason"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_streamed_equals_whole(worker: Worker, path: str) -> None:
    """At every length, also where it cuts a character, streams and whole answers of one batch have the same text."""
    lengths = range(1, 30)
    said = {"messages": HELLO} if path == CHAT else {"prompt": "Hi"}
    bodies = [{**said, "max_tokens": length, "ignore_eos": True} for length in lengths]
    whole = worker.batch(bodies, path)
    answers = worker.batch(
        [{**body, "stream": True, "stream_options": {"include_usage": True}} for body in bodies], path
    )
    for index, length in enumerate(lengths):
        choice = whole[index].json["choices"][0]
        text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
        assert streamed(worker, index) == (text, "length")
        assert (TEXT * 3).startswith(text.rstrip("\ufffd"))
        assert text.endswith("\ufffd") == (length % 13 in (2, 3, 6, 8, 9))  # PIECES that end within a character
        assert worker.stream(index)[-1]["usage"] == whole[index].json["usage"]
        assert whole[index].json["usage"]["completion_tokens"] == length
        assert answers[index] == Answer(200, "text/event-stream", "\n")


def test_a_stream_comes_while_others_are_written(worker: Worker) -> None:
    """Each step sends what it added, no stream gets anything after its end, and no one else's."""
    worker.batch([{"prompt": "a", "stream": True, "max_tokens": tokens} for tokens in (3, 7)] + [{"prompt": "a"}])
    steps = [sorted(events) for events in worker.streamed]
    assert steps == [[0, 1], [0], [1], [1], [1]]  # the second and the sixth of PIECES end within a character
    assert [streamed(worker, index)[1] for index in (0, 1)] == ["length"] * 2


def test_every_stop_string_cuts_at_its_first_place(worker: Worker) -> None:
    """Every piece of the text of one to nine characters, wherever tokens begin: the answer ends before it, streamed and
    whole, and a second one that comes later changes nothing."""
    stops = sorted({TEXT[at : at + length] for at in range(len(TEXT)) for length in (1, 2, 5, 9)} - {""})
    for stream in (False, True):
        bodies = [{"prompt": "Hi", "max_tokens": 40, "stream": stream, "stop": ["never", stop]} for stop in stops]
        answers = worker.batch(bodies, COMPLETIONS)
        for index, stop in enumerate(stops):
            choice = {} if stream else answers[index].json["choices"][0]
            found = streamed(worker, index) if stream else (choice["text"], choice["finish_reason"])
            assert found == (TEXT[: TEXT.index(stop)], "stop"), stop
    worker.batch([{"messages": HELLO, "stream": True, "stop": "never to be found"}], CHAT)  # held back for many steps
    assert streamed(worker, 0) == (TEXT, "stop")
    both = worker.ask(prompt="Hi", max_tokens=40, stop=["🌍", "n "])  # one piece brings both
    assert both["choices"][0]["text"] == TEXT[: TEXT.index("n ")]
    late = worker.ask(prompt="Hi", max_tokens=40, stop="!")
    assert (late["choices"][0]["text"], late["usage"]["completion_tokens"]) == (TEXT[:-1], 12)


def test_a_long_answer_is_not_decoded_again_and_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step decodes a few tokens, however many have been written."""
    tokenizer = worker.module._handler.tokenizer
    lengths, decode = list[int](), type(tokenizer).decode

    def noted(self: Any, ids: list[int], **options: Any) -> Any:
        lengths.append(len(ids))
        return decode(self, ids, **options)

    monkeypatch.setattr(type(tokenizer), "decode", noted)
    worker.ask(prompt="Hi", max_tokens=40, ignore_eos=True)
    assert len(lengths) == 2 * 40
    assert max(lengths) <= 6


def test_parts_and_the_developer(worker: Worker) -> None:
    """Text parts are joined; a developer is the system where the template knows none, and itself where it does."""
    handler, chat = worker.module._handler, worker.module.Chat
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]
    asked = chat.model_validate({"messages": [{"role": "developer", "content": parts}, *HELLO]})
    turns = "<|im_start|>{}\nBe\nbrief<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert handler.rendered(asked) == turns.format("system")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler.tokenizer, "chat_template", TEMPLATE + "{# developer #}")
        assert handler.rendered(asked) == turns.format("developer")


# --- text_generation: what is wrong with a row ---

MISTAKES: list[tuple[Any, int, str]] = [
    (None, 400, "not JSON"),
    (b"\xff\xfe{}", 400, "UTF-8"),
    (bytearray(b'{"prompt": "half'), 400, "not JSON"),
    ("[" * 100_000, 400, "not JSON"),
    ([{"prompt": "hi"}], 422, "body"),
    ({"prompt": ["hi"]}, 422, "prompt"),
    ({"prompt": "\ud83d"}, 422, "prompt"),
    ({"prompt": "hi", "\ud800": 1}, 422, "body"),
    ({"prompt": "x" * 100_000}, 400, "100000 characters, too many for 60 tokens"),
    ({"prompt": "x" * 61}, 400, "61 tokens; send 1 to 60"),
    ({"prompt": "hi", "max_tokens": 41}, 422, "41 is more than 40"),
    ({"prompt": "hi", "max_tokens": True}, 422, "max_tokens"),
    ({"prompt": "hi", "max_tokens": 10**400}, 422, "max_tokens"),
    ({"prompt": "hi", "temperature": float("nan")}, 422, "temperature"),
    ({"prompt": "hi", "temperature": 10**400}, 422, "temperature"),
    ({"prompt": "hi", "top_p": 0}, 422, "top_p"),
    ({"prompt": "hi", "seed": 2**63}, 422, "seed"),
    ({"prompt": "hi", "stop": ["a", ""]}, 422, "stop.1"),
    ({"prompt": "hi", "stream_options": {"continuous_usage_stats": True}}, 422, "stream_options"),
    ({"prompt": "hi", "model": "another"}, 404, "another"),
    ({"prompt": "hi", "n": 2, "logprobs": 1}, 422, "n: not supported, or not with this value; logprobs: not supported"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, 422, "messages.0.role"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, 422, "user first"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 422, "image_url"),
    ({"messages": HELLO, "prompt": "hi"}, 422, "prompt: not supported"),
]


def test_each_mistake_is_answered_to_its_row_alone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch with good rows, streamed and whole, each mistake has its status and names what is wrong; the others
    get their answers. What breaks the handler itself is a 500 without its words."""
    read = worker.module.TextGenerationHandler.read
    monkeypatch.setattr(
        worker.module.TextGenerationHandler,
        "read",
        lambda self, raw, *rest: 1 / 0 if raw == "boom" else read(self, raw, *rest),
    )
    good, stream = {"prompt": "Hi", "max_tokens": 13}, {"prompt": "Hi", "max_tokens": 13, "stream": True}
    answers = worker.batch([good, *(body for body, _, _ in MISTAKES), "boom", stream])
    for answer, (body, status, says) in zip(answers[1:-2], MISTAKES, strict=True):
        error = answer.json["error"]
        assert (answer.status, error["code"], says in error["message"]) == (status, status, True), (body, error)
        assert answer.kind == "application/json"
    assert (answers[-2].status, "division" in answers[-2].body) == (500, False)
    assert answers[0].json["choices"][0]["text"] == TEXT
    assert streamed(worker, len(answers) - 1) == (TEXT, "stop")
    assert worker.counters["FailedRequests"] == len(MISTAKES) + 1
    assert (worker.counters["GeneratedTokens"], worker.counters["BatchRows"]) == (26, len(answers))
    (unknown,) = worker.batch([good], "v1/embeddings")
    assert (unknown.status, CHAT in unknown.body) == (404, True)


NAMES = st.sampled_from(
    ["prompt", "messages", "role", "content", "type", "text", "stop", "seed", "model", "stream", "n"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(body=JSON | st.binary(max_size=40), path=st.sampled_from(["", COMPLETIONS, CHAT]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_is_a_row_or_a_refusal(worker: Worker, body: Any, path: str) -> None:
    """Any JSON value and any bytes are a request within the limits, or a 4xx with a reason that JSON can hold."""
    refusal: Any = None
    try:
        row = worker.module._handler.read(body, path)
    except worker.module.RequestError as error:
        refusal = error
    if refusal:
        assert 400 <= refusal.code < 500
        assert json.loads(json.dumps(refusal.answer))["error"]["message"]
    else:
        assert 1 <= row.max_tokens <= LIMITS["max_new_tokens"]
        assert 1 <= len(row.prompt_ids) <= LIMITS["max_prompt_tokens"]


def test_no_header_of_a_client_changes_the_batch(worker: Worker) -> None:
    """`BaseHandler.handle` explains or describes a batch when the first request has such a header."""
    for name in ("explain", "describe"):
        answers = worker.batch([{"prompt": "Hi", "max_tokens": 13}] * 2, COMPLETIONS, **{name: "True"})
        assert [answer.json["choices"][0]["text"] for answer in answers] == [TEXT] * 2


# --- text_generation: the model ---


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> Worker:
    """text_generation.py with a model that looks at all it reads."""
    settings = {"model_path": str(attentive_model(tmp_path_factory.mktemp("attentive"))), **LIMITS}
    return Worker(HANDLERS / "text_generation.py", settings, tmp_path_factory.mktemp("a") / "model", patched)


def test_alone_and_together(attentive: Worker) -> None:
    """Prompts, lengths, temperatures and seeds of all kinds: together each gets what it gets alone."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "a" * length, "max_tokens": tokens, "ignore_eos": True, **sampling}
        for length, tokens in ((1, 9), (30, 4), (7, 20))
        for sampling in ({}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "seed": -2, "top_p": 0.8})
    ]
    together = [answer.json["choices"] for answer in attentive.batch(bodies, COMPLETIONS)]
    assert together == [attentive.ask(**body)["choices"] for body in bodies]
    assert len({json.dumps(choices) for choices in together}) == len(bodies)


def test_samples_have_the_chances_that_were_asked_for(worker: Worker) -> None:
    """400 first tokens: the model gives its next token one chance in three at temperature 1; a tiny top_p or
    temperature leaves nothing else; another seed gives another answer."""

    def first(**sampling: Any) -> Counter[str]:
        bodies = [{"prompt": "Hi", "max_tokens": 1, "seed": seed, **sampling} for seed in range(400)]
        return Counter(answer.json["choices"][0]["text"] for answer in worker.batch(bodies, COMPLETIONS))

    chance = first(temperature=1.0)["Gr"] / 400
    model = worker.module._handler.model
    with torch.inference_mode():
        expected = model(torch.tensor([[7]])).logits[0, -1].softmax(-1).max().item()
    assert chance == pytest.approx(expected, abs=3 * (expected * (1 - expected) / 400) ** 0.5)
    assert first(temperature=1.0, top_p=0.01) == first(temperature=0.01) == {"Gr": 400}
    assert first(temperature=2.0)["Gr"] < 200


@pytest.mark.parametrize("gpu", [None, 1])
@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_model_goes_where_torchserve_says(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, gpu: int | None, cuda: bool, dtype: str
) -> None:
    """The worker's own GPU with the model's own type; float32 on a CPU; any type that is asked for."""
    model = MagicMock(**{"to.side_effect": InterruptedError})
    load = MagicMock(return_value=model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(worker.module.transformers.AutoModelForCausalLM, "from_pretrained", load)
    inner = {"model_path": "x", "dtype": dtype}
    context = type(worker.context)("m", "/d", {}, 1, gpu, "", model_yaml_config={"handler": inner})
    with pytest.raises(InterruptedError):
        worker.module.TextGenerationHandler().initialize(context)
    on_gpu = cuda and gpu is not None
    model.to.assert_called_with(torch.device("cuda:1" if on_gpu else "cpu"))
    load.assert_called_with("/d/x", local_files_only=True, dtype=dtype if on_gpu or dtype != "auto" else "float32")


def test_lengths_beyond_the_model_are_refused_at_the_start(worker: Worker, scripted: Path) -> None:
    """A prompt and an answer of the greatest length must have positions in the model."""
    inner = {"model_path": str(scripted), "max_prompt_tokens": 2000, "max_new_tokens": 49}
    context = type(worker.context)("m", "/", {}, 1, None, "", model_yaml_config={"handler": inner})
    with pytest.raises(ValueError, match="need 2049 positions; the model has 2048"):
        worker.module.TextGenerationHandler().initialize(context)


# --- the other handlers ---


def step(name: str, model: Path, folder: Path, patch: pytest.MonkeyPatch, **more: Any) -> Worker:
    """A handler with what its configuration says."""
    known = yaml.safe_load((HANDLERS / f"{name}.yaml").read_text())["handler"]
    return Worker(HANDLERS / f"{name}.py", {**known, "model_path": str(model), **more}, folder / name, patch)


def test_the_steps_from_naive_to_batch(scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step repairs what its text says, and no more."""
    good: dict[str, Any] = {"prompt": "Hi", "max_tokens": 13}
    bad: list[Any] = [{"prompt": 7}, b"{", [], {}]
    naive = step("naive", scripted, tmp_path, monkeypatch, temperature=0, max_new_tokens=20)
    (alone,) = naive.batch([good])
    assert alone.json == {"response": "Hi" + TEXT}
    with pytest.raises(AssertionError):  # one answer for two
        naive.batch([good, good])
    for body in bad:
        with pytest.raises((TypeError, KeyError, ValueError)):
            naive.batch([body])
    rows = step("steps/rows", scripted, tmp_path, monkeypatch, max_new_tokens=20).batch([good, *bad, good])
    assert [row.status for row in rows] == [200, 422, 422, 422, 422, 200]
    assert rows[0].json == rows[-1].json == {"response": "Hi" + TEXT}
    limits = {"max_new_tokens": 20, "max_prompt_tokens": 60}
    bodies: list[Any] = [good, *bad, {"prompt": "x" * 60}, {**good, "max_tokens": 21}, {**good, "max_tokens": 4}]
    for name in ("chat", "batch"):
        answers = step(f"steps/{name}", scripted, tmp_path, monkeypatch, **limits).batch(bodies)
        assert [answer.status for answer in answers] == [200, *[422] * 6, 200]
        assert "up to 60" in answers[5].json["error"]
        assert (answers[0].json["text"], answers[0].json["finish_reason"]) == (TEXT, "stop")
        assert (answers[-1].json["text"], answers[-1].json["finish_reason"]) == ("Grüße", "length")
        assert answers[-1].json["usage"]["completion_tokens"] == 4


def test_the_batch_step_writes_what_the_chat_step_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding changes nothing: prompts of all lengths in one batch have the answers that they have alone."""
    model = attentive_model(tmp_path / "model")
    bodies = [{"prompt": "x" * length, "max_tokens": tokens} for length, tokens in ((1, 9), (30, 3), (12, 20))]
    chat, batch = (step(f"steps/{name}", model, tmp_path, monkeypatch).batch(bodies) for name in ("chat", "batch"))
    assert [answer.json for answer in batch] == [answer.json for answer in chat]
    assert len({answer.json["text"] for answer in chat}) == 3


def test_the_embedding_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of length 1 and labels, the same in a batch and alone; a mistake is answered to its row."""
    settings: dict[str, Any] = {"examples": {"aa": ["aaa", "aaaa"], "zz": ["zzz"]}, "max_tokens": 8, "max_texts": 3}
    worker = step("embedding", attentive_model(tmp_path / "model"), tmp_path, monkeypatch, **settings)
    bad: list[Any] = [7, None, b"{", "[" * 10**5, b"\xff", {}, {"text": "a", "top_k": 1}, {"text": "a", "embed": 1}]
    bad += [{"text": text} for text in (7, [], ["a"] * 4, "\ud800", " ", "word word")]
    labels, vectors, *rest, last = worker.batch(
        [{"text": ["aaa", "zzz"]}, {"text": "zzz", "embed": True}, *bad, {"text": "zzz"}]
    )
    assert [result["label"] for result in labels.json["results"]] == ["aa", "zz"]
    assert sum(x * x for x in vectors.json["results"][0]) == pytest.approx(1, abs=1e-5)
    assert [answer.status for answer in rest] == [422] * len(bad)
    assert all(answer.json["error"] for answer in rest)
    alone = worker.batch([{"text": "zzz"}])[0].json["results"][0]
    assert (last.json["results"][0]["label"], last.json["results"][0]["score"]) == (
        "zz",
        pytest.approx(alone["score"], abs=1e-3),
    )


def test_the_sleep_handler_follows_its_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of n sleeps fixed_s + per_row_s * n once, and every row learns n and the version; with a fail_share of 0
    every row is answered, with one of 1 every row gets a 500."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    cost = {"fixed_s": 0.2, "per_row_s": 0.01, "load_s": 3}
    for share, status in ((0, 200), (1, 500)):
        worker = Worker(HANDLERS / "sleep.py", {**cost, "fail_share": share}, tmp_path / str(share), monkeypatch)
        answers = worker.batch([{}] * 4)
        assert slept == [3, pytest.approx(0.24)]
        assert [answer.status for answer in answers] == [status] * 4
        assert {(answer.json["rows"], answer.json["version"]) for answer in answers} == {(4, "1.0")}
        slept.clear()
