"""Abandoned, garbage-collected or closed calls: nothing waits for them, and nothing of them remains."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reval_core.verification import Claim, Verifier, VerifierUnavailable, workers

# Computes for hours.
HANG = r"\sum_{k=1}^{2} \binom{1000000000}{500000000}"

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")


def sums(first: int, count: int) -> list[Claim]:
    return [Claim(f"x+{n}", rf"\boxed{{{n}+x}}") for n in range(first, first + count)]


def hang() -> Claim:
    return Claim("x+1", rf"\boxed{{{HANG}}}")


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, up to the time limit of a test."""
    while not condition():
        time.sleep(0.02)


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    """One worker whose tasks have no deadline."""
    with Verifier(workers=1, timeout_seconds=10_000.0) as found:
        found.judge(sums(900, 1))
        yield found


def worker_of(verifier: Verifier) -> int:
    (worker,) = verifier._pool._workers
    return worker._process


def test_a_consumer_that_raises_blocks_nothing(verifier: Verifier) -> None:
    judgements = verifier.judge_each([*sums(0, 2), hang()])
    with pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError(next(judgements).verdict)
    # The generator is suspended and never resumes.
    assert [one.verdict for one in verifier.judge(sums(10, 3))] == ["correct"] * 3
    verifier.close()
    with pytest.raises(VerifierUnavailable, match="closed"):
        next(judgements)
    assert [one.verdict for one in verifier.judge(sums(20, 2))] == ["correct"] * 2


def test_a_suspended_call_keeps_no_other_thread_waiting(verifier: Verifier) -> None:
    suspended = verifier.judge_each(sums(0, 5))
    next(suspended)
    found: list[str] = []
    other = in_thread(lambda: found.extend(one.verdict for one in verifier.judge(sums(10, 5))))
    other.join()
    assert found == ["correct"] * 5
    assert [one.verdict for one in suspended] == ["correct"] * 4


def test_nothing_of_an_abandoned_call_reaches_the_next(verifier: Verifier) -> None:
    before = worker_of(verifier)
    abandoned = verifier.judge_each([*sums(0, 1), hang(), *sums(1, 5)])
    next(abandoned)
    abandoned.close()
    assert [one.verdict for one in verifier.judge([Claim("x+1", r"\boxed{x+2}")])] == ["wrong"]
    assert verifier._pool._calls == []
    verifier.close()
    assert not Path(f"/proc/{before}").exists()


def test_a_forgotten_call_ends_when_it_is_collected(verifier: Verifier) -> None:
    forgotten = verifier.judge_each([*sums(0, 1), hang()])
    next(forgotten)
    cycle: list[object] = [forgotten]
    cycle.append(cycle)
    del forgotten, cycle
    gc.collect()
    assert verifier._pool._calls == []
    assert [one.verdict for one in verifier.judge(sums(1, 2))] == ["correct"] * 2


def test_closing_ends_a_call_in_another_thread(verifier: Verifier) -> None:
    raised: list[BaseException] = []

    def judge() -> None:
        try:
            verifier.judge([hang()])
        except VerifierUnavailable as error:
            raised.append(error)

    worker = worker_of(verifier)
    before = workers._seconds_computed(worker)
    thread = in_thread(judge)
    wait_until(lambda: workers._seconds_computed(worker) > before + 0.1)
    verifier.close()
    thread.join()
    assert "closed" in str(raised[0])
    assert not Path(f"/proc/{worker}").exists()


def test_an_interrupt_in_one_thread_does_not_affect_a_call_in_another() -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    found: list[str] = []
    with Verifier(workers=2, timeout_seconds=10_000.0) as verifier:
        verifier.judge(sums(900, 1))
        others = sums(0, 80)
        thread = in_thread(lambda: found.extend(one.verdict for one in verifier.judge(others)))
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for delay in (0.05, 0.1, 0.2):
                signal.setitimer(signal.ITIMER_REAL, delay)
                with pytest.raises(Interrupt):
                    verifier.judge([hang()])
        finally:
            signal.signal(signal.SIGALRM, before)
        thread.join()
    assert found == ["correct"] * 80


def test_a_suspended_call_stays_with_the_parent_after_a_fork(verifier: Verifier) -> None:
    suspended = verifier.judge_each(sums(0, 3))
    next(suspended)
    child = os.fork()
    if child == 0:
        try:
            next(suspended)
        except VerifierUnavailable:
            os._exit(0 if [one.verdict for one in verifier.judge(sums(5, 2))] == ["correct"] * 2 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [one.verdict for one in suspended] == ["correct"] * 2


def test_a_worker_without_cpu_time_is_not_late() -> None:
    """Stopped for longer than its deadline, as on an overloaded machine."""
    found: list[str] = []
    with Verifier(workers=1, timeout_seconds=0.2) as verifier:
        verifier.judge(sums(900, 3))
        worker = worker_of(verifier)
        os.kill(worker, signal.SIGSTOP)
        thread = in_thread(lambda: found.extend(one.verdict for one in verifier.judge(sums(0, 1))))
        wait_until(lambda: (verifier._pool._workers or [None])[0].milliseconds > 600)  # type: ignore[union-attr]
        os.kill(worker, signal.SIGCONT)
        thread.join()
    assert found == ["correct"]


def test_a_worker_without_progress_is_late_by_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WALL_FACTOR", 3.0)
    with Verifier(workers=1, timeout_seconds=0.2) as verifier:
        verifier.judge(sums(900, 3))
        os.kill(worker_of(verifier), signal.SIGSTOP)
        assert [one.verdict for one in verifier.judge(sums(0, 2))] == ["timeout", "correct"]


def test_a_stopped_fork_server_does_not_block_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_ANSWER_SECONDS", 20.0)
    with Verifier(workers=1, timeout_seconds=10_000.0) as verifier:
        verifier.judge(sums(900, 1))
        worker = worker_of(verifier)
        assert verifier._pool._fork_server is not None
        os.kill(verifier._pool._fork_server._process.pid, signal.SIGSTOP)
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
