"""Convert a GGUF file to a Hugging Face folder in bfloat16, in a separate process without importing torch into labkit.

    python -m labkit.models.convert MODEL.gguf FOLDER

The embedded chat model has 4-bit weights; in bfloat16, vLLM, transformers and TorchServe can all serve the folder.
"""

import os
import sys
from pathlib import Path


def gguf_to_bf16(gguf: Path, folder: Path) -> None:
    """Dequantize `gguf` and write config, tokenizer (with its chat template) and safetensors into `folder`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dequantize = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=dequantize)
    model = model.to(torch.bfloat16)
    # The saved model is not quantized; with this entry, every loader would look for a GGUF file.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    gguf_to_bf16(Path(sys.argv[1]), Path(sys.argv[2]))
