"""What training in bfloat16 sees of a small update, and its noise beside what the learner takes for noise.

    python benchmarks/bf16.py                          SmolLM2-135M (make smollm2 first); writes baselines/bf16.json
    python benchmarks/bf16.py --model FOLDER --json    another model; prints the figures alone

- `seen_1`, `seen_4`, `seen_16`: after so many updates at lr 1e-6, the slope of the copy's change of log π on the
  float32 masters', over tokens; 1 is all of it. Beside them `residual_…`, the rms of what the slope leaves.
- `gap_16`: the mean difference, a token, between the learner's log π and that of its published weights, in bfloat16
  and in batches of other shapes; `arithmetic_16`: the same weights computed with in float32.
- `noise_over_floor`: by tokens, the rms of what another batch shape changes in V + log π, over the 3 σ below which
  a draw counts as noise. Under 1, noise alone takes no step. `floor_nats` is what true residuals have to exceed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import record
from reval_core import config
from reval_core.batches import TokenBatch, collate
from reval_core.engines.weights import policy_tensors
from reval_core.learner import Drawn, Learner
from reval_core.learning.copy import compute_in
from reval_core.learning.noise import LEAST, SIGNAL, measure
from reval_core.models import load_model
from reval_core.scoring import score

TEXTS, PROMPT, RESPONSE = 8, 8, 64
UPDATES = (1, 4, 16)
LENGTHS, LONGER = (64, 1024, 4096), 64

LIMITS = {
    **{f"seen_{update}": ("at least", 0.8) for update in UPDATES},
    "gap_16": ("at most", 0.005),
    "largest_seen": ("at most", 1.2),
    "largest_noise_over_floor": ("at most", 1.0),
}


def texts(model: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompts of random tokens, and responses that the model wrote."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, model.config.vocab_size, (TEXTS, PROMPT), generator=generator)
    torch.manual_seed(0)
    whole = model.generate(prompts, do_sample=True, min_new_tokens=RESPONSE, max_new_tokens=RESPONSE, top_k=0)
    return list(prompts.numpy()), list(whole[:, PROMPT:].numpy())


def draw(model: Any, prompts: list[np.ndarray], responses: list[np.ndarray]) -> Drawn:
    """Half of the texts are wanted, half are not."""
    logprobs, _ = logprobs_of(model, collate(prompts, responses))
    rows, zeros = list(logprobs.astype(np.float32)), np.zeros(TEXTS, dtype=np.float32)
    return Drawn(
        ids=np.arange(TEXTS),
        prompts=prompts,
        responses=responses,
        written=[np.ones(RESPONSE, dtype=bool)] * TEXTS,
        engine_logprobs=rows,
        old_logprobs=rows,
        truncated=zeros > 0,
        weight=zeros + 1,
        reward=zeros,
        advantage=np.array([1, -1] * (TEXTS // 2), dtype=np.float32),
        log_ref=zeros,
        value_ref=zeros,
        identity="texts",
    )


@torch.inference_mode()
def logprobs_of(model: Any, batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    """log π of each token [B, H], and V + log π of each text [B]."""
    scores = score(model, batch.to(next(model.parameters()).device))
    return scores.logprobs.double().cpu().numpy(), (
        scores.log_policy.double() + scores.value.double()
    ).cpu().numpy()


def seen(model: Any) -> dict[str, float]:
    """The figures of 16 updates."""
    settings = config.Learner(updates=1, lr=1e-6, precision="bfloat16", micro_batch_tokens=4 * (PROMPT + RESPONSE))
    exact = copy.deepcopy(model)
    prompts, responses = texts(model)
    learner = Learner(model, config.Grpo(kind="grpo"), settings, "start")
    device = next(learner.model.parameters()).device
    exact.to(device)
    batch, drawn = collate(prompts, responses), draw(model, prompts, responses)
    before, before_exact = logprobs_of(model, batch)[0], logprobs_of(exact, batch)[0]
    found = {}
    for update in range(1, UPDATES[-1] + 1):
        learner.learn([drawn])
        if update in UPDATES:
            exact.load_state_dict(learner.trained(), strict=False)
            change, true = logprobs_of(model, batch)[0] - before, logprobs_of(exact, batch)[0] - before_exact
            slope = float((change * true).sum() / np.square(true).sum())
            found[f"seen_{update}"] = slope
            found[f"residual_{update}"] = float(np.sqrt(np.square(change - slope * true).mean()))
            found[f"change_{update}"] = float(np.sqrt(np.square(true).mean()))
    now = logprobs_of(model, batch)[0]
    exact.load_state_dict(dict(policy_tensors(model, 0, torch.bfloat16)), strict=False)
    found["arithmetic_16"] = float(np.abs(logprobs_of(exact, batch)[0] - now).mean())
    compute_in(exact, "bfloat16", seed=0)
    alone = [logprobs_of(exact, collate([one], [two]))[0] for one, two in zip(prompts, responses, strict=True)]
    found["gap_16"] = float(np.abs(np.concatenate(alone) - now).mean())
    found["largest_seen"] = max(found[f"seen_{update}"] for update in UPDATES)
    return found


def noise(model: Any, lengths: tuple[int, ...]) -> dict[str, Any]:
    """The noise of other batch shapes by length, of `model`, which is a copy already.

    A text is scored beside a longer one first, so that it is padded, and then alone; σ is measured as a run does.
    """
    rng = np.random.default_rng(1)
    vocabulary, device = model.config.vocab_size, next(model.parameters()).device
    prompts = [rng.integers(3, vocabulary, PROMPT) for _ in lengths]
    responses = [rng.integers(3, vocabulary, length) for length in lengths]
    padded, apart = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        longer = np.concatenate([response, response[:LONGER]])
        with torch.inference_mode():
            scores = score(model, collate([prompt, prompt], [response, longer]).to(device))
        padded.append((float(scores.log_policy[0]), float(scores.value[0])))
        apart.append(abs(logprobs_of(model, collate([prompt], [response]))[1][0] - sum(padded[-1])))
    written = [np.ones(length, dtype=bool) for length in lengths]
    stored = tuple(np.array(column, dtype=np.float32) for column in zip(*padded, strict=True))
    measured = measure(model, (prompts, responses, written), stored, 1.0, max(lengths) + PROMPT, packed=False)
    floor = np.sqrt(SIGNAL) * measured.at_least(LEAST["bfloat16"]).sigma(np.array(lengths))
    names = [str(length) for length in lengths]
    ratio = dict(zip(names, map(float, np.array(apart) / floor), strict=True))
    return {
        "noise_over_floor": ratio,
        "largest_noise_over_floor": max(ratio.values()),
        "noise_nats": dict(zip(names, map(float, apart), strict=True)),
        "floor_nats": dict(zip(names, map(float, floor), strict=True)),
        "noise_logprob": measured.logprob,
        "noise_value": measured.value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/smollm2-135m-instruct")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print the figures, and record nothing")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model = load_model(given.model)
    found: dict[str, Any] = {"model": given.model.name, "tokens": TEXTS * RESPONSE, "lr": 1e-6} | seen(model)
    context = model.config.max_position_embeddings
    found |= noise(model, tuple(length for length in LENGTHS if length + PROMPT <= context))
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        record("bf16", found, LIMITS, ("torch", "transformers"))


if __name__ == "__main__":
    main()
