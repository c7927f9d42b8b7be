"""Figures 2 and 3: generation rounds until one prompt is solved, by GRPO and by ReVal with K updates per round."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from reval_core.reproduction.records import EVALUATED, ROUNDS, Record, arms, levels, of
from reval_core.reproduction.result import Chart, Line, Result, Table, verdict
from reval_core.reproduction.statistics import Counts, Estimate, speed_up, typical, typical_over_seeds

PAPER_MEAN = 4.3
"""The paper's mean speed-up over its three prompts."""
DRAWN = 40
"""Maximum rounds shown in a chart: longer runs mostly never reach the target."""
CHOSEN = ("GRPO best", "GRPO second", "ReVal best")
"""The arms whose settings the search chose. GRPO has its two fastest: on other seeds either may be faster."""


def fewer_rounds(records: Sequence[Record]) -> Result:
    """Figure 3: the ratio of GRPO's rounds to ReVal's, at equal learning rates and with the best settings of each.

    At equal rates GRPO makes one update per round, and ReVal the same number at every rate. GRPO with ReVal's rate
    and number of updates, where an arm has them, is reported in addition. The arms in `CHOSEN` were chosen by the
    search on other seeds. ReVal is compared with the better of GRPO's two.
    """
    limit = records[0].config.rounds
    counts = {arm: rounds_to_target(records, arm) for arm in arms(records)}
    equal = _equal(records)
    pairs = _pairs(records, [arm for arm in counts if arm not in CHOSEN and arm not in equal])
    same = speed_up(
        {f"{rate} {level}": found for rate, (grpo, _) in pairs.items() for level, found in counts[grpo].items()},
        {f"{rate} {level}": found for rate, (_, reval) in pairs.items() for level, found in counts[reval].items()},
        limit,
    )
    rival = better_grpo(counts, limit)
    overall = speed_up(counts[rival], counts[CHOSEN[2]], limit)
    by_rate = {
        rate: speed_up(counts[grpo], counts[reval], limit).to_json() for rate, (grpo, reval) in pairs.items()
    }
    first = next(iter(pairs.values()))
    updates = _updates(records, first[1])
    alike = {
        f"{of(records, grpo)[0].config.learner.lr:g}": speed_up(counts[grpo], counts[reval], limit)
        for grpo, reval in equal.items()
    }
    with_equal = "".join(
        f" With {updates} updates as well, at {rate}, GRPO takes {times(one)}." for rate, one in alike.items()
    )
    drawn = [*first, *(arm for arm in counts if arm in CHOSEN)]
    says = (
        f"At the same learning rate (mean over {len(pairs)} rates), GRPO with one update takes {times(same)} the "
        f"rounds of ReVal with K = {updates}.{with_equal} With the best settings of each it is {times(overall)}; "
        f"the better of GRPO's two settings is “{rival}”. The paper reports {PAPER_MEAN}×."
    )
    numbers = {
        "same_rate": same.value,
        "best": overall.value,
        "best_is_against": rival,
        "intervals": {"same_rate": same.interval, "best": overall.interval},
        "same_rate_by_rate": by_rate,
        "same_rate_and_updates": {rate: one.to_json() for rate, one in alike.items()},
        "rounds": counts,
        "limit": limit,
        "never_there": {
            arm: sum(one is None for found in by.values() for one in found) for arm, by in counts.items()
        },
        "costs": costs(records),
    }
    return Result(
        verdict(same.value >= PAPER_MEAN, overall.value >= 4.0),
        says,
        numbers,
        [curves(records, level, drawn) for level in levels(records)],
        [rounds_table(records, counts, limit), cost_table(records)],
        [ROUNDS, EVALUATED],
    )


def _pairs(records: Sequence[Record], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the arms of GRPO and of ReVal by learning rate."""
    rates: dict[str, dict[str, str]] = {}
    for arm in names:
        config = of(records, arm)[0].config
        rates.setdefault(f"{config.learner.lr:g}", {})[config.objective.kind] = arm
    return {rate: (by_kind["grpo"], by_kind["reval"]) for rate, by_kind in rates.items()}


def more_updates(records: Sequence[Record]) -> Result:
    """Figure 2: the more updates per round, the fewer rounds."""
    limit = records[0].config.rounds
    counts = {arm: rounds_to_target(records, arm) for arm in arms(records)}
    reval = sorted(
        (one for one in counts if _of_kind(records, one, "reval")), key=lambda arm: _updates(records, arm)
    )
    steps = {str(_updates(records, arm)): typical_over_seeds(counts[arm], limit) for arm in reval}
    (grpo,) = (arm for arm in counts if _of_kind(records, arm, "grpo"))
    grpo_rounds = typical_over_seeds(counts[grpo], limit)
    falls = all(later.value < earlier.value for earlier, later in pairwise(steps.values()))
    ahead = grpo_rounds.value > max(one.value for one in list(steps.values())[-2:])
    listed = ", ".join(f"K = {updates}: {rounds.text('.1f')}" for updates, rounds in steps.items())
    says = (
        f"Rounds to 95%, the geometric mean over {len(levels(records))} prompts with its 95% interval: {listed}; "
        f"GRPO {grpo_rounds.text('.1f')}."
    )
    numbers = {
        "rounds_by_updates": {updates: rounds.to_json() for updates, rounds in steps.items()},
        "grpo_rounds": grpo_rounds.to_json(),
        "rounds": counts,
    }
    return Result(
        verdict(falls, ahead),
        says,
        numbers,
        [curves(records, level, [grpo, *reval]) for level in levels(records)],
        [rounds_table(records, counts, limit)],
        [ROUNDS, EVALUATED],
    )


def best_settings(records: Sequence[Record]) -> Result:
    """The search: the settings of each method with the fewest rounds, and GRPO's second best."""
    limit = records[0].config.rounds
    counts = {arm: rounds_to_target(records, arm) for arm in arms(records)}
    order = sorted(counts, key=lambda arm: typical(counts[arm], limit))
    grpo = [arm for arm in order if _of_kind(records, arm, "grpo")]
    best = dict(zip(CHOSEN, (*grpo[:2], next(arm for arm in order if arm not in grpo)), strict=True))
    listed = "; ".join(f"{title}: {arm} ({typical(counts[arm], limit):.1f})" for title, arm in best.items())
    numbers = {"best_arms": best, "rounds": counts, "limit": limit}
    tables = [rounds_table(records, {arm: counts[arm] for arm in order}, limit)]
    return Result("searched", f"Fewest rounds to 95%. {listed}.", numbers, [], tables, [ROUNDS])


def better_grpo(counts: dict[str, Counts], limit: int) -> str:
    """Return the arm with fewer rounds of the two settings chosen for GRPO."""
    return min(CHOSEN[:2], key=lambda arm: typical(counts[arm], limit))


def rounds_to_target(records: Sequence[Record], arm: str) -> Counts:
    """Return an arm's rounds to the target accuracy, by prompt and seed; None where it was not reached."""
    target = records[0].config.evaluation.target
    assert target is not None, "runs of this study end at a target"
    return {level: [one.rounds_to(target) for one in of(records, arm, level)] for level in levels(records)}


def rounds_table(records: Sequence[Record], counts: dict[str, Counts], limit: int) -> Table:
    """Return the table of every run's rounds to the target, by arm and prompt."""
    names = levels(records)
    rows = [
        [
            arm,
            *(", ".join(_shown(one, limit) for one in by[level]) for level in names),
            typical_over_seeds(by, limit).text(".1f"),
        ]
        for arm, by in counts.items()
    ]
    return Table("Rounds to 95% per seed", ["", *names, "typical (95% interval)"], rows)


def costs(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Return the cost of each arm until the target, as medians over its runs. Updates are part of the cost."""
    names = ("updates", "tokens", "generation_seconds", "learning_seconds")
    return {
        arm: {name: float(np.median([one.spent(name) for one in of(records, arm)])) for name in names}
        | {"seconds": float(np.median([_seconds(one) for one in of(records, arm)]))}
        for arm in arms(records)
    }


def cost_table(records: Sequence[Record]) -> Table:
    """Return the table of updates, tokens and seconds."""
    rows = [
        [arm, f"{cost['updates']:.0f}", f"{cost['tokens']:,.0f}", f"{cost['generation_seconds']:.1f}",
         f"{cost['learning_seconds']:.1f}"]
        for arm, cost in costs(records).items()
    ]  # fmt: skip
    columns = ["", "updates", "generated tokens", "s generating", "s learning"]
    return Table("Cost until then, median over runs", columns, rows)


def _of_kind(records: Sequence[Record], arm: str, kind: str) -> bool:
    return of(records, arm)[0].config.objective.kind == kind


def _equal(records: Sequence[Record]) -> dict[str, str]:
    """Map each GRPO arm to the ReVal arm with the same learning rate and updates, if there is one."""
    settings = {arm: of(records, arm)[0].config for arm in arms(records) if arm not in CHOSEN}
    by_kind: dict[str, dict[tuple[float, int], str]] = {}
    for arm, config in settings.items():
        by_kind.setdefault(config.objective.kind, {})[config.learner.lr, config.learner.updates] = arm
    return {arm: by_kind["reval"][key] for key, arm in by_kind["grpo"].items() if key in by_kind["reval"]}


def _seconds(record: Record) -> float:
    """Return the time of generation and learning: the number of evaluations is a choice of the study."""
    return record.spent("generation_seconds") + record.spent("learning_seconds")


def _updates(records: Sequence[Record], arm: str) -> int:
    return of(records, arm)[0].config.learner.updates


def curves(records: Sequence[Record], level: str, names: Sequence[str]) -> Chart:
    """Return the chart of the share of right rollouts per round; a finished run keeps its last value."""
    chosen = {arm: of(records, arm, level) for arm in names}
    last = min(DRAWN, max(len(one.rounds) for found in chosen.values() for one in found))
    lines = []
    for arm, found in chosen.items():
        longest = min(last, max(len(one.rounds) for one in found))
        values = np.array([_extended(one, longest)[: longest + 1] for one in found])
        x = list(range(longest + 1))
        low, high = (_thinned(side.tolist()) for side in (values.min(0), values.max(0)))
        lines.append(Line(arm, x, values.mean(0).tolist(), low, high))
    return Chart(f"Right rollouts of the {level} prompt, first {last} rounds", lines, "round", percent=True)


def _thinned(values: Sequence[float]) -> list[float | None]:
    """Return the ends of intervals, only for every fifth round after the tenth, to keep the chart readable."""
    return [value if at <= 10 or at % 5 == 0 else None for at, value in enumerate(values)]


def _extended(record: Record, rounds: int) -> list[float]:
    """Return the share of right rollouts of each policy, extended by the last, evaluated value."""
    values = [float(row["accuracy"]) for row in record.rounds]
    values.append(float(record.rounds[-1]["held_out_accuracy"]))
    return values + [values[-1]] * (rounds + 1 - len(values))


def _shown(rounds: Any, limit: int) -> str:
    return f"> {limit}" if rounds is None else str(rounds)


def times(found: Estimate) -> str:
    """Format a ratio with its interval."""
    return found.text(".1f", "×")
