"""A worker of TorchServe without TorchServe: it loads a handler file and calls it as TorchServe's own loader does.

And two tiny models in Hugging Face folders. `scripted_model` writes TEXT, whatever it reads; characters are cut across
its tokens. `attentive_model` has random weights, so that every token that it reads counts.
"""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from ts.context import RequestProcessor
from ts.model_loader import TsModelLoader

PIECES = b"Gr|\xc3|\xbc\xc3|\x9fe| aus |K\xc3|\xb6|ln \xf0\x9f|\x8c|\x8d| and|!".split(b"|")
TEXT = b"".join(PIECES).decode()
END = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' and loop.first %}{{ raise_exception('user first') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Answer(NamedTuple):
    """What one client gets."""

    status: int
    kind: str
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Worker:
    """One worker with a handler. `streamed` holds what was sent before the batch's answers, as TorchServe gets it."""

    def __init__(self, handler: Path, settings: Mapping[str, Any], folder: Path, monkeypatch: Any) -> None:
        (folder / "MAR-INF").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"handler": dict(settings)}))
        manifest = {"model": {"configFile": "config.yaml", "modelVersion": "1.0"}}
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
        monkeypatch.syspath_prepend(str(handler.parent))
        sys.modules.pop(handler.stem, None)  # a worker has one model, and imports its handler by the file's name
        importlib.invalidate_caches()
        self.service = TsModelLoader().load("m", str(folder), handler.name, None, 4, None, True, None)
        self.module = sys.modules.pop(handler.stem)
        self.context, self.streamed = self.service.context, list[dict[int, str]]()
        self.context.metrics, self.counters = self, dict[str, float]()
        monkeypatch.setattr(self.module, "send_intermediate_predict_response", self._sent, raising=False)

    def _sent(self, events: dict[int, str], ids: dict[int, str], _message: str, code: int, _context: Any) -> None:
        assert ids == {index: f"id-{index}" for index in events}
        assert code == 200
        self.streamed.append(events)

    def add_counter(self, name: str, value: float) -> None:
        """As `context.metrics` has it."""
        self.counters[name] = self.counters.get(name, 0) + value

    def add_metric(self, name: str, value: float, _unit: str, **_: Any) -> None:
        """A histogram: the last value."""
        self.counters[name] = value

    def add_time(self, *_: Any) -> None:
        """`BaseHandler.handle` reports its time."""

    def batch(self, bodies: Sequence[Any], path: str = "", **headers: str) -> list[Answer]:
        """One batch; a body that is no object is what TorchServe could not decode."""
        self.streamed.clear()
        self.counters.clear()
        self.context.request_ids = {index: f"id-{index}" for index in range(len(bodies))}
        self.context.request_processor = [RequestProcessor({"url_path": path, **headers}) for _ in bodies]
        answers = self.service._entry_point([{"body": body} for body in bodies], self.context)
        assert len(answers) == len(bodies)
        found = zip(range(len(bodies)), answers, strict=True)
        return [
            Answer(self.context.get_response_status(i)[0], self.context.get_response_content_type(i) or "", answer)
            for i, answer in found
        ]

    def ask(self, path: str = "v1/completions", **body: Any) -> Any:
        """One request alone that is answered."""
        (answer,) = self.batch([body], path)
        assert answer.status == 200, answer.body
        return answer.json

    def stream(self, index: int) -> list[dict[str, Any]]:
        """The chunks of one stream of the last batch."""
        lines = "".join(events.get(index, "") for events in self.streamed).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes, the pieces, and two special tokens."""
    letters = bytes_to_unicode()
    words = ["".join(letters[byte] for byte in word) for word in [*(bytes([byte]) for byte in range(256)), *PIECES]]
    made = Tokenizer(BPE({word: place for place, word in enumerate(dict.fromkeys(words))}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([END, "<|im_start|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, chat_template=template)


def _model(vocabulary: int, **sizes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 2048}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **shape, **sizes)).eval()


def scripted_model(folder: Path, template: str = TEMPLATE) -> Path:
    """A model that writes TEXT and ends. Its next token depends on the last one alone, by a third of the chance."""
    words = _tokenizer(template)
    ids = words.convert_tokens_to_ids
    letters = bytes_to_unicode()
    script = [*(ids("".join(letters[byte] for byte in piece)) for piece in PIECES), words.eos_token_id]
    model = _model(len(words), hidden_size=(size := -4 * (-len(words) // 4)))
    with torch.no_grad():
        for part in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            part.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[script[0]] = 0.3  # after any other token
        for last, following in pairwise(script):
            model.lm_head.weight[:, last] = 0
            model.lm_head.weight[following, last] = 0.3
    return _saved(folder, model, words)


def attentive_model(folder: Path) -> Path:
    """A model with random weights and attention: what it writes depends on all that it reads."""
    words = _tokenizer(TEMPLATE)
    words.pad_token = END
    return _saved(folder, _model(len(words), hidden_size=32, initializer_range=0.4), words)


def _saved(folder: Path, model: LlamaForCausalLM, words: PreTrainedTokenizerFast) -> Path:
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
