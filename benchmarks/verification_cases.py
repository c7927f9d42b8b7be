"""One case of the verification benchmark, in its own process; prints JSON as its last line.

plain COUNT                    math-verify called in a loop, without a pool or a deadline
pool WORKERS FIRST COUNT       the verifier with this many workers, on COUNT pairs from FIRST on
hostile WORKERS FIRST COUNT    the same with every hundredth claim hostile
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import verification_pairs
from reval_core.verification import Claim, Verifier

WARM_UP = 2


def plain(count: int) -> dict[str, Any]:
    """The naive approach: parse the gold, parse the response, compare."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    claims = verification_pairs.claims(count)
    started, before = time.perf_counter(), _processor_seconds()
    for claim in claims:
        gold = parse(rf"\boxed{{{claim.gold}}}", parsing_timeout=None)
        verify(gold, parse(claim.response, parsing_timeout=None), timeout_seconds=None)
    seconds = time.perf_counter() - started
    return {
        "pairs_per_second": len(claims) / seconds,
        "seconds": seconds,
        "cpu_seconds": _processor_seconds() - before,
    }


def pool(workers: int, claims: list[Claim]) -> dict[str, Any]:
    """All claims in one call, with workers already started."""
    with Verifier(workers=workers) as verifier:
        verifier.judge([Claim(f"x+{n}", rf"\boxed{{{n}+x}}") for n in range(WARM_UP * workers)])
        started = time.perf_counter()
        judgements = verifier.judge(claims)
        seconds = time.perf_counter() - started
    return {
        "pairs_per_second": len(claims) / seconds,
        "seconds": seconds,
        "cpu_seconds": _processor_seconds(),
        "verdicts": dict(Counter(judgement.verdict for judgement in judgements)),
        "honest_timeouts": sum(
            judgement.verdict == "timeout" and place % 100 != 50 for place, judgement in enumerate(judgements)
        ),
    }


def _processor_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    name, *numbers = sys.argv[1:]
    if name == "plain":
        found = plain(int(numbers[0]))
    else:
        workers, first, count = map(int, numbers)
        claims = verification_pairs.claims(first + count)[first:]
        found = pool(workers, verification_pairs.with_hostile(claims) if name == "hostile" else claims)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
