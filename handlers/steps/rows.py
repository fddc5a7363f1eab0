"""Step 1 from naive.py to text_generation.py: an answer and a status for every row.

    POST /predictions/NAME  {"prompt": "..."}  ->  {"response": "..."}, or 422 with the reason

The rest is as in naive.py: no chat template, the prompt repeated, a long prompt cut, one length for all. The rows of a
batch are still generated one after another.
"""

import json
import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler

CUT_AT_TOKENS = 512


class RowsHandler(BaseHandler):  # type: ignore[misc]
    """`BaseHandler.handle` calls `preprocess`, `inference` and `postprocess`, and sets `self.context` before."""

    def initialize(self, context: Any) -> None:
        """Called once, when the worker starts."""
        self.settings = context.model_yaml_config["handler"]
        path = os.path.join(context.system_properties["model_dir"], self.settings["model_path"])
        gpu = context.system_properties.get("gpu_id")
        self.device = f"cuda:{gpu}" if torch.cuda.is_available() and gpu is not None else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=self.settings["dtype"]).to(self.device)

    def preprocess(self, data: list[Any]) -> list[str | ValueError]:
        """Return the prompt of each row, or its error."""
        return [self.read(row.get("body", row.get("data"))) for row in data]

    def read(self, body: Any) -> str | ValueError:
        """Return the prompt, or an error. TorchServe has decoded a body of type application/json, but no other."""
        try:
            body = json.loads(body) if isinstance(body, str | bytes | bytearray) else body
        except ValueError as error:
            return error
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            return ValueError("send a JSON object with a 'prompt' that is a text")
        return str(body["prompt"])

    def inference(self, prompts: list[str | ValueError]) -> list[str | ValueError]:
        """Generate the answers row by row."""
        return [prompt if isinstance(prompt, ValueError) else self.write(prompt) for prompt in prompts]

    def write(self, prompt: str) -> str:
        """As in naive.py."""
        options = {"return_tensors": "pt", "truncation": True, "max_length": CUT_AT_TOKENS}
        inputs = self.tokenizer(prompt, **options).to(self.device)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=self.settings["max_new_tokens"], do_sample=False)
        return str(self.tokenizer.decode(tokens[0], skip_special_tokens=True))

    def postprocess(self, answers: list[str | ValueError]) -> list[str]:
        """Return one answer per row, in order; an invalid row gets status 422."""
        for index, answer in enumerate(answers):
            if isinstance(answer, ValueError):
                self.context.set_response_status(code=422, phrase="Unprocessable Entity", idx=index)
        return [
            json.dumps({"error": str(answer)} if isinstance(answer, ValueError) else {"response": answer})
            for answer in answers
        ]
