r"""Extracts the final answer from a response.

This module works on text only, without dependencies, in time linear in the length of the response, because a policy
in training writes every kind of degenerate text. `reval_core.answers` normalizes the answers and
`reval_core.verification` compares them.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from reval_core.answers import tidy

Method = Literal["final", "boxed", "phrase", "hashes", "choice", "tail", "whole"]

Mode = Literal["strict", "lenient"]
"""How tolerant verification is: `strict` for training rewards, `lenient` for grading responses of other models."""

METHODS: dict[Mode, tuple[Method, ...]] = {
    "strict": ("boxed", "phrase", "hashes"),
    "lenient": ("final", "boxed", "phrase", "hashes", "tail"),
}
"""The extraction methods of each mode, in order."""

# Only the end of longer answers is kept, because statements put the result last.
LONGEST_ANSWER = 2048
# The maximum number of characters between two boxes that form one answer.
_LONGEST_JOINT = 80

# A run of backslashes with the command that follows, or a brace. Runs are matched whole: no text is scanned twice.
_BOX_TOKEN = re.compile(
    r"(?P<run>\\+)(?:(?:boxed|fbox)\s*(?:(?P<box>\{)|(?=(?P<bare>[^\s$]{0,64})))|(?P<brace>[{}]))?|[{}]"
)
# The text that may separate the boxes of one list: separators, delimiters, spaces, "and", "or", the name of the
# next value (`y_2 =`) and one word that belongs to the previous one ("3 apples and").
_JOINT = re.compile(
    r"(?:[\s$,;&*}~]|\\?%|\\\\|\\[()\[\],;:! ]|\\q?quad(?![a-z])|\\(?:text|mathrm|textbf)\s*\{|\^\{?\\circ"
    r"|(?<![A-Za-z\\])(?:and|or|maybe|perhaps|possibly|alternatively|either|else|also|could|might|may|be|it|is|not|for|part|case)(?![A-Za-z])|\([a-z0-9]\)"
    r"|(?<![A-Za-z\\])[A-Za-z]{2,20}(?=[\s,$]{1,4}(?:and|or)\b)"
    r"|(?<![A-Za-z\\])[A-Za-z](?:_\{?\w{1,3}\}?|\([a-z]\))?\s{0,3}=)*"
)
# Words before a number, in the same clause, that change or negate it.
_DOUBT = re.compile(
    r"(?i:\b(?:not|never|no|nor|neither|hardly|half|third|quarter|twice|thrice|double|triple|times|minus|plus"
    r"|without|except|excluding|besides|anything|everything|nothing|other than|rather than|instead of|unlike|wrong"
    r"|incorrect|false(?:ly)?|(?:more|less|fewer|greater|larger|smaller) than|at least|at most|over"
    r"|under|above|below|up to|opposite|negative|square|cube|root|inverse|reciprocal|percent of|multiple)\b|n't\b)"
)
_CLAUSE = re.compile(r"[.,;:!?0-9]|\b(?:it's|which|so|that)\b")
_CHANGE = re.compile(
    r"(?i:[\s$*)]{0,4}(?:is|was|are)?\s{0,2}(?:not\b|n't\b|wrong|incorrect|false"
    r"|(?:hundred|thousand|[mbtr]+illion|dozen|score|gross)s?\b"
    r"|half|halves|squared|cubed|factorial|times\b|or\s|and a (?:half|third|quarter)|percent of|if\b"
    r"|unless\b|point\s|plus\b|minus\b|divided|multiplied|to the power))"
)
_THOUGHTS_END = "</think>"
_PHRASE = re.compile(r"(?:\b(?i:answer)\**(?:\s+is\b|\s*:)|^A:)[\s:*]*", re.MULTILINE)
_FINAL_PHRASE = re.compile(r"(?i:final\s+answer)\**(?:\s+is\b|\s*:)[\s:*]*")
_SENTENCE_END = re.compile(r"\.(?=[\s*]|$)|\n")
_LED_BY_WORDS = re.compile(r"[A-Za-z].*\b(?:is|are)\s+", re.DOTALL)
# An escaped dollar before an amount is not a delimiter.
_MATH = (
    r"(?:\$\$[^$]+\$\$|(?:(?<!\\)\$|\$(?!\s?[0-9.]))(?:[^$\\]|\\[^$]|\\\$(?=\s?[0-9.]))+\$|\\\(.+?\\\)|\\\[.+?\\\])"
)
_PERCENT = r"(?:\s{0,2}(?:\\?%|(?:percent|pct)\b))?"
# Separators of list members: commas, "and", "or" with a few words such as "maybe", within emphasis or brackets.
_OR = r"(?:and\b|or\b(?:\s{1,3}[a-z]{2,12}){0,3})"
_LIST_JOINT = rf"[\])*\"']{{0,3}}\s{{0,9}}(?:[,;/]\s{{0,9}}{_OR}?|{_OR})\s{{0,9}}[\[(*\"']{{0,3}}"
_MATH_LIST = re.compile(rf"{_MATH}(?:{_LIST_JOINT}{_MATH})*{_PERCENT}", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^#\n]+)")
_LETTER = (
    r"(?:\([A-J]\)|\*\*\(?[A-J]\)?\*\*|\\text(?:bf)?\{\(?[A-J]\)?\}"
    r"|(?:(?<=[Oo]ption )|(?<=[Cc]hoice ))[A-J]\b)"
)
_CHOICE = re.compile(
    rf"{_LETTER}(?:\s{{0,3}}(?:,|/|and|or)\s{{0,3}}{_LETTER})*|^[ \t*]*[A-J][ \t*.)]*$|\A[ \t*]*[A-J][.):]\s",
    re.MULTILINE,
)
_BARE_LETTER = re.compile(r"(?<![A-Za-z])[A-J](?![A-Za-z])")

# A number in prose, or an arithmetic expression: 12, -1,000.99, 3/4, 2*(3+1), \frac{63}{400}.
_NUMBER = (
    r"(?:\(\s?-?[\d.]{1,30}(?:\s?,\s?-?[\d.]{1,30}){1,9}\s?\)"
    r"|-?\\d?frac\{-?[\d.]{1,30}\}\{-?[\d.]{1,30}\}"
    r"|(?<![\w.])-?\(?-?(?:\d[\d.,]*\d|\.?\d+)(?:\s{0,2}[-+*/^]\s{0,2}\(?-?\d+(?:\.\d+)?\)?)*)"
)
_NUMBERS = re.compile(rf"{_NUMBER}{_PERCENT}(?:{_LIST_JOINT}{_NUMBER}{_PERCENT})*")
_STATEMENT_END = re.compile(r"[.!?](?=[\s*\"')\]]|$)|\n")
_SMALL_TALK = re.compile(r"(?:I hope it is correct\.?|<\|[^|<>]{1,30}\|>\w{0,12}|</s>|\s)+$")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LEADS_ON = re.compile(r"(?<!\S)[A-Za-z]+\b(?=.*(?<![\^\w{])\d)", re.DOTALL)
_NO_PROSE = re.compile(r"sqrt|sin|cos|tan|log|ln|exp|max|min|gcd|lcm|and|or|pi|mod|percent(?:age)?|pct")
_ONE_IN_BRACKETS = re.compile(r"\[[^\[\],;]+\]")
_WORDS_OF_AN_ANSWER = 4


class _Box(NamedTuple):
    start: int  # of the command
    content: int
    content_end: int
    end: int


def extract(response: str, methods: Sequence[Method]) -> str | None:
    r"""Extract the final answer of a response.

    Methods are tried in order; the first that finds something non-empty decides. Text before the last ``</think>``
    is ignored. The methods are:

    - ``boxed``: the last non-empty ``\boxed{...}`` or ``\fbox{...}`` with balanced braces; also ``\boxed 5``.
      Adjacent boxes (``\boxed{1}, \boxed{2}``) are one list.
    - ``phrase``: the statement after the last "answer is" or "answer:", or "A:" at the start of a line.
    - ``final``: like ``phrase``, after "final answer", if that comes after the last box.
    - ``hashes``: GSM8K's ``#### 18``, the last one.
    - ``choice``: the last choice letter A to J: ``(B)``, ``**B**``, ``\text{B}``, ``option B``, alone on its
      line, or at the start (``B. Because …``). Letters that are listed together are one list.
    - ``tail``: the last formula or number, or a list of them; all of a short response.
    - ``whole``: the response itself.

    At most the last 2,048 characters of an answer are kept. Never raises.

    Returns:
        The normalized answer (see `tidy`), or None if no method finds one.
    """
    statement = response.rpartition(_THOUGHTS_END)[2]
    for method in methods:
        found = _METHODS[method](statement)
        answer = tidy(found[-LONGEST_ANSWER:]) if found else ""
        if answer:
            return answer
    return None


def prepare_gold(gold: str) -> str:
    r"""Normalize a gold for comparison; empty if there is none.

    A gold that is a whole solution is reduced to the answer that it states. It is then normalized by `tidy`, as
    answers are, so that a parser reads all of ``$81\sqrt{3}$.``
    """
    return extract(gold, ("boxed", "hashes", "phrase", "whole")) or ""


def _boxes(response: str) -> list[_Box]:
    """The non-empty boxes, in the order in which they open."""
    # One pass with a stack of open braces, so that thousands of empty or unclosed boxes take linear time.
    boxes: list[_Box] = []
    unclosed: list[int | None] = []
    for token in _BOX_TOKEN.finditer(response):
        if token["box"]:
            unclosed.append(len(boxes))
            boxes.append(_Box(token.start(), token.end(), token.end(), token.end()))
        elif token["bare"] is not None:
            boxes.append(_Box(token.start(), *token.span("bare"), token.end("bare")))
        elif token["run"] and (token["brace"] is None or len(token["run"]) % 2):
            continue  # an escaped brace does not group
        elif token[0].endswith("{"):
            unclosed.append(None)
        elif unclosed:
            opened = unclosed.pop()
            if opened is not None:
                boxes[opened] = boxes[opened]._replace(content_end=token.end() - 1, end=token.end())
    if boxes and boxes[-1].end == boxes[-1].content and (end := response.rfind("\\}", boxes[-1].content)) > 0:
        boxes[-1] = boxes[-1]._replace(
            content_end=end, end=end + 2
        )  # \boxed{5\}: the closing brace is escaped by mistake
    return [box for box in boxes if response[box.content : box.content_end].strip()]


def boxed_answers(response: str) -> list[str]:
    """The normalized contents of all boxes after the last ``</think>``, in order."""
    statement = response.rpartition(_THOUGHTS_END)[2]
    contents = [statement[box.content : box.content_end][-LONGEST_ANSWER:] for box in _boxes(statement)]
    return [tidy(content) for content in contents]


def _last_boxes(response: str) -> str | None:
    boxes = _boxes(response)
    if not boxes:
        return None
    last = _outermost(boxes, response)
    contents = {response[last.content : last.content_end].strip(): None}
    while boxes and _are_adjacent(response, boxes[-1], last):
        last = _outermost(boxes, response)
        contents.setdefault(response[last.content : last.content_end].strip())
    return ", ".join(reversed(contents))


def _outermost(boxes: list[_Box], response: str) -> _Box:
    """Pop the last box and those around it. Other content of an outer box belongs to the answer."""
    last = boxes.pop()
    while boxes and boxes[-1].end > last.end:
        around = boxes.pop()
        beside = response[around.content : last.start] + response[last.end : around.content_end]
        last = around if beside.strip() else last._replace(start=around.start, end=around.end)
    return last


def _are_adjacent(response: str, one: _Box, other: _Box) -> bool:
    between = other.start - one.end
    return 0 <= between <= _LONGEST_JOINT and _JOINT.fullmatch(response, one.end, other.start) is not None


def _last_phrase(response: str) -> str | None:
    cues = list(_PHRASE.finditer(response))
    return _statement(response, cues[-1].end()) if cues else None


def _final_phrase(response: str) -> str | None:
    cues = list(_FINAL_PHRASE.finditer(response))
    if not cues or any(box.end > cues[-1].start() for box in _boxes(response)[-1:]):
        return None
    return _statement(response, cues[-1].end())


def _statement(response: str, start: int) -> str:
    """The answer in the sentence at `start`: its formula, else the words after "is", else its only number."""
    statement = response[start : start + LONGEST_ANSWER]
    opening = _MATH_LIST.match(statement)
    end = _SENTENCE_END.search(statement, opening.end() if opening else 0)
    sentence = statement[: end.start()] if end else statement
    # "Final answer: the largest n is 34"
    led = _LED_BY_WORDS.match(sentence)
    sentence = sentence[led.end() :] if led else sentence
    mathematics = _MATH_LIST.search(sentence)
    if mathematics:
        return sentence if _is_doubted(sentence, mathematics) else mathematics[0]
    numbers = list(_NUMBERS.finditer(sentence))
    if len(numbers) != 1 or not _is_prose(sentence) or _is_doubted(sentence, numbers[0]):
        return sentence
    return _balanced(numbers[0][0])


def _is_doubted(sentence: str, found: re.Match[str]) -> bool:
    """Whether the words next to a number or a formula negate, question or change it."""
    before = _CLAUSE.split(sentence[max(0, found.start() - 60) : found.start()])[-1]
    return _DOUBT.search(before) is not None or _CHANGE.match(sentence, found.end()) is not None


def _last_hashes(response: str) -> str | None:
    found = _HASHES.findall(response)
    return found[-1] if found else None


def _last_choice(response: str) -> str | None:
    found = _CHOICE.findall(response)
    return ", ".join(dict.fromkeys(_BARE_LETTER.findall(found[-1]))) if found else None


def _tail(response: str) -> str | None:
    """The last formula or number of a response; all of it if it is one expression or a few words."""
    end = response[-LONGEST_ANSWER:]
    end = end[: len(end) - len(_trailing_small_talk(end))].strip()
    formulas = list(_MATH_LIST.finditer(end))
    if not formulas and not _is_prose(end):
        return end[1:-1] if _ONE_IN_BRACKETS.fullmatch(end) else end
    numbers = list(_NUMBERS.finditer(end))
    last = max((*formulas[-1:], *numbers[-1:]), key=lambda found: found.end(), default=None)
    if last is not None and _is_doubted(end, last):
        return None
    if last is None:
        return end if len(_WORD.findall(end)) <= _WORDS_OF_AN_ANSWER else None
    return _balanced(last[0]) if last.re is _NUMBERS else last[0]


def _balanced(text: str) -> str:
    """A text without its parentheses if they are unbalanced, as in "(42" of "forty-two (42)"."""
    return text if text.count("(") == text.count(")") else text.replace("(", "").replace(")", "")


def _trailing_small_talk(text: str) -> str:
    found = _SMALL_TALK.search(text, max(0, len(text) - 200))
    return found[0] if found else ""


def _is_prose(text: str) -> bool:
    """Whether a text has several words, or one that precedes a number: "the ratio is 3", but not "28 percent"."""
    words = [word for word in _WORD.finditer(text) if not _NO_PROSE.fullmatch(word[0].lower())]
    return len(words) > 1 or (len(words) == 1 and _LEADS_ON.match(text, words[0].start()) is not None)


_METHODS: dict[Method, Callable[[str], str | None]] = {
    "final": _final_phrase,
    "boxed": _last_boxes,
    "phrase": _last_phrase,
    "hashes": _last_hashes,
    "choice": _last_choice,
    "tail": _tail,
    "whole": str.strip,
}
