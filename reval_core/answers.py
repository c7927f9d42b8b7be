r"""Find the final answer in a response, and bring answers into the form in which they are compared.

Everything here is text in, text out: no mathematics, no dependency, and time linear in the length of the
response, since a policy in training writes every kind of degenerate text. Whether two answers mean the same
is for `reval_core.verification`.
"""

import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Literal

Method = Literal["boxed", "phrase", "hashes", "choice", "whole"]

# A final answer longer than this is no answer; its end is kept since statements put the result last.
LONGEST_ANSWER = 2048

# A run of backslashes with what it governs, or a brace. Runs are taken whole: no text is scanned twice.
_BOX_TOKEN = re.compile(
    r"(?P<run>\\+)(?:(?:boxed|fbox)\s*(?:(?P<box>\{)|(?=(?P<bare>[^\s$]{0,64})))|(?P<brace>[{}]))?|[{}]"
)
_PHRASE = re.compile(r"(?:\b(?i:answer)\**(?:\s+is\b|\s*:)|^A:)[\s:*]*", re.MULTILINE)
_SENTENCE_END = re.compile(r"\.(?=[\s*]|$)|\n")
_LED_BY_WORDS = re.compile(r"[A-Za-z].*\b(?:is|are)\s+", re.DOTALL)
_MATH = r"(?:\$\$[^$]+\$\$|\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\])"
_MATH_LIST = re.compile(rf"{_MATH}(?:\s*(?:[,;]|,?\s*(?:and|or)\b)\s*{_MATH})*", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^#\n]+)")
_CHOICE = re.compile(r"\(([A-J])\)|^[ \t*]*([A-J])[ \t*.)]*$", re.MULTILINE)

_DELIMITER = r"(?<!\\)(?:\$+|\\[()\[\]])"
_DELIMITERS = re.compile(_DELIMITER)
_LIST_OF_FORMULAS = re.compile(rf"{_DELIMITER}\s*([,;])\s*{_DELIMITER}")
_EDGES = string.whitespace + "*"
_FINAL_STOP = re.compile(r"(?<!\\right)\.$")
_SPACED_THOUSANDS = re.compile(r"(?<=[0-9])(?:\\[,;: ]|[ \u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_PYTHON_FLOAT = re.compile(r"([+-]?[0-9]{1,20}(?:\.[0-9]{0,20})?)[eE]([+-]?[0-9]{1,2})")
_INTEGER = re.compile(r"([+-]?)(?:\\\$)?([0-9]{1,30}|[1-9][0-9]{0,2}(?:(?:,(?:\\!)?|\{,\})[0-9]{3}){1,9})")
_SEPARATOR = re.compile(r"[,;]|\\text\s*\{\s*(?:or|and)\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?:\\!)?[0-9]{3}(?![0-9])")


def extract(response: str, methods: Sequence[Method]) -> str | None:
    r"""The final answer that a response states, tidied (see `tidy`), or None where no method finds one.

    `methods` are tried in order; the first that finds something non-empty decides.

    - ``boxed``: the last non-empty ``\boxed{...}`` or ``\fbox{...}`` with balanced braces; also ``\boxed 5``.
    - ``phrase``: the statement after the last "answer is" or "answer:", or "A:" at the start of a line.
    - ``hashes``: GSM8K's ``#### 18``, the last one.
    - ``choice``: the last choice letter A to J, written ``(B)`` or alone on its line.
    - ``whole``: the response itself.

    At most the last 2,048 characters of an answer are kept. Never raises.
    """
    for method in methods:
        found = _METHODS[method](response)
        answer = tidy(found[-LONGEST_ANSWER:]) if found else ""
        if answer:
            return answer
    return None


def prepare_gold(gold: str) -> str:
    r"""The gold answer in the form in which answers are compared; empty where there is none.

    A gold that is a whole solution is reduced to the answer that it states. The rest is `tidy`, the same for gold
    and response: what stands in ``$81\sqrt{3}$.`` can be handed to a parser as ``\boxed{81\sqrt{3}}``, and only so
    is it read in full.
    """
    return extract(gold, ("boxed", "hashes", "phrase", "whole")) or ""


def tidy(text: str) -> str:
    r"""`text` without what does not belong to an answer: math delimiters, emphasis, a final stop.

    Two notations that a parser of LaTeX misreads are rewritten: thousands grouped by a space (``1\,657`` is read as
    a sum) and Python floats (``8.7e8`` as 8.7·e·8).
    """
    text = _LIST_OF_FORMULAS.sub(r"\1 ", text)
    text = _DELIMITERS.sub("", text).strip(_EDGES)
    text = _FINAL_STOP.sub("", text).strip(_EDGES)
    text = _SPACED_THOUSANDS.sub("", text)
    python_float = _PYTHON_FLOAT.fullmatch(text)
    return _spell_out(python_float[1], int(python_float[2])) if python_float else text


def as_integer(text: str) -> int | None:
    r"""The integer that `text` plainly writes, or None.

    Understood: a sign, dollar signs, leading zeros (``025``), thousands written ``1,657``, ``1,\!657`` or
    ``1{,}657``. Anything in doubt (``1, 657`` may be two answers) and more than 30 digits is None.
    """
    match = _INTEGER.fullmatch(tidy(text))
    if match is None:
        return None
    return int(match[1] + re.sub(r"[^0-9]", "", match[2]))


def alternatives(gold: str) -> list[str]:
    r"""The members of a prepared gold that lists several answers (``E_{1},E_{2}``); else the gold alone.

    Separators are commas, semicolons, "and" and "or" outside all brackets; that of ``1,657`` is none.
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
    # Plain decimals with a point compare best with whatever a response writes, up to the digits of a double.
    if exponent >= 15:
        return rf"{mantissa} \times 10^{{{exponent}}}"
    plain = format(Decimal(f"{mantissa}e{exponent}"), "f")
    return plain if "." in plain else plain + ".0"


def _last_box(response: str) -> str | None:
    # One pass with a stack of open braces: thousands of empty or unclosed boxes cost what other text costs.
    boxes: list[tuple[int, int]] = []
    unclosed: list[int | None] = []
    for token in _BOX_TOKEN.finditer(response):
        if token["box"]:
            unclosed.append(len(boxes))
            boxes.append((token.end(), token.end()))
        elif token["bare"] is not None:
            boxes.append(token.span("bare"))
        elif token["run"] and (token["brace"] is None or len(token["run"]) % 2):
            continue  # an escaped brace groups nothing
        elif token[0].endswith("{"):
            unclosed.append(None)
        elif unclosed:
            opened = unclosed.pop()
            if opened is not None:
                boxes[opened] = (boxes[opened][0], token.end() - 1)
    contents = (response[start:end] for start, end in reversed(boxes))
    return next((content for content in contents if content.strip()), None)


def _last_phrase(response: str) -> str | None:
    cues = list(_PHRASE.finditer(response))
    if not cues:
        return None
    cue = cues[-1]
    statement = response[cue.end() : cue.end() + LONGEST_ANSWER]
    opening = _MATH_LIST.match(statement)
    end = _SENTENCE_END.search(statement, opening.end() if opening else 0)
    sentence = statement[: end.start()] if end else statement
    # "Final answer: the largest n is 34"
    led = _LED_BY_WORDS.match(sentence)
    sentence = sentence[led.end() :] if led else sentence
    mathematics = _MATH_LIST.search(sentence)
    return mathematics[0] if mathematics else sentence


def _last_hashes(response: str) -> str | None:
    found = _HASHES.findall(response)
    return found[-1] if found else None


def _last_choice(response: str) -> str | None:
    found = _CHOICE.findall(response)
    return "".join(found[-1]) if found else None


_METHODS: dict[Method, Callable[[str], str | None]] = {
    "boxed": _last_box,
    "phrase": _last_phrase,
    "hashes": _last_hashes,
    "choice": _last_choice,
    "whole": str.strip,
}
