"""The effect of other rules on verdicts and on the rewards of rounds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from reval_core.config import Reward
from reval_core.verification.rewards import rewards


@dataclass(frozen=True)
class Change:
    """Changes in one round of a run, or in one problem set of an evaluation."""

    part: str
    trajectories: int
    changed: int
    """Trajectories whose verdict changed."""
    accuracy_before: float
    accuracy: float
    reward_before: float | None
    """Mean over the trajectories with a reward; None if there are none."""
    reward: float | None
    groups: int
    """Number of prompts."""
    groups_turned: int
    """Groups in which some response's centred reward changed its sign (below, at or above the group's mean)."""


def changes(table: pa.Table, by: str) -> list[Change]:
    """Return the changes per value of a column, in order of first appearance."""
    places: dict[Any, list[int]] = defaultdict(list)
    for place, value in enumerate(table.column(by).to_pylist()):
        places[value].append(place)
    columns = table.select(["prompt_id", "round", "verdict_before", "verdict", "reward_before", "reward"])
    return [_change(str(value), columns.take(pa.array(rows)).to_pydict()) for value, rows in places.items()]


def verdict_changes(table: pa.Table) -> dict[tuple[str, str], int]:
    """Count the responses per pair of verdicts (before, now), the most frequent first."""
    pairs = zip(table.column("verdict_before").to_pylist(), table.column("verdict").to_pylist(), strict=True)
    return dict(Counter(pairs).most_common())


def examples(table: pa.Table, count: int) -> list[dict[str, Any]]:
    """Return the first `count` responses for each pair of verdicts that differ."""
    names = ("trajectory_id", "round", "gold", "verdict_before", "verdict", "extracted_before", "extracted")
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for row in table.select(names).to_pylist():
        pair = (row["verdict_before"], row["verdict"])
        if pair[0] != pair[1] and seen[pair] < count:
            seen[pair] += 1
            found.append(row)
    return found


def _change(part: str, columns: dict[str, list[Any]]) -> Change:
    before, after = columns["verdict_before"], columns["verdict"]
    groups = [f"{round} {prompt}" for round, prompt in zip(columns["round"], columns["prompt_id"], strict=True)]
    reward_before, reward = (np.array(columns[name], dtype=float) for name in ("reward_before", "reward"))
    turned = _signs(reward_before, groups) != _signs(reward, groups)
    known = not np.isnan(reward_before).all()
    return Change(
        part=part,
        trajectories=len(before),
        changed=sum(one != other for one, other in zip(before, after, strict=True)),
        accuracy_before=_share_correct(before),
        accuracy=_share_correct(after),
        reward_before=_mean(reward_before),
        reward=_mean(reward),
        groups=len(set(groups)),
        groups_turned=len({group for group, one in zip(groups, turned, strict=True) if one}) if known else 0,
    )


def _signs(reward: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return whether each reward is below, at or above its group's mean (-1, 0, 1), [B]; 0 where there is none."""
    centred = rewards(reward, groups, Reward(kind="centred"))
    return np.sign(np.where(np.isnan(centred) | (np.abs(centred) < 1e-6), 0.0, centred))


def _mean(reward: np.ndarray) -> float | None:
    known = reward[~np.isnan(reward)]
    return float(known.mean()) if len(known) else None


def _share_correct(verdicts: Sequence[str]) -> float:
    return sum(verdict == "correct" for verdict in verdicts) / len(verdicts)
