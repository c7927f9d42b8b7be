"""Decides whether an answer equals the gold: by type and exactly where possible, otherwise by algebra."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from reval_core.answers import as_choice
from reval_core.answers.grammar import Term
from reval_core.answers.numbers import Constant, is_finished, value_of
from reval_core.answers.reading import Reading, read_answer, read_gold
from reval_core.verification.names import (
    is_function_value,
    leaves_out_its_variable,
    letters,
    names_differ,
    same_name,
    same_words,
)
from reval_core.verification.regions import Region, region_of, same_region
from reval_core.verification.scales import is_decimal, rounds_to, scaled, scales

_DECIMAL_COMMA = re.compile(r"[+-]?(?:[0-9]{1,15},(?![0-9]{3}\Z)|(?:0|[0-9]{4,15}),)[0-9]{1,15}")
_LOOSE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")
_NO_ARITHMETIC = re.compile(r"\\ldots|\.\.|[0-9}]\s*_|!\s*!|['?\"#@&]")
"""Symbols next to a number that math-verify ignores although they change its meaning."""
_MOST_MEMBERS = 200
_VECTORS = frozenset(["()", "[]", r"\langle\rangle"])
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "=", r"\ne": r"\ne"}
_MEMBERSHIP = (r"\in", r"\notin")


@dataclass(frozen=True)
class Algebra:
    """The comparisons that only a worker makes: of formulas, equations and what the grammar does not cover."""

    same_formula: Callable[[Reading, Reading, bool, bool], bool]
    same_equation: Callable[[Reading, Reading], bool]
    same_otherwise: Callable[[str, str, bool], bool]


def agree(gold: str, answer: str, lenient: bool, algebra: Algebra | None = None) -> bool | None:
    """Whether a normalized answer means the same as a normalized gold.

    Args:
        gold: The gold, as returned by `prepare_gold`.
        answer: The answer, as returned by `extract`.
        lenient: Whether to apply the conventions of lenient mode.
        algebra: The comparisons of a worker; None outside of workers.

    Returns:
        The decision, or None if it needs algebra and `algebra` is None.
    """
    if gold == answer:
        return True
    if lenient:
        gold, answer = _with_points(gold, answer)
    letter = as_choice(gold)
    if letter is not None and _is_letter(gold, letter) and not _is_letter(answer, letter):
        chosen = as_choice(answer)
        if chosen is not None:
            return chosen == letter
    known, stated = read_gold(gold), read_answer(answer)
    if stated.kind == "words":
        known = read_answer(gold)  # all of "14 right triangles", not just its number
    return _Comparer(lenient, algebra).readings(known, stated)


def _with_points(gold: str, answer: str) -> tuple[str, str]:
    """Gold and answer with the decimal comma of one replaced by a point, if the other has a point."""
    if "." in answer and _DECIMAL_COMMA.fullmatch(gold):
        return gold.replace(",", "."), answer
    if "." in gold and _DECIMAL_COMMA.fullmatch(answer):
        return gold, answer.replace(",", ".")
    return gold, answer


def _is_letter(text: str, letter: str) -> bool:
    reading = read_answer(text)
    return reading.term == Term("symbol", (), letter) and reading.measure is None


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """All of three-valued verdicts: False if any is False, otherwise None if any is None, otherwise True."""
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown = unknown or verdict is None
    return None if unknown else True


def some(verdicts: Iterable[bool | None]) -> bool | None:
    """Any of three-valued verdicts: True if any is True, otherwise None if any is None, otherwise False."""
    unknown = False
    for verdict in verdicts:
        if verdict:
            return True
        unknown = unknown or verdict is None
    return None if unknown else False


@dataclass(frozen=True)
class _Comparer:
    lenient: bool
    algebra: Algebra | None
    bound: bool = False
    """Whether the gold defines a function, such as ``N(n) = …``, whose variable may have any name."""

    def readings(self, gold: Reading, answer: Reading) -> bool | None:
        """Whether two readings mean the same."""
        if gold.kind == answer.kind and _signs(gold) == _signs(answer) and gold.measure == answer.measure:
            return True
        if "assignment" in (gold.kind, answer.kind):
            return self.assignments(gold, answer)
        if gold.kind == answer.kind == "formula":
            return self.formulas(gold, answer)
        if {gold.kind, answer.kind} == {"words", "formula"} and letters(gold) == letters(answer):
            return True  # \text{xy}
        if gold.kind == answer.kind == "words":
            return same_words(gold.text, answer.text)
        if gold.kind == answer.kind == "time":
            return gold.text == answer.text and (
                gold.name == answer.name or (self.lenient and not (gold.name and answer.name))
            )
        if {gold.kind, answer.kind} <= {"ratio", "time", "formula"}:
            return self.ratios(_as_ratio(gold), _as_ratio(answer))
        if gold.kind == answer.kind == "relation" and "=" in (gold.name, answer.name):
            if gold.name != answer.name or self.swapped(gold, answer):
                return gold.name == answer.name
            return self.ask(lambda algebra: algebra.same_equation(gold, answer))
        if answer.kind == "relation" and gold.kind != "relation":
            stated = self.stated(answer)
            if stated is not None:
                return self.readings(gold, stated)
        if gold.kind == "relation" and all(side.value is not None for side in gold.parts) and "=" in gold.name:
            return some(self.readings(side, answer) for side in gold.parts)  # 0.56 = 56%
        if gold.kind == "relation" and answer.kind == "formula" and len(gold.parts) > 2:
            stated = self.stated(gold)
            return stated is not None and self.readings(stated, answer)
        return self.collections(gold, answer)

    def ask(self, question: Callable[[Algebra], bool]) -> bool | None:
        return None if self.algebra is None else question(self.algebra)

    # Names and equations

    def assignments(self, gold: Reading, answer: Reading) -> bool | None:
        if gold.kind == "assignment" and is_function_value(gold.name) and gold.name != "y" and not self.bound:
            return replace(self, bound=True).assignments(gold, answer)
        if leaves_out_its_variable(gold, answer):
            return False
        if gold.kind == answer.kind and self.swapped(gold, answer):
            return True
        if gold.kind == answer.kind:
            if same_name(gold.name, answer.name):
                return self.readings(gold.parts[-1], answer.parts[-1])
            if "\\" in (gold.name[:1], answer.name[:1]) and {gold.name, answer.name} & {r"\in", r"\notin"}:
                return self.regions(gold, answer)
            return self.ask(lambda algebra: algebra.same_equation(gold, answer))
        named, other = (gold, answer) if gold.kind == "assignment" else (answer, gold)
        if other.kind == "relation" and all(side.value is not None for side in other.parts):
            stated = self.stated(other)
            return stated is not None and other is answer and self.readings(gold, stated)
        if other.kind == "relation" and other.name.split()[0] == "=":
            return self.ask(lambda algebra: algebra.same_equation(gold, answer))
        if named.name == r"\notin" or (other.kind == "relation" and named.name == r"\in"):
            return self.regions(gold, answer)
        if other.kind == "relation":
            return self.collections(gold, answer)
        if answer is named and not self.is_consistent(answer):
            return False
        return self.readings(gold.parts[-1], answer) if named is gold else self.readings(gold, answer.parts[-1])

    def swapped(self, gold: Reading, answer: Reading) -> bool:
        """Whether two equations have literally the same sides, in either order."""
        sides, others = ([_signs(side) for side in one.parts] for one in (gold, answer))
        return len(sides) == 2 and gold.name not in _MEMBERSHIP and others in (sides, sides[::-1])

    def stated(self, answer: Reading) -> Reading | None:
        """The result of a chain of equalities: 12 for ``5 + 7 = 12``, None for ``5 = 6``."""
        if set(answer.name.split()) != {"="} or any(side.kind == "words" for side in answer.parts):
            return None
        return answer.parts[-1] if self.is_consistent(answer) else None

    def is_consistent(self, chain: Reading) -> bool:
        """Whether all sides of a chain that have a value have the same one. Lenient mode checks only two sides."""
        if self.lenient and len(chain.parts) > 2:
            return True
        values = [side.value for side in chain.parts if side.kind == "formula" and side.value is not None]
        return all(value == values[0] for value in values)

    # Numbers and formulas

    def formulas(self, gold: Reading, answer: Reading) -> bool | None:
        must_be_finished = not self.lenient and gold.term is not None and is_finished(gold.term)
        if must_be_finished and (answer.term is None or not is_finished(answer.term)):
            return False
        if gold.term is None or answer.term is None:
            if gold.measure != answer.measure and gold.measure and answer.measure:
                return False
            if gold.value is not None and _NO_ARITHMETIC.search(answer.text):
                return False  # unknown symbols next to a number are not ignored
            return self.ask(lambda algebra: algebra.same_otherwise(gold.text, answer.text, self.lenient))
        return some(
            self.terms(gold.term, answer.term, gold_size, answer_size)
            for gold_size, answer_size in scales(gold, answer, self.lenient)
        )

    def terms(self, gold: Term, answer: Term, gold_size: Constant, answer_size: Constant) -> bool | None:
        values = [value_of(scaled(term, size)) for term, size in ((gold, gold_size), (answer, answer_size))]
        if values[0] is not None and values[1] is not None:
            if values[0] == values[1]:
                return True
            return self.lenient and (is_decimal(gold) or is_decimal(answer)) and rounds_to(values[0], values[1])
        sides = [
            Reading("formula", "", term=scaled(term, size))
            for term, size in ((gold, gold_size), (answer, answer_size))
        ]
        return self.ask(lambda algebra: algebra.same_formula(sides[0], sides[1], self.lenient, self.bound))

    def ratios(self, gold: tuple[Reading, ...], answer: tuple[Reading, ...]) -> bool | None:
        if not gold or not answer:
            return False
        if len(gold) == len(answer) and not self.lenient:
            return every(map(self.readings, gold, answer))
        if len(gold) != len(answer):
            if not self.lenient or {len(gold), len(answer)} != {1, 2}:
                return False
            sides = [side[0] if len(side) == 1 else _quotient(side) for side in (gold, answer)]
            value = sides[1].value
            if len(answer) > 1 and value is not None and value.fraction.denominator == 1:
                return False  # 42:1 is not accepted for 42
            return self.readings(sides[0], sides[1])
        return every(
            self.readings(_quotient((gold[0], one)), _quotient((answer[0], other)))
            for one, other in zip(gold[1:], answer[1:], strict=True)
        )

    # Lists, tuples, sets, matrices

    def collections(self, gold: Reading, answer: Reading) -> bool | None:
        kinds = (gold.kind, answer.kind)
        if kinds == ("matrix", "matrix"):
            return self.in_order(gold.parts, answer.parts)
        if "matrix" in kinds:
            return self.matrices(gold, answer)
        if kinds == ("tuple", "tuple"):
            return self.tuples(gold, answer)
        if kinds == ("list", "list") and names_differ(gold, answer):
            return self.in_order(gold.parts, answer.parts)
        if kinds == ("list", "list") and _is_inequality(gold) and {gold.name, answer.name} == {"and", "or"}:
            return False
        if set(kinds) <= {"list", "set"}:
            return self.members(gold.parts, answer.parts)
        if set(kinds) == {"list", "tuple"} and not any(map(_is_inequality, (gold, answer))):
            pair = gold if gold.kind == "tuple" else answer
            return self.lenient and pair.name in _VECTORS and self.in_order(gold.parts, answer.parts)
        if self.is_single(gold, answer):
            return self.readings(*(side.parts[0] if side.kind == "set" else side for side in (gold, answer)))
        return self.regions(gold, answer)

    def is_single(self, gold: Reading, answer: Reading) -> bool:
        """Whether one of them is a set with one member and the other is a formula."""
        return self.lenient and any(
            one.kind == "set" and len(one.parts) == 1 and other.kind == "formula"
            for one, other in ((gold, answer), (answer, gold))
        )

    def matrices(self, gold: Reading, answer: Reading) -> bool | None:
        """Compare a matrix with another type: vectors may be tuples or lists, matrices nested brackets."""
        matrix, other = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        if other.kind == "formula" and other.term is None:
            return self.ask(lambda algebra: algebra.same_otherwise(gold.text, answer.text, self.lenient))
        if other.kind not in ("tuple", "list") or (other.kind == "tuple" and other.name not in _VECTORS):
            return False
        rows = matrix.parts
        if all(part.kind == "tuple" for part in other.parts):
            return self.in_order(gold.parts, answer.parts)
        if len(rows) == 1:
            cells = rows[0].parts
        elif all(len(row.parts) == 1 for row in rows):
            cells = tuple(row.parts[0] for row in rows)
        else:
            return False
        return self.in_order(cells, other.parts) if matrix is gold else self.in_order(other.parts, cells)

    def tuples(self, gold: Reading, answer: Reading) -> bool | None:
        if gold.name != answer.name and gold.name and answer.name:
            vectors = {gold.name, answer.name} <= _VECTORS and (
                len(gold.parts) > 2 or r"\langle\rangle" in (gold.name, answer.name)
            )
            if not vectors:
                return False
        return self.in_order(gold.parts, answer.parts)

    def in_order(self, gold: Sequence[Reading], answer: Sequence[Reading]) -> bool | None:
        if len(gold) != len(answer) or len(gold) > _MOST_MEMBERS:
            return False
        return every(self.readings(one, other) for one, other in zip(gold, answer, strict=True))

    def members(self, gold: Sequence[Reading], answer: Sequence[Reading]) -> bool | None:
        """Whether each member of either is a member of the other."""
        if max(len(gold), len(answer)) > _MOST_MEMBERS:
            return False
        complete = every(some(self.readings(one, other) for other in answer) for one in gold)
        if complete is False:
            return False
        return every([complete, *(some(self.readings(one, other) for one in gold) for other in answer)])

    # Intervals and inequalities

    def regions(self, gold: Reading, answer: Reading) -> bool | None:
        """Compare sets of numbers in any notation. In strict mode an inequality does not equal an interval."""
        inequalities = [_is_inequality(side) for side in (gold, answer)]
        if any(inequalities) and not all(inequalities) and not self.lenient:
            return False
        if gold.kind == answer.kind == "relation":
            found = self.inequalities(gold, answer)
            if found is not False:
                return found
        if self.lenient and "union" in (gold.kind, answer.kind):
            gold, answer = (_as_set(side) for side in (gold, answer))
        regions: list[Region | None] = [region_of(gold), region_of(answer)]
        if regions[0] is not None and regions[1] is not None:
            if same_region(regions[0], regions[1]):
                return True
            pieces = [_pieces(side) for side in (gold, answer)]
            return len(pieces[0]) * len(pieces[1]) > 1 and self.members(pieces[0], pieces[1])
        if gold.kind == answer.kind == "relation":
            return self.ask(lambda algebra: algebra.same_equation(gold, answer))
        set_like = ("tuple", "union", "set", "relation", "formula", "assignment")
        if gold.kind not in set_like or answer.kind not in set_like or "words" in (gold.kind, answer.kind):
            return False
        if gold.kind == answer.kind == "union" and gold.name == answer.name:
            return self.members(gold.parts, answer.parts)
        if "union" not in (gold.kind, answer.kind):
            return False
        return self.ask(lambda algebra: algebra.same_otherwise(gold.text, answer.text, self.lenient))

    def inequalities(self, gold: Reading, answer: Reading) -> bool | None:
        """Whether two chains have the same sides in the same or in the opposite order."""
        names, stated = gold.name.split(), answer.name.split()
        if len(names) != len(stated):
            return False
        found = self.in_order(gold.parts, answer.parts) if names == stated else False
        if found is False and names == [_FLIPPED.get(sign, sign) for sign in reversed(stated)]:
            return self.in_order(gold.parts, answer.parts[::-1])
        return found


def _signs(reading: Reading) -> tuple[str, str]:
    """The notation of a reading. Spaces only count in words and between digits."""
    text = reading.text if reading.kind == "words" else _LOOSE_SPACE.sub("", reading.text)
    return text, reading.name.replace(" ", "")


def _quotient(parts: tuple[Reading, ...]) -> Reading:
    terms = [part.term for part in parts]
    if terms[0] is None or terms[1] is None:
        return Reading("words", ":".join(part.text for part in parts))
    return Reading("formula", "/".join(part.text for part in parts), term=Term("frac", (terms[0], terms[1])))


def _as_ratio(reading: Reading) -> tuple[Reading, ...]:
    if reading.kind in ("ratio", "time"):
        return reading.parts
    return (reading,)


def _is_inequality(reading: Reading) -> bool:
    return reading.kind == "relation" or (reading.kind == "list" and all(map(_is_inequality, reading.parts)))


def _as_set(reading: Reading) -> Reading:
    """A number as a set with one member; other readings unchanged."""
    return Reading("set", reading.text, (reading,), r"\{\}") if reading.value is not None else reading


def _pieces(reading: Reading) -> tuple[Reading, ...]:
    """The intervals and sets of a union."""
    if reading.kind == "assignment":
        return _pieces(reading.parts[-1])
    if reading.kind == "union" and set(reading.name.split()) == {r"\cup"}:
        return tuple(piece for part in reading.parts for piece in _pieces(part))
    return (reading,) if reading.kind in ("tuple", "set") else ()
