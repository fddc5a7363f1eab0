"""A typical first handler. It answers a single, well-formed request, and it is here for its mistakes.

    POST /predictions/NAME  {"prompt": "..."}  ->  {"response": "..."}

It reads only the first request of a batch, so a larger batch fails as a whole; it takes a body that TorchServe has
decoded and nothing else; it leaves the chat template out, cuts a long prompt silently, has one length and one
temperature for all, returns the prompt as part of the answer, and uses torch's GPU instead of the one that TorchServe
chose. text_generation.py is the same without these defects. Do not copy this one.
"""

import json
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler

CUT_AT_TOKENS = 512


class NaiveHandler(BaseHandler):  # type: ignore[misc]
    """TorchServe calls `initialize` once and `handle` for each batch; `BaseHandler.handle` calls the other three."""

    def initialize(self, context: Any) -> None:
        """Called once, when the worker starts."""
        self.settings = context.model_yaml_config["handler"]
        path = self.settings["model_path"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=self.settings["dtype"]).to(self.device)

    def preprocess(self, data: list[Any]) -> Any:
        """The tokens of the first prompt."""
        prompt = data[0]["body"]["prompt"]
        options = {"return_tensors": "pt", "truncation": True, "max_length": CUT_AT_TOKENS}
        return self.tokenizer(prompt, **options).to(self.device)

    def inference(self, inputs: Any) -> Any:
        """The prompt's tokens, and those of the answer."""
        temperature = self.settings["temperature"]
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.no_grad():
            return self.model.generate(**inputs, max_new_tokens=self.settings["max_new_tokens"], **sampling)

    def postprocess(self, tokens: Any) -> list[str]:
        """One answer."""
        return [json.dumps({"response": self.tokenizer.decode(tokens[0], skip_special_tokens=True)})]
