"""How much of a small update is visible in bfloat16, and its noise compared with the learner's noise floor.

    python benchmarks/bf16.py                          SmolLM2-135M (make smollm2 first); writes baselines/bf16.json
    python benchmarks/bf16.py --model DIR --json       another model; only prints the metrics

- `seen_1`, `seen_4`, `seen_16`: after this many updates at lr 1e-6, the slope of the copy's change of log π on the
  float32 masters', over tokens; 1 is the full change. `error_…` is its standard error over draws, `residual_…` the
  rms in nats of the residuals, `change_…` that of the masters' change.
- `copied_1`, …: the same for the copy's weights, computed with in float32. `seen_…` also has the noise of bfloat16
  arithmetic, which is as large after one update as after many: `seen_1` needs many draws.
- `gap_16`: the mean difference per token between the learner's log π and that of its published weights, in bfloat16
  and in batches of other shapes; `arithmetic_16`: the same weights, computed in float32.
- `noise_over_floor`: per number of tokens, the rms change of V + log π in another batch shape, over the 3 σ below
  which a draw counts as noise. Under 1, noise alone takes no step. True residuals must exceed `floor_nats`.

A draw is one text, a sum with a correct or a wrong answer: the smaller a draw, the larger the change per token.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.bf16_cases import PROMPT, Changes, follow, noise, slope, token_logprobs
from benchmarks.record import record
from reval_core import config
from reval_core.engines.weights import policy_tensors
from reval_core.learning.learner import Learner
from reval_core.learning.update import Drawn
from reval_core.model.loading import load_model
from reval_core.model.low_precision import in_float32, round_weights
from reval_core.model.scoring import score
from reval_core.model.token_batch import Rows, collate

DRAWS = {1: 40, 4: 8, 16: 3}
"""The number of draws measured per number of updates; draws with more updates are a subset of those with fewer."""

LENGTHS = (64, 1024, 4096)

LIMITS = {
    **{f"seen_{update}": ("at least", 0.8) for update in DRAWS},
    **{f"error_{update}": ("at most", 0.06) for update in DRAWS},
    "gap_16": ("at most", 0.005),
    "largest_seen": ("at most", 1.2),
    "largest_noise_over_floor": ("at most", 1.0),
}


def sums(directory: Path) -> tuple[Rows, Rows]:
    """Prompts and responses, alternately correct and wrong, one per draw."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rng = np.random.default_rng(0)
    prompts, responses = [], []
    for number in range(max(DRAWS.values())):
        a, b, c, off = map(int, rng.integers(11, 99, 4))
        product = a * b + off * (number % 2)
        prompts.append(f"Question: What is {a} * {b} + {c}?\n")
        responses.append(
            f"The product of {a} and {b} is {product}. Adding {c} gives {product + c}. "
            f"So the answer is \\boxed{{{product + c}}}."
        )
    rows = [[np.array(tokenizer(text)["input_ids"]) for text in texts] for texts in (prompts, responses)]
    return rows[0], rows[1]


def draw(model: Any, prompts: Rows, responses: Rows, advantage: np.ndarray) -> Drawn:
    """Texts that `model`, which is also the reference, wrote; rewards [B] are an eighth of the advantage [B]."""
    with torch.inference_mode():
        scores = score(model, collate(prompts, responses).to(next(model.parameters()).device))
    lengths = [len(response) for response in responses]
    rows = [row[:length] for row, length in zip(scores.logprobs.cpu().numpy().copy(), lengths, strict=True)]
    count = len(prompts)
    return Drawn(
        ids=np.arange(count),
        prompts=prompts,
        responses=responses,
        written=[np.ones(length, dtype=bool) for length in lengths],
        engine_logprobs=rows,
        old_logprobs=rows,
        truncated=np.zeros(count, dtype=bool),
        weight=np.ones(count, dtype=np.float32),
        reward=advantage / 8,
        advantage=advantage,
        log_ref=scores.log_policy.cpu().numpy().copy(),
        value_ref=scores.value.cpu().numpy().copy(),
        identity="texts",
    )


def seen(start: Any, prompts: Rows, responses: Rows, draws: Mapping[int, int]) -> dict[str, float]:
    """The visible change after updates of the float32 model `start`, and the mismatch after the most of them.

    Args:
        draws: The number of texts measured per number of updates. Each text is a draw, with alternating rewards.
    """
    every: dict[int, list[Changes]] = {update: [] for update in draws}
    gaps, most = [], max(draws)
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        model, updates = copy.deepcopy(start), [update for update in draws if number < draws[update]]
        drawn = draw(model, [prompt], [response], np.array([1 - 2 * (number % 2)], dtype=np.float32))
        settings = config.Learner(updates=1, lr=1e-6, precision="bfloat16")
        learner = Learner(model, config.Grpo(kind="grpo"), settings, "start", seed=number)
        step, batch = partial(learner.learn, [drawn]), collate([prompt], [response])
        for update, changes in follow(model, learner.masters, batch, step, updates).items():
            every[update].append(changes)
        if most in updates:
            gaps.append(gap(model, number, prompts, responses))
    found = {}
    for update, changes in every.items():
        whole = slope([(one.seen, one.true) for one in changes])
        copied = slope([(one.copied, one.true) for one in changes])
        found[f"seen_{update}"], found[f"error_{update}"] = whole.value, whole.error
        found[f"residual_{update}"], found[f"change_{update}"] = whole.residual, whole.change
        found[f"copied_{update}"], found[f"copied_error_{update}"] = copied.value, copied.error
        found[f"copied_residual_{update}"] = copied.residual
    found[f"gap_{most}"], found[f"arithmetic_{most}"] = map(float, np.mean(gaps, axis=0))
    return found | {"largest_seen": max(found[f"seen_{update}"] for update in draws)}


def gap(model: Any, number: int, prompts: Rows, responses: Rows) -> tuple[float, float]:
    """The mean difference per token between the published weights and `model` on text `number`, a training text.

    In bfloat16, scored together with other texts; and in float32, scored alone.
    """
    alone = collate([prompts[number]], [responses[number]])
    known = token_logprobs(model, alone)
    published = copy.deepcopy(model)
    published.load_state_dict(dict(policy_tensors(model, 0, torch.bfloat16)), strict=False)
    rows = [number, *(row for row in range(len(prompts)) if row != number)][:8]
    together = token_logprobs(published, collate([prompts[row] for row in rows], [responses[row] for row in rows]))
    with in_float32(published):
        exact = token_logprobs(published, alone)
    return float(np.abs(together[: len(known)] - known).mean()), float(np.abs(exact - known).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/smollm2-135m-instruct")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print the metrics and record nothing")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model = load_model(given.model)
    prompts, responses = sums(given.model)
    found: dict[str, Any] = {"model": given.model.name, "lr": 1e-6, "draws": list(DRAWS.values())}
    found |= seen(model, prompts, responses, DRAWS)
    round_weights(model, seed=0)
    context = model.config.max_position_embeddings
    found |= noise(model, [length for length in LENGTHS if length + PROMPT <= context])
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        record("bf16", found, LIMITS, ("torch", "transformers"))


if __name__ == "__main__":
    main()
