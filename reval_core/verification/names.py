"""Compares the names that answers give to values, and answers that consist of words."""

from __future__ import annotations

from reval_core.answers.grammar import Term
from reval_core.answers.reading import Reading
from reval_core.answers.tokens import words_of

_SHOUTED = words_of("yes no true false odd even none neither both all never always")


def same_name(one: str, other: str) -> bool:
    """Whether two names are equivalent; ``y`` and ``f(x)`` both name the value of a function."""
    return one == other or (is_function_value(one) and is_function_value(other))


def leaves_out_its_variable(gold: Reading, answer: Reading) -> bool:
    """Whether only the gold's value uses the variable in its name, as for ``f(x) = 2x`` and ``f(x) = 2t``."""
    for one in (gold, answer):
        if one.kind != "assignment" or not is_function_value(one.name) or one.parts[-1].term is None:
            return False
    depends = [_has_symbol(one.parts[-1].term, _variable(one.name)) for one in (gold, answer)]
    return depends == [True, False]


def _variable(name: str) -> str:
    return "x" if name == "y" else name.replace(" ", "")[2]


def _has_symbol(term: Term | None, name: str) -> bool:
    return term is not None and (
        (term.op == "symbol" and term.name == name) or any(_has_symbol(part, name) for part in term.parts)
    )


def is_function_value(name: str) -> bool:
    plain = name.replace(" ", "")
    return plain == "y" or (len(plain) == 4 and plain[1] == "(" and plain[3] == ")" and plain[0].isalpha())


def same_words(one: str, other: str) -> bool:
    """Whether two texts have the same words. Case is ignored in words, but not in names such as ``GMm``."""
    pieces = [_plain_words(text) for text in (one, other)]
    if pieces[0] == pieces[1]:
        return True
    if len(pieces[0]) != len(pieces[1]):
        return "".join(pieces[0]) == "".join(pieces[1]) and bool(pieces[0])
    return all(_same_word(*pair) for pair in zip(*pieces, strict=True))


def _same_word(one: str, other: str) -> bool:
    folded = one.casefold() == other.casefold()
    return one == other or (folded and (not one.isascii() or (_is_word(one) and _is_word(other))))


def _is_word(word: str) -> bool:
    return word.islower() or word.istitle() or (word.isupper() and (len(word) > 4 or word.lower() in _SHOUTED))


def _plain_words(text: str) -> list[str]:
    for sign in (r"\text", "{", "}", ".", ",", "!", '"', "'"):
        text = text.replace(sign, " " if sign in ("{", "}", ",") else "")
    words = text.replace("-", " - ").split()
    return words[1:] if len(words) > 1 and words[0].lower() in ("a", "an", "the") else words


def names_differ(gold: Reading, answer: Reading) -> bool:
    """Whether one list names its members with different letters and the other does not name them."""
    for one, other in ((gold, answer), (answer, gold)):
        if all(part.kind == "assignment" for part in one.parts) and not any(
            part.kind == "assignment" for part in other.parts
        ):
            return len({part.name.partition("_")[0] for part in one.parts}) == len(one.parts)
    return False


def letters(reading: Reading) -> str:
    return "".join(_plain_words(reading.text))
