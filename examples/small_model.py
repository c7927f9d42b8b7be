"""A small model to follow the tutorial with: it answers training problems with a number that is sometimes right.

    python examples/small_model.py gsm8k/train.jsonl models/small

It stands in for a pretrained language model on a machine without a GPU: a Llama of 0.4M weights with a byte-level
BPE tokenizer, fine-tuned on the problems with right and wrong answers. docs/tutorial.md uses it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RIGHT = 0.3
STEPS = 200
BATCH = 16


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 768 tokens, with one token per digit."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=768, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of two layers with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.06,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def fine_tune(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[dict[str, str]], steps: int
) -> None:
    """Fit the model to answers, of which the share `RIGHT` is right and the others belong to other problems."""
    rng = random.Random(0)
    answers = [one["answer"] for one in problems]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        shown = [
            (one["problem"], one["answer"] if rng.random() < RIGHT else rng.choice(answers))
            for one in rng.sample(problems, BATCH)
        ]
        loss = answer_loss(model, tokenizer, shown)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}")


def answer_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, shown: list[tuple[str, str]]
) -> torch.Tensor:
    """The mean of -log π over the tokens of the answers, including the end-of-sequence token."""
    prompts = [tokenizer(problem)["input_ids"] for problem, _ in shown]
    responses = [[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id] for _, answer in shown]
    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    tokens = torch.full((len(shown), width), tokenizer.pad_token_id)
    labels = torch.full((len(shown), width), -100)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return model(input_ids=tokens, labels=labels).loss


def main(problems: Path, directory: Path, steps: int = STEPS) -> None:
    """Write the model and its tokenizer as a directory that transformers loads."""
    rows = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()]
    tokenizer = make_tokenizer([row["problem"] for row in rows])
    model = make_model(tokenizer)
    fine_tune(model, tokenizer, rows, steps)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    print(f"{directory}: {model.num_parameters():,} weights")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
