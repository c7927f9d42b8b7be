"""Problem texts that spell control tokens: `<|im_end|>` in a problem is ten characters of text and ends no turn.

Control tokens are those that a tokenizer marks as special; other added tokens, such as runs of spaces, are text.
A tokenizer produces a control token wherever it is spelled. So a prompt in which the problem spells one is
tokenised with a separator inside the spelling, a character that does not occur in the text, and the separator's
tokens are removed afterwards. The prompt is still tokenised as a whole: words and prefixes around the spelling do
not change.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""The index of the first character, and of the one after the last."""

_MARKS = "\ufdd0\ufdd1"
"""Markers before and after a problem while its prompt is rendered. Unicode reserves them as noncharacters."""

_SEPARATORS = "\ue000\uf8ff\ufdd2\u2060"
"""The candidate separators, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a text."""

    ids: list[int]
    span_of: Callable[[int], Span | None] | None
    """Maps the index of a token to its characters, or to None for one that the tokenizer adds; None if the
    tokenizer has no offsets."""


class Speller:
    """Detects a tokenizer's control tokens in texts, and tokenises texts that spell them as plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._adds = add_special_tokens
        named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        self._control = {number: str(token) for number, token in named}
        self._control |= {
            number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        unknown = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id, None}
        self._unknown: set[int] = unknown  # some tokenizers use the pad token for unknown characters

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text."""
        found = self._tokenizer(list(texts), add_special_tokens=self._adds, verbose=False)
        spans = [one.token_to_chars for one in found.encodings or ()] or [None] * len(texts)
        return [Encoded(ids, one) for ids, one in zip(found["input_ids"], spans, strict=True)]

    def spelled(self, text: str, read: Encoded, core: str) -> list[str]:
        """The control tokens that were produced inside the occurrences of the problem, `core`, in a text."""
        if read.span_of is None:
            return [one for one in self._control.values() if one in core]
        spans = list(self._control_spans(text, read))
        inside = occurrences(core, text) if spans else []
        return [text[slice(*span)].strip() for span in spans if _touches(span, inside)]

    def unknown(self, text: str, read: Encoded) -> list[str]:
        """The parts of a text that the tokenizer has no token for; an empty string for a part without offsets."""
        found: dict[str, None] = {}
        for place, one in enumerate(read.ids):
            if one in self._unknown:
                span = read.span_of(place) if read.span_of else None
                part = text[slice(*span)] if span else ""
                if not self._spells(part, one):
                    found[part] = None
        return list(found)

    def keep_as_text(self, core: str, rendered: Callable[[str, str], str]) -> tuple[str, Encoded] | None:
        """Tokenise a prompt without control tokens inside the problem `core`.

        Args:
            core: the text of the problem, stripped.
            rendered: renders the prompt with the given characters before and after the problem.

        Returns:
            The text of the prompt and its tokens; None if that is not possible.
        """
        text, inside = _without_marks(rendered(*_MARKS))
        if not inside or any(text[slice(*span)] != core for span in inside):
            return None
        for separator in _SEPARATORS:
            read = None if separator in text else self._separated(text, inside, separator)
            if read is not None:
                return text, read
        return None

    def _separated(self, text: str, inside: Sequence[Span], separator: str) -> Encoded | None:
        cuts: list[int] = []
        while True:
            given = separator.join(text[start:end] for start, end in pairwise([0, *cuts, len(text)]))
            (read,) = self.encode([given])
            shifted = [(start + bisect(cuts, start), end + bisect(cuts, end - 1)) for start, end in inside]
            found = [span for span in self._control_spans(given, read) if _touches(span, shifted)]
            if not found:
                return _without_separator(given, read, separator, shifted)
            middles = [_middle(given, span) for span in found]
            new = {place - given.count(separator, 0, place) for place in middles} - set(cuts)
            if not new:
                return None
            cuts = sorted({*cuts, *new})

    def _control_spans(self, text: str, read: Encoded) -> Iterator[Span]:
        assert read.span_of is not None, "the tokenizer has offsets"
        for place, one in enumerate(read.ids):
            if one in self._control:
                span = read.span_of(place)
                # A normaliser may map other characters to a spelling; a single character is unknown, or a byte.
                if span and (
                    self._spells(text[slice(*span)], one) or (one not in self._unknown and span[1] > span[0] + 1)
                ):
                    yield span

    def _spells(self, text: str, token: int) -> bool:
        return text.strip().casefold() == self._control.get(token, "").strip().casefold()


def occurrences(part: str, text: str) -> list[Span]:
    """The spans of all occurrences of a part in a text."""
    found = []
    start = text.find(part)
    while start >= 0:
        found.append((start, start + len(part)))
        start = text.find(part, start + 1)
    return found


def _touches(span: Span, inside: Sequence[Span]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in inside)


def _middle(text: str, span: Span) -> int:
    """An index inside a spelling: some tokens include the whitespace around them."""
    given = text[slice(*span)]
    spelling = given.strip()
    return span[0] + given.index(spelling) + max(1, len(spelling) // 2)


def _without_marks(text: str) -> tuple[str, list[Span]]:
    """A text without the markers, and the spans between them."""
    first, last = tuple(_MARKS)
    parts = text.split(first)
    plain, inside = parts[0], []
    for part in parts[1:]:
        core, mark, rest = part.partition(last)
        inside.append((len(plain), len(plain) + len(core)) if mark else (0, 0))
        plain += core + rest
    return plain, inside


def _without_separator(text: str, read: Encoded, separator: str, inside: Sequence[Span]) -> Encoded | None:
    """The tokens without the separators; None if one is part of a larger token, or a character was lost."""
    assert read.span_of is not None, "the tokenizer has offsets"
    spans = [read.span_of(place) for place in range(len(read.ids))]
    held = ["" if span is None else text[slice(*span)] for span in spans]
    if any(separator in one and one.strip(separator) for one in held):
        return None
    seen = {place for span in spans if span is not None for place in range(*span)}
    places = {place for span in inside for place in range(*span) if text[place] != separator}
    if any(not text[place].isspace() for place in places - seen):
        return None
    kept = [place for place, part in enumerate(held) if separator not in part]
    moved = [_without(text, separator, spans[place]) for place in kept]
    return Encoded([read.ids[place] for place in kept], moved.__getitem__)


def _without(text: str, separator: str, span: Span | None) -> Span | None:
    """The span in the text without separators."""
    return span and (span[0] - text.count(separator, 0, span[0]), span[1] - text.count(separator, 0, span[1]))
