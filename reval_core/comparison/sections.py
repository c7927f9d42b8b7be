"""The values of the comparison's sections: differences with intervals, both sides in numbers, and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from reval_core.comparison.pairs import Pair, Part, SideResult
from reval_core.comparison.sides import LEARNING, SPENT, Point, Problem, Side
from reval_core.evaluation.intervals import Interval
from reval_core.report.charts import (
    Panel,
    Plot,
    Scale,
    Series,
    amount_scale,
    line_chart,
    rounds_scale,
    value_scale,
    whisker,
)
from reval_core.report.formats import percent, points
from reval_core.report.sections import Section

_TIMES = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_AMOUNTS = (("billion tokens", 1e9), ("million tokens", 1e6), ("thousand tokens", 1e3), ("tokens", 1.0))


def style_of(place: int) -> str:
    """Return the CSS class for the colour of a run; 0 is the baseline."""
    return f"run{place}"


def span(interval: Interval) -> str:
    """Format the interval of a difference."""
    return f"{points(interval.low)} to {points(interval.high)}"


def part_names(pairs: Sequence[Pair]) -> list[str]:
    """Return the problem sets that any pair shares, with the average last."""
    names = dict.fromkeys(part.name for pair in pairs for part in pair.parts[:-1])
    return list(names | dict.fromkeys(pair.whole.name for pair in pairs))


def results_of(pairs: Sequence[Pair], name: str) -> Iterator[tuple[Side, Part, SideResult]]:
    """Yield all sides on one set. The baseline is repeated where it shares other problems with another run."""
    shown: list[SideResult] = []
    for pair in pairs:
        for part in pair.parts:
            if part.name == name:
                if part.baseline not in shown:
                    shown.append(part.baseline)
                    yield pair.baseline, part, part.baseline
                yield pair.run, part, part.run


def responses_each(result: SideResult) -> str:
    """Format the number of responses per problem."""
    least, most = result.samples
    return f"{least}" if least == most else f"{least} to {most}"


def in_words(one: Pair) -> str:
    """Return the result of a comparison in a sentence."""
    found = one.whole.difference
    shown = f"({points(found.mean)} points, 95% interval {span(found)}, over {one.whole.problems} shared problems)"
    if not found.clear:
        return f"Between {one.run.name} and {one.baseline.name} there is no clear difference {shown}."
    return f"{one.run.name} is clearly {'better' if found.mean > 0 else 'worse'} than {one.baseline.name} {shown}."


def differences(pairs: Sequence[Pair]) -> Section:
    """Plot each run's difference from the baseline per problem set: a dot with its interval as whiskers."""
    found = [100 * end for pair in pairs for part in pair.parts for end in _ends(part.difference)]
    x = value_scale([*found, 0.0])
    rows = [
        (place, pair, part, _whisker(pair, part, place, x))
        for name in part_names(pairs)
        for place, pair in enumerate(pairs, start=1)
        for part in pair.parts
        if part.name == name
    ]
    return {"rows": rows, "axis": x.labels(), "queries": [pairs[0].baseline.answers_query]}


def side_by_side(pairs: Sequence[Pair]) -> Section:
    """Return each side's accuracy, response length and truncated share per problem set."""
    places = {side: place for place, side in enumerate([pairs[0].baseline, *(pair.run for pair in pairs)])}
    tables = {
        name: [(places[side], side, part, result) for side, part, result in results_of(pairs, name)]
        for name in part_names(pairs)
    }
    return {"tables": tables, "queries": [pairs[0].baseline.answers_query]}


def curves(sides: Sequence[Side]) -> Section | None:
    """Plot held-out accuracy over rounds, generated tokens and time; None if each side has only one evaluation."""
    shared = [problem for problem in sides[0].answers if all(problem in side.answers for side in sides)]
    if not shared:
        return {"panels": []}
    known = {side: side.curve(shared) for side in sides}
    if all(len(curve) == 1 for curve in known.values()):
        return None
    panels = [_by_round(known), *_by_cost(known)]
    return {"problems": _problems(shared), "panels": panels, "queries": [LEARNING, SPENT]}


def _whisker(pair: Pair, part: Part, place: int, x: Scale) -> Plot:
    found = part.difference
    said = f"{pair.run.name}, {part.name}: {points(found.mean)} points, {span(found)}"
    low, high = _ends(found)
    return whisker(100 * low, 100 * found.mean, 100 * high, x, style=style_of(place), description=said)


def _by_round(known: Mapping[Side, list[Point]]) -> Panel:
    last = max(point.round for curve in known.values() for point in curve)
    return _chart(known, lambda point: point.round, rounds_scale(last), "Over rounds")


def _by_cost(known: Mapping[Side, list[Point]]) -> Iterator[Panel]:
    """Yield the plots over tokens and over time, where these are recorded."""
    measures: list[tuple[str, Callable[[Point], float | None], tuple[tuple[str, float], ...]]] = [
        ("Over generated tokens", lambda point: point.tokens, _AMOUNTS),
        ("Over training time", lambda point: point.seconds, _TIMES),
    ]
    for title, cost, units in measures:
        last = max((cost(point) or 0.0 for curve in known.values() for point in curve), default=0.0)
        if last:
            unit, size = next((unit for unit in units if last >= 2 * unit[1]), units[-1])
            yield _chart(known, _scaled(cost, size), amount_scale(last / size), title, unit)


def _scaled(cost: Callable[[Point], float | None], size: float) -> Callable[[Point], float | None]:
    def scaled(point: Point) -> float | None:
        value = cost(point)
        return None if value is None else value / size

    return scaled


def _chart(
    known: Mapping[Side, list[Point]],
    across: Callable[[Point], float | None],
    x: Scale,
    title: str,
    unit: str = "",
) -> Panel:
    lines: list[Series] = []
    readings: list[tuple[float, str]] = []
    last: list[str] = []
    for place, (side, curve) in enumerate(known.items()):
        placed = [(at, point) for point in curve if (at := across(point)) is not None]
        where, accuracies = [at for at, _ in placed], [point.accuracy for _, point in placed]
        lines.append(Series(side.name, where, accuracies, style=style_of(place), marked=True))
        said = [(at, f"{side.name} {percent(point.accuracy)} after {_spent(at, unit)}") for at, point in placed]
        readings += said
        last += [text for _, text in said[-1:]]
    y = value_scale([value for line in lines for value in line.y], percent=True)
    plot = line_chart(
        lines, x, y, description=title, readings=_joined(readings), size="tall", text=percent, across=unit
    )
    return Panel(title, ", ".join(last), plot)


def _spent(at: float, unit: str) -> str:
    return f"{at:.3g} {unit}" if unit else f"round {at}"


def _joined(readings: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Merge the texts at the same x."""
    places: dict[float, list[str]] = {}
    for at, text in sorted(readings, key=lambda reading: reading[0]):
        places.setdefault(at, []).append(text)
    return [(at, ", ".join(texts)) for at, texts in places.items()]


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _problems(problems: Sequence[Problem]) -> str:
    sets = [
        f"{len(list(members))} problems of {name}"
        for name, members in groupby(problems, lambda one: one.problem_set)
    ]
    return " and ".join(sets)
