"""Normalizes answers for comparison. Works on text only, without mathematics."""

import re
import string
from decimal import Decimal

from reval_core.answers.characters import as_latex
from reval_core.answers.tokens import words_of

_DELIMITER = r"(?<!\\)(?:\$+|\\[()\[\]])"
_DELIMITERS = re.compile(_DELIMITER)
_LIST_OF_FORMULAS = re.compile(rf"{_DELIMITER}\s*([,;])\s*{_DELIMITER}")
_EDGES = string.whitespace + "*"
_FINAL_STOP = re.compile(r"(?<!\\right)(?<!\.\.)\.$")
_SPACED_THOUSANDS = re.compile(r"(?<=[0-9])(?:\\[,;: ]|[ \u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_PYTHON_FLOAT = re.compile(r"([+-]?[0-9]{1,20}(?:\.[0-9]{0,20})?)[eE]([+-]?[0-9]{1,2})")
_INTEGER = re.compile(r"([+-]?)(?:\\\$)?([0-9]{1,30}|[1-9][0-9]{0,2}(?:(?:,(?:\\!)?|\{,\})[0-9]{3}){1,9})")
_SEPARATOR = re.compile(r"[,;]|\\text\s*\{\s*(?:or|and)\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?:\\!)?[0-9]{3}(?![0-9])")
_GLUED_SPACE = re.compile(r"\\q?quad(?=[A-Za-z])")
_CHOSEN = re.compile(
    r"(?i:the\s+)?(?i:(?:option|choice|answer)\s+)?[*(\[\s]*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{)?[(\s]*([A-J])"
    r"(?=[)\]}.:*,]|\s*$|\s+(?:because|since|as|for|is)\b)"
)
_OTHER_CHOICE = re.compile(
    r"\([A-J]\)|(?<![A-Za-z])[A-J][.):](?=\s|$)|(?:,|\b(?:and|or)\b|/)[\s\\a-z{*(]{0,9}[A-J](?![A-Za-z'])"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{|\}")
_FIRST_WORD = re.compile(r"[^A-Za-z]{0,9}([A-Za-z]+)")
DOUBTS = words_of(
    "not never no none half twice double except but without unless less more fewer than wrong incorrect "
    "false maybe perhaps possibly probably neither nor either anything other or and"
)
"""Words that negate or question an adjacent answer."""
_MAY_GO_ON = re.compile(r"\s*(?:[)\]*.:,]|$|(?<=\s)(?:because|since|as|for|is)\b)")
_DENIED = re.compile(
    r"[)\]}*\s]*(?:is|was|are|can|could|does|must|should|will|would|do)?(?:\s*not\b|n't\b|\s+(?:wrong|incorrect|false)\b)",
    re.I,
)
_PYTHON_POWER = re.compile(r"(?<=[0-9A-Za-z)])\*\*(?:([0-9]{1,20})|(?=[A-Za-z(]))")
_LEADING_SIGN = re.compile(r"(?:=|≈|\\approx(?![a-z]))\s*")
_MIXED_NUMBER = re.compile(r"([+-]?[0-9]{1,15})\s{1,3}([0-9]{1,15})/([0-9]{1,15})")


def tidy(text: str) -> str:
    r"""Normalize an answer: remove math delimiters, emphasis and a final stop.

    Unicode and Python's ``x**2`` are converted to LaTeX (`as_latex`). Notations that parsers misread are rewritten:
    thousands grouped by a space (``1\,657`` would be a sum), mixed numbers (``2 1/2`` would be 21/2), Python floats
    (``8.7e8`` would be 8.7·e·8) and a space command that is joined with a letter (``\quadx``).
    """
    text = as_latex(text)
    text = _PYTHON_POWER.sub(lambda power: f"^{{{power[1]}}}" if power[1] else "^", text)
    text = _LIST_OF_FORMULAS.sub(r"\1 ", text)
    text = _DELIMITERS.sub("", text).strip(_EDGES)
    text = _FINAL_STOP.sub("", text).strip(_EDGES)
    text = text[len(leading[0]) :] if (leading := _LEADING_SIGN.match(text)) else text
    text = _SPACED_THOUSANDS.sub("", _GLUED_SPACE.sub(" ", text))
    text = _MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", text) if _MIXED_NUMBER.fullmatch(text) else text
    return as_decimal(text) or text


def as_decimal(text: str) -> str | None:
    """A Python float such as ``8.7e8`` as a decimal; None for other texts."""
    found = _PYTHON_FLOAT.fullmatch(text)
    return _spell_out(found[1], int(found[2])) if found else None


def as_integer(text: str) -> int | None:
    r"""Parse an integer literal.

    Signs, dollar signs, leading zeros (``025``) and thousands separators (``1,657``, ``1,\!657``, ``1{,}657``) are
    accepted.

    Returns:
        The integer, or None for anything else, anything ambiguous (``1, 657`` may be two answers) and more than 30
        digits.
    """
    match = _INTEGER.fullmatch(tidy(text))
    if match is None:
        return None
    return int(match[1] + re.sub(r"[^0-9]", "", match[2]))


def as_choice(text: str) -> str | None:
    r"""The letter A to J that a text chooses: ``B``, ``(B)``, ``\text{B}``, ``B. Since …``, ``option B``.

    Returns:
        The letter, or None if there is none or several are named.
    """
    text = tidy(text)
    match = _CHOSEN.match(text)
    if match is None or _OTHER_CHOICE.search(text, match.end()):
        return None
    rest = _TEXT_COMMAND.sub("", text[match.end() :])
    first = _FIRST_WORD.match(rest)
    if _MAY_GO_ON.match(rest) is None or _DENIED.match(rest) or (first is not None and first[1].lower() in DOUBTS):
        return None
    return match[1]


def alternatives(gold: str) -> list[str]:
    r"""The members of a normalized gold that lists several answers (``E_{1},E_{2}``); otherwise only the gold.

    Separators are commas, semicolons, "and" and "or" outside all brackets, but not thousands separators.
    """
    members: list[str] = []
    depth, start, position = 0, 0, 0
    while position < len(gold):
        character = gold[position]
        depth += (character in "([{") - (character in ")]}")
        separator = _SEPARATOR.match(gold, position) if depth == 0 else None
        if separator and not _THOUSANDS.match(gold, position):
            members.append(gold[start:position])
            start = position = separator.end()
        else:
            position += 1
    members.append(gold[start:])
    return [member for member in map(tidy, members) if member]


def _spell_out(mantissa: str, exponent: int) -> str:
    # Plain decimals with a point compare best with other notations, up to the precision of a double.
    if exponent >= 15:
        return rf"{mantissa} \times 10^{{{exponent}}}"
    plain = format(Decimal(f"{mantissa}e{exponent}"), "f")
    return plain if "." in plain else plain + ".0"
