r"""Rewritings of a gold: every variant here has the same meaning, whether or not the rules accept it.

The rewritings depend on the kind of the gold, so each is equal by construction: only a list may be permuted, only a
fraction becomes a decimal, and only where the decimal terminates or repeats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from reval_core.auditing.gold_values import Gold, read_gold
from reval_core.auditing.numerals import same, value_of
from reval_core.auditing.variant import Variant, boxed, distinct
from reval_core.config import GoldMode

GOLD_ITSELF = "gold itself"
_LONGEST_DECIMAL = 4
_LARGEST_DENOMINATOR = 1000
_LONGEST_EXPONENT = 8
_COLON = re.compile(r"\s*(?:\\!)?:(?:\\!)?\s*")
_IN_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|begin)")
_FACTOR = re.compile(r"(?<=\d)\s*(?=\\(?:sqrt|pi)(?![a-z]))")
_SQUARE = re.compile(r"(?<=[A-Za-z0-9)])\^(?:([2-9])(?![0-9])|\{([2-9])\})")
_SIGN = re.compile(r"(?<=[0-9A-Za-z)}])\s*([+=]|-)\s*")
_VULGAR = {(1, 2): "½", (1, 3): "⅓", (2, 3): "⅔", (1, 4): "¼", (3, 4): "¾"}
_FULL_WIDTH = {ord(digit): chr(ord(digit) - ord("0") + ord("０")) for digit in "0123456789"}


def rewritings(gold: str, gold_mode: GoldMode, problem: str) -> list[Variant]:
    """Return the gold itself in a box and distinct rewritings of it.

    Rewritings that occur in the problem are omitted: to "write 9/2 as a decimal", 9/2 is not an answer.
    """
    read = read_gold(gold, gold_mode)
    if read.kind == "prose":
        return [boxed(GOLD_ITSELF, gold)]
    stated = problem.replace(" ", "")
    written = [one for one in _written(read, gold_mode) if one[1].replace(" ", "") not in stated]
    made = [boxed(GOLD_ITSELF, gold), *_framed(read), *(boxed(*one) for one in written)]
    return distinct(made)


def _framed(gold: Gold) -> Iterator[Variant]:
    """Yield the same text in other framings."""
    text = gold.text
    yield Variant("in a sentence", f"The answer is ${text}$.")
    yield Variant("on its own line", f"Therefore,\n\\[\n\\boxed{{{text}}}\n\\]")
    yield Variant(
        "after other work", rf"First $a = \frac{{7}}{{3}}$ and $b = 12$. So it is $\boxed{{{text}}}$. Done."
    )
    yield Variant("after thoughts", rf"<think>Is it \boxed{{0}} or 17?</think>It is $\boxed{{{text}}}$.")
    yield boxed("space inside", f" {text} ")
    yield boxed("dollars inside", f"${text}$")
    yield boxed("full stop inside", f"{text}.")
    if r"\frac" in text:
        yield boxed("displaystyle", rf"\displaystyle {text}")
    yield boxed("colour", rf"\color{{blue}}{{{text}}}")
    yield boxed("backslash at the end", rf"{text} \\")
    if gold.kind in ("integer", "decimal"):
        yield Variant("after hashes", f"Work.\n#### {text}")


def _written(gold: Gold, gold_mode: GoldMode) -> Iterator[tuple[str, str]]:
    """Yield the same answer in other notations, as (kind, text)."""
    yield from _spelled(gold)
    yield from _of_kind(gold, gold_mode)
    for span in gold.leaves[:1]:
        if gold.kind in ("degrees", "tuple", "interval", "matrix", "equation"):
            yield from ((kind, gold.with_leaf(span, value)) for kind, value in _as_fraction(gold.leaf(span)))


def _spelled(gold: Gold) -> Iterator[tuple[str, str]]:
    """Yield LaTeX that looks the same: other spaces, brackets, spellings of a command, or Unicode signs."""
    text = gold.text
    if r"\frac{" in text:
        yield "dfrac", text.replace(r"\frac{", r"\dfrac{")
        yield "tfrac", text.replace(r"\frac{", r"\tfrac{")
    if r"\left" in text:
        yield "without left and right", re.sub(r"\\(?:left|right)(?![a-z])\s*", "", text)
    elif gold.kind in ("tuple", "expression") and "(" in text:
        yield "left and right", text.replace("(", r"\left(").replace(")", r"\right)")
    if text.startswith("-"):
        yield "minus sign of Unicode", "−" + text[1:]
        yield "dash for a minus", "–" + text[1:]
    if _SQUARE.search(text) and gold.kind in ("expression", "equation"):
        yield "superscripts of Unicode", _SQUARE.sub(lambda power: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(power[1] or power[2])], text)
    if r"\pi" in text:
        yield "pi of Unicode", re.sub(r"\\pi(?![a-z])", "π", text)
    if r"\infty" in text:
        yield "infinity of Unicode", text.replace(r"\infty", "∞")
    if not _IN_TEXT.search(text) and gold.kind in ("expression", "equation", "number"):
        yield "loose", _SIGN.sub(r" \1 ", text)
        yield "tight", re.sub(r"(?<![A-Za-z\\])\s+|(?<![\\])\s+(?![A-Za-z])", "", text)
    if gold.kind in ("number", "expression") and _FACTOR.search(text):
        yield "cdot", _FACTOR.sub(r" \\cdot ", text)
        yield "thin space", _FACTOR.sub(r" \\, ", text)


def _of_kind(gold: Gold, gold_mode: GoldMode) -> Iterator[tuple[str, str]]:
    text, kind = gold.text, gold.kind
    if kind == "integer":
        yield from _integers(text)
    elif kind == "decimal":
        yield "trailing zero", text + "0"
        if re.match(r"[+-]?0\.", text):
            yield "no leading zero", text.replace("0.", ".", 1)
        yield from _as_fraction(text)
    elif kind == "float":
        yield from _floats(text)
    elif kind == "fraction":
        yield from _fractions(text)
    elif kind in ("percent", "degrees", "money", "quantity"):
        yield from _with_unit(gold)
    elif kind == "list":
        yield from _lists(gold, gold_mode)
    elif kind in ("tuple", "interval"):
        yield "spaced commas", _commas(gold)
        if kind == "interval":
            yield "element of", rf"x \in {text}"
    elif kind == "ratio":
        yield "spaced colon", re.sub(_COLON, " : ", text)
    elif kind == "time":
        yield from _times(text)
    elif kind == "matrix":
        yield "other brackets", text.replace("{pmatrix}", "{bmatrix}") if "{pm" in text else text
        yield "Matrix of Python", _python_matrix(gold)
    elif kind == "equation" and gold.members[0] != gold.members[1]:
        yield "sides swapped", f"{gold.members[1]} = {gold.members[0]}"
    elif kind == "expression":
        yield from _sums(text)
    elif kind == "words":
        yield from _words(text)
    elif kind == "letter":
        yield from _letters(text, gold_mode)


def _integers(text: str) -> Iterator[tuple[str, str]]:
    value = int(re.sub(r"[^0-9-]", "", text))
    if value > 0:
        yield "plus sign", f"+{value}"
    yield "point zero", f"{value}.0"
    yield "in text", rf"\text{{{text.lstrip('+')}}}"
    yield "bold", rf"\mathbf{{{text.lstrip('+')}}}"
    yield "full width", str(abs(value)).translate(_FULL_WIDTH) if value >= 0 else text
    if abs(value) >= 1000:
        for name, separator in (("commas", ","), ("LaTeX commas", "{,}"), ("thin spaces", r"\,"), ("none", "")):
            yield f"thousands: {name}", f"{value:,}".replace(",", separator)


def _floats(text: str) -> Iterator[tuple[str, str]]:
    mantissa, _, exponent = text.lower().partition("e")
    power = f"10^{{{int(exponent)}}}"
    yield "power of ten", rf"{mantissa} \times {power}"
    yield "power of ten, cdot", rf"{mantissa} \cdot {power}"
    yield "power of ten, Unicode", f"{mantissa} × {power}"
    if abs(int(exponent)) <= _LONGEST_EXPONENT:
        yield "spelt out", format(Decimal(f"{mantissa}e{int(exponent)}"), "f")


def _fractions(text: str) -> Iterator[tuple[str, str]]:
    value = value_of(text)
    if not isinstance(value, Fraction):
        return
    sign, top, bottom = "-" * (value < 0), abs(value.numerator), value.denominator
    if bottom == 1:
        yield "as an integer", f"{sign}{top}"
        return
    yield "slash", f"{sign}{top}/{bottom}"
    yield "frac", rf"{sign}\frac{{{top}}}{{{bottom}}}"
    if sign:
        yield "minus inside", rf"\frac{{-{top}}}{{{bottom}}}"
    if (top, bottom) in _VULGAR:
        yield "sign of Unicode", sign + _VULGAR[top, bottom]
    if top < 10 and bottom < 10:
        yield "frac without braces", rf"{sign}\frac{top}{bottom}"
    if top > bottom:
        yield "mixed", rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}"
    decimal = _short_decimal(abs(value))
    if decimal:
        yield "as a decimal", sign + decimal


def _short_decimal(value: Fraction) -> str | None:
    """Return a positive fraction as a decimal of at most four digits, or with one or two repeating digits."""
    for digits in range(1, _LONGEST_DECIMAL + 1):
        if 10**digits % value.denominator == 0:
            scaled = value.numerator * 10**digits // value.denominator
            return f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}d}"
    for digits in (1, 2):
        if (10**digits - 1) % value.denominator == 0:
            whole, rest = divmod(value, 1)
            repeated = rest * (10**digits - 1)
            return rf"{whole}.\overline{{{int(repeated):0{digits}d}}}"
    return None


def _as_fraction(text: str) -> Iterator[tuple[str, str]]:
    """Yield a decimal with few digits as a fraction."""
    value = value_of(text)
    if "." in text and isinstance(value, Fraction) and 1 < value.denominator <= _LARGEST_DENOMINATOR:
        sign = "-" * (value < 0)
        yield "as a fraction", rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _with_unit(gold: Gold) -> Iterator[tuple[str, str]]:
    value = gold.leaf(gold.leaves[0])
    if gold.kind == "percent":
        yield "bare percent sign", f"{value}%"
        yield "spaced percent sign", rf"{value}\,\%"
        yield "percent in words", rf"{value} \text{{ percent}}"
    elif gold.kind == "degrees":
        yield "degree sign", f"{value}°"
        yield "circ in braces", rf"{value}^{{\circ}}"
        yield "degrees in words", rf"{value} \text{{ degrees}}"
    elif gold.kind == "money":
        yield "dollars in words", rf"{value} \text{{ dollars}}"
        yield "dollar sign in text", rf"\text{{\${value}}}"
    else:
        name = re.sub(r"[~\s]*\\(?:text|mbox|mathrm)\s*\{\s*", "", gold.text[gold.leaves[0][1] :])
        unit, _, power = name.partition("}")
        for kind, written in (("text", rf"\,\text{{{unit}}}"), ("mathrm", rf"~\mathrm{{{unit}}}")):
            yield f"unit in {kind}", value + written + power
        if not power:
            yield "unit in plain words", f"{value} {unit}"


def _lists(gold: Gold, gold_mode: GoldMode) -> Iterator[tuple[str, str]]:
    members = gold.members
    if gold_mode == "any":
        yield "first member", members[0]
        yield "last member", members[-1]
        return
    if gold_mode != "all" or any("," in one and not one.startswith(("(", "[", r"\left")) for one in members):
        return
    yield "permuted", ", ".join(reversed(members))
    yield "and", ", ".join(members[:-1]) + r" \text{ and } " + members[-1]
    if all(value_of(one) is not None for one in members):
        yield "named members", r" \text{ or } ".join(f"x = {one}" for one in members)
    if len(set(members)) < len(members):
        return
    yield "set braces", r"\{" + ", ".join(members) + r"\}"
    yield "boxes", r"}$, $\boxed{".join(members)


def _commas(gold: Gold) -> str:
    text = re.sub(r"\s*[,;]\s*", " , ", gold.text)
    return gold.text if r"\cup" in text and gold.text.count("(") > 2 else text


def _times(text: str) -> Iterator[tuple[str, str]]:
    clock = re.sub(_COLON, ":", text.split("\\text")[0]).rstrip("AaPpMm. ")
    half = "p" if re.search(r"[Pp]\.?[Mm]", text) else "a"
    for written in (f"{half}m", f"{half}.m.", f"{half}m".upper()):
        yield "half of the day", rf"{clock} \text{{ {written}}}"


def _python_matrix(gold: Gold) -> str:
    inside = re.sub(r"\\(?:begin|end)\{[pbv]?matrix\}", "", gold.text)
    rows = [re.sub(r"\s*&\s*", ", ", row.strip()) for row in inside.split(r"\\") if row.strip()]
    return "Matrix([" + ", ".join(f"[{row}]" for row in rows) + "])"


def _sums(text: str) -> Iterator[tuple[str, str]]:
    """Yield the text with two addends swapped."""
    for place in (found.start() for found in re.finditer(r"\+", text)):
        swapped = f"{text[place + 1 :].strip()} + {text[:place].strip()}"
        if same(text, swapped):
            yield "addends swapped", swapped
            return


def _words(text: str) -> Iterator[tuple[str, str]]:
    plain = re.sub(r"\\text(?:bf|rm|it)?\s*\{(.*)\}", r"\1", text).strip()
    if len(plain) < 3 and plain == text:  # a product
        return
    yield "plain words", plain
    yield "in text", rf"\text{{{plain}}}"
    yield "bold", rf"\textbf{{{plain}}}"
    if len(plain) > 2 and not plain.isupper():  # not the vertices of a polygon
        yield "lower case", rf"\text{{{plain.lower()}}}"
        yield "capitalised", rf"\text{{{plain.capitalize()}}}"
        yield "full stop in text", rf"\text{{{plain}.}}"


def _letters(text: str, gold_mode: GoldMode) -> Iterator[tuple[str, str]]:
    [letter] = re.findall(r"[A-J](?![A-Za-z])", text)
    yield "plain letter", letter
    yield "in text", rf"\text{{{letter}}}"
    yield "bold", rf"\textbf{{{letter}}}"
    if gold_mode == "choice" or "(" in text:
        yield "letter in brackets", f"({letter})"
        yield "brackets in text", rf"\textbf{{({letter})}}"
