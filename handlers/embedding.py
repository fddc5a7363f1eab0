"""Sentence embeddings and nearest-example labels for TorchServe 0.12, on its `BaseHandler`: one file to copy.

    POST /predictions/NAME  {"text": "..." or ["...", ...]}  ->  {"results": [{"label": ..., "score": ...}, ...]}
    POST /predictions/NAME  {"text": ..., "embed": true}     ->  {"results": [[0.1, ...], ...]}

It reads the section `handler` of model-config.yaml: `model_path` (a Hugging Face folder, absolute or inside the
archive), `examples` (texts by label; without any there are embeddings only), `threads`, `max_tokens` of a text and
`max_texts` of a request. An invalid request gets 422 with the reason; the others in its batch are not affected.
"""

import json
import os
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class EmbeddingHandler(BaseHandler):  # type: ignore[misc]
    """A sentence transformer: unit vectors, and the label whose examples are nearest on average."""

    def initialize(self, context: Any) -> None:
        """Load the model once, on the GPU that TorchServe chose for this worker, and embed the examples."""
        self.settings = {"threads": 1, "max_tokens": 256, "max_texts": 64, **context.model_yaml_config["handler"]}
        gpu = context.system_properties.get("gpu_id")
        self.device = torch.device(f"cuda:{gpu}" if torch.cuda.is_available() and gpu is not None else "cpu")
        torch.set_num_threads(self.settings["threads"])
        path = os.path.join(context.system_properties["model_dir"], self.settings["model_path"])
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = AutoModel.from_pretrained(path, local_files_only=True).to(self.device).eval()
        examples = self.settings.get("examples") or {}
        self.labels, self.initialized = list(examples), True
        if self.labels:
            centres = torch.stack([self.vectors(texts).mean(0) for texts in examples.values()])
            self.centres = torch.nn.functional.normalize(centres, dim=-1)

    def preprocess(self, data: list[dict[str, Any]]) -> list[Any]:
        """Return the texts of each row and whether their embeddings are wanted, or the row's error."""
        rows: list[Any] = []
        for index, row in enumerate(data):
            self.context.set_response_content_type(index, "application/json")
            try:
                rows.append(self.read(row.get("body", row.get("data"))))
            except (ValueError, RecursionError) as error:
                self.context.set_response_status(code=422, phrase="Unprocessable Entity", idx=index)
                rows.append(error)
        return rows

    def read(self, body: Any) -> tuple[list[str], bool]:
        """Parse a body. TorchServe decodes application/json if it can; all else arrives as bytes or text. ValueError if
        it is invalid."""
        body = json.loads(body or b"") if isinstance(body, str | bytes | bytearray | None) else body
        if not isinstance(body, dict) or body.keys() - {"text", "embed"}:
            raise ValueError("send a JSON object with 'text' and, if you like, 'embed', and nothing else")
        texts, embed = body.get("text"), body.get("embed", False)
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("'text' must be a string or a list of strings, none of them empty")
        most, limit = self.settings["max_texts"], self.settings["max_tokens"]
        if not 1 <= len(texts) <= most:
            raise ValueError(f"'text' has {len(texts)} texts; send 1 to {most}")
        if not isinstance(embed, bool) or not (embed or self.labels):
            raise ValueError("'embed' must be true or false" if self.labels else "no labels here: send 'embed': true")
        "".join(texts).encode()  # JSON can write half of a surrogate pair, which no tokenizer takes
        if (longest := max(map(len, self.tokenizer(texts)["input_ids"]))) > limit:
            raise ValueError(f"a text has {longest} tokens; the limit is {limit}")
        return texts, embed

    def inference(self, rows: list[Any]) -> list[Any]:
        """Return the results of each row; the texts of all rows go through the model at once."""
        texts = [text for row in rows if isinstance(row, tuple) for text in row[0]]
        vectors = list(self.vectors(texts)) if texts else []
        results = []
        for row in rows:
            if isinstance(row, tuple):
                mine, vectors = vectors[: len(row[0])], vectors[len(row[0]) :]
                row = [vector.tolist() for vector in mine] if row[1] else [self.nearest(vector) for vector in mine]
            results.append(row)
        return results

    def vectors(self, texts: list[str]) -> Any:
        """Return one unit vector per text: the normalised mean over its tokens."""
        batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            hidden, mask = self.model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def nearest(self, vector: Any) -> dict[str, Any]:
        """Return the best label; `score` is the cosine of the angle to the centre of its examples."""
        score, place = (self.centres @ vector).max(dim=0)
        return {"label": self.labels[int(place)], "score": round(float(score), 4)}

    def postprocess(self, results: list[Any]) -> list[str]:
        """Return one answer per row, in order."""
        return [json.dumps({"results": row} if isinstance(row, list) else {"error": str(row)}) for row in results]
