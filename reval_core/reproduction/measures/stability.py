"""Figures 10 and 11: the objective without reward, and the size of its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.reproduction.measures.accuracy import accuracy_chart, rounds_chart, trained_set
from reval_core.reproduction.records import EVALUATED, ROUNDS, Record, arms, of
from reval_core.reproduction.result import Result, Table, verdict
from reval_core.reproduction.statistics import mean_over_seeds

_NO_KL = 1e-3
_LAST = 10
"""Number of last rounds over which the KL is averaged: each estimate has only 16 responses."""


def no_reward(records: Sequence[Record]) -> Result:
    """Figure 10: without reward TBRM moves the policy away from the reference; ReVal leaves it unchanged."""
    kl = {arm: mean_over_seeds([_last_kl(one) for one in of(records, arm)]) for arm in ("TBRM", "ReVal")}
    tbrm, reval = kl["TBRM"], kl["ReVal"]
    rounds = len(records[0].rounds)
    says = (
        f"After {rounds} rounds in which every reward was 0, the KL to the reference is {tbrm.text('.3f')} "
        f"with TBRM and {reval.value:.2g} with ReVal."
    )
    numbers = {
        "tbrm_kl": tbrm.value,
        "reval_kl": reval.value,
        "intervals": {"tbrm_kl": tbrm.interval, "reval_kl": reval.interval},
        "rounds": rounds,
    }
    return Result(
        verdict(tbrm.value > 10 * _NO_KL, abs(reval.value) < _NO_KL),
        says,
        numbers,
        [rounds_chart(records, "kl", "KL to the reference, nats per response")],
        [],
        [ROUNDS],
    )


def gradients(records: Sequence[Record]) -> Result:
    """Figure 11: with a small β the regression's gradient explodes where ReVal's does not."""
    largest = {
        arm: [max(row["largest_gradient"] for row in one.rounds) for one in of(records, arm)]
        for arm in arms(records)
    }
    middle = {arm: float(np.median(found)) for arm, found in largest.items()}
    names = list(middle)
    betas = {arm: of(records, arm)[0].config.objective.beta for arm in names}
    small = min(beta for beta in betas.values() if beta is not None)
    at_small = {of(records, arm)[0].config.objective.kind: arm for arm in names if betas[arm] == small}
    ratio = middle[at_small["regression"]] / middle[at_small["reval"]]
    accuracy = {arm: [_last_accuracy(one) for one in of(records, arm)] for arm in names}
    worse = float(np.mean(accuracy[at_small["regression"]])) < float(np.mean(accuracy[at_small["reval"]]))
    listed = ", ".join(f"{value:.3g} ({arm})" for arm, value in middle.items())
    says = (
        f"The largest gradient norm of a run, the median over seeds: {listed}. At β {small:g} the regression's is "
        f"{ratio:.1f} times ReVal's."
    )
    rows = [
        [arm, f"{middle[arm]:.3g}", ", ".join(f"{one:.3g}" for one in largest[arm]),
         f"{100 * float(np.mean(accuracy[arm])):.1f}"]
        for arm in names
    ]  # fmt: skip
    table = Table("Largest gradient norm, before clipping", ["", "median", "per seed", "last accuracy, %"], rows)
    return Result(
        verdict(ratio > 10, worse),
        says,
        {"largest_gradient": middle, "regression_to_reval": ratio, "seed_by_seed": largest, "accuracy": accuracy},
        [
            rounds_chart(
                records, "largest_gradient", "Largest gradient norm of a round, before clipping", log=True
            ),
            accuracy_chart(records),
        ],
        [table],
        [ROUNDS, EVALUATED],
    )


def _last_kl(record: Record) -> float:
    return float(np.mean([row["kl"] for row in record.rounds[-_LAST:]]))


def _last_accuracy(record: Record) -> float:
    curve = record.evaluated[trained_set([record])]
    return curve[max(curve)]
