"""A cost model in place of a model: a batch of n takes fixed_s + per_row_s * n seconds, on any machine.

    POST /predictions/NAME  (any body)  ->  {"rows": 4, "version": "1.0", "pid": 123, "seconds": 0.12}

Use it to measure the law of batching, and to try versions, scaling and faults, without a model's load. One file, to be
copied. The section `handler` of its model-config.yaml sets `fixed_s`, `per_row_s`, `load_s`, the seconds
that loading takes, and `fail_share`, the share of requests (0 to 1, drawn by chance) that get a 500.
"""

import json
import os
import random
import time
from typing import Any

COST_S = {"fixed_s": 0.1, "per_row_s": 0.005}


def batch_seconds(rows: int, *, fixed_s: float, per_row_s: float) -> float:
    """What a batch of `rows` takes, in seconds."""
    return fixed_s + per_row_s * rows


class SleepHandler:
    """The one class of this file, which TorchServe finds by itself."""

    def initialize(self, context: Any) -> None:
        """Called once, when the worker starts."""
        settings = (context.model_yaml_config or {}).get("handler", {})
        self.cost = {name: float(settings.get(name, usual)) for name, usual in COST_S.items()}
        self.fail_share = float(settings.get("fail_share", 0))
        self.version = context.manifest["model"].get("modelVersion", "")
        time.sleep(float(settings.get("load_s", 0)))

    def handle(self, data: list[Any], context: Any) -> list[str]:
        """Sleep for the whole batch; every answer says how many rows shared it."""
        seconds = batch_seconds(len(data), **self.cost)
        time.sleep(seconds)
        answer = {"rows": len(data), "version": self.version, "pid": os.getpid(), "seconds": round(seconds, 6)}
        for index in range(len(data)):
            context.set_response_content_type(index, "application/json")
            if random.random() < self.fail_share:
                context.set_response_status(code=500, phrase="failed as it was told to", idx=index)
        return [json.dumps(answer)] * len(data)
