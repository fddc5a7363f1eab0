"""Step 2 from naive.py to text_generation.py: what the model reads, and how much it may write.

    POST /predictions/NAME  {"prompt": "...", "max_tokens": 16}  ->  {"text": ..., "finish_reason": ..., "usage": {...}}

The prompt goes into the chat template and stays out of the answer; a prompt or an answer that is too long is refused
instead of cut. The rows of a batch are still generated one after another.
"""

import json
import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class ChatHandler(BaseHandler):  # type: ignore[misc]
    """`BaseHandler.handle` calls `preprocess`, `inference` and `postprocess`, and sets `self.context` before."""

    def initialize(self, context: Any) -> None:
        """Called once, when the worker starts."""
        self.settings = context.model_yaml_config["handler"]
        path = os.path.join(context.system_properties["model_dir"], self.settings["model_path"])
        gpu = context.system_properties.get("gpu_id")
        self.device = f"cuda:{gpu}" if torch.cuda.is_available() and gpu is not None else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=self.settings["dtype"]).to(self.device)

    def preprocess(self, data: list[Any]) -> list[Any]:
        """Return the prompt tokens and `max_tokens` of each row, or its ValueError."""
        rows: list[Any] = []
        for row in data:
            try:
                rows.append(self.read(row.get("body", row.get("data"))))
            except ValueError as error:
                rows.append(error)
        return rows

    def read(self, body: Any) -> tuple[list[int], int]:
        """Return the tokens of the prompt inside the chat template, and the most new tokens."""
        body = json.loads(body) if isinstance(body, str | bytes | bytearray) else body
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            raise ValueError("send a JSON object with a 'prompt' that is a text")
        turns = [{"role": "user", "content": body["prompt"]}]
        ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        most, limit = self.settings["max_prompt_tokens"], self.settings["max_new_tokens"]
        if len(ids) > most:
            raise ValueError(f"the prompt has {len(ids)} tokens; up to {most} can be read")
        max_tokens = body.get("max_tokens", limit)
        if type(max_tokens) is not int or not 1 <= max_tokens <= limit:
            raise ValueError(f"'max_tokens' must be a whole number from 1 to {limit}")
        return ids, max_tokens

    def inference(self, rows: list[Any]) -> list[Any]:
        """Generate the answers row by row."""
        return [row if isinstance(row, ValueError) else self.write(*row) for row in rows]

    def write(self, ids: list[int], max_tokens: int) -> dict[str, Any]:
        """Return the answer without its prompt, which `generate` returns too."""
        inputs = torch.tensor([ids], device=self.device)
        with torch.inference_mode():
            tokens = self.model.generate(inputs, max_new_tokens=max_tokens, do_sample=False)
        new = tokens[0, len(ids) :].tolist()
        reason = "stop" if new[-1] == self.tokenizer.eos_token_id else "length"
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new), "total_tokens": len(ids) + len(new)}
        return {"text": self.tokenizer.decode(new, skip_special_tokens=True), "finish_reason": reason, "usage": usage}

    def postprocess(self, answers: list[Any]) -> list[str]:
        """Return one answer per row, in order; an invalid row gets status 422."""
        for index, answer in enumerate(answers):
            if isinstance(answer, ValueError):
                self.context.set_response_status(code=422, phrase="Unprocessable Entity", idx=index)
        return [json.dumps({"error": str(found)} if isinstance(found, ValueError) else found) for found in answers]
