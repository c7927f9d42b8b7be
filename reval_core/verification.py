r"""Judge responses: find the answer, then compare it with the gold in processes that can be killed.

Answers come from a policy in training, and comparing them is computer algebra: ``\binom{10000000}{5000000}``
runs for minutes and holds the interpreter lock, so that no thread or signal handler can stop it. Every comparison
therefore happens in a worker process with an address-space limit and a deadline that this process keeps. A worker
that is late is killed and replaced, and costs one verdict.
"""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, Self, cast

from reval_core.answers import Method, alternatives, as_integer, extract, prepare_gold
from reval_core.errors import RevalError

Verdict = Literal["correct", "wrong", "unparsed", "truncated", "timeout", "error", "given"]
"""What is known of a response. `given`: it was not judged, its reward came with it."""

# For cache keys: the rules here and in `answers` (raise the number with them), and what decides equality.
VERIFIER_VERSION = " ".join(
    ["1", *(f"{name}-{version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy"))]
)

_WORKER = Path(__file__).with_name("verification_worker.py")
_START_SECONDS = 60.0
_STARTS_BEFORE_GIVING_UP = 3
# sympy's caches grow by about 5 KB an item; a worker is renewed before they matter.
_ITEMS_PER_WORKER = 5000


@dataclass(frozen=True)
class Claim:
    """A response and the gold answer that it claims to reach.

    `truncated` says that generation stopped at the length limit. `gold_mode` says what a gold that lists several
    answers asks for: ``all`` of them as a set, or ``any`` one of them (all are accepted too).
    """

    gold: str
    response: str
    truncated: bool = False
    gold_mode: Literal["all", "any", "choice"] = "all"


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim, what was extracted from the response, and the wall time of the comparison.

    `milliseconds` is 0.0 where no worker was needed. Equal comparisons within one call are made once and share it.
    """

    verdict: Verdict
    extracted: str | None
    milliseconds: float


class VerifierUnavailable(RevalError):
    """Worker processes do not start. Why, they say on standard error."""


@dataclass(frozen=True)
class _Item:
    """One comparison for a worker: is the answer any of the golds?"""

    golds: tuple[str, ...]
    answer: str


class Verifier:
    """Judges claims with a pool of worker processes, started at the first claim that needs one and kept warm.

    Safe to use from any thread; calls from several threads take turns at the pool. Close it, or use it as a
    context manager, to end the workers; they end by themselves when this process dies, however it dies.

    Args:
        workers: how many processes at most.
        timeout_seconds: wall time for one comparison, from the moment an idle worker is handed it.
        memory_mb: address space of a worker in MiB, its own 60 included.
        methods: how answers are extracted, in order (see `reval_core.answers.extract`).
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_seconds: float = 2.0,
        memory_mb: int = 1024,
        methods: tuple[Method, ...] = ("boxed", "phrase", "hashes"),
    ) -> None:
        self._workers = workers
        self._timeout_seconds = timeout_seconds
        self._memory_mb = memory_mb
        self._methods = methods
        self._crew: list[_Worker] = []
        self._failed_starts = 0
        self._lock = threading.Lock()

    def judge(self, claims: Sequence[Claim]) -> list[Judgement]:
        """One judgement a claim, in order.

        A claim whose comparison runs late or kills its worker is judged ``timeout`` or ``error``; the other
        claims are not touched by it.

        Raises:
            VerifierUnavailable: workers do not start.
        """
        extracted = [extract(claim.response, self._methods) for claim in claims]
        items = [
            _Item(_accepted_golds(claim), answer or "") for claim, answer in zip(claims, extracted, strict=True)
        ]
        settled = [_verdict_without_worker(claim, item) for claim, item in zip(claims, items, strict=True)]
        # A policy repeats itself: one hostile answer given 500 times must cost one deadline, not 500.
        unsettled = dict.fromkeys(item for item, verdict in zip(items, settled, strict=True) if verdict is None)
        compared = self._compare(list(unsettled)) if unsettled else {}
        judgements = []
        for item, answer, verdict in zip(items, extracted, settled, strict=True):
            final, milliseconds = (verdict, 0.0) if verdict else compared[item]
            judgements.append(Judgement(final, answer, milliseconds))
        return judgements

    def close(self) -> None:
        """End the workers and wait until they are gone. A later `judge` would start new ones."""
        with self._lock:
            for worker in list(self._crew):
                self._dismiss(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _compare(self, items: Sequence[_Item]) -> dict[_Item, tuple[Verdict, float]]:
        results: dict[_Item, tuple[Verdict, float]] = {}
        queue = deque(items)
        with self._lock:
            try:
                while len(results) < len(items):
                    while len(self._crew) < min(self._workers, len(items) - len(results)):
                        self._crew.append(_Worker(self._memory_mb, self._timeout_seconds))
                    self._hand_out(queue)
                    self._collect(results)
            except BaseException:
                # An interrupted call must not leave answers behind for the next one.
                for worker in list(self._crew):
                    self._dismiss(worker)
                raise
        return results

    def _hand_out(self, queue: deque[_Item]) -> None:
        for worker in list(self._crew):
            if queue and worker.ready and worker.item is None:
                try:
                    worker.take(queue[0])
                except OSError:  # it died idle: no item is to blame
                    self._dismiss(worker)
                else:
                    queue.popleft()

    def _collect(self, results: dict[_Item, tuple[Verdict, float]]) -> None:
        """Wait until a worker reports, dies or runs late, and note what became of its item."""
        if not self._crew:
            return
        soonest = min(worker.deadline for worker in self._crew)
        reporting = wait([w.connection for w in self._crew], max(0.0, soonest - time.monotonic()))
        for worker in list(self._crew):
            if worker.connection in reporting:
                report = worker.report()
            elif time.monotonic() >= worker.deadline and not worker.connection.poll():
                report = "timeout"
            else:
                continue
            lost = report in ("error", "timeout")
            if worker.item is not None:
                results[worker.item] = (cast(Verdict, report), worker.milliseconds)
            elif not worker.ready:
                self._note_start(failed=lost)
            if lost or worker.judged == _ITEMS_PER_WORKER:
                self._dismiss(worker)
            else:
                worker.rest()

    def _note_start(self, failed: bool) -> None:
        self._failed_starts = self._failed_starts + 1 if failed else 0
        if self._failed_starts == _STARTS_BEFORE_GIVING_UP:
            self._failed_starts = 0
            raise VerifierUnavailable(
                f"{_STARTS_BEFORE_GIVING_UP} verification workers in a row died or were not ready within "
                f"{_START_SECONDS:.0f} s; check that math-verify can be imported, or raise memory_mb"
            )

    def _dismiss(self, worker: "_Worker") -> None:
        self._crew.remove(worker)
        worker.end()


class _Worker:
    """One worker process: starting until it first reports, then idle or busy with an item."""

    def __init__(self, memory_mb: int, timeout_seconds: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P keeps the script's folder, whose modules have common names, off the import path.
                [sys.executable, "-P", _WORKER, str(theirs.fileno()), str(memory_mb), str(timeout_seconds)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # sympy's order of terms depends on hashes; verdicts should not differ from one worker to the next.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        self.connection = Connection(ours.detach())
        self.ready = False
        self.item: _Item | None = None
        self.judged = 0
        self._timeout_seconds = timeout_seconds
        self._since = time.monotonic()

    @property
    def deadline(self) -> float:
        """When it is late, in monotonic seconds; an idle worker never is."""
        if not self.ready:
            return self._since + _START_SECONDS
        return math.inf if self.item is None else self._since + self._timeout_seconds

    @property
    def milliseconds(self) -> float:
        """Since it took its item."""
        return 1000.0 * (time.monotonic() - self._since)

    def take(self, item: _Item) -> None:
        """Hand it an item. Raises OSError where it has died."""
        self.connection.send_bytes(json.dumps(asdict(item)).encode())
        self.item = item
        self._since = time.monotonic()

    def report(self) -> str:
        """What it has sent: ``ready`` or a verdict; ``error`` where it has died, ``timeout`` by its own alarm."""
        try:
            return self.connection.recv_bytes().decode()
        except (EOFError, OSError):
            return "timeout" if time.monotonic() >= self.deadline else "error"

    def rest(self) -> None:
        """It has reported and waits for an item."""
        self.judged += self.item is not None
        self.ready = True
        self.item = None

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self.connection.close()


def _accepted_golds(claim: Claim) -> tuple[str, ...]:
    """What a right answer may equal: the whole gold first."""
    gold = prepare_gold(claim.gold)
    members = alternatives(gold) if claim.gold_mode == "any" else []
    return tuple(dict.fromkeys([gold, *members]))


def _verdict_without_worker(claim: Claim, item: _Item) -> Verdict | None:
    if claim.truncated:
        return "truncated"
    if not item.answer:
        return "unparsed"
    if not item.golds[0]:
        return "error"  # without a gold nobody can be right, and that is not the response's fault
    if item.answer in item.golds:
        return "correct"
    integer = as_integer(item.answer)
    if integer is None:
        return None
    gold_integers = [as_integer(gold) for gold in item.golds]
    if integer in gold_integers:
        return "correct"
    return None if None in gold_integers else "wrong"
