"""Run vLLM's own engine, scheduler and server on a modelled GPU.

gpu = modelled.gpu("h100-sxm", model="llama-3.1-8b")
llm = LLM(gpu.model, **gpu.llm)
driven = modelled.drive(llm, modelled.traffic.fixed(200, input_tokens=500, output_tokens=300))
"""

from labkit.modelled import cards, routers, traces, traffic
from labkit.modelled.driver import Drive, drive
from labkit.modelled.engine import SERVER_ENV, ModelledGpu, gpu
from labkit.modelled.replica import close
from labkit.modelled.shapes import shape_of
from labkit.modelled.traffic import TokenRequest, Traffic

__all__ = [
    "SERVER_ENV",
    "Drive",
    "ModelledGpu",
    "TokenRequest",
    "Traffic",
    "cards",
    "close",
    "drive",
    "gpu",
    "routers",
    "shape_of",
    "traces",
    "traffic",
]
