"""Characters that act on a terminal or hide what a text says, written as escapes.

Texts of problems, responses, settings, paths and table columns may come from anybody.
"""

from __future__ import annotations

import re

# Unicode's controls, formats, surrogates and separators of lines. Left out are the joiners that Persian, Indic
# scripts and emoji are spelled with (U+200C, U+200D), and formats that can be seen, such as Arabic number signs.
_ACTING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but for tab and line feed
    "\xad\u180e\u200b\u2060-\u2064\ufeff"  # nothing to see: soft hyphen, zero widths, byte order mark
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # bidirectional marks, embeddings, overrides, isolates
    "\u2028\u2029"  # separators of lines
    "\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # annotations, shorthand, music
    "\U000e0001\U000e0020-\U000e007f"  # tags, in which a whole text can hide
    "\ud800-\udfff"  # halves of characters, which no encoding takes
)
_LINES = re.compile(f"[{_ACTING}]")
_LINE = re.compile(f"[{_ACTING}\t\n]")


def visible(text: str) -> str:
    r"""The text on one line: every such character stands as `\x1b`, `\u202e`, `\n`, as Python writes it."""
    return _LINE.sub(_escaped, text)


def visible_lines(text: str) -> str:
    """As `visible`, with line feeds and tabs left as they are."""
    return _LINES.sub(_escaped, text)


def json_escaped(text: str) -> str:
    """JSON in which these characters are escapes. A parser reads the same strings from it."""
    return _LINES.sub(_json_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _json_escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
