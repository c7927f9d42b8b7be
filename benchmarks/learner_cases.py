"""The cases of benchmarks/learner.py, each in its own process: `python benchmarks/learner_cases.py CASE`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.meter import measure
from benchmarks.workloads import TRL_LENGTHS, VOCABULARY, Work, llama, mixed_lengths, texts
from reval_core.learning import shared_scoring
from reval_core.learning.shared_scoring import Groups, Texts, shared_scores
from reval_core.model.low_precision import round_weights
from reval_core.model.packed import read_packed_rows
from reval_core.model.scoring import Scorer, Scores, score
from reval_core.model.token_batch import TokenBatch, collate, micro_batches
from reval_core.objectives import Inputs, grpo, reval

REPEATS = 3

Scoring = Callable[[Any, TokenBatch], Scores]


def inputs(scores: Scores, batch: TokenBatch, work: Work, rows: Sequence[int]) -> Inputs:
    """An objective's inputs at the reference, with the old policy equal to the new one."""
    old = scores.logprobs.detach()
    count = torch.zeros(len(batch), device=old.device)
    return Inputs(
        logprobs=scores.logprobs,
        mask=batch.written,
        value=scores.value,
        log_ref=scores.log_policy.detach(),
        value_ref=scores.value.detach(),
        reward=count + 1.0,
        advantage=torch.from_numpy(work.advantages[list(rows)]).to(old.device),
        old_logprobs=old,
        engine_logprobs=old,
        truncated=count > 0,
        mean_tokens=1.0,
    )


def batch_of(work: Work, rows: Sequence[int], packed: bool = False) -> TokenBatch:
    return collate([work.prompts[row] for row in rows], [work.responses[row] for row in rows], packed=packed)


def scores_in_updates(model: Any, texts: Texts) -> Callable[[Groups], list[Scores]]:
    """Scores micro-batches of these texts as an update does."""
    how = shared_scoring.Scoring(temperature=1.0, as_in_updates=True)
    device = next(model.parameters()).device
    return lambda groups: [one.scores for one in shared_scores(Scorer(model), device, texts, groups, how)]


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, work: Work, how: Scoring) -> float:
    """One update on one micro-batch: forward, ReVal's loss, backward, clipping, AdamW. Returns the norm."""
    rows = range(len(work.prompts))
    batch = batch_of(work, rows)
    optimizer.zero_grad(set_to_none=True)
    reval(inputs(how(model, batch), batch, work, rows), beta=0.1).loss.mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(norm)


def unchunked(model: Any, batch: TokenBatch) -> Scores:
    """The result of `score`, from a log-softmax of all logits at once."""
    logits = model(input_ids=batch.tokens).logits.flatten(0, 1)
    states = batch.states[batch.mask]
    logprobs = logits.log_softmax(dim=-1)[states, batch.actions[batch.mask]]
    values = torch.zeros(batch.mask.shape)
    values[:, 0] = logits[batch.states[:, 0]].logsumexp(dim=-1)
    return Scores(torch.zeros(batch.mask.shape).masked_scatter(batch.mask, logprobs), values, None)


def head(how: Callable[..., Scores]) -> dict[str, Any]:
    """One update of 4 × 1,024 tokens with a vocabulary of 151,936, after one that creates AdamW's state."""
    model = llama(VOCABULARY, 256, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    update(model, optimizer, texts([40], VOCABULARY), how)
    norms: list[float] = []
    reading = measure(lambda: norms.append(update(model, optimizer, texts([1024] * 4, VOCABULARY), how)))
    return {**vars(reading), "grad_norm": norms[0]}


def mixed() -> dict[str, Any]:
    """Useful tokens/s of forward and backward by layout; the body costs as much as the head, as in real models."""
    vocabulary, budget = 16_384, 4096
    model = llama(vocabulary, 256, 8)
    read_packed_rows(model)  # padded rows use the same kernel as without it
    work = texts(mixed_lengths(32), vocabulary)
    lengths = [len(p) + len(r) for p, r in zip(work.prompts, work.responses, strict=True)]
    padded = [list(range(start, start + 4)) for start in range(0, len(lengths), 4)]  # 4 × 1,024 = the same budget
    ways = {
        "padded": lambda: [(rows, False) for rows in padded],
        "bucketed": lambda: [(rows, False) for rows in micro_batches(lengths, budget)],
        "packed": lambda: [(rows, True) for rows in micro_batches(lengths, budget, packed=True)],
    }

    def learn(groups: list[tuple[list[int], bool]], to_longest: bool) -> None:
        model.zero_grad(set_to_none=True)
        for rows, packed in groups:
            batch = batch_of(work, rows, packed)
            if to_longest:
                batch = widened(batch, max(lengths))
            scores = score(model, batch)
            (scores.log_policy.square().sum() + scores.value.sum()).backward()

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, groups in ways.items():
            seconds[name].append(measure(lambda: learn(groups(), name == "padded")).seconds)  # noqa: B023
    return {f"{name}_tokens_per_second": work.tokens / min(took[1:]) for name, took in seconds.items()}


def widened(batch: TokenBatch, longest: int) -> TokenBatch:
    """The batch padded to `longest` with every position after the prompt scored, as if all rows were this long."""
    count, width = batch.tokens.shape
    more = torch.zeros(count, longest - width, dtype=torch.int64)
    first = batch.states[:, :1] - torch.arange(count)[:, None] * width + torch.arange(count)[:, None] * longest
    horizon = longest - int((batch.states[0, 0] + 1).item())
    places = torch.arange(horizon)
    every = torch.ones(count, horizon, dtype=torch.bool)
    actions = torch.zeros(count, horizon, dtype=torch.int64)
    actions[:, : batch.actions.shape[1]] = batch.actions
    return replace(
        batch,
        tokens=torch.cat([batch.tokens, more], dim=1),
        states=first + places,
        actions=actions,
        mask=every,
        written=actions > 0,
        longest=longest,
    )


def grpo_loss() -> dict[str, Any]:
    """The workload of benchmarks/peers/trl_grpo.py: GRPO's loss with the entropy, forward and backward."""
    model = llama(VOCABULARY, 256, 2)

    def loss_step(work: Work) -> None:
        model.zero_grad(set_to_none=True)
        lengths = [len(p) + len(r) for p, r in zip(work.prompts, work.responses, strict=True)]
        for rows in micro_batches(lengths, 4096):
            batch = batch_of(work, rows)
            out = grpo(inputs(score(model, batch, entropy=True), batch, work, rows), 0.2, 0.28, 2.0)
            (out.loss.sum() / len(lengths)).backward()

    loss_step(texts([40, 36], VOCABULARY))
    work = texts(TRL_LENGTHS, VOCABULARY)
    reading = measure(lambda: loss_step(work))
    norm = torch.nn.utils.get_total_norm(parameter.grad for parameter in model.parameters())
    return {**vars(reading), "tokens": work.tokens, "grad_norm": float(norm)}


def stage() -> dict[str, Any]:
    """Updates/s of the demo's learning stage, and of a loop with its tensors already in memory."""
    from reval_core import stages
    from reval_core.config.loader import load_config
    from reval_core.model.loading import load_model
    from reval_core.pipeline.run_context import Policy, open_run_context
    from reval_core.storage.run_directory import RunDirectory

    config = load_config(ROOT / "configs/demo.yaml", ["model.tiny.heads=16", "model.warm_start.steps=100"])
    seconds: dict[str, list[float]] = {"stage": [], "bare": []}
    with (
        tempfile.TemporaryDirectory() as path,
        open_run_context(RunDirectory(Path(path) / "run"), config) as context,
    ):
        zero = stages.warm_start(context, 0)
        policy = Policy.of(zero)
        rollouts = stages.rollouts(context, 1, policy)
        verdicts = stages.verification(context, 1, rollouts)
        scores = stages.consistency(context, 1, rollouts, verdicts, policy, policy)
        draws = stages.sampling(context, 1, scores, zero)
        for _ in range(REPEATS + 1):
            context.learner_at(policy)
            context.directory.manifest_path("learning", 1).unlink(missing_ok=True)
            seconds["stage"].append(measure(lambda: stages.learning(context, 1, draws, policy)).seconds)
            model = load_model(context.directory.checkpoint(0))
            seconds["bare"].append(bare_loop(model, context.draws.read(1), config))
        updates = config.learner.updates
    return {f"{name}_updates_per_second": updates / min(took[1:]) for name, took in seconds.items()}


def bare_loop(model: Any, draws: Sequence[Any], config: Any) -> float:
    """Seconds of the same updates with full logits, from prepared tensors."""
    settings, beta = config.learner, config.objective.beta
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=settings.betas, fused=True)
    ready = []
    for drawn in draws:
        batch = collate(drawn.prompts, drawn.responses)
        known = [torch.from_numpy(column) for column in (drawn.log_ref, drawn.value_ref, drawn.reward)]
        ready.append((batch, batch.states[batch.mask], batch.actions[batch.mask], known))
    started = time.perf_counter()
    for batch, states, actions, (log_ref, value_ref, reward) in ready:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=batch.tokens).logits.flatten(0, 1)
        chosen = logits[states].log_softmax(dim=-1).gather(1, actions[:, None]).squeeze(1)
        log_policy = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, chosen).sum(dim=1)
        value = logits[batch.states[:, 0]].logsumexp(dim=-1)
        (value - value_ref + log_policy - log_ref - reward / beta).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
    return time.perf_counter() - started


def rounding() -> dict[str, Any]:
    """The difference of bfloat16's log-probs from float32's, per token, on texts generated by the model itself."""
    vocabulary = 16_384
    model = llama(vocabulary, 256, 8)
    prompts = torch.randint(3, vocabulary, (8, 16), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    whole = model.generate(prompts, do_sample=True, min_new_tokens=128, max_new_tokens=128, top_k=0)
    batch = collate(list(prompts.numpy()), list(whole[:, 16:].numpy()))
    with torch.inference_mode():
        exact = score(model, batch)
        round_weights(model, seed=0)
        half = score(model, batch)
    gap = (half.logprobs - exact.logprobs).abs()
    return {"mean": float(gap.mean()), "largest": float(gap.max())}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "sliced": lambda: head(score),
    "unchunked": lambda: head(unchunked),
    "mixed": mixed,
    "grpo": grpo_loss,
    "stage": stage,
    "rounding": rounding,
}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]]()))
