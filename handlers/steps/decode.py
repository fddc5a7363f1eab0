"""Decoding without a model, for lab 07: each step costs `step_s`, however many rows share it.

    POST /predictions/NAME  {"tokens": 4}  ->  for each of 4 steps the number of rows in it: "1 3 3 2"

The same file serves a static batch and, with `continuousBatching: true`, TorchServe's continuous batching: `handle` is
then called once per step with the rows in flight, a row ends when its stopping criterion holds, and a waiting request
takes its slot before the next call.
"""

import time
from typing import Any


class DecodeHandler:
    """The one class of this file, which TorchServe finds by itself."""

    def initialize(self, context: Any) -> None:
        """Called once, when the worker starts."""
        config = context.model_yaml_config
        self.continuous, self.step_s = config["continuousBatching"], config["handler"]["step_s"]
        self.left: dict[str, int] = {}  # tokens still to come, by request

    def handle(self, data: list[Any], context: Any) -> list[str]:
        """One text per row: all of its steps, or the next one."""
        tokens = [row.get("body", {}).get("tokens", 0) for row in data]
        return self.one_step(tokens, context) if self.continuous else self.all_steps(tokens)

    def all_steps(self, tokens: list[int]) -> list[str]:
        """A static batch returns when its longest answer is complete."""
        time.sleep(self.step_s * max(tokens))
        return [f"{len(tokens)} " * count for count in tokens]

    def one_step(self, tokens: list[int], context: Any) -> list[str]:
        """One token for each row in flight; a request keeps its id from call to call."""
        ids = list(context.request_ids.values())
        self.left = {id: self.left.get(id, count) - 1 for id, count in zip(ids, tokens, strict=True)}
        time.sleep(self.step_s)
        context.stopping_criteria = [lambda _text, left=self.left[id]: left == 0 for id in ids]
        return [f"{len(ids)} "] * len(ids)
