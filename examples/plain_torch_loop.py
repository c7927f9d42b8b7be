"""The ReVal loss in a plain torch loop: a tiny model learns to repeat two digits from a reward alone.

    python examples/plain_torch_loop.py

It takes seconds on a CPU. Everything but `reval.collate`, `reval.score` and `reval.losses.reval` is torch and
transformers. The loop is off-policy: each update draws from a buffer that holds the responses of several rounds.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import reval

SEPARATOR = 10  # tokens 0 to 9 are digits
BETA = 0.3
ROUNDS, PROMPTS, UPDATES, BATCH, CAPACITY, RESET_EVERY = 12, 128, 8, 128, 512, 4


@dataclass(frozen=True)
class Trajectory:
    """A response with its reward and its scores under the reference."""

    prompt: list[int]
    response: list[int]
    reward: float
    log_ref: float
    value_ref: float


def make_model() -> LlamaForCausalLM:
    """A model of 50,000 random weights. eval() turns dropout off; gradients are still computed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.06,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def generate(model: LlamaForCausalLM, prompts: torch.Tensor) -> torch.Tensor:
    """Sample two tokens per prompt [B, 2] at temperature 1."""
    tokens = prompts
    for _ in range(2):
        probabilities = model(input_ids=tokens).logits[:, -1].softmax(dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1)], dim=1)
    return tokens[:, prompts.shape[1] :]


def collect(policy: LlamaForCausalLM, reference: LlamaForCausalLM) -> list[Trajectory]:
    """Generate a response per prompt, compute its reward, and score it under the reference once."""
    prompts = torch.cat([torch.randint(0, 10, (PROMPTS, 2)), torch.full((PROMPTS, 1), SEPARATOR)], dim=1)
    responses = generate(policy, prompts)
    rewards = (responses == prompts[:, :2]).float().mean(dim=1)  # the share of right digits
    with torch.no_grad():
        scores = reval.score(reference, reval.collate(prompts, responses))
    rows = (prompts, responses, rewards, scores.log_policy, scores.value)
    return [Trajectory(*one) for one in zip(*(row.tolist() for row in rows), strict=True)]


def rescore(reference: LlamaForCausalLM, buffer: list[Trajectory]) -> list[Trajectory]:
    """The same trajectories with their scores under a new reference."""
    with torch.no_grad():
        scores = reval.score(reference, reval.collate([t.prompt for t in buffer], [t.response for t in buffer]))
    new = zip(buffer, scores.log_policy.tolist(), scores.value.tolist(), strict=True)
    return [Trajectory(t.prompt, t.response, t.reward, log_ref, value_ref) for t, log_ref, value_ref in new]


def loss_of(policy: LlamaForCausalLM, drawn: list[Trajectory]) -> torch.Tensor:
    """The mean squared residual of a batch."""
    batch = reval.collate([t.prompt for t in drawn], [t.response for t in drawn])
    scores = reval.score(policy, batch)
    outputs = reval.losses.reval(
        scores.logprobs,
        scores.value,
        log_ref=torch.tensor([t.log_ref for t in drawn]),
        value_ref=torch.tensor([t.value_ref for t in drawn]),
        reward=torch.tensor([t.reward for t in drawn]),
        beta=BETA,
        mask=batch.written,
    )
    return outputs.loss.mean()


def main() -> list[float]:
    """Train, and return the mean reward of each round."""
    torch.set_num_threads(1)  # more threads do not help a model this small
    policy = make_model()
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    random.seed(0)
    buffer: list[Trajectory] = []
    means = []
    for number in range(1, ROUNDS + 1):
        fresh = collect(policy, reference)
        buffer = [*buffer, *fresh][-CAPACITY:]
        for _ in range(UPDATES):
            loss = loss_of(policy, random.sample(buffer, BATCH))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        if number % RESET_EVERY == 0:  # the policy becomes the reference
            reference = copy.deepcopy(policy)
            buffer = rescore(reference, buffer)
        means.append(sum(t.reward for t in fresh) / len(fresh))
        print(f"round {number:2d}  reward {means[-1]:.2f}  loss {loss.item():.3f}")
    return means


if __name__ == "__main__":
    main()
