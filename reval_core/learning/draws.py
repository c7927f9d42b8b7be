"""Recorded draws with their tokens: the input of the learner, in training and in reconstruction."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reval_core.atomic_files import digest
from reval_core.learning.update import Drawn
from reval_core.model.noise import Noise
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND, RowReader, list_rows, logprob_rows
from reval_core.storage.run_directory import RunDirectory

# The columns that the identity of a policy depends on. The shard's digest and the row identify the tokens and their
# log-probs, since a shard names the policy that wrote it.
_IDENTITY = (
    "shard_digest",
    "row",
    "reward",
    "advantage",
    "weight",
    "reference",
    "log_ref",
    "value_ref",
    "noise_logprob",
    "noise_value",
)


class DrawReader:
    """Reads a round's recorded draws and fetches their trajectories from the shards."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        tokens = ("prompt_tokens", "response_tokens", "loss_mask", "engine_logprobs", "finish_reason", "policy")
        self._shards = RowReader(directory.path, tokens)
        self._scores = RowReader(directory.path, ("policy_logprobs", "policy"))

    def read(self, round: int) -> list[Drawn]:
        """Read the draws of a round, one per update, in order.

        Raises:
            CorruptData: A file cannot be read.
        """
        draws = self._directory.rows("sampling", round, "draws")
        updates = pc.unique(draws.column("update")).to_pylist()
        return [self._drawn(draws.filter(pc.equal(draws.column("update"), update))) for update in updates]

    def _drawn(self, draw: pa.Table) -> Drawn:
        ids = draw.column("trajectory_id").to_numpy()
        rounds, shards = draw.column("trajectory_round").to_pylist(), draw.column("shard").to_pylist()
        paths = [self._directory.shard(*key) for key in zip(rounds, shards, strict=True)]
        tokens = self._shards.take(paths, draw.column("row").to_pylist())
        scores = self._scores.take(
            [self._directory.facts(round, "scores") for round in rounds], (ids % IDS_PER_ROUND).tolist()
        )
        responses = list_rows(tokens.column("response_tokens"))
        # A stored trajectory was scored by a policy that did not write it: its writer's log-probs are unknown.
        written_by_scored = pc.equal(tokens.column("policy"), scores.column("policy"))
        old_logprobs = pc.if_else(written_by_scored, scores.column("policy_logprobs"), None)
        return Drawn(
            ids=ids,
            prompts=list_rows(tokens.column("prompt_tokens")),
            responses=responses,
            written=list_rows(tokens.column("loss_mask")),
            engine_logprobs=logprob_rows(tokens.column("engine_logprobs"), responses),
            old_logprobs=logprob_rows(old_logprobs, responses),
            truncated=np.array(tokens.column("finish_reason").to_pylist()) == "length",
            weight=_floats(draw, "weight"),
            reward=_floats(draw, "reward"),
            advantage=_floats(draw, "advantage"),
            log_ref=_floats(draw, "log_ref"),
            value_ref=_floats(draw, "value_ref"),
            identity=digest([draw.column(name).to_pylist() for name in _IDENTITY]),
            noise=_noise(draw),
        )


def _noise(draw: pa.Table) -> Noise | None:
    """The noise recorded with the draw, the same in all rows."""
    found = [draw.column(name)[0].as_py() for name in ("noise_logprob", "noise_value")]
    return None if None in found else Noise(*found)


def _floats(draw: pa.Table, name: str) -> np.ndarray:
    return draw.column(name).to_numpy().astype(np.float32)
