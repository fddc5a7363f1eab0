"""Turns a GGUF file into a Hugging Face folder in bfloat16; a process of its own, so that torch stays out of ours.

    python -m labkit.models.convert MODEL.gguf FOLDER

The embedded chat model is stored with four bits a weight; served in bfloat16 it behaves like any model from a hub:
vLLM, transformers and TorchServe all read the one folder.
"""

import os
import sys
from pathlib import Path


def gguf_to_bf16(gguf: Path, folder: Path) -> None:
    """Dequantizes `gguf` and writes config, tokenizer (chat template included) and safetensors into `folder`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dequantize = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=dequantize)
    model = model.to(torch.bfloat16)
    # What is saved is no longer quantized; with the entry left in, every loader would look for a GGUF file.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    gguf_to_bf16(Path(sys.argv[1]), Path(sys.argv[2]))
