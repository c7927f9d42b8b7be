"""Sections of the comparison page: differences with intervals, both sides in numbers, and training curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from reval_core.comparison.pairs import Pair, Part, Score
from reval_core.comparison.sides import LEARNING, SPENT, Point, Problem, Side
from reval_core.evaluation.intervals import Interval
from reval_core.report.charts import (
    Scale,
    Series,
    line_chart,
    rounds_scale,
    value_scale,
    whisker,
    whisker_axis,
)
from reval_core.report.page import MINUS, Html, number, percent, section, sql_note, tag

_TIMES = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_AMOUNTS = (("billion tokens", 1e9), ("million tokens", 1e6), ("thousand tokens", 1e3), ("tokens", 1.0))


def style_of(place: int) -> str:
    """Return the CSS class for the colour of a run; 0 is the baseline."""
    return f"run{place}"


def points(share: float) -> str:
    """Format a difference of shares in signed percentage points."""
    return f"{100 * share:+.1f}".replace("-", MINUS)


def span(interval: Interval) -> str:
    """Format the interval of a difference."""
    return f"{points(interval.low)} to {points(interval.high)}"


def part_names(pairs: Sequence[Pair]) -> list[str]:
    """Return the problem sets that any pair shares, with the average last."""
    names = dict.fromkeys(part.name for pair in pairs for part in pair.parts[:-1])
    return list(names | dict.fromkeys(pair.whole.name for pair in pairs))


def scores_of(pairs: Sequence[Pair], name: str) -> Iterator[tuple[Side, Part, Score]]:
    """Yield all sides on one set. The baseline is repeated where it shares other problems with another run."""
    shown: list[Score] = []
    for pair in pairs:
        for part in pair.parts:
            if part.name == name:
                if part.baseline not in shown:
                    shown.append(part.baseline)
                    yield pair.baseline, part, part.baseline
                yield pair.run, part, part.run


def responses_each(score: Score) -> str:
    """Format the number of responses per problem."""
    least, most = score.samples
    return f"{least}" if least == most else f"{least} to {most}"


def in_words(one: Pair) -> str:
    """Return the result of a comparison in a sentence."""
    found = one.whole.difference
    shown = f"({points(found.mean)} points, 95% interval {span(found)}, over {one.whole.problems} shared problems)"
    if not found.clear:
        return f"Between {one.run.name} and {one.baseline.name} there is no clear difference {shown}."
    return f"{one.run.name} is clearly {'better' if found.mean > 0 else 'worse'} than {one.baseline.name} {shown}."


def differences(pairs: Sequence[Pair]) -> Html:
    """Render each run's difference from the baseline per problem set: a dot with its interval as whiskers."""
    found = [100 * end for pair in pairs for part in pair.parts for end in _ends(part.difference)]
    x = value_scale([*found, 0.0])
    rows = [
        _difference(pair, part, style_of(place), x)
        for name in part_names(pairs)
        for place, pair in enumerate(pairs, start=1)
        for part in pair.parts
        if part.name == name
    ]
    axis = tag("tr", tag("td"), tag("td", whisker_axis(x)), tag("td", "points", class_="right unit"), class_="axes")
    baseline = pairs[0].baseline
    lead = (
        f"Accuracy minus that of {baseline.name}, in percentage points, on shared problems. The whiskers are 95% "
        "paired bootstrap intervals over problems (BCa, 10,000 resamples, seed 0). A difference is clear if its "
        "interval excludes 0; among many comparisons some are clear by chance."
    )
    table = tag("table", *rows, axis, class_="whiskers")
    return section("Differences", lead, table, sql_note(pairs[0].baseline.answers_query))


def side_by_side(pairs: Sequence[Pair]) -> Html:
    """Render each side's accuracy, response length and truncated share per problem set."""
    head = ("run", "accuracy", "tokens", "cut off", "problems")
    places = {side: place for place, side in enumerate([pairs[0].baseline, *(pair.run for pair in pairs)])}
    tables = [
        tag(
            "div",
            tag("h3", name),
            tag(
                "table",
                tag("tr", *(tag("th", title) for title in head)),
                *(_score(*found, style_of(places[found[0]])) for found in scores_of(pairs, name)),
            ),
            class_="block",
        )
        for name in part_names(pairs)
    ]
    lead = (
        "Accuracy is avg@k, the mean over problems of the share of right responses, with its 95% interval; tokens "
        "are per response, and cut off is the share of responses that reached the length limit. Each run is "
        "shown on the problems that it shares with the baseline."
    )
    return section("Side by side", lead, *tables, sql_note(pairs[0].baseline.answers_query))


def curves(sides: Sequence[Side]) -> Html:
    """Render held-out accuracy over rounds, generated tokens and time, if a side has several evaluations."""
    title = "During training"
    shared = [problem for problem in sides[0].answers if all(problem in side.answers for side in sides)]
    if not shared:
        return section(title, "The runs share no problem, so their curves cannot be shown in one chart.")
    known = {side: side.curve(shared) for side in sides}
    if all(len(curve) == 1 for curve in known.values()):
        return Html("")
    lead = (
        f"Held-out accuracy on the {_problems(shared)} shared by all runs; for several problem sets, the mean of "
        "their means. Tokens are the response tokens generated for training. Time is that of the run's rounds, "
        "including evaluations, without what comes before the first round."
    )
    charts = [_by_round(known), *_by_cost(known)]
    return section(title, lead, *charts, *_about_starts(sides), sql_note(LEARNING, SPENT))


def _difference(pair: Pair, part: Part, style: str, x: Scale) -> Html:
    found = part.difference
    said = f"{pair.run.name}, {part.name}: {points(found.mean)} points, {span(found)}"
    low, high = _ends(found)
    chart = whisker(100 * low, 100 * found.mean, 100 * high, x, style=style, description=said)
    name = tag("td", tag("b", pair.run.name, class_=f"name {style}"), tag("small", part.name))
    figure = tag("td", tag("b", points(found.mean)), tag("small", span(found)), class_="right")
    return tag("tr", name, tag("td", chart, class_="chart"), figure)


def _score(side: Side, part: Part, score: Score, style: str) -> Html:
    return tag(
        "tr",
        tag("td", tag("b", side.name, class_=f"name {style}"), tag("small", f"after round {side.round}")),
        tag("td", percent(score.avg.mean), tag("small", f"{percent(score.avg.low)} to {percent(score.avg.high)}")),
        tag("td", number(score.tokens)),
        tag("td", percent(score.truncated)),
        tag("td", f"{part.problems:,}", tag("small", f"{responses_each(score)} each")),
    )


def _by_round(known: Mapping[Side, list[Point]]) -> Html:
    last = max(point.round for curve in known.values() for point in curve)
    return _chart(known, lambda point: point.round, rounds_scale(last), "Over rounds")


def _by_cost(known: Mapping[Side, list[Point]]) -> Iterator[Html]:
    """Yield the charts over tokens and over time, where these are recorded."""
    measures: list[tuple[str, Callable[[Point], float | None], tuple[tuple[str, float], ...]]] = [
        ("Over generated tokens", lambda point: point.tokens, _AMOUNTS),
        ("Over training time", lambda point: point.seconds, _TIMES),
    ]
    for title, cost, units in measures:
        last = max((cost(point) or 0.0 for curve in known.values() for point in curve), default=0.0)
        if last:
            unit, size = next((unit for unit in units if last >= 2 * unit[1]), units[-1])
            ticks = value_scale([last / size]).ticks
            x = Scale(0.0, last / size, tuple(tick for tick in ticks if tick * size <= last))
            yield _chart(known, _scaled(cost, size), x, title, unit)


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
) -> Html:
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
    chart = line_chart(lines, x, y, description=title, readings=_joined(readings), size="tall", text=percent)
    name = tag("span", tag("b", title), " ", tag("span", unit, class_="unit"))
    return tag("figure", tag("figcaption", name, tag("output", ", ".join(last)), class_="headed"), chart)


def _spent(at: float, unit: str) -> str:
    return f"{at:.3g} {unit}" if unit else f"round {at}"


def _joined(readings: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Merge the texts at the same x."""
    places: dict[float, list[str]] = {}
    for at, text in sorted(readings, key=lambda reading: reading[0]):
        places.setdefault(at, []).append(text)
    return [(at, ", ".join(texts)) for at, texts in places.items()]


def _about_starts(sides: Sequence[Side]) -> Iterator[Html]:
    """Yield a note on the runs that were interrupted: their curves have no gap there."""
    resumed = [f"{side.name} was started {side.source.starts} times" for side in sides if side.source.starts > 1]
    if resumed:
        text = "; ".join(resumed) + ". Their time excludes the pause between an interruption and the next start, "
        yield tag("p", text + "and the work that was lost and repeated.", class_="note")


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _problems(problems: Sequence[Problem]) -> str:
    sets = [
        f"{len(list(members))} problems of {name}"
        for name, members in groupby(problems, lambda one: one.problem_set)
    ]
    return " and ".join(sets)
