"""The geometry of plots: SVG paths for lines and bars, and labels. `plots.html.j2` turns it into markup.

A plot fills the width of its container. Its SVG has 1000 × 1000 units and is stretched; strokes keep their width.
Coordinates are rounded, so that the same data give the same page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from reval_core.output.control_characters import visible
from reval_core.report.formats import MINUS

Values = Sequence[float | None]
Path = tuple[str, str]
"""An SVG path: its CSS classes, and its commands."""

LOG_FROM = 30.0
"""A scale that may be logarithmic becomes so if its largest value exceeds this multiple of the median."""

_MOST_DECIMALS = 4
"""Ticks that need more decimals use scientific notation."""

MANY = 200
"""Lines with more points than this are drawn thinner."""


@dataclass(frozen=True)
class Label:
    """A text at a position of an axis, 0 to 1."""

    text: str
    at: float
    name: str = ""
    """A line's name, shown above the text."""
    style: str = ""


@dataclass(frozen=True)
class Scale:
    """Maps a value to its position on an axis, 0 to 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    percent: bool = False
    zero: str = ""
    """Label of the tick at 0, if not the number."""

    def place(self, value: float) -> float:
        """Return the position of a value."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """Return a tick's label, with as many decimals as the ticks need."""
        if tick == 0 and self.zero:
            return self.zero
        if self.log:
            return f"{tick:,.0f}" if tick >= 1 else f"{tick:g}"
        scale, unit = (100, "%") if self.percent else (1, "")
        step = scale * (self.ticks[1] - self.ticks[0])
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if decimals > _MOST_DECIMALS:
            return f"{scale * tick:.1e}{unit}".replace("-", MINUS) if tick else f"0{unit}"
        return f"{scale * tick:,.{decimals}f}{unit}".replace("-", MINUS)

    def labels(self) -> list[Label]:
        """Return the ticks' labels with their positions."""
        return [Label(self.label(tick), self.place(tick)) for tick in self.ticks]


@dataclass(frozen=True)
class Series:
    """One line. `style` is a CSS class of the page: `line` or `thin`."""

    name: str
    x: Sequence[float]
    y: Values
    style: str = "line"
    marked: bool = False
    """Whether every point is marked with a dot."""
    low: Values = ()
    high: Values = ()
    """The ends of each point's interval."""


@dataclass(frozen=True)
class Band:
    """An area between two lines over the same x values."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def rounds_scale(last: int, ticks: int = 5) -> Scale:
    """Return the axis of rounds, 0 to the last one. Both ends have a tick."""
    last = max(last, 1)
    step = max(1, round(_step(last, ticks)))
    inner = [float(tick) for tick in range(0, last, step) if tick == 0 or last - tick >= 0.75 * step]
    return Scale(0, last, (*inner, float(last)), zero="round 0")


def amount_scale(last: float) -> Scale:
    """Return an axis from 0 to the first tick that is not below the last value."""
    step = _step(last, 8)
    ticks = tuple(tick * step for tick in range(math.ceil(last / step - 1e-9) + 1))
    return Scale(0.0, ticks[-1], ticks)


def value_scale(values: Values, may_be_log: bool = False, percent: bool = False) -> Scale:
    """Return an axis over all values. It includes 0 unless it is logarithmic."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if may_be_log and low > 0 and high > LOG_FROM * median(known):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = math.ceil((last - first) / 4)
        powers = range(first, last + every, every)
        return Scale(10.0**first, 10.0 ** powers[-1], tuple(10.0**power for power in powers), log=True)
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        high = low + 1.0
    step = _step(high - low, 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(tick * step for tick in range(first, last + 1))
    if percent and ticks[-1] > 1:
        return Scale(ticks[0], 1.0, (*(tick for tick in ticks if tick < 1), 1.0), percent=True)
    return Scale(ticks[0], ticks[-1], ticks, percent=percent)


@dataclass(frozen=True)
class Plot:
    """A plot as its template draws it."""

    description: str
    """Text for screen readers."""
    paths: Sequence[Path]
    x: Sequence[Label] = ()
    """Ticks of the x axis, as of the y axis below."""
    y: Sequence[Label] = ()
    ends: Sequence[Label] = ()
    """Names and last values at the ends of lines."""
    readings: str = ""
    """Positions on the x axis with the texts shown there, as JSON."""
    size: str = ""
    """CSS class of the height; none for a small plot."""
    across: str = ""
    """The unit of the x axis, if its first tick does not have it."""


@dataclass(frozen=True)
class Panel:
    """A plot with its caption."""

    title: str
    value: str
    """The text shown while the pointer is elsewhere: the last value."""
    plot: Plot
    unit: str = ""
    about: str = ""
    """What the plot shows, in a sentence."""


def line_chart(
    series: Sequence[Series],
    x: Scale,
    y: Scale,
    *,
    description: str,
    readings: Sequence[tuple[float, str]],
    size: str = "",
    resets: Sequence[int] = (),
    text: Callable[[float], str] | None = None,
    bands: Sequence[Band] = (),
    across: str = "",
) -> Plot:
    """Plot lines over optional bands.

    Args:
        series: The lines.
        x: Axis of the rounds (or another x).
        y: Axis of the values.
        description: Text for screen readers.
        readings: Texts shown when the pointer is near an x.
        size: CSS class of the height.
        resets: Rounds at which the reference was reset, marked by dotted lines.
        text: Formats the last values; if given, lines carry their names and last values at their ends.
        bands: Areas behind the lines.
        across: The unit of the x axis, if its first tick does not have it.
    """
    marks = "".join(f"M{_c(x.place(at))} 0V1000" for at in resets)
    lines = [path for one in series for path in _line(one, x, y)]
    return Plot(
        description,
        [_grid(y), *(_band(one, x, y) for one in bands), ("resets", marks), *lines],
        x.labels(),
        y.labels(),
        _ends(series, y, text) if text else (),
        _readings(readings, x),
        size,
        across,
    )


def stacked_chart(
    bars: Sequence[tuple[float, float, Mapping[str, float]]],
    x: Scale,
    *,
    description: str,
    readings: Sequence[tuple[float, str]],
) -> Plot:
    """Plot stacked bars. Each is (x start, x end, heights by part); the parts are CSS classes of the page."""
    y = value_scale([sum(parts.values()) for _, _, parts in bars])
    paths: dict[str, str] = {}
    for first, last, parts in bars:
        left, right = x.place(first), x.place(last)
        gap = 0.1 * (right - left)
        base = 0.0
        for name, height in parts.items():
            low, top = _up(y.place(base)), _up(y.place(base + height))
            bar = f"M{_c(left + gap)} {low}V{top}H{_c(right - gap)}V{low}Z"
            paths[name] = paths.get(name, "") + bar
            base += height
    drawn = [_grid(y), *((f"bars {name}", path) for name, path in paths.items())]
    return Plot(description, drawn, x.labels(), y.labels(), readings=_readings(readings, x), size="middle")


def whisker(low: float, middle: float, high: float, x: Scale, *, style: str, description: str) -> Plot:
    """Plot an interval with a dot at its middle, for one row of a table; the rows together form the plot."""
    drawn = [
        ("grid-lines", "".join(f"M{_c(x.place(tick))} 0V1000" for tick in x.ticks if tick)),
        ("zero", f"M{_c(x.place(0))} 0V1000"),
        (style, f"M{_c(x.place(low))} 500H{_c(x.place(high))}"),
        (f"dots {style}", f"M{_c(x.place(middle))} 500h.01"),
    ]
    return Plot(description, drawn, size="whisker")


def _readings(readings: Sequence[tuple[float, str]], x: Scale) -> str:
    points = [[round(x.place(at), 4), visible(text)] for at, text in readings]
    return json.dumps(points, ensure_ascii=False) if points else ""


def _grid(y: Scale) -> Path:
    return "grid-lines", "".join(f"M0 {_up(y.place(tick))}H1000" for tick in y.ticks)


def _line(one: Series, x: Scale, y: Scale) -> list[Path]:
    """Return the paths of a line (with gaps for missing values), its intervals and its dots."""
    places = [
        (x.place(at), y.place(value)) if value is not None and math.isfinite(value) else None
        for at, value in zip(one.x, one.y, strict=True)
    ]
    known = [place for place in places if place is not None]
    runs = [list(run) for present, run in groupby(places, key=lambda place: place is not None) if present]
    path = "".join(
        "M" + "L".join(f"{_c(across)} {_up(up)}" for across, up in (place for place in run if place))
        for run in runs
    )
    spans = "".join(
        f"M{_c(x.place(at))} {_up(y.place(low))}V{_up(y.place(high))}"
        for at, low, high in zip(one.x, one.low, one.high, strict=False)
        if low is not None and high is not None
    )
    # A stroke of zero length with round caps is a dot, and stays round when the SVG is stretched.
    dots = "".join(f"M{_c(across)} {_up(up)}h.01" for across, up in known)
    parts = [(f"spans {one.style}", spans), (f"{one.style} many" if len(known) > MANY else one.style, path)]
    if one.marked or len(known) == 1:
        parts.append((f"dots {one.style}" if one.style != "line" else "dots", dots))
    return parts


def _band(one: Band, x: Scale, y: Scale) -> Path:
    corners = [*zip(one.x, one.low, strict=True), *reversed(list(zip(one.x, one.high, strict=True)))]
    return "band", "M" + "L".join(f"{_c(x.place(at))} {_up(y.place(value))}" for at, value in corners) + "Z"


def _ends(series: Sequence[Series], y: Scale, text: Callable[[float], str]) -> list[Label]:
    """Return names and last values at the lines' ends, moved apart where they would overlap."""
    last = [(one, [value for value in one.y if value is not None]) for one in series]
    placed = sorted(
        ((y.place(values[-1]), one, values[-1]) for one, values in last if values), key=lambda end: end[0]
    )
    labels: list[Label] = []
    floor = 0.0
    for number, (at, one, value) in enumerate(placed):
        above = len(placed) - 1 - number
        at = min(max(at, floor), 1.0 - 0.15 * above)
        floor = at + 0.15
        labels.append(Label(text(value), at, one.name, one.style))
    return labels


def _step(span: float, count: int) -> float:
    """Return the smallest of 1, 2, 5 · 10ⁿ that divides `span` into at most `count` steps."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * (1 - 1e-9))


def _c(place: float) -> str:
    return f"{1000 * place:.1f}".removesuffix(".0")


def _up(place: float) -> str:
    return _c(1 - place)
