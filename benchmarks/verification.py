"""How many responses a second the verifier judges, what a second worker brings, and what hostile answers cost.

    python benchmarks/verification.py            writes benchmarks/baselines/verification.json; about six minutes
    python benchmarks/verification.py --quick    a tenth of the pairs, recorded nowhere

10,000 distinct pairs, four to a gold, of which every one needs a worker: where ../shared/data is, with the golds of
DeepScaleR, MATH500, OlympiadBench and Minerva, else with made ones. The figures:

    speedup_2_workers     pairs a second with two workers, by those with one
    speedup_to_plain      by those of a loop around math-verify in one process, over a quarter of the pairs
    hostile_loss          the share that is lost when one pair in a hundred is hostile, each in another way
    pairs_per_second      of plain, one worker, two workers, and two with hostile pairs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import Limits, misses, record, run

PAIRS = 10_000

LIMITS: Limits = {
    "speedup_2_workers": ("at least", 1.7),
    "hostile_loss": ("at most", 0.30),
}


def case(name: str, *numbers: int) -> dict[str, Any]:
    print(name, *numbers, flush=True)
    return run(sys.executable, "benchmarks/verification_cases.py", name, *map(str, numbers))


def measure(pairs: int) -> dict[str, Any]:
    """Every figure, with what else was seen."""
    plain = case("plain", pairs // 4)
    one, two = case("pool", 1, pairs), case("pool", 2, pairs)
    hostile = case("hostile", 2, pairs)
    speed = {
        name: found["pairs_per_second"]
        for name, found in {"plain": plain, "one": one, "two": two, "hostile": hostile}.items()
    }
    return {
        "speedup_2_workers": speed["two"] / speed["one"],
        "speedup_to_plain": speed["two"] / speed["plain"],
        "hostile_loss": 1 - speed["hostile"] / speed["two"],
        "pairs_per_second": speed,
        "pairs": pairs,
        "details": {"plain": plain, "one": one, "two": two, "hostile": hostile},
        "limits": LIMITS,
    }


def main() -> None:
    if "--quick" in sys.argv[1:]:
        found = measure(PAIRS // 10)
        print(found)
        raise SystemExit("\n".join(misses(found, LIMITS)) or 0)
    record("verification", measure(PAIRS), LIMITS, ("math-verify", "latex2sympy2_extended", "sympy"))


if __name__ == "__main__":
    main()
