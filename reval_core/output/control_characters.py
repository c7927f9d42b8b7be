"""Escaping of characters that a terminal interprets, or that hide parts of a text.

The texts of problems, responses, settings, paths and table columns are untrusted.
"""

from __future__ import annotations

import re

# Unicode's control, format and surrogate characters, and line separators. Not included are the joiners that
# Persian, Indic scripts and emoji need (U+200C, U+200D), and visible format characters, such as Arabic number
# signs.
_ACTING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and line feed
    "\xad\u180e\u200b\u2060-\u2064\ufeff"  # invisible: soft hyphen, zero-width characters, byte order mark
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # bidirectional marks, embeddings, overrides, isolates
    "\u2028\u2029"  # line and paragraph separators
    "\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # annotations, shorthand, music
    "\U000e0001\U000e0020-\U000e007f"  # tags, which can hide a whole text
    "\ud800-\udfff"  # surrogates, which cannot be encoded
)
_LINES = re.compile(f"[{_ACTING}]")
_LINE = re.compile(f"[{_ACTING}\t\n]")


def visible(text: str) -> str:
    r"""The text on one line, with such characters as Python escapes: `\x1b`, `\u202e`, `\n`."""
    return _LINE.sub(_escaped, text)


def visible_lines(text: str) -> str:
    """As `visible`, but keeps line feeds and tabs."""
    return _LINES.sub(_escaped, text)


def json_escaped(text: str) -> str:
    """JSON with these characters escaped. It parses to the same strings."""
    return _LINES.sub(_json_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _json_escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
