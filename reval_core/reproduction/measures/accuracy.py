"""Figures 4, 7, 8, 9 and Table 1: held-out accuracy under different settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.problems.arithmetic import set_name
from reval_core.reproduction.records import EVALUATED, ROUNDS, Record, arms, of
from reval_core.reproduction.result import Chart, Line, Result, Table, verdict
from reval_core.reproduction.statistics import Estimate, difference, mean_over_seeds


def methods(records: Sequence[Record]) -> Result:
    """Table 1 and Figure 4: GRPO, TBRM and ReVal on the trained problem type and on others."""
    final = {arm: _final(of(records, arm)) for arm in arms(records)}
    average = {arm: _over_sets(found) for arm, found in final.items()}
    ahead = {arm: difference(average["ReVal"], average[arm]) for arm in ("GRPO", "TBRM")}
    best = max(average, key=lambda arm: float(np.mean(average[arm])))
    others = {
        arm: _over_sets({name: one for name, one in found.items() if name != trained_set(records)})
        for arm, found in final.items()
    }
    transfer = {arm: difference(others["ReVal"], others[arm]) for arm in ("GRPO", "TBRM")}
    says = (
        f"Mean over the problem sets after the last round: {_listed(average)}. ReVal is {points(ahead['GRPO'])} "
        f"points ahead of GRPO and {points(ahead['TBRM'])} ahead of TBRM; best is {best}. "
        f"On the sets that were not trained on it is {points(transfer['GRPO'])} and {points(transfer['TBRM'])} "
        "points ahead."
    )
    numbers = {
        "accuracy": {
            arm: {name: float(np.mean(one)) for name, one in found.items()} for arm, found in final.items()
        },
        "average": {arm: mean_over_seeds(found).to_json() for arm, found in average.items()},
        "ahead_of": {arm: found.to_json() for arm, found in ahead.items()},
        "ahead_where_not_practised": {arm: found.to_json() for arm, found in transfer.items()},
    }
    charts = [accuracy_chart(records, name) for name in records[0].evaluated]
    table = _sets_table(records, final)
    holds = [one.above(0) for one in (*ahead.values(), *transfer.values())]
    return Result(verdict(*holds), says, numbers, charts, [table], [EVALUATED])


def best_settings(records: Sequence[Record]) -> Result:
    """The search: the best settings of each method after the last round, by the mean over the sets."""
    final = {arm: _final(of(records, arm)) for arm in arms(records)}
    average = {arm: float(np.mean(_over_sets(found))) for arm, found in final.items()}
    best: dict[str, str] = {}
    for arm in sorted(average, key=lambda arm: -average[arm]):
        best.setdefault(of(records, arm)[0].config.objective.kind, arm)
    listed = "; ".join(f"{arm} ({100 * average[arm]:.1f}%)" for arm in best.values())
    says = f"Best of each method, by the mean over the problem sets after the last round: {listed}."
    numbers = {"best_arms": best, "average": average}
    return Result("searched", says, numbers, [], [_sets_table(records, final)], [EVALUATED])


def reference_resets(records: Sequence[Record]) -> Result:
    """Figure 7: the reference is reset never, often, at the right interval, or late."""
    return _one_is_best(records, "right", "Resets at the right interval")


def strengths(records: Sequence[Record]) -> Result:
    """Figure 8: β over two orders of magnitude: a large one learns slowly, a small one collapses."""
    found = trained_accuracy(records)
    middle = max(found, key=lambda arm: float(np.mean(found[arm])))
    order = list(found)
    inside = middle not in (order[0], order[-1])
    kl = {arm: float(np.mean([one.rounds[-1]["kl"] for one in of(records, arm)])) for arm in order}
    falls = kl[order[-1]] < kl[order[0]]
    says = (
        f"Accuracy on held-out problems after the last round: {_listed(found)}. The KL to the reference goes from "
        f"{kl[order[0]]:.2f} ({order[0]}) to {kl[order[-1]]:.2f} ({order[-1]})."
    )
    numbers = {"accuracy": estimates(found), "kl": kl, "best": middle}
    return Result(
        verdict(inside, falls),
        says,
        numbers,
        [accuracy_chart(records), rounds_chart(records, "kl", "KL to the reference, nats per response")],
        [accuracy_table(records, found)],
        [EVALUATED, ROUNDS],
    )


def reward_designs(records: Sequence[Record]) -> Result:
    """Figure 9: rewards centred by the group's mean are best, ±1 is worst."""
    found = trained_accuracy(records)
    order = sorted(found, key=lambda arm: -float(np.mean(found[arm])))
    says = (
        f"Accuracy on held-out problems after the last round: {_listed(found)}. "
        f"From best to worst: {', '.join(order)}."
    )
    return Result(
        verdict(order[0] == "centred", order[-1] == "±1"),
        says,
        {"accuracy": estimates(found), "order": order},
        [accuracy_chart(records)],
        [accuracy_table(records, found)],
        [EVALUATED],
    )


def accuracy_chart(records: Sequence[Record], problem_set: str | None = None) -> Chart:
    """Return the chart of accuracy over rounds on one problem set, by default that of the trained type."""
    name = problem_set or trained_set(records)
    lines = []
    for arm in arms(records):
        curves = [one.evaluated[name] for one in of(records, arm)]
        shared = sorted(set.intersection(*(set(curve) for curve in curves)))
        lines.append(_line(arm, shared, np.array([[curve[at] for at in shared] for curve in curves])))
    return Chart(f"Accuracy on held-out {name}", lines, percent=True)


def rounds_chart(records: Sequence[Record], column: str, title: str, log: bool = False) -> Chart:
    """Return the chart of a column of the table `rounds`."""
    lines = []
    for arm in arms(records):
        found = of(records, arm)
        last = min(len(one.rounds) for one in found)
        values = np.array([[one.rounds[at][column] for at in range(last)] for one in found], float)
        lines.append(_line(arm, [row["round"] for row in found[0].rounds[:last]], values))
    return Chart(title, lines, log=log)


def accuracy_table(records: Sequence[Record], found: dict[str, list[float]]) -> Table:
    """Return the table of each arm's last accuracy per seed."""
    rows = [
        [
            arm,
            _percent(mean_over_seeds(values)),
            ", ".join(f"{100 * one:.1f}" for one in values),
            ", ".join(str(one.resets) for one in of(records, arm)),
        ]
        for arm, values in found.items()
    ]
    columns = ["", "mean (95% interval)", "per seed", "reference resets"]
    return Table("Held-out accuracy after the last round, %", columns, rows)


def _one_is_best(records: Sequence[Record], name: str, title: str) -> Result:
    found = trained_accuracy(records)
    ahead = {arm: difference(found[name], values) for arm, values in found.items() if arm != name}
    listed = ", ".join(f"{points(one)} points over {arm}" for arm, one in ahead.items())
    says = f"Accuracy on held-out problems after the last round: {_listed(found)}. {title}: {listed}."
    numbers = {
        "accuracy": estimates(found),
        "ahead_of": {arm: one.to_json() for arm, one in ahead.items()},
    }
    return Result(
        verdict(*(one.above(0) for one in ahead.values())),
        says,
        numbers,
        [accuracy_chart(records)],
        [accuracy_table(records, found)],
        [EVALUATED],
    )


def _final(found: Sequence[Record]) -> dict[str, list[float]]:
    """Return each run's accuracy after its last round, by problem set."""
    return {name: [one.evaluated[name][max(one.evaluated[name])] for one in found] for name in found[0].evaluated}


def trained_accuracy(records: Sequence[Record]) -> dict[str, list[float]]:
    """Return each run's last accuracy on held-out problems of the trained type, by arm."""
    final = {arm: _final(of(records, arm)) for arm in arms(records)}
    return {arm: found[trained_set(records)] for arm, found in final.items()}


def trained_set(records: Sequence[Record]) -> str:
    """Return the name of the held-out set of the trained problem type, which is the first set."""
    held_out = records[0].config.problems.held_out[0].arithmetic
    assert held_out is not None, "the study trains on arithmetic"
    return set_name(held_out.digits, held_out.operators)


def _over_sets(found: dict[str, list[float]]) -> list[float]:
    """Return each run's mean over the problem sets."""
    means: list[float] = np.mean(list(found.values()), axis=0).tolist()
    return means


def _line(arm: str, x: Sequence[int], values: np.ndarray) -> Line:
    return Line(arm, x, values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist())


def _sets_table(records: Sequence[Record], final: dict[str, dict[str, list[float]]]) -> Table:
    names = list(records[0].evaluated)
    start = {name: records[0].evaluated[name][0] for name in names}
    rows = [
        ["before", *(f"{100 * start[name]:.1f}" for name in names), f"{100 * np.mean(list(start.values())):.1f}"]
    ]
    for arm, found in final.items():
        cells = [_percent(mean_over_seeds(found[name])) for name in names]
        rows.append([arm, *cells, _percent(mean_over_seeds(_over_sets(found)))])
    return Table("Accuracy after the last round, % (95% interval over seeds)", ["", *names, "mean"], rows)


def estimates(found: dict[str, list[float]]) -> dict[str, object]:
    """Return the mean of each arm's runs with its interval."""
    return {arm: mean_over_seeds(values).to_json() for arm, values in found.items()}


def _listed(found: dict[str, list[float]]) -> str:
    return ", ".join(f"{100 * float(np.mean(values)):.1f}% ({arm})" for arm, values in found.items())


def points(found: Estimate) -> str:
    """Format a difference of accuracies in points, with its interval."""
    return _scaled(found).text("+.1f")


def _percent(found: Estimate) -> str:
    return _scaled(found).text(".1f")


def _scaled(found: Estimate) -> Estimate:
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)
