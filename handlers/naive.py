"""The handler that one writes first. It answers a single, well-formed request, and it is here for what it gets wrong.

    POST /predictions/NAME  {"prompt": "..."}  ->  {"response": "..."}

It reads the first request of a batch only, so a batch of more fails as a whole; takes a body that TorchServe has
decoded and nothing else; leaves the chat template out; cuts a long prompt without a word; has one length and one
temperature for everybody; returns the prompt as part of the answer; and takes whatever GPU torch takes, not the one
that TorchServe chose. text_generation.py is the same without these defects. Do not copy this one.
"""

import json
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CUT_AT_TOKENS = 512


class NaiveHandler:
    """The one class of this file, which TorchServe finds by itself."""

    def initialize(self, context: Any) -> None:
        """Called once, when the worker starts."""
        self.settings = context.model_yaml_config["handler"]
        path = self.settings["model_path"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=self.settings["dtype"]).to(self.device)

    def handle(self, data: list[Any], _context: Any) -> list[str]:
        """Answers the first request."""
        prompt = data[0]["body"]["prompt"]
        options = {"return_tensors": "pt", "truncation": True, "max_length": CUT_AT_TOKENS}
        inputs = self.tokenizer(prompt, **options).to(self.device)
        temperature = self.settings["temperature"]
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.no_grad():
            tokens = self.model.generate(**inputs, max_new_tokens=self.settings["max_new_tokens"], **sampling)
        return [json.dumps({"response": self.tokenizer.decode(tokens[0], skip_special_tokens=True)})]
