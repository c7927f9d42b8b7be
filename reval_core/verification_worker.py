r"""One verification worker: a process that compares answers with math-verify and may be killed at any moment.

Started by `reval_core.verification` as a script, so that it imports neither the caller's ``__main__`` nor this
package. It talks over one inherited socket: it sends ``ready`` once math-verify is loaded and warm, then takes
one JSON item ``{"golds": [...], "answer": ...}`` after another and answers ``correct`` or ``wrong``. It ends
when the socket closes, which is also what happens when its parent dies by any means.
"""

import json
import logging
import math
import resource
import signal
import sys
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

# The first answer of a kind costs ten times what the next one does, which no deadline should pay for.
WARM_UP = [
    (r"\left(1, \frac{1}{6}\right]", r"(1, 0.5]"),
    ("x^2 + 2x + 1", "(x + 1)^2"),
    (r"\sqrt{2} \sin(x)", "e^{2t}"),
]


def main(descriptor: int, memory_mb: int, timeout_seconds: float) -> None:
    """Serve items from the socket `descriptor` until it closes, within `memory_mb` MiB of address space."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptor)
    logging.disable(logging.CRITICAL)  # math-verify logs whatever it cannot parse
    for gold, answer in WARM_UP:
        is_correct([gold], answer)
    connection.send_bytes(b"ready")
    while True:
        try:
            item = json.loads(connection.recv_bytes())
        except EOFError:
            return
        # The parent kills a worker that is late. Should the parent be gone, the kernel does it: no thread of
        # this process would get a turn while a big integer is computed.
        signal.setitimer(signal.ITIMER_REAL, timeout_seconds + 1.0)
        verdict = b"correct" if is_correct(item["golds"], item["answer"]) else b"wrong"
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        connection.send_bytes(verdict)


def is_correct(golds: list[str], answer: str) -> bool:
    """Whether `answer` means the same as any of `golds`, all prepared by `reval_core.answers`."""
    from math_verify import verify

    parsed_answer = parse_boxed(answer)
    for text in golds:
        gold, decimals = with_precision(parse_boxed(text))
        if verify(gold, parsed_answer, float_rounding=decimals, timeout_seconds=None):
            return True
    return False


# A prompt's responses come together, so its gold is parsed once for all of them.
@lru_cache(maxsize=64)
def parse_boxed(text: str) -> list[Any]:
    r"""What math-verify reads in ``\boxed{text}``, and nothing but that.

    Its default extraction falls back on the last number in the text, so that ``6 \vee 5`` would match 5.
    """
    from math_verify import LatexExtractionConfig, parse

    only_boxed = LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
    return parse(rf"\boxed{{{text}}}", extraction_config=[only_boxed], parsing_timeout=None)


def with_precision(gold: list[Any]) -> tuple[list[Any], int]:
    r"""A parsed gold, and to how many decimals floats are rounded before they are compared with it.

    math-verify's rule is 6 decimals and an absolute tolerance of 1e-15, under which any two small numbers are
    equal. Here at least four significant digits of the gold count. Of a gold that is not exact at most twelve do:
    floats carry fifteen, and ``870000000.0`` must equal ``8.7 \times 10^8``.
    """
    try:
        size = abs(float(gold[0]))
        exponent = math.floor(math.log10(size))
        exact = gold[0].is_rational
    except Exception:  # not a number, or 0: sympy raises as it pleases
        return gold, 6
    decimals = max(3 - exponent, 6 if exact else min(6, 11 - exponent))
    return ([gold[0].evalf()] if size < 1e-6 else gold), decimals


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
