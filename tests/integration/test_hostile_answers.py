"""Hostile answers: each is judged within its deadline, no other claim is affected, and load changes no verdict.

`python -m tests.integration.test_hostile_answers` prints the table of docs/verification.md.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.answers.extraction import METHODS
from reval_core.verification import Claim, Judgement, Verifier

HOSTILE = {
    "tower of exponents": r"9^{9^{9^{9}}}",
    "taller tower": "2^{" * 40 + "2" + "}" * 40,
    "large power": "7^{123456789}",
    "negative tower": r"9^{-9^{9^{9}}}",
    "root of a tower": r"\sqrt[9]{9^{9^{9^9}}}",
    "modulus of a tower": r"9^{9^{9^9}} \mod 7",
    "factorial": "10000000!",
    "factorial of a factorial": "((100!)!)!",
    "binomial": r"\binom{10000000}{5000000}",
    "binomial of binomials": r"\binom{\binom{1000}{500}}{\binom{900}{450}}",
    "large sum": r"\sum_{k=1}^{1000000000} \frac{1}{k^2 + k!}",
    "infinite sum": r"\sum_{n=1}^{\infty} \frac{\sin(n^n)}{n!}",
    "large product": r"\prod_{k=1}^{100000000} (k^2 + 1)",
    "integral": r"\int_0^1 \frac{\sin(x^{x^x}) e^{\cos x}}{\ln(1 + x^7)} dx",
    "nested integrals": r"\int_0^1 " * 12 + r"e^{-x^2 y^3}" + " dx" * 12,
    "limit": r"\lim_{x \to 0} \frac{\sin(\tan x) - \tan(\sin x)}{\arcsin(\arctan x) - \arctan(\arcsin x)}",
    "derivative": r"\frac{d^{90}}{dx^{90}} e^{\sin(x^3)} \tan(x)",
    "expanded power": "(x + y + z + 1)^{900} - (x + y)^{899}",
    "polynomial of a high degree": "x^{100000} - 1 = 0",
    "equation of sines": r"\sin(x) + \cos(x^2) = e^{\tan x}",
    "nested fractions": r"\frac{1}{1+" * 150 + "1" + "}" * 150,
    "nested roots": r"\sqrt{2+" * 60 + "2" + "}" * 60,
    "nested brackets": "(" * 2000 + "1" + ")" * 2000,
    "open brackets": "(" * 2000,
    "open fractions": r"\frac{" * 600,
    "long sum": "+".join(f"x_{{{n}}}" for n in range(400)),
    "many digits": "9" * 2000,
    "many decimals": "0." + "1234567890" * 200,
    "python float": "1e99",
    "division by zero": r"\frac{1}{0}",
    "not a number": r"\infty - \infty",
    "matrix": r"\begin{pmatrix}"
    + r"\\".join("&".join("12345" for _ in range(18)) for _ in range(18))
    + r"\end{pmatrix}",
    "power of a matrix": r"\begin{pmatrix} 1 & x \\ y & 2 \end{pmatrix}^{1000}",
    "determinant": r"\begin{vmatrix}"
    + r"\\".join("&".join(f"x_{i}" for i in range(9)) for _ in range(9))
    + r"\end{vmatrix}",
    "union of intervals": r" \cup ".join(f"({n}, {n + 0.5})" for n in range(120)),
    "large set": ", ".join(str(n) for n in range(10_000)),
    "commas": "," * 100_000,
    "choices of signs": r"\pm 1 " * 30,
    "logarithms": r"\log_{" * 40 + "2" + "}{3}" * 40,
    "NUL bytes": "1\x00+\x001",
    "half characters": "\ud800\udfff\ud83d",
    "Arabic digits": "٣٤",
    "right to left": "\u202e5\u202c",
    "zero width": "\u200b5\u200d",
    "backslashes": "\\" * 3000,
    "undefined commands": r"\foo{\bar{\baz}}" * 100,
    "percent signs": "%" * 3000,
    "python": "__import__('os').system('sleep 9')",
    "dunder": "().__class__.__bases__[0].__subclasses__()",
}
"""Contents of a box, by kind."""

WHOLE = {
    "300 KB of empty boxes": r"\boxed{}" * 40_000,
    "300 KB of open boxes": r"\boxed{" * 43_000,
    "300 KB of small boxes": r"\boxed{1}" * 33_000,
    "300 KB of different boxes": "".join(rf"\boxed{{{n}}}" for n in range(22_000)),
    "300 KB of phrases": "the answer is " * 21_000,
    "300 KB of numbers": "1, " * 100_000,
    "300 KB of digits": "1" * 300_000,
    "300 KB of dollars": "$" * 300_000,
    "300 KB of brackets": "(1 + " * 60_000,
}
"""Whole responses."""

GOLD = r"\frac{x}{7} + 1"
OTHERS = [Claim(f"x+{n}", rf"\boxed{{{n}+x}}") for n in range(1, 11)]


def claims() -> dict[str, Claim]:
    boxes = {name: Claim(GOLD, rf"So it is \boxed{{{answer}}}") for name, answer in HOSTILE.items()}
    return boxes | {name: Claim(GOLD, response) for name, response in WHOLE.items()}


def judge(timeout_seconds: float) -> tuple[dict[str, Judgement], list[Judgement]]:
    """The judgements on the hostile claims, and on the claims queued after them."""
    hostile = claims()
    with Verifier(timeout_seconds=timeout_seconds, mode="lenient") as verifier:
        verifier.judge(OTHERS)
        found = verifier.judge([*hostile.values(), *OTHERS])
    return dict(zip(hostile, found, strict=False)), found[len(hostile) :]


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """This many busy processes, at the same priority as this one."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def test_hostile_answers_end_and_affect_no_other() -> None:
    hostile, others = judge(0.5)
    assert {one.verdict for one in hostile.values()} <= {"wrong", "timeout", "error", "unparsed"}
    assert [one.verdict for one in others] == ["correct"] * len(OTHERS)


def test_honest_answers_are_judged_under_a_load_of_twelve() -> None:
    with Verifier() as verifier:
        verifier.judge(OTHERS[:2])
        with busy_processes(12):
            found = verifier.judge(OTHERS)
    assert [one.verdict for one in found] == ["correct"] * len(OTHERS)


@pytest.mark.full
def test_verdicts_are_the_same_under_a_load_of_twelve() -> None:
    hostile, others = judge(2.0)
    with busy_processes(12):
        hostile_at_load, others_at_load = judge(2.0)
    assert {name: one.verdict for name, one in hostile_at_load.items()} == {
        name: one.verdict for name, one in hostile.items()
    }
    assert [one.verdict for one in others + others_at_load] == ["correct"] * 2 * len(OTHERS)


_PIECES = (
    r"\boxed{ } { } \frac \sqrt \sum_ ^ _ \int \binom ( ) [ ] , ; = < \le \pm \cup \text{ and or $ \( \) % ! 1 "
    r"2 99 x y \pi \infty \begin{pmatrix} \end{pmatrix} & \\ answer is: #### (B) . 0.5 1,000 e \sin \{ \} </think>"
)
PIECES = st.sampled_from(_PIECES.split())
RESPONSES = st.lists(PIECES | st.text(max_size=3), max_size=14).map(" ".join)


@pytest.fixture(scope="module")
def two() -> Iterator[list[Verifier]]:
    """Two independent verifiers."""
    found = [Verifier(workers=1, timeout_seconds=5.0, mode="lenient") for _ in range(2)]
    yield found
    for verifier in found:
        verifier.close()


@settings(max_examples=6, deadline=None, derandomize=True)
@given(pairs=st.lists(st.tuples(RESPONSES, RESPONSES), min_size=12, max_size=12))
def test_no_input_raises_or_is_judged_differently(two: list[Verifier], pairs: list[tuple[str, str]]) -> None:
    fuzzed = [Claim(gold, response) for gold, response in pairs]
    first, second = (verifier.judge(order) for verifier, order in zip(two, (fuzzed, fuzzed[::-1]), strict=True))
    told = [(one.verdict, one.extracted) for one in first]
    again = [(one.verdict, one.extracted) for one in reversed(second)]
    # A timeout means that the machine or the answer was slow: nothing about equality.
    in_time = [(a, b) for a, b in zip(told, again, strict=True) if "timeout" not in (a[0], b[0])]
    assert [a for a, _ in in_time] == [b for _, b in in_time]


@settings(max_examples=150, deadline=None)
@given(text=RESPONSES | st.text(max_size=200))
def test_extraction_never_raises_and_repeats(text: str) -> None:
    from reval_core.answers.extraction import extract, prepare_gold

    for methods in METHODS.values():
        assert extract(text, methods) == extract(text, methods)
    prepare_gold(text)


def main() -> None:
    started = time.monotonic()
    hostile, _ = judge(2.0)
    seconds = time.monotonic() - started
    rows = [
        (one.milliseconds, f"| {name} | `{one.verdict}` | {one.milliseconds:,.0f} |")
        for name, one in hostile.items()
    ]
    print("| answer | verdict | ms |\n| --- | --- | --- |")
    print("\n".join(row for _, row in sorted(rows, reverse=True)))
    print(f"\nAll {len(hostile)} together: {seconds:.0f} s")


if __name__ == "__main__":
    main()
