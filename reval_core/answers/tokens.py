r"""Tokenizes answers such as ``\left(\dfrac12\right)\,\text{cm}`` and drops their layout.

Takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["number", "word", "letters", "command", "sign"]
"""`word`: text in ``\\text{}`` or in another script; `letters`: plain letters, a word or a product of variables."""


class Token(NamedTuple):
    """A token, and whether white space precedes it."""

    kind: Kind
    text: str
    spaced: bool = False


def words_of(text: str) -> frozenset[str]:
    """The set of words in a text."""
    return frozenset(text.split())


_LETTER = r"[^\W\d_]"
_REPEATING = (
    r"\.[0-9]{0,60}(?:\s?\\(?:overline|bar|dot)\s?(?:\{\s?[0-9]{1,60}\s?\}|[0-9])[0-9]{0,60}"
    r"(?:\\dot\s?(?:\{[0-9]\}|[0-9]))?|\([0-9]{1,60}\))"
)
_WORD = rf"{_LETTER}(?:{_LETTER}|')*"
_TEXT = r"\\(?:text(?:normal|bf|it|rm|sf|tt|sc|up|md)?|[mh]box|mathrm|operatorname\*?)\s?\{(?P<text>[^{}]*)\}"
_TOKEN = re.compile(
    rf"(?P<space>(?:\s|\\[,;:!> ]|~|\\(?:q?quad|enspace|thinspace|hfill|displaystyle|textstyle|limits|nolimits"
    r"|left|right|[bB]igg?[lrm]?|middle|mathstrut|break|newline|centering|[lL]arge|LARGE|[hH]uge|small|tiny|normalsize|bf|it|rm|mathord)(?![A-Za-z])"
    r"|\\(?:hspace|vspace|h?phantom|vphantom|label|tag|color)\*?\s?\{[^{}]*\}|\\textcolor\s?\{[^{}]*\}"
    r"|\\(?:mathbf|mathit|mathsf|mathtt|mathcal|boldsymbol|bm|pmb|underline|uline|boxed|fbox|ensuremath|emph|mathord"
    r"|left\.|right\.)(?![A-Za-z]))+)"
    rf"|{_TEXT}"
    rf"|(?P<number>[0-9]*{_REPEATING}|[0-9]+(?:\.[0-9]+(?:\.\.\.|\s?\\l?dots(?![a-z]))?|\.(?![0-9.]))?|\.[0-9]+)"
    r"|(?P<letters>[A-Za-z]+)"
    rf"|(?P<word>{_WORD})"
    r"|(?P<command>\\[A-Za-z]+|\\[^A-Za-z])"
    r"|(?P<dots>\.\.\.+)"
    r"|(?P<sign><=|>=|!=|\\|.)",
    re.DOTALL,
)
_IN_TEXT = re.compile(
    rf"(?P<space>[\s~]+|\\[,;:! ])|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<word>{_WORD})|(?P<sign>\\?.)",
    re.DOTALL,
)
_SAME = (
    r"\frac \dfrac \tfrac \cfrac; \binom \dbinom \tbinom; \le \leq \leqslant <=; \ge \geq \geqslant >=; \ne "
    r"\neq !=; < \lt; > \gt; \{ \lbrace; \} \rbrace; [ \lbrack; ] \rbrack; | \vert \lvert \rvert \mid; : "
    r"\colon; * \ast; / \div; \circ \degree \textdegree; \emptyset \varnothing; \infty \infin; \ldots \dots "
    r"\cdots; \to \rarr \rightarrow; \setminus \backslash \textbackslash; % \%; $ \$; & \&; # \#; _ \_; "
    r"\Leftrightarrow \iff; \Rightarrow \implies; \wedge \land; \vee \lor; € \euro; £ \pounds; ¥ \yen; \permil "
    r"\permille; ' \prime; i \imath; \cdot \cdotp; R \R"
)
"""Groups of synonyms, each led by its canonical form."""
_SYNONYMS = {other: first for first, *others in map(str.split, _SAME.split("; ")) for other in others}
_ALIASES = {
    "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln",
    "log", "exp", "pi", "infinity", "infty", "theta", "alpha", "beta", "gcd", "lcm", "max", "min",
}  # fmt: skip
_UNITS_TOO = {"pi", "min", "sec", "max"}
_WORDS_AS_COMMANDS = {"infinity": r"\infty", "Infinity": r"\infty", "inf": r"\infty"}
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")
_GROUPED = re.compile(r"(?<=[0-9])(?:\s?\{,\s?\}|,\\!)\s?(?=[0-9]{3}(?![0-9]))")
_BRACED_THOUSANDS = re.compile(r"(?<=[^\\]\{)-?[1-9][0-9]{0,2}(?:,[0-9]{3}){1,9}(?=\})")


def tokens(text: str) -> list[Token]:
    """Tokenize a text."""
    found: list[Token] = []
    spaced = False
    text = _BRACED_THOUSANDS.sub(lambda number: number[0].replace(",", ""), _GROUPED.sub("", text))
    text = text.rstrip("\\ \n")
    if r"\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    for piece in _TOKEN.finditer(text):
        kind = str(piece.lastgroup)
        if kind == "space":
            spaced = True
            continue
        if kind == "text":
            found += _of_text(piece["text"])
            spaced = True
            continue
        found.append(_token(kind, piece[0], spaced))
        spaced = False
    return found


def _token(kind: str, text: str, spaced: bool) -> Token:
    if kind == "dots":
        return Token("command", r"\ldots", spaced)
    if kind == "letters":
        if text in _WORDS_AS_COMMANDS:
            return Token("command", _WORDS_AS_COMMANDS[text], spaced)
        return Token("command", "\\" + text, spaced) if text in _ALIASES else Token("letters", text, spaced)
    if kind == "command":
        text = _SYNONYMS.get(text, text)
        return Token("command" if text.startswith("\\") and text[1:].isalpha() else "sign", text, spaced)
    if kind == "sign":
        text = _SYNONYMS.get(text, text)
        return Token("command" if text.startswith("\\") and len(text) > 1 else "sign", text, spaced)
    return Token("number" if kind == "number" else "word", text, spaced)


def _of_text(text: str) -> list[Token]:
    found: list[Token] = []
    spaced = True
    for piece in _IN_TEXT.finditer(text):
        kind = str(piece.lastgroup)
        if kind == "space":
            spaced = True
            continue
        if kind == "word" and piece[0] in _WORDS_AS_COMMANDS:
            found.append(Token("command", r"\infty", spaced))
        elif kind == "word" and piece[0] in _ALIASES - _UNITS_TOO:
            found.append(Token("command", "\\" + piece[0], spaced))
        elif kind != "sign" or piece[0] != "$":
            found.append(Token(kind, _SYNONYMS.get(piece[0], piece[0]), spaced))  # type: ignore[arg-type]
        spaced = False
    return found
