"""Started by torchrun for `test_sharding`: updates on the same draws, scores, a checkpoint, in all processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from reval_core import config, launch
from reval_core.atomic_files import PARTIAL
from reval_core.learning import processes
from reval_core.learning.checkpoints import restore_optimizer, save_checkpoint, save_shards
from reval_core.learning.learner import Learner
from reval_core.learning.shared_scoring import Scoring, shared_scores
from reval_core.learning.trained_weights import release
from reval_core.model.loading import load_model, make_tiny_tokenizer
from reval_core.model.low_precision import low_precision
from tests.models import TINY, drawn, tiny_model

OBJECTIVES = [config.Reval(kind="reval", beta=0.5), config.Grpo(kind="grpo", mean="token")]


def learner(shard: str, objective: config.Objective = OBJECTIVES[0], model: Any = None, **changes: Any) -> Learner:
    """A learner with several micro-batches per update."""
    given = {"updates": 3, "lr": 1e-3, "micro_batch_tokens": 24, "precision": "float32", "shard": shard}
    return Learner(model or tiny_model(), objective, config.Learner(**given | changes), "start")


def three_updates(one: Learner) -> dict[str, Any]:
    """Losses, gradient norms, residuals and the weights after updates on recorded draws."""
    draws = [drawn(tiny_model(), count=13, seed=seed) for seed in range(3)]
    updates = one.learn(draws, keep_before=True)
    with one.masters() as model:
        sums = (
            {}
            if not launch.is_first()
            else {name: tensor.double().abs().sum().item() for name, tensor in model.state_dict().items()}
        )
    return {
        "losses": [update.loss for update in updates],
        "norms": [update.grad_norm for update in updates],
        "deltas": [update.delta.tolist() for update in updates],
        "weights": sums,
        "scores": scores(one),
        "before": _before(one),
    }


def scores(one: Learner, **how: Any) -> list[Any]:
    """log π of every token of some texts, in seven micro-batches."""
    batch = drawn(tiny_model(), count=13, seed=9)
    texts = (batch.prompts, batch.responses, batch.written)
    groups = [list(range(first, min(first + 2, 13))) for first in range(0, 13, 2)]
    scoring = Scoring(temperature=0.7, entropy=True, **how)
    with one.as_in_updates():
        found = shared_scores(one.weights.scorer, one.device, texts, groups, scoring)
    release(one.weights.scorer)
    return [[one.tolist() for one in part.scores if one is not None] for part in found]


def _before(one: Learner) -> list[Any]:
    with one.as_before():
        return scores(one)


def _copy_is_equal(one: Learner) -> bool:
    """Whether the gathered bfloat16 copy is that of the gathered masters, to the bit."""
    with one.masters() as model:
        masters = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with one.whole() as model:
        if not launch.is_first():
            return True
        copies = dict(model.named_parameters())
        return all(torch.equal(low_precision(one, 0, name), copies[name]) for name, one in masters.items())


def save(one: Learner, path: Path) -> None:
    """Save a checkpoint in all processes, as a run does."""
    tokenizer = make_tiny_tokenizer(TINY.characters)
    if launch.is_first():
        save_checkpoint(path, one, tokenizer, _directory_exists)
    else:
        with _directory_exists(path.with_name(path.name + PARTIAL)) as partial:
            save_shards(partial, one)
    processes.gathered(None)  # the directory has its final name


@contextmanager
def _directory_exists(partial: Path) -> Iterator[Path]:
    """In place of an announcement: wait until the first process has made the directory."""
    processes.gathered(None)
    yield partial


def resumed(shard: str, path: Path) -> dict[str, Any]:
    """Load a checkpoint, and take another update."""
    one = learner(shard, model=load_model(path))
    restore_optimizer(path, one)
    (update,) = one.learn([drawn(tiny_model(), count=13, seed=5)])
    return {"loss": update.loss, "norm": update.grad_norm, "checksum": one.checksum(), "content": one.content()}


def main(shard: str, out: Path, saved: str = "") -> None:
    """Write the first process's results to the file `out`."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"processes": launch.count()}
    for objective in OBJECTIVES:
        found[objective.kind] = three_updates(learner(shard, objective, gradient_checkpointing=True))
    one = learner(shard)
    found["checksum"], found["content"] = one.checksum(), one.content()
    one.learn([drawn(tiny_model(), count=13, seed=0)])
    save(one, out.parent / f"{out.stem}-saved")
    found["resumed"] = resumed(shard, out.parent / f"{out.stem}-saved")
    if saved:
        found["reshard"] = resumed(shard, Path(saved))
    half = learner(shard, precision="bfloat16")
    found["copy"] = half.checksum(), _copy_is_equal(half)
    found["half"] = three_updates(half) | {"copy": _copy_is_equal(half)}
    if launch.is_first():
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
