"""Compares sets of real numbers: intervals, unions and inequalities of one variable."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from reval_core.answers.numbers import Constant
from reval_core.answers.reading import Reading

_SIDES = {"<", ">", r"\le", r"\ge", r"\ne", "="}


class Place(NamedTuple):
    """A number, or with `after` the open interval between it and the next number."""

    value: Fraction | float
    exact: Constant | None
    after: bool


class Region(NamedTuple):
    """A set of numbers: the endpoints of its intervals and a membership test."""

    ends: frozenset[Constant]
    holds: Callable[[Place], bool]
    variable: str = ""


def region_of(reading: Reading) -> Region | None:
    """The set of numbers that a reading describes; None if it is not a set with numbers as endpoints."""
    if reading.kind == "assignment" and reading.name in (r"\in", r"\notin"):
        inner = region_of(reading.parts[-1])
        if inner is None:
            return None
        return inner if reading.name == r"\in" else _complement(inner)
    if reading.kind == "tuple" and len(reading.parts) == 2 and len(reading.name) == 2:
        return _between(*reading.parts, reading.name[0] == "[", reading.name[1] == "]")
    if reading.kind == "set":
        return _points(reading.parts)
    if reading.kind == "union":
        return _combined(reading)
    if reading.kind == "relation":
        return _inequality(reading)
    if reading.kind == "list" and reading.name and all(part.kind == "relation" for part in reading.parts):
        return _joined([region_of(part) for part in reading.parts], any if reading.name == "or" else all)
    if reading.text.replace(" ", "") in (r"\mathbb{R}", r"\R", "R"):
        return Region(frozenset(), lambda place: True)
    if reading.text in (r"\emptyset", r"\{\}"):
        return Region(frozenset(), lambda place: False)
    return None


def same_region(one: Region, other: Region) -> bool:
    """Whether every number belongs to both sets or to neither."""
    if one.variable and other.variable and one.variable != other.variable:
        return False
    ends = sorted(one.ends | other.ends, key=_order)
    places = [Place(-math.inf, None, True)]
    for end in ends:
        places += [Place(_order(end), end, False), Place(_order(end), end, True)]
    return all(one.holds(place) == other.holds(place) for place in places)


def _order(constant: Constant) -> Fraction | float:
    if constant.radicand == 1 and not constant.pi:
        return constant.fraction
    return float(constant)


def _limit(reading: Reading) -> Constant | float | None:
    """A number, or plus or minus infinity."""
    term = reading.term
    if term is None or reading.measure is not None:
        return None
    sign = 1
    while term.op in ("neg", "group"):
        sign, term = (-sign if term.op == "neg" else sign), term.parts[0]
    if term.op == "constant" and term.name == "oo":
        return sign * math.inf
    return reading.value


def _between(low: Reading, high: Reading, low_belongs: bool, high_belongs: bool) -> Region | None:
    limits = (_limit(low), _limit(high))
    if limits[0] is None or limits[1] is None:
        return None
    parts = [_beyond(limits[0], low_belongs, above=True), _beyond(limits[1], high_belongs, above=False)]
    return _joined(list(parts), all)


def _beyond(limit: Constant | float, belongs: bool, above: bool) -> Region:
    """The numbers above, or below, a limit."""
    if isinstance(limit, float):
        everything = (limit < 0) == above
        return Region(frozenset(), lambda place: everything)

    def holds(place: Place) -> bool:
        if place.exact == limit and not place.after:
            return belongs
        if place.exact == limit:
            return above
        return (place.value > _order(limit)) == above

    return Region(frozenset([limit]), holds)


def _points(parts: tuple[Reading, ...]) -> Region | None:
    values = [part.value if part.kind == "formula" and part.measure is None else None for part in parts]
    exact = frozenset(value for value in values if value is not None)
    if len(exact) < len(set(values)):
        return None
    return Region(exact, lambda place: place.exact in exact and not place.after)


def _complement(region: Region) -> Region:
    return Region(region.ends, lambda place: not region.holds(place), region.variable)


def _joined(regions: list[Region | None], how: Callable[[list[bool]], bool]) -> Region | None:
    known = [region for region in regions if region is not None]
    if len(known) < len(regions):
        return None
    names = {region.variable for region in known if region.variable}
    if len(names) > 1:
        return None
    ends = frozenset().union(*(region.ends for region in known))
    return Region(ends, lambda place: how([region.holds(place) for region in known]), "".join(names))


def _combined(union: Reading) -> Region | None:
    found = region_of(union.parts[0])
    for operation, part in zip(union.name.split(), union.parts[1:], strict=True):
        other = region_of(part)
        if found is None or other is None:
            return None
        if operation == r"\setminus":
            found = _joined([found, _complement(other)], all)
        else:
            found = _joined([found, other], any if operation == r"\cup" else all)
    return found


def _inequality(relation: Reading) -> Region | None:
    """The set of an inequality of one variable: ``x > 5``, ``-2 \\le x < 7``."""
    signs = relation.name.split()
    if not set(signs) <= _SIDES or len(signs) > 2 or signs == ["="]:
        return None
    names = [place for place, side in enumerate(relation.parts) if _limit(side) is None]
    if len(names) != 1 or (len(signs) == 2 and names != [1]) or not _is_name(relation.parts[names[0]]):
        return None
    variable = relation.parts[names[0]].text
    found = []
    for place, sign in enumerate(signs):
        left, right = relation.parts[place], relation.parts[place + 1]
        limit = _limit(right if place == names[0] else left)
        assert limit is not None, "only one side is a variable"
        above = (sign in (">", r"\ge")) == (place == names[0])
        if sign == r"\ne":
            if isinstance(limit, float):
                return None
            found.append(_complement(Region(frozenset([limit]), _is_at(limit))))
        elif sign == "=":
            return None
        else:
            found.append(_beyond(limit, sign in (r"\le", r"\ge"), above))
    joined = _joined(list(found), all)
    return None if joined is None else joined._replace(variable=variable)


def _is_at(limit: Constant) -> Callable[[Place], bool]:
    return lambda place: place.exact == limit and not place.after


def _is_name(side: Reading) -> bool:
    if side.kind != "formula" or side.measure is not None or side.term is None:
        return False
    applied = side.term.op == "call" and len(side.term.name) == 1
    return side.term.op == "symbol" or applied
