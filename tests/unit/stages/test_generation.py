"""The generation loop with a scripted engine: which groups a shard contains, what is continued, what is reused."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reval_core.config import Rollouts
from reval_core.engines.response import Response
from reval_core.model.loading import make_tiny_tokenizer
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND, response_table, responses_of
from reval_core.stages.generation import Budget, Group, Shards, seeded
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from tests.responses import request

ROUND = 3


def group(name: str, samples: int = 2) -> Group:
    return [request([4, 5], 100 + sample, problem=name, sample=sample) for sample in range(samples)]


ROWS = partial(
    response_table,
    tokenizer=make_tiny_tokenizer("0123456789+="),
    round=ROUND,
    policy="the policy",
    engine="scripted",
    temperature=1.0,
)


class Engine:
    """Completes requests in the given order with one token each; stops as soon as it has generated enough."""

    def __init__(self, order: Sequence[int] | None = None) -> None:
        self.order = order
        self.requests: list[Response] = []
        self.is_closed = False

    def __call__(
        self, requests: Sequence[Response], enough: Callable[[int], bool] | None
    ) -> Generator[tuple[int, Response]]:
        self.requests += requests
        order = range(len(requests)) if self.order is None else self.order
        try:
            for done, place in enumerate(order):
                if enough is not None and enough(done):
                    yield from ((rest, requests[rest].extended([9], [-2.0], "partial")) for rest in order[done:])
                    return
                yield place, requests[place].extended([7], [-0.5], "stop")
        finally:
            self.is_closed = True


def shards_of(tmp_path: Path, gapless: bool = True) -> Shards:
    return Shards(RunDirectory(tmp_path), ROUND, "key", writer=ROUND - 1, gapless=gapless)


def published(tmp_path: Path, name: str = "shard-*") -> list[list[dict[str, Any]]]:
    return [read_table(path).to_pylist() for path in sorted(tmp_path.glob(f"rollouts/*/{name}.parquet"))]


def test_a_shard_contains_the_groups_that_finish_first_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    groups = {number: group(name) for number, name in enumerate("abc")}
    assert shards_of(tmp_path).generate(groups, 2, Engine([4, 5, 0, 2, 1, 3]), ROWS) == {}
    first, second = published(tmp_path)
    assert [(row["problem"], row["sample"]) for row in first] == [("a", 0), ("a", 1), ("c", 0), ("c", 1)]
    assert [row["problem"] for row in second] == ["b", "b"]
    assert [row["trajectory_id"] - ROUND * IDS_PER_ROUND for row in first + second] == list(range(6))
    assert {(tuple(row["policy_rounds"]), row["finish_reason"]) for row in first + second} == {((2,), "stop")}


@pytest.mark.parametrize("gapless", [False, True])
def test_a_later_attempt_asks_only_for_the_groups_that_are_in_no_shard(tmp_path: Path, gapless: bool) -> None:
    groups = {number: group(name) for number, name in enumerate("abc")}
    shards = shards_of(tmp_path)
    publish = shards.publish

    def crash(make: Any, numbers: Sequence[int]) -> None:
        if shards.groups():
            raise KeyboardInterrupt
        publish(make, numbers)

    shards.publish = crash  # type: ignore[method-assign]
    engine = Engine()
    with pytest.raises(KeyboardInterrupt):
        shards.generate(groups, 1, engine, ROWS)
    assert engine.is_closed
    assert [one.problem for one in groups[1]] == ["b", "b"]
    assert not any(one.tokens for one in groups[1]), "the caller's groups are not changed"
    before = (tmp_path / "rollouts/round=00003/shard-000.parquet").read_bytes()
    engine = Engine()
    again = shards_of(tmp_path, gapless)
    again.generate(groups, 1, engine, ROWS)
    assert [one.problem for one in engine.requests] == ["b", "b", "c", "c"]
    assert (tmp_path / "rollouts/round=00003/shard-000.parquet").read_bytes() == before
    assert again.outcome("scripted").info["shards_reused"] == 1


def test_a_lost_shard_is_regenerated_and_later_ones_are_kept_unless_the_engine_streams(tmp_path: Path) -> None:
    groups = {number: group(name) for number, name in enumerate("abc")}
    shards_of(tmp_path).generate(groups, 1, Engine(), ROWS)
    (tmp_path / "rollouts/round=00003/shard-001.parquet").unlink()
    assert shards_of(tmp_path, gapless=False).groups() == {0, 2}
    assert shards_of(tmp_path, gapless=True).groups() == {0}


def test_a_budget_cuts_off_after_the_first_complete_group(tmp_path: Path) -> None:
    groups = {number: group(name) for number, name in enumerate("abc")}
    shards = shards_of(tmp_path)
    cut_off = shards.generate(groups, 2, Engine(), ROWS, Budget(Rollouts(budget_tokens=1, **SIZES)))
    assert list(cut_off) == [1, 2]
    ((first,), (partials,)) = published(tmp_path), published(tmp_path, "partials")
    assert [row["problem"] for row in first] == ["a", "a"]
    assert [(row["problem"], row["response_tokens"]) for row in partials] == [(one, [9]) for one in "bbcc"]
    assert [row["trajectory_id"] - ROUND * IDS_PER_ROUND for row in partials] == [2, 3, 4, 5]
    assert shards.outcome("scripted").info["generated_tokens"] == 6


SIZES: dict[str, Any] = {"prompts": 3, "samples": 2, "max_tokens": 4}


def test_a_later_round_continues_what_was_cut_off_with_new_seeds(tmp_path: Path) -> None:
    engine = Engine([0, 1, 2])
    mixed = [group("a", 3)[0].extended([7], [-0.5], "stop").written_by(1), *group("a", 3)[1:]]
    mixed[1] = mixed[1].extended([8], [-0.1], "partial").written_by(1)
    again = seeded(mixed, lambda one: 900 + one.sample)
    assert [one.seed for one in again] == [100, 901, 902]
    engine.order = [0, 1]
    shards_of(tmp_path).generate({0: again}, 1, engine, ROWS)
    assert [list(one.tokens) for one in engine.requests] == [[8], []]
    (path,) = tmp_path.glob("rollouts/*/shard-*.parquet")
    whole = responses_of(read_table(path))
    assert [(one.tokens, one.policy_rounds) for one in whole] == [([7], [1]), ([8, 7], [1, 2]), ([7], [2])]
