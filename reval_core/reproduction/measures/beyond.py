"""Extensions of the paper: its future work, each compared with the paper's own choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.reproduction.measures.accuracy import (
    accuracy_chart,
    accuracy_table,
    estimates,
    points,
    rounds_chart,
    trained_accuracy,
)
from reval_core.reproduction.measures.rounds_to_target import (
    CHOSEN,
    better_grpo,
    cost_table,
    costs,
    curves,
    rounds_table,
    rounds_to_target,
    times,
)
from reval_core.reproduction.records import EVALUATED, ROUNDS, Record, arms, levels
from reval_core.reproduction.result import Chart, Result, verdict
from reval_core.reproduction.statistics import difference, speed_up

AIM = 6.0
"""The target speed-up in rounds over GRPO with its best settings; the paper reports 4.3."""


def fewer_rounds_than_the_first(records: Sequence[Record]) -> Result:
    """Rounds to the target of every arm compared with the first arm, the paper's choice."""
    limit = records[0].config.rounds
    counts = {arm: rounds_to_target(records, arm) for arm in arms(records)}
    first, *others = counts
    found = {arm: speed_up(counts[first], counts[arm], limit) for arm in others}
    says = ", ".join(f"“{first}” takes {times(one)} the rounds of “{arm}”" for arm, one in found.items()) + "."
    numbers = {
        "speed_up": {arm: one.to_json() for arm, one in found.items()},
        "rounds": counts,
        "costs": costs(records),
    }
    best = max(found.values(), key=lambda one: one.value)
    return Result(
        verdict(best.above(1)),
        says,
        numbers,
        _charts(records, list(counts)),
        [rounds_table(records, counts, limit), cost_table(records)],
        [ROUNDS, EVALUATED],
    )


def all_together(records: Sequence[Record]) -> Result:
    """The better of GRPO's two settings compared with the best arm, in rounds and in cost.

    The result also states whether an extension of the paper is faster than ReVal without it.
    """
    limit = records[0].config.rounds
    counts = {arm: rounds_to_target(records, arm) for arm in arms(records)}
    grpo = better_grpo(counts, limit)
    found = {arm: speed_up(counts[grpo], counts[arm], limit) for arm in counts if arm not in CHOSEN[:2]}
    best = max(found, key=lambda arm: found[arm].value)
    extension = max((arm for arm in found if arm not in CHOSEN), key=lambda arm: found[arm].value)
    spent = costs(records)
    ratios = {name: spent[grpo][name] / spent[best][name] for name in spent[best]}
    says = (
        f"“{grpo}” takes {times(found[best])} the rounds of “{best}”; {ratios['updates']:.2f}× the updates, "
        f"{ratios['tokens']:.1f}× the generated tokens, and {ratios['seconds']:.2f}× the seconds on this machine. "
        f"The fastest extension is “{extension}”, {times(found[extension])}."
    )
    numbers = {
        "best": found[best].value,
        "best_arm": best,
        "best_is_against": grpo,
        "intervals": {"best": found[best].interval},
        "beside": ratios,
        "speed_up": {arm: one.to_json() for arm, one in found.items()},
        "rounds": counts,
        "costs": spent,
    }
    return Result(
        verdict(found[best].value >= AIM, found[best].value >= 4.3),
        says,
        numbers,
        _charts(records, [grpo, best]),
        [rounds_table(records, counts, limit), cost_table(records)],
        [ROUNDS, EVALUATED],
    )


def more_accurate_than_the_first(records: Sequence[Record]) -> Result:
    """Held-out accuracy of every arm compared with the first arm, the paper's choice."""
    found = trained_accuracy(records)
    first, *others = found
    ahead = {arm: difference(found[arm], found[first]) for arm in others}
    listed = ", ".join(f"“{arm}” has {points(one)} points" for arm, one in ahead.items())
    first_accuracy = 100 * float(np.mean(found[first]))
    says = f"“{first}” reaches {first_accuracy:.1f}% on held-out problems; relative to it {listed}."
    best = max(ahead.values(), key=lambda one: one.value)
    charts = [accuracy_chart(records), rounds_chart(records, "residual_left", "ρ, the share of residual left")]
    return Result(
        verdict(best.above(0)),
        says,
        {"accuracy": estimates(found), "ahead": {arm: one.to_json() for arm, one in ahead.items()}},
        charts,
        [accuracy_table(records, found)],
        [ROUNDS, EVALUATED],
    )


def _charts(records: Sequence[Record], names: Sequence[str]) -> list[Chart]:
    return [curves(records, level, names) for level in levels(records)]
