"""Multiple choice: a deterministic order of the options, and the letter of the right one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from reval_core.problems.problem_columns import OTHER_OPTIONS
from reval_core.rows import Unusable, plain_text

LETTERS = "ABCDEFGHIJ"


def with_options(question: str, options: Sequence[str], right: int) -> tuple[str, str]:
    """The question followed by its options as `(A) …` lines, and the letter of option number `right`.

    The order is that of a hash of the question and the option. It depends neither on the seed of a run nor on the
    order in the file, so that a benchmark is the same everywhere.
    Raises Unusable for duplicate options, and for fewer than two or more than ten.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise Unusable(f"options: must be 2 to {len(LETTERS)}, not {len(options)}")
    if len(set(options)) < len(options):
        raise Unusable("options: contains a duplicate")
    order = sorted(options, key=lambda option: hashlib.sha256(f"{question}\n{option}".encode()).digest())
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, order, strict=False)]
    return "\n".join([question, "", *lines]), LETTERS[order.index(options[right])]


def options_of(values: Mapping[str, Any], listed: Any, answer: Any) -> tuple[list[str], int] | None:
    """The options of a row and the index of the right one; None if the row has no options.

    Args:
        values: the row. GPQA's own files have a column per wrong option instead of a list.
        listed: the row's list of options.
        answer: the letter, the index from 0 or the text of the right option.

    Raises:
        Unusable: if the answer is none of the options, if letter and index disagree, or if a number is ambiguous
            between an index and the text of another option.
    """
    if listed is None and all(values.get(name) is not None for name in OTHER_OPTIONS):
        return [plain_text(one, "options") for one in (answer, *map(values.get, OTHER_OPTIONS))], 0
    if listed is None or listed == []:
        return None
    if not isinstance(listed, list):
        raise Unusable(f"options: must be a list, not {type(listed).__name__}")
    options = [plain_text(one, "options") for one in listed]
    right = _number_of(answer, options)
    said = values.get("correct_option_index")
    if said is None and isinstance(answer, int) and str(answer) in options and options[right] != str(answer):
        raise Unusable(
            f"answer: {answer} is the index, from 0, of option {options[right][:40]!r}, and the text of another; "
            f'write "{answer}" for the text, or the letter of the right option'
        )
    if said is not None and said != right:
        raise Unusable(f"answer: {answer!r} is option number {right}, but correct_option_index is {said!r}")
    return options, right


def _number_of(answer: Any, options: list[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    text = plain_text(answer, "answer")
    if text in options:
        return options.index(text)
    letter = text.strip("(). ")
    if letter and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    raise Unusable(f"answer: {text[:40]!r} is not one of the {len(options)} options")
