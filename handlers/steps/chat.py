"""Step 2 from naive.py to text_generation.py: what the model reads, and what it may write.

    POST /predictions/NAME  {"prompt": "...", "max_tokens": 16}  ->  {"text": ..., "finish_reason": ..., "usage": {...}}

The chat template goes around the prompt, the prompt stays out of the answer, a prompt or an answer that is too long is
refused instead of cut. Still missing: the rows of a batch are written one after the other. OpenAI's routes, streams,
temperatures, metrics and the GPU that TorchServe chose are missing, too.
"""

import json
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class ChatHandler:
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

    def answer(self, row: Any, index: int, context: Any) -> dict[str, Any]:
        """What is wrong with one row is told to that row's client; the others get their answers."""
        try:
            ids, max_tokens = self.read(row)
        except ValueError as error:
            context.set_response_status(code=422, phrase="Unprocessable Entity", idx=index)
            return {"error": str(error)}
        return self.write(ids, max_tokens)

    def read(self, row: Any) -> tuple[list[int], int]:
        """The tokens of the prompt inside the chat template, and how many may be written."""
        body = row.get("body", row.get("data"))
        if isinstance(body, str | bytes | bytearray):
            body = json.loads(body)  # its error is a ValueError, as is that of bytes that are no UTF-8
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

    def write(self, ids: list[int], max_tokens: int) -> dict[str, Any]:
        """Only what is new: `generate` returns the prompt, too."""
        with torch.inference_mode():
            tokens = self.model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False)
        new = tokens[0, len(ids) :]
        reason = "length" if len(new) == max_tokens else "stop"
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new), "total_tokens": len(tokens[0])}
        return {"text": self.tokenizer.decode(new, skip_special_tokens=True), "finish_reason": reason, "usage": usage}
