"""Step 1 from naive.py to text_generation.py: an answer for every row, and a status for every row.

    POST /predictions/NAME  {"prompt": "..."}  ->  {"response": "..."}, or a 4xx with the reason

The rest is as in naive.py: no chat template, the prompt repeated, a long prompt cut, one length for everybody. And the
rows of a batch are written one after the other: it takes a batch, it does not compute one.
"""

import json
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CUT_AT_TOKENS = 512


class RowsHandler:
    """The one class of this file, which TorchServe finds by itself."""

    def initialize(self, context: Any) -> None:
        """Called once, when the worker starts."""
        self.settings = context.model_yaml_config["handler"]
        path = self.settings["model_path"]
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=self.settings["dtype"]).to(device)
        torch.set_default_device(device)  # so that the tokens are where the model is

    def handle(self, data: list[Any], context: Any) -> list[str]:
        """One answer a row, in their order."""
        return [json.dumps(self.answer(row, index, context)) for index, row in enumerate(data)]

    def answer(self, row: Any, index: int, context: Any) -> dict[str, str]:
        """What is wrong with one row is told to that row's client; the others get their answers."""
        try:
            return {"response": self.write(self.read(row))}
        except ValueError as error:
            context.set_response_status(code=422, phrase="Unprocessable Entity", idx=index)
            return {"error": str(error)}

    def read(self, row: Any) -> str:
        """The prompt in a body that TorchServe has decoded (application/json) or has not."""
        body = row.get("body", row.get("data"))
        if isinstance(body, str | bytes | bytearray):
            body = json.loads(body)  # its error is a ValueError, as is that of bytes that are no UTF-8
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            raise ValueError("send a JSON object with a 'prompt' that is a text")
        return str(body["prompt"])

    def write(self, prompt: str) -> str:
        """As in naive.py."""
        options = {"return_tensors": "pt", "truncation": True, "max_length": CUT_AT_TOKENS}
        inputs = self.tokenizer(prompt, **options)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=self.settings["max_new_tokens"], do_sample=False)
        return str(self.tokenizer.decode(tokens[0], skip_special_tokens=True))
