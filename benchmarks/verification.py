"""The verifier's throughput, the speedup of a second worker, and the cost of hostile answers.

    python benchmarks/verification.py            writes benchmarks/baselines/verification.json; about nine minutes
    python benchmarks/verification.py --quick    a tenth of the pairs, not recorded

10,000 distinct pairs, four per gold, each of which needs a worker: with the golds of DeepScaleR, MATH500,
OlympiadBench and Minerva if ../shared/data exists, otherwise synthetic ones. The speed of a shared machine varies
over time, so each part of the pairs is judged in every way before the next one. The metrics:

    speedup_2_workers     pairs per second with two workers, relative to one
    speedup_to_plain      relative to a loop around math-verify in one process, on a quarter of the pairs
    speedup_2_processes   two independent such loops, relative to one: the machine's own limit
    hostile_loss          the throughput lost when one pair in a hundred is hostile, each in another way
    pairs_per_second      plain, one worker, two workers, and two with hostile pairs
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import Limits, misses, record, run

PAIRS = 10_000
PARTS = 5
WAYS = {"one": ("pool", 1), "two": ("pool", 2), "hostile": ("hostile", 2)}

LIMITS: Limits = {
    "speedup_2_workers": ("at least", 1.7),
    "hostile_loss": ("at most", 0.30),
}


def case(name: str, *numbers: int) -> dict[str, Any]:
    print(name, *numbers, flush=True)
    return run(sys.executable, "benchmarks/verification_cases.py", name, *map(str, numbers))


def measure(pairs: int) -> dict[str, Any]:
    """Every metric, with additional observations."""
    size = pairs // PARTS
    plain = case("plain", pairs // 4)
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda _: case("plain", pairs // 4), range(2)))
    parts: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for first in range(0, pairs, size):
        for way, (name, workers) in WAYS.items():
            parts[way].append(case(name, workers, first, size))
    speed = {"plain": plain["pairs_per_second"]} | {
        way: pairs / sum(part["seconds"] for part in found) for way, found in parts.items()
    }
    return {
        "speedup_2_workers": speed["two"] / speed["one"],
        "speedup_2_processes": sum(found["pairs_per_second"] for found in both) / speed["plain"],
        "speedup_to_plain": speed["two"] / speed["plain"],
        "hostile_loss": 1 - speed["hostile"] / speed["two"],
        "pairs_per_second": speed,
        "pairs": pairs,
        "details": {"plain": plain, "two_processes": both, **parts},
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
