r"""Wrong answers derived from a gold: none may be rewarded.

Every mutant differs by construction, and where it replaces a value, plain arithmetic (`numerals.differ`) has to
confirm that the value changed. Candidates that cannot be shown to differ are dropped.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from reval_core.answers.extraction import Mode
from reval_core.auditing.gold_values import NUMBERS, Gold, read_gold
from reval_core.auditing.numerals import differ, same, value_of
from reval_core.auditing.variant import Variant, boxed, distinct
from reval_core.config import GoldMode

_SIGNIFICANT = 4
"""Leading digits that are significant at least; a change after them may be rounding."""
_MOST_FORMULAS = 2
_JUNK = ("?", r"\text{answer}", r"\ldots", r"\text{cannot be determined}", r"\text{all of the above}")
_DOUBTS = (
    r"\text{{not }} {}",
    r"{} \text{{ is wrong}}",
    r"{} \text{{ is incorrect}}",
    r"{} \text{{ is not the answer}}",
    r"\text{{anything but }} {}",
    r"{} \text{{ or not}}",
    r"{} \text{{ or something else}}",
    r"{} \text{{ or more}}",
    r"\text{{less than }} {}",
    r"\text{{at least }} {}",
    r"{} \text{{ maybe}}",
    r"\text{{certainly not }} {}",
    r"\text{{unknown, not }} {}",
    r"{}, \text{{ which is false}}",
    r"\text{{no: }} {}",
)
_DOUBTED = (
    "The answer is not ${}$.",
    "The answer is anything but ${}$.",
    "The answer is definitely not ${}$.",
    "The answer is less than ${}$.",
    "The answer isn't ${}$.",
)
_SCALED = (
    r"{} \text{{ million}}",
    r"{} \text{{ thousand}}",
    r"{} \text{{ hundred}}",
    r"{} \text{{ billion}}",
    r"{} \text{{ dozen}}",
    r"{} million",
    r"\text{{half of }} {}",
    r"\text{{twice }} {}",
    r"\text{{one more than }} {}",
    r"{} \text{{ squared}}",
    r"{} \text{{ minus one}}",
    r"{} \text{{ times two}}",
    r"\text{{minus }} {}",
)
_TRIED = 3
"""Number of doubts, and of words that change a number, tried on each gold."""
_OTHER_UNITS = {
    "percent": (r"{}^\circ", r"{} \text{{ kg}}"),
    "degrees": (r"{}\%", r"{} \text{{ cm}}"),
    "money": (r"{}\%", r"{} \text{{ hours}}"),
    "quantity": (r"{}\%", r"{} \text{{ kelvin}}"),
}
_WORDS = ("banana", "hyperbola", "Wednesday")
_FACTORS = re.compile(r"(?P<number>[+-]?\d+)\s*(?P<rest>\\(?:sqrt|pi|cdot|frac)(?![a-z]).*|[a-z(].*)")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[a-zA-Z](?![A-Za-z])")
_FORMULA = re.compile(r"(?<!\\)\$([^$]{3,60})(?<!\\)\$")
_OPERATION = re.compile(r"(?<=[0-9A-Za-z)}])\s*(?:[+*]|-|\\cdot|\\times|/|\\div)\s*(?=[0-9A-Za-z(\\{])")


def mutants(
    gold: str, gold_mode: GoldMode, problem: str, others: Sequence[str], mode: Mode, rng: random.Random
) -> list[Variant]:
    """Return distinct wrong answers to a problem; `others` are golds of other problems.

    In strict mode, a formula copied from the problem is wrong even if its value equals the gold: it is unfinished.
    """
    read = read_gold(gold, gold_mode)
    wrong = list(_other_values(read, gold_mode, rng))
    made = [
        *(boxed(kind, text) for kind, text in wrong),
        *(boxed(kind, text) for kind, text in _other_structures(read, gold_mode)),
        *_doubts(read, [text for _, text in wrong], rng),
        *_junk(read),
        *(boxed("another's gold", other) for other in others if _is_other(read, other)),
        *(boxed("the problem's formula", text) for text in _formulas(read, problem, mode)),
        *(boxed("unfinished", text) for text in _unfinished(read, mode, rng)),
    ]
    return distinct(made)


def _other_values(gold: Gold, gold_mode: GoldMode, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield the gold with one of its values replaced, as (kind, answer)."""
    if not gold.leaves:
        return
    span = rng.choice(gold.leaves)
    value = gold.leaf(span)
    members = [gold.leaf(one) for one in gold.leaves] if gold_mode == "any" else [value]
    for kind, other in _changed(value, rng):
        if all(differ(member, other) for member in members):
            yield kind, other if gold_mode == "any" and gold.kind == "list" else gold.with_leaf(span, other)


def _changed(value: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    kind = read_gold(value).kind
    yield "sign", _negated(value)
    yield "one digit", _other_digit(value, rng)
    if kind == "integer":
        number = int(re.sub(r"[^0-9-]", "", value))
        yield "neighbour", str(number + 1)
        yield "neighbour", str(number - 1)
        yield "times ten", f"{value}0" if number else "10"
    elif kind == "float":
        mantissa, _, exponent = value.lower().partition("e")
        yield "times ten", f"{mantissa}e{int(exponent) + 1}"
        yield "a tenth", rf"{mantissa} \times 10^{{{int(exponent) - 1}}}"
        yield "factor dropped", mantissa
    elif kind == "decimal":
        whole, _, rest = value.partition(".")
        yield "times ten", f"{whole}{rest[0]}.{rest[1:] or '0'}"
    elif kind == "fraction":
        top, bottom = _parts(value)
        yield "inverted", rf"\frac{{{bottom}}}{{{top}}}" if top else ""
        yield "neighbour", rf"\frac{{{top + 1}}}{{{bottom}}}"
        yield "neighbour", rf"\frac{{{top}}}{{{bottom + 1}}}"
        yield "times ten", rf"\frac{{{10 * top}}}{{{bottom}}}"
        yield "denominator dropped", str(top)
    factors = _FACTORS.fullmatch(value)
    if factors:
        yield "factor dropped", re.sub(r"^\\cdot\s*", "", factors["rest"])
        yield "factor dropped", factors["number"]
    variable = _VARIABLE.search(value)
    if variable:
        yield "other case", value[: variable.start()] + variable[0].swapcase() + value[variable.end() :]


def _negated(value: str) -> str:
    if re.search(r"(?<=[0-9A-Za-z)}])\s*[+-]", value):
        return f"-({value})"
    return value.lstrip("+-").lstrip() if value.startswith("-") else f"-{value.lstrip('+')}"


def _other_digit(value: str, rng: random.Random) -> str:
    """Return the value with one significant digit of its first number changed."""
    number = re.search(r"\d[\d.]*", value)
    if not number:
        return ""
    first = next((place for place in range(*number.span()) if value[place] in "123456789"), number.start())
    places = [place for place in range(first, number.end()) if value[place].isdigit()][:_SIGNIFICANT]
    place = rng.choice(places)
    digit = rng.choice([one for one in "123456789" if one != value[place]])
    return value[:place] + digit + value[place + 1 :]


def _parts(fraction: str) -> tuple[int, int]:
    numbers = re.findall(r"\d+", fraction)
    if len(numbers) == 1:  # \frac12
        numbers = list(numbers[0])
    return int(numbers[0]), int(numbers[1])


def _other_structures(gold: Gold, gold_mode: GoldMode) -> Iterator[tuple[str, str]]:
    """Yield the gold with parts exchanged, dropped or added, or with another unit."""
    members, text = gold.members, gold.text
    if gold.kind == "list" and gold_mode == "all" and len(set(members)) == len(members):
        yield "member dropped", ", ".join(members[1:])
        yield "member added", ", ".join((*members, "987654"))
    elif gold.kind == "tuple" and differ(members[0], members[-1]) and text.startswith(("(", r"\left(")):
        yield "order", "(" + ", ".join((members[-1], *members[1:-1], members[0])) + ")"
    elif (
        gold.kind == "interval" and r"\cup" not in text and text.endswith("]") and text.startswith(("(", r"\left("))
    ):
        yield "other end closed", "[" + ", ".join(members) + ")"
    elif gold.kind == "inequality" and re.search(r"\\le|\\ge", text):
        yield "turned round", re.sub(r"\\(le|ge)", lambda sign: {r"\le": r"\ge", r"\ge": r"\le"}[sign[0]], text)
    elif gold.kind == "equation":
        yield "identity", "2 = 2" if same(members[1], "1") else "1 = 1"
    elif gold.kind == "based":
        number, _, base = re.sub(r"[{}()]", "", text).partition("_")
        yield "other base", f"{number}_{{{int(base) + 1}}}"
    elif gold.kind == "ratio":
        parts = [part.strip() for part in re.split(r"\\!|:", text) if part.strip()]
        if len(parts) == 2 and int(parts[0]) != int(parts[1]):
            yield "other way round", f"{parts[1]}:{parts[0]}"
        yield "neighbour", ":".join((str(int(parts[0]) + 1), *parts[1:]))
    elif gold.kind == "time":
        yield (
            "other half of the day",
            re.sub(r"[AaPp](?=\.?[Mm])", lambda half: {"a": "p", "p": "a", "A": "P", "P": "A"}[half[0]], text),
        )
    elif gold.kind == "words":
        yield "other word", rf"\text{{{next(word for word in _WORDS if word.lower() not in text.lower())}}}"
    elif gold.kind == "letter":
        [letter] = re.findall(r"[A-J](?![A-Za-z])", text)
        yield "other letter", "BCDEFGHIJA"["ABCDEFGHIJ".index(letter)]
        yield "every letter", "A. B. C. D. E."
    for unit in _OTHER_UNITS.get(gold.kind, ()):
        yield "another unit", unit.format(gold.leaf(gold.leaves[0]))


def _doubts(gold: Gold, wrong: Sequence[str], rng: random.Random) -> Iterator[Variant]:
    """Yield the gold together with words that retract or change it, or with a second answer."""
    text = gold.text
    for doubt in rng.sample(_DOUBTS, _TRIED):
        yield boxed("doubt", doubt.format(text))
    yield Variant("doubt", rng.choice(_DOUBTED).format(text))
    value = value_of(text)
    if gold.kind in NUMBERS and value and not same(text, "1"):
        for scale in rng.sample(_SCALED, _TRIED):
            yield boxed("changed by a word", scale.format(text))
    if wrong:
        yield Variant("superseded", rf"It is $\boxed{{{text}}}$. No, I was mistaken: it is $\boxed{{{wrong[0]}}}$.")
    # The union of two regions may equal the first: k > 2 or k > 20.
    if wrong and gold.kind not in ("list", "interval", "inequality"):
        yield Variant("several boxes", rf"It is $\boxed{{{text}}}$ or $\boxed{{{wrong[0]}}}$.")
        yield Variant("several boxes", rf"$\boxed{{{wrong[-1]}}}$ and $\boxed{{{text}}}$")
        yield boxed("several answers", rf"{text} \text{{ or }} {wrong[-1]}")
        yield boxed("several answers", rf"{text} \text{{ (or }} {wrong[0]} \text{{)}}")


def _junk(gold: Gold) -> Iterator[Variant]:
    yield boxed("empty box", "")
    if gold.kind not in ("words", "prose", "other"):
        yield from (boxed("junk", junk) for junk in _JUNK)
    if gold.kind in NUMBERS:  # for a function, z may be another name of its variable
        yield boxed("junk", "z")
        yield boxed("junk", "x = y")
    yield Variant("junk", "I do not know the answer.")
    yield boxed("empty boxes", "}" + r"\boxed{}" * 5 + r"\boxed{")


def _is_other(gold: Gold, other: str) -> bool:
    """Return whether another problem's gold certainly differs: another number, or a word and a number."""
    theirs = read_gold(other)
    if gold.kind == "words" or theirs.kind == "words":
        return {gold.kind, theirs.kind} & NUMBERS != set()
    return gold.kind in (*NUMBERS, "expression") and differ(gold.text, theirs.text)


def _unfinished(gold: Gold, mode: Mode, rng: random.Random) -> list[str]:
    """Return unevaluated forms of an integer, which strict mode rejects."""
    if mode != "strict" or gold.kind != "integer":
        return []
    value = abs(int(re.sub(r"[^0-9]", "", gold.text)))
    sign = "-" * gold.text.startswith("-")
    factor = next((one for one in (2, 3, 5, 7) if value > one and value % one == 0), None)
    ways = [rf"{sign}({value} + 3 - 3)", rf"{sign}\frac{{{value * 6}}}{{6}}", rf"{sign}(1 \cdot {value})"]
    if value > 5:
        ways += [rf"{sign}\sqrt{{{value**2}}}", rf"{sign}{value - 5}\frac{{5}}{{1}}", f"{sign}({value - 5}+5)"]
    if factor is not None:
        ways += [rf"{sign}{factor} \cdot {value // factor}", f"{sign}{factor}⋅{value // factor}"]
        ways += [
            rf"{sign}{factor}^1 \cdot {value // factor}^1",
            rf"{sign}{factor}\sqrt{{{(value // factor) ** 2}}}",
        ]
    return rng.sample(ways, _TRIED)


def _formulas(gold: Gold, problem: str, mode: Mode) -> Iterator[str]:
    """Yield formulas with an operation from the problem that are not a form of the gold."""
    if gold.kind not in NUMBERS:
        return
    found = [text.strip() for text in _FORMULA.findall(problem)]
    formulas = [text for text in dict.fromkeys(found) if _OPERATION.search(text) and value_of(text) is not None]
    undone = mode == "strict" and gold.kind in ("integer", "decimal")
    fit = [text for text in formulas if differ(gold.text, text) or (undone and read_gold(text).kind != "fraction")]
    yield from fit[:_MOST_FORMULAS]
