"""What the processes of a run send each other: messages, texts, and the sums of shards."""

import dataclasses

import numpy as np
import pytest
import torch

from reval_core.learning import processes
from reval_core.learning.checksum import Part, weights_checksum
from reval_core.learning.shared_scoring import Scoring, flattened, restored, shared_scores
from reval_core.model.scoring import Scorer, score
from reval_core.model.token_batch import collate
from tests.models import drawn, tiny_model


def test_texts_and_groups_survive_the_way_through_one_tensor():
    batch = drawn(tiny_model(), count=5, seed=3)
    written = [row & (np.arange(len(row)) % 2 == 0) for row in batch.written]
    groups = [[4, 1], [0], [2, 3]]
    (prompts, responses, masks), chosen = restored(*flattened((batch.prompts, batch.responses, written), groups))
    assert chosen == groups
    for found, given in zip((prompts, responses, masks), (batch.prompts, batch.responses, written), strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(found, given, strict=True))
    assert masks[0].dtype == np.bool_


def test_scores_keep_the_order_of_the_groups_and_need_no_graph():
    model = tiny_model()
    batch = drawn(model, count=5, seed=3)
    texts, groups = (batch.prompts, batch.responses, batch.written), [[4, 1], [0], [2, 3]]
    ticks = []
    scoring = Scoring(temperature=0.5, as_in_updates=True)
    found = shared_scores(Scorer(model), model.device, texts, groups, scoring, lambda *done: ticks.append(done))
    assert ticks == [(2, 5), (3, 5), (5, 5)]
    for part, rows in zip(found, groups, strict=True):
        expected = score(model, collate(*([column[row] for row in rows] for column in texts)), 0.5)
        assert part.rows == rows
        assert torch.equal(part.scores.logprobs, expected.logprobs)
        assert part.scores.entropies is None
        assert not part.scores.logprobs.requires_grad


def test_the_checksum_of_shards_is_that_of_the_whole():
    weights = {"a": torch.randn(5, 3), "b": torch.randn(4)}
    whole = weights_checksum(weights)

    def of_shards(first: slice, second: slice, start: int) -> str:
        sums = []
        for rows, begin in ((first, 0), (second, start)):
            shard = {"a": weights["a"][rows], "b": weights["b"]}
            parts = {"a": Part(weights["a"].shape, begin), "b": Part(weights["b"].shape)}
            weights_checksum(shard, parts, lambda found: sums.append(found) or found)
        together = sums[0] + sums[1]
        together[1] = sums[0][1]  # b is whole in both
        return weights_checksum(weights, None, lambda found: together)

    assert of_shards(slice(0, 2), slice(2, 5), start=6) == whole
    assert of_shards(slice(0, 2), slice(2, 5), start=5) != whole


def test_a_message_that_carries_its_inputs_is_refused_before_it_is_sent():
    with pytest.raises(AssertionError, match="learn: a message names inputs and does not carry them"):
        processes.announce({"operation": "learn", "draws": list(range(10_000))})


def test_settings_of_a_scoring_are_json():
    assert Scoring(**dataclasses.asdict(Scoring(temperature=1.0, packed=True))).packed
