"""The pairs of the verification benchmark: real golds if available, otherwise synthetic ones."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq

from reval_core.answers.extraction import METHODS, prepare_gold
from reval_core.verification import Claim
from reval_core.verification.claims import Comparison, extracted_answer, verdict_at_sight

DATA = Path(__file__).parents[2] / "shared" / "data"
REAL = ("deepscaler_all", "math500", "olympiadbench", "minerva")
ANSWERS_TO_A_GOLD = 4


def claims(count: int) -> list[Claim]:
    """`count` distinct claims, four per gold, as in a round of training; nearly all need a worker.

    Of each four, one writes the gold differently and three give the answers of other problems.
    """
    rng = random.Random(0)
    golds = sorted({prepare_gold(gold) for gold in _golds()} - {""})
    rng.shuffle(golds)
    found: list[Claim] = []
    for place, gold in enumerate(golds * (1 + 3 * count // len(golds))):
        others = [golds[(place + rng.randrange(1, len(golds))) % len(golds)] for _ in range(ANSWERS_TO_A_GOLD - 1)]
        group = [Claim(gold, rf"So the answer is $\boxed{{{answer}}}$.") for answer in (rewritten(gold), *others)]
        if all(needs_worker(claim) for claim in group):
            found += group
        if len(found) >= count:
            break
    return found[:count]


def with_hostile(honest: list[Claim]) -> list[Claim]:
    """The same claims with a different hostile one in place of every hundredth."""
    mixed = list(honest)
    for number, place in enumerate(range(50, len(mixed), 100)):
        mixed[place] = Claim(mixed[place].gold, rf"\boxed{{{HOSTILE[number % len(HOSTILE)](number)}}}")
    return mixed


HOSTILE = [
    lambda n: rf"\sum_{{k=1}}^{{2}} \binom{{{10_000_000 + n}}}{{5000000}}",
    lambda n: rf"\sum_{{k=1}}^{{2}} {9 + n}^{{9^{{9^9}}}}",
    lambda n: rf"\sum_{{k=1}}^{{2}} ({1_000_000 + n}!)!",
    lambda n: rf"\sum_{{k=1}}^{{2}} {7_000_000 + n}!",
    lambda n: rf"\sum_{{k=1}}^{{{100_000_000 + n}}} \frac{{1}}{{k^2+k!}}",
    lambda n: rf"\int_0^{{{n + 1}}} \frac{{\sin(x^{{x^x}}) e^{{\cos x}}}}{{\ln(1+x^7)}} dx",
    lambda n: rf"(x+y+z+{n})^{{900}} - (x+y)^{{899}}",
    lambda n: rf"\prod_{{k=1}}^{{{30_000_000 + n}}} (k^2+1)",
    lambda n: r"\frac{1}{1+" * 60 + str(n) + "}" * 60,
    lambda n: ", ".join(rf"\sqrt{{{n + k}}}" for k in range(300)),
]
"""Answers that take seconds to hours; a number makes each one distinct."""


def rewritten(gold: str) -> str:
    """The gold rewritten: equal in value, not in spelling."""
    if r"\frac" in gold:
        return gold.replace(r"\frac", r"\dfrac")
    return rf"{{{gold}}} + 0" if gold.isalnum() else rf"\left. {gold} \right."


def needs_worker(claim: Claim) -> bool:
    answer = extracted_answer(claim, METHODS["strict"])
    return isinstance(verdict_at_sight(claim, answer, lenient=False), Comparison)


def _golds() -> list[str]:
    if DATA.exists():
        tables = [pq.read_table(DATA / f"{name}.parquet", columns=["answer"]) for name in REAL]
        return [gold for table in tables for gold in table.column("answer").to_pylist()]
    made = []
    for n in range(2, 900):
        made += [rf"\frac{{{n}}}{{{n + 7}}}", rf"{n}\sqrt{{{n % 7 + 2}}}", rf"\frac{{{n}\pi}}{{6}}"]
        made += [rf"\{{{n}, {n + 3}\}}", f"({n}, -{n + 1})", f"[{n}, {2 * n})"]
        made += [f"x^2 + {n}x - {n % 11}", rf"e^{{{n}}} - 1", f"{n}.5"]
    return made
