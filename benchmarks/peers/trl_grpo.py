"""TRL's GRPO loss, forward and backward, on the workload of benchmarks/learner.py.

Runs in a separate environment (`make bench-peers`): `python benchmarks/peers/trl_grpo.py LENGTHS` prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.meter import measure
from benchmarks.workloads import VOCABULARY, Work, llama, texts


def trainer(model: torch.nn.Module, directory: str) -> trl.GRPOTrainer:
    """A GRPO trainer of which only the loss is used."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "word": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="word")), pad_token="<pad>", eos_token="</s>"
    )
    arguments = trl.GRPOConfig(
        output_dir=directory,
        loss_type="grpo",
        beta=0.0,
        num_generations=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        bf16=False,
        report_to=[],
        use_cpu=True,
    )
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda prompts, **rest: [0.0] * len(prompts),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "word"}] * 2),
        processing_class=tokenizer,
    )


def batch(work: Work) -> dict[str, torch.Tensor]:
    """The input of TRL's loss: prompts padded on the left, responses on the right."""
    prompts = [torch.from_numpy(prompt) for prompt in work.prompts]
    responses = [torch.from_numpy(response) for response in work.responses]
    ones = [torch.ones_like(response) for response in responses]
    return {
        "prompt_ids": torch.stack(prompts),
        "prompt_mask": torch.ones_like(torch.stack(prompts)),
        "completion_ids": pad_sequence(responses, batch_first=True),
        "completion_mask": pad_sequence(ones, batch_first=True),
        "advantages": torch.from_numpy(work.advantages),
        "num_items_in_batch": torch.tensor(sum(map(len, responses))),
    }


def main(lengths: list[int]) -> None:
    """Print the time, the memory and the gradient of one loss step."""
    model = llama(VOCABULARY, 256, 2)
    work = texts(lengths, VOCABULARY)
    with tempfile.TemporaryDirectory() as directory:
        one = trainer(model, directory)

        def step(inputs: dict[str, torch.Tensor]) -> None:
            model.zero_grad(set_to_none=True)
            one._compute_loss(one.model, inputs).backward()

        step(batch(texts([40, 36], VOCABULARY)))
        reading = measure(lambda: step(batch(work)))
    norm = torch.nn.utils.get_total_norm(parameter.grad for parameter in model.parameters())
    print(
        json.dumps({**vars(reading), "tokens": work.tokens, "grad_norm": float(norm), "version": trl.__version__})
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
