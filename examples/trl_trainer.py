"""The ReVal loss in a TRL trainer: `GRPOTrainer` generates and computes rewards, reval computes the loss.

    pip install trl datasets
    python examples/trl_trainer.py MODEL_DIRECTORY

Tried with TRL 1.16.

TRL hands a trainer's loss advantages, not rewards. With `scale_rewards="none"` an advantage is the reward minus the
mean of its group, which is what reval's pipeline calls a centred reward. TRL draws each batch from the newest
responses; the replay buffer, which the paper's gains come from, is part of reval's pipeline.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import reval


class RevalTrainer(GRPOTrainer):
    """A GRPO trainer with the ReVal loss against the initial policy."""

    def __init__(self, *args: Any, reval_beta: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reval_beta = reval_beta
        # The frozen reference. Scores must not depend on dropout, so both models are in eval mode.
        self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor:
        """The mean squared residual of a batch. TRL pads prompts on the left and completions on the right."""
        policy = self.accelerator.unwrap_model(model).eval()
        batch = reval.collate(
            _unpad(inputs["prompt_ids"], inputs["prompt_mask"]),
            _unpad(inputs["completion_ids"], inputs["completion_mask"]),
            device=inputs["completion_ids"].device,
        )
        with torch.no_grad():
            ref = reval.score(self.reference, batch)
        now = reval.score(policy, batch)
        outputs = reval.losses.reval(
            now.logprobs,
            now.value,
            log_ref=ref.log_policy,
            value_ref=ref.value,
            reward=inputs["advantages"],
            beta=self.reval_beta,
            mask=batch.written,
        )
        return outputs.loss.mean()


def _unpad(rows: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    return [row[own.bool()] for row, own in zip(rows, mask, strict=True)]


def digits(completions: list[str], **_: Any) -> list[float]:
    """A reward for the demonstration: the share of characters that are digits."""
    return [sum(one.isdigit() for one in text) / max(len(text), 1) for text in completions]


def main(model: str, output: str = "trl-reval", steps: int = 20) -> list[dict[str, float]]:
    """Train, and return TRL's log."""
    config = GRPOConfig(
        output_dir=output,
        beta=0.0,  # of TRL's own KL term
        scale_rewards="none",
        num_generations=8,
        per_device_train_batch_size=8,
        max_completion_length=16,
        max_steps=steps,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = RevalTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=digits,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": f"{number}+1="} for number in range(1, 9)]),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        reval_beta=0.1,
    )
    trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    main(sys.argv[1])
