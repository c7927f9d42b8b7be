"""What a run records about its health: divergence, clipped updates, how far draws are off-policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reval_core.replay_buffer.index import sql_views
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from tests.runs import run, small_config


def ask(path: Path, query: str) -> list[tuple[Any, ...]]:
    with sql_views(path, RunDirectory(path).manifests()) as connection:
        return connection.sql(query).fetchall()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds at temperature 1, in which some gradients are clipped and some are not."""
    path = tmp_path_factory.mktemp("runs") / "small"
    run(path, small_config(learner={"updates": 3, "lr": 3e-3, "grad_clip": 40.0}))
    return path


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds sampled at another temperature than they are scored at."""
    path = tmp_path_factory.mktemp("runs") / "hot"
    run(path, small_config(rounds=2, rollouts__temperature=1.5, learner__lr=3e-3))
    return path


def test_the_divergence_is_that_of_the_tokens_as_they_were_sampled(finished: Path) -> None:
    """k1 is the log-ratio per token, and k3 the estimate that is never negative."""
    rows = ask(
        finished,
        """
        SELECT s.kl_k1, s.kl_k3, s.log_ratio / list_sum(t.loss_mask::INTEGER[]), s.round
        FROM scores s JOIN trajectories t USING (trajectory_id, policy)
        """,
    )
    k1, k3, per_token, rounds = np.array(rows).T
    assert k1 == pytest.approx(per_token, abs=1e-5)
    assert not np.concatenate([k1[rounds == 1], k3[rounds == 1]]).any(), "the policy is the reference"
    assert k3.min() >= 0
    later = rounds > 1
    assert 0 < k3[later].mean() < 10 * abs(k1[later].mean())
    assert k3[later].std() < k1[later].std(), "that is what it is for"
    same = "SELECT max(abs(kl - log_ratio)), bool_and(kl_k3 >= 0), count(kl_k1) FROM rounds"
    assert ask(finished, same) == [(0.0, True, 3)]


def test_a_log_ratio_at_another_temperature_is_no_divergence(hot: Path) -> None:
    assert ask(hot, "SELECT count(kl_k1), count(kl_k3), count(log_ratio) FROM rounds") == [(0, 0, 2)]
    assert ask(hot, "SELECT count(kl_k1), count(kl_k3), count(log_ratio) > 0 FROM scores") == [(0, 0, True)]


def test_the_share_of_clipped_updates_is_recorded(finished: Path) -> None:
    rows = ask(finished, "SELECT grad_clipped, grad_norm > 40.0 AND NOT skipped FROM updates")
    assert {clipped for clipped, _ in rows} == {True, False}, "a limit that tells them apart"
    assert all(clipped == above for clipped, above in rows)
    shares = ask(
        finished,
        "SELECT r.grad_clipped, avg(u.grad_clipped::INT) FROM rounds r JOIN updates u USING (round) GROUP BY ALL",
    )
    assert all(share == mean for share, mean in shares)


def drawn_ratios(path: Path) -> Sequence[tuple[Any, ...]]:
    """Of each draw: round, update, age, and log π_θ(τ)/π_writer(τ)."""
    return ask(
        path,
        """
        SELECT round, "update", staleness, writer_log_ratio
        FROM draws JOIN residuals USING (round, "update", trajectory_id)
        """,
    )


@pytest.mark.parametrize("temperature", ["finished", "hot"])
def test_the_first_draw_of_fresh_trajectories_is_on_policy(
    temperature: str, request: pytest.FixtureRequest
) -> None:
    rows = drawn_ratios(request.getfixturevalue(temperature))
    first = [ratio for _, update, age, ratio in rows if update == 1 and age == 0]
    assert np.abs(first).max() < 1e-4
    later = [ratio for _, update, _, ratio in rows if update > 1]
    assert np.abs(later).max() > 1e-2
    assert not any(ratio is None for *_, ratio in rows)


def test_the_ratio_to_the_writer_is_that_of_the_scores(finished: Path) -> None:
    """log π_θ − log π_writer = (log π_θ − log π_ref) − (log π_writer − log π_ref), the last as it was scored."""
    rows = ask(
        finished,
        """
        SELECT r.writer_log_ratio, r.log_ratio - s.log_ratio
        FROM residuals r JOIN trajectories t USING (trajectory_id) JOIN scores s USING (trajectory_id, policy)
        """,
    )
    assert all(ratio == pytest.approx(wanted, abs=1e-4) for ratio, wanted in rows)


def test_a_round_has_quantiles_and_an_effective_share(finished: Path) -> None:
    found = ask(
        finished,
        "SELECT round, off_policy_q05, off_policy_q25, off_policy_q50, off_policy_q75, off_policy_q95, "
        "off_policy_ess FROM rounds ORDER BY round",
    )
    rows = drawn_ratios(finished)
    for round, *quantiles, share in found:
        ratios = np.array([ratio for number, _, _, ratio in rows if number == round])
        assert quantiles == pytest.approx(np.quantile(ratios, [0.05, 0.25, 0.5, 0.75, 0.95]))
        weights = np.exp(ratios)
        assert share == pytest.approx(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def test_the_view_groups_draws_by_age(finished: Path) -> None:
    ages = ask(finished, "SELECT round, age, draws, delta_abs, ess FROM off_policy")
    assert {(round, age) for round, age, *_ in ages} == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
    assert sum(draws for _, _, draws, _, _ in ages) == 3 * 3 * 64
    assert all(1 / draws <= ess <= 1 for _, _, draws, _, ess in ages)
    by_round = """
        SELECT r.drawn_delta_abs, sum(o.draws * o.delta_abs) / sum(o.draws)
        FROM rounds r JOIN off_policy o USING (round) GROUP BY ALL
    """
    assert all(mean == pytest.approx(one) for mean, one in ask(finished, by_round))


def test_the_columns_are_in_the_files(finished: Path) -> None:
    directory = RunDirectory(finished)
    assert read_table(directory.path / directory.facts(2, "residuals")).column("writer_log_ratio").null_count == 0
