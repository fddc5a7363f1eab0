"""Embeddings and nearest-example labels for TorchServe: batched, with a true status for every request.

    POST /predictions/NAME  {"text": "..." or ["...", ...]}  ->  {"results": [{"label": ..., "score": ...}, ...]}
    POST /predictions/NAME  {"text": ..., "embed": true}     ->  {"results": [[0.1, ...], ...]}

One file, to be copied: it needs TorchServe 0.12, torch and transformers, and reads the section `handler` of its
model-config.yaml (see `Settings`). Without examples there it gives embeddings only.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that cannot be answered: the status and the reason that its client gets."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The section `handler` of model-config.yaml.

    `model_path`: a Hugging Face folder, absolute or inside the archive. `examples`: texts by label. `threads`: torch's.
    Longer texts, and more of them in one request, are refused.
    """

    model_path: str
    examples: dict[str, list[str]] = field(default_factory=dict)
    threads: int = 1
    max_tokens: int = 256
    max_texts: int = 64


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The texts of one request, and whether their embeddings are wanted instead of labels."""

    index: int
    texts: tuple[str, ...]
    embed: bool


def read_request(row: Mapping[str, Any], index: int, settings: Settings) -> Asked:
    """The request in a row of TorchServe's batch. `RequestError` names the first thing that is wrong with it."""
    body = json_object(row.get("body", row.get("data")))
    if unknown := set(body) - {"text", "embed"}:
        raise wrong(f"unknown: {', '.join(sorted(unknown))[:60]!r}; 'text' and 'embed' can be sent")
    texts, embed = body.get("text"), body.get("embed", False)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(one, str) and one.strip() for one in texts):
        raise wrong("'text' must be a text, or a list of texts, with something in each")
    if not 1 <= len(texts) <= settings.max_texts:
        raise wrong(f"'text' holds {len(texts)} texts; from 1 to {settings.max_texts} can be sent")
    if not all(encodable(one) for one in texts):
        raise wrong("'text' holds half of a character")
    if not isinstance(embed, bool):
        raise wrong("'embed' must be true or false")
    if not embed and not settings.examples:
        raise wrong("there are no examples here, so no labels; send 'embed': true")
    return Asked(index=index, texts=tuple(texts), embed=embed)


def json_object(body: Any) -> dict[str, Any]:
    """TorchServe decodes a body of type application/json, if it can; all else comes as text or bytes."""
    if not body and body != {}:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the body is empty; send a JSON object")
    try:
        if isinstance(body, bytes | bytearray):
            body = body.decode()
        found = json.loads(body) if isinstance(body, str) else body
    except (ValueError, RecursionError) as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(found, dict):
        raise wrong(f"the body must be a JSON object, not of type {type(found).__name__}")
    return found


def encodable(text: str) -> bool:
    """Whether it is made of whole characters: JSON can write half of a surrogate pair, which no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def wrong(reason: str) -> RequestError:
    """A request that can be read but not answered."""
    return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, reason)


class Embedder:
    """A sentence-transformer: unit vectors, and the label whose examples lie nearest on average."""

    def __init__(self, settings: Settings, *, model_dir: str, gpu_id: int | None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        # The context names the GPU that TorchServe gave to this worker.
        on_gpu = torch.cuda.is_available() and gpu_id is not None
        self.device = torch.device(f"cuda:{gpu_id}" if on_gpu else "cpu")
        torch.set_num_threads(settings.threads)
        path = model_folder(model_dir, settings.model_path)
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = AutoModel.from_pretrained(path, local_files_only=True).to(self.device).eval()
        self.labels = list(settings.examples)
        if self.labels:
            centres = torch.stack([self.vectors(texts).mean(0) for texts in settings.examples.values()])
            self.centres = torch.nn.functional.normalize(centres, dim=-1)

    def check_lengths(self, asked: Asked, limit: int) -> Asked:
        """Refuses what is too long instead of cutting it."""
        longest = max(map(len, self.tokenizer(list(asked.texts), truncation=False)["input_ids"]))
        if longest > limit:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"a text has {longest} tokens; up to {limit} can be read")
        return asked

    def vectors(self, texts: list[str]) -> Any:
        """One unit vector a text: the mean over its tokens."""
        import torch

        with torch.inference_mode():
            batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
            hidden, mask = self.model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def nearest(self, vectors: Any) -> list[dict[str, Any]]:
        """The best label of each vector; `score` is the cosine of the angle to its examples' centre."""
        best = (vectors @ self.centres.T).max(dim=1)
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"label": self.labels[place], "score": round(score, 4)} for place, score in found]


def model_folder(model_dir: str, model_path: str) -> str:
    """The model's folder: an absolute path stays as it is, another is one in the archive."""
    path = os.path.join(model_dir, model_path)
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise FileNotFoundError(f"model_path {model_path!r} is no model folder: it has no config.json")
    return path


class Service:
    """One worker's model, and the answers to its batches."""

    def __init__(self, context: Any) -> None:
        properties = context.system_properties
        self.settings = Settings(**(context.model_yaml_config or {}).get("handler", {}))
        self.embedder = Embedder(self.settings, model_dir=properties["model_dir"], gpu_id=properties.get("gpu_id"))

    def answer(self, data: list[Mapping[str, Any]], context: Any) -> list[str]:
        """One answer a row, in their order; all texts of all rows go through the model at once."""
        answers, asked = [""] * len(data), list[Asked]()
        for index, sent in enumerate(data):
            context.set_response_content_type(index, "application/json")
            try:
                one = read_request(sent, index, self.settings)
                asked.append(self.embedder.check_lengths(one, self.settings.max_tokens))
            except Exception as error:
                answers[index] = self.failed(index, error, context)
        if asked:
            self.embed(asked, answers)
        context.metrics.add_counter("EmbeddedTexts", sum(len(one.texts) for one in asked))
        return answers

    def embed(self, asked: list[Asked], answers: list[str]) -> None:
        """Fills `answers` at the places of the rows that can be answered."""
        vectors, start = self.embedder.vectors([text for one in asked for text in one.texts]), 0
        for one in asked:
            mine, start = vectors[start : start + len(one.texts)], start + len(one.texts)
            answers[one.index] = json.dumps({"results": mine.tolist() if one.embed else self.embedder.nearest(mine)})

    def failed(self, index: int, error: Exception, context: Any) -> str:
        """The status and the answer of a row that failed; the rest of the batch goes on."""
        status, reason = HTTPStatus.INTERNAL_SERVER_ERROR, "the request could not be processed"
        if isinstance(error, RequestError):
            status, reason = error.status, str(error)
        else:
            log.error("a request failed", exc_info=error)
        context.set_response_status(code=int(status), phrase=status.phrase, idx=index)
        return json.dumps({"error": {"message": reason, "type": status.phrase, "code": int(status)}})


_service: Service | None = None


def handle(data: list[Mapping[str, Any]] | None, context: Any) -> list[str] | None:
    """The entry point: first without data, to load the model, then with a batch. TorchServe takes a function where a
    file has more than one class."""
    global _service
    if _service is None:
        _service = Service(context)
    return None if data is None else _service.answer(data, context)
