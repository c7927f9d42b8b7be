"""The verifier with its real worker processes and the real math-verify."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.answers import as_integer
from reval_core.answers.extraction import METHODS, prepare_gold
from reval_core.verification import VERIFIER_VERSION, Claim, Judgement, Verdict, Verifier, VerifierUnavailable
from reval_core.verification.claims import extracted_answer, verdict_at_sight
from reval_core.verification.comparison import is_correct

ROOT = Path(__file__).parents[2]

# Computes for minutes inside one C call of sympy. The grammar has no sums, so math-verify is called.
HANG = r"\sum_{k=1}^{2} \binom{10000000}{5000000}"

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")


def boxed(gold: str, answer: str, gold_mode: Literal["all", "any"] = "all") -> Claim:
    return Claim(gold, rf"So the answer is $\boxed{{{answer}}}$.", gold_mode=gold_mode)


def verdicts(judgements: list[Judgement]) -> list[Verdict]:
    return [judgement.verdict for judgement in judgements]


def children_of(parent: int) -> set[int]:
    """Child processes, zombies included."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            ppid = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if ppid == parent:
            found.add(int(status.parent.name))
    return found


def descendants_of(ancestor: int) -> set[int]:
    """Child processes and theirs, zombies included: workers are children of the fork server."""
    children = children_of(ancestor)
    return children.union(*map(descendants_of, children))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def computed(pid: int) -> float:
    """The CPU time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, up to the time limit of a test."""
    while not condition():
        time.sleep(0.02)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A warm verifier for tests that do not harm it; with a long timeout, since test machines are busy."""
    with Verifier(timeout_seconds=20.0) as shared:
        shared.judge([boxed("x", "y"), boxed("x", "z")])
        yield shared


@pytest.fixture
def new_workers(verifier: Verifier) -> Callable[[], set[int]]:
    """The worker processes started since the test began, zombies included."""
    bystanders = descendants_of(os.getpid())
    return lambda: descendants_of(os.getpid()) - children_of(os.getpid()) - bystanders


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (boxed("5", "5"), "correct"),
        (boxed("025", "25"), "correct"),
        (boxed("5", "6"), "wrong"),
        (boxed(r"$\frac{1}{2}$", "0.5"), "correct"),
        (boxed("x+1", "1 + x"), "correct"),
        (boxed("5", "x = 5"), "correct"),
        (boxed(r"81\sqrt{3}", "81"), "wrong"),
        (Claim("5", r"\boxed{5}", truncated=True), "truncated"),
        (Claim("5", "I do not know"), "unparsed"),
        (Claim("5", r"\boxed{}"), "unparsed"),
        (Claim("", r"\boxed{5}"), "error"),
        (Claim("18", "3 * 6 = 18\n#### 18"), "correct"),
        # Adjacent boxes are a list, and a list does not match a single gold.
        (Claim("5", r"\boxed{5} or \boxed{6}"), "wrong"),
        (boxed("5", "5, 6"), "wrong"),
        (boxed("5", r"5 \text{ or } 6"), "wrong"),
        (boxed("5", r"6 \vee 5"), "wrong"),
        (boxed("5", r"6 \to 5"), "wrong"),
        # Lists mean opposite things in different problem sets.
        (boxed("$69$,$84$", "84, 69"), "correct"),
        (boxed("$69$,$84$", "69"), "wrong"),
        (boxed("$69$,$84$", "69", "any"), "correct"),
        (boxed("$69$,$84$", "70", "any"), "wrong"),
        (boxed("a_{1},a_{2}", "a_2", "any"), "correct"),
        (boxed("a_{1},a_{2}", "a_2, a_1", "any"), "correct"),
        (boxed("a_{1},a_{2}", "a_3", "any"), "wrong"),
        # Python floats, large and small.
        (boxed("8.7e8", r"8.7 \times 10^{8}"), "correct"),
        (boxed("8.7e8", "870000000"), "correct"),
        (boxed("2.88e-19", r"2.88 \times 10^{-19} \text{ J}"), "correct"),
        (boxed("2.88e-19", r"2.89 \times 10^{-19} \text{ J}"), "wrong"),
        (boxed(r"6.626 \times 10^{-34}", r"1.055 \times 10^{-34}"), "wrong"),
        (boxed("10^{-10}", "0.0000001"), "wrong"),
    ],
    ids=lambda value: f"{value.gold} | {value.response[-24:]}" if isinstance(value, Claim) else value,
)
def test_verdicts(verifier: Verifier, claim: Claim, verdict: Verdict) -> None:
    assert verifier.judge([claim])[0].verdict == verdict


def test_judgements_keep_the_order_and_have_the_extracted_answer(verifier: Verifier) -> None:
    claims = [
        boxed("x+1", "1+x"),
        boxed("7", "7"),
        Claim("3", "hm"),
        boxed("y", "x"),
        Claim("3", r"\boxed{4}", True),
    ]
    judgements = verifier.judge(claims)
    assert verdicts(judgements) == ["correct", "correct", "unparsed", "wrong", "truncated"]
    assert [judgement.extracted for judgement in judgements] == ["1+x", "7", None, "x", "4"]
    assert [judgement.milliseconds > 0 for judgement in judgements] == [True, False, False, True, False]
    assert verifier.judge([]) == []


def test_the_version_names_what_decides_equality() -> None:
    assert "math-verify-0.9" in VERIFIER_VERSION
    assert "sympy-" in VERIFIER_VERSION


def test_importing_the_verifier_is_cheap() -> None:
    code = "import sys, reval_core.verification; print({'torch', 'sympy', 'math_verify'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_cheap_claims_start_no_worker(new_workers: Callable[[], set[int]]) -> None:
    with Verifier() as verifier:
        verifier.judge([boxed("5", "5"), boxed("5", "1,657"), Claim("5", "hm"), boxed("x", "x")])
        assert not new_workers()


def test_a_hang_takes_one_deadline_and_affects_no_other_claim(new_workers: Callable[[], set[int]]) -> None:
    hostile = [boxed("x+1", answer) for answer in (HANG, "٣\x00\ud800", r"\frac{" * 300)]
    others = [boxed(f"x+{n}", f"{n}+x") for n in range(20)]
    with Verifier(timeout_seconds=1.0) as verifier:
        verifier.judge([boxed("x", "y"), boxed("x", "z")])
        judgements = verifier.judge([*hostile, *others] * 10)
        assert len(new_workers()) <= 2
    assert not new_workers()
    assert judgements[0].verdict == "timeout"
    assert judgements[0].milliseconds >= 1000
    assert all(judgement.verdict in ("wrong", "unparsed", "timeout") for judgement in judgements[1:3])
    assert verdicts(judgements[3:23]) == ["correct"] * 20
    # Equal claims share one comparison, including its time.
    assert judgements == judgements[:23] * 10


def test_memory_is_limited(new_workers: Callable[[], set[int]]) -> None:
    with Verifier(workers=1, memory_mb=96) as verifier:
        verifier.judge([boxed("x", "y")])
        (worker,) = new_workers()
        limits = Path(f"/proc/{worker}/limits").read_text()
        # math-verify swallows the MemoryError of a gigabyte of digits, and then finds nothing equal to it.
        eater, other = verifier.judge([boxed("x+1", r"\sum_{k=1}^{2} 2^{8000000000}"), boxed("x+1", "1+x")])
    assert str(96 << 20) in next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert eater.verdict in ("wrong", "error", "timeout")
    assert other.verdict == "correct"


def test_a_killed_worker_affects_at_most_its_item(new_workers: Callable[[], set[int]]) -> None:
    with Verifier(workers=1, timeout_seconds=20.0) as verifier:
        verifier.judge([boxed("x", "y")])
        (at_rest,) = new_workers()
        os.kill(at_rest, signal.SIGKILL)
        wait_until(lambda: not alive(at_rest))
        assert verdicts(verifier.judge([boxed("x+1", "1+x"), boxed("x+1", "2+x")])) == ["correct", "wrong"]
        (at_work,) = new_workers()
        judgements: list[Judgement] = []
        claims = [boxed("x+1", HANG), boxed("x+1", "1+x")]
        judge = threading.Thread(target=lambda: judgements.extend(verifier.judge(claims)))
        before = computed(at_work)
        judge.start()
        wait_until(lambda: computed(at_work) > before + 0.2)
        os.kill(at_work, signal.SIGKILL)
        judge.join()
        assert verdicts(judgements) == ["error", "correct"]
        assert not {at_rest, at_work} & new_workers()


def test_several_threads_may_judge_at_once(verifier: Verifier) -> None:
    results: dict[int, list[Verdict]] = {}

    def judge(n: int) -> None:
        claims = [boxed(f"x+{n}", f"{n}+x"), boxed(f"x+{n}", f"x-{n}")] * 5
        results[n] = verdicts(verifier.judge(claims))

    threads = [threading.Thread(target=judge, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: ["correct", "wrong"] * 5 for n in range(1, 5)}


def test_an_interrupted_call_leaves_nothing_behind(new_workers: Callable[[], set[int]]) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    verifier = Verifier(workers=1, timeout_seconds=20.0)
    verifier.judge([boxed("x", "y")])
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(Interrupt):
            verifier.judge([boxed("x+1", HANG), boxed("y", "x")])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not new_workers()
    assert verdicts(verifier.judge([boxed("x+1", "1+x")])) == ["correct"]
    assert len(new_workers()) == 1
    verifier.close()
    assert not new_workers()


def test_many_hangs_affect_no_other_claim(new_workers: Callable[[], set[int]]) -> None:
    hostile = [boxed("x+1", rf"\sum_{{k=1}}^{{2}} \binom{{{10_000_000 + n}}}{{5000000}}") for n in range(4)]
    others = [boxed(f"x+{n}", f"{n}+x") for n in range(1, 40)]
    with Verifier(workers=1, timeout_seconds=0.5) as verifier:
        judgements = verifier.judge([*hostile, *others])
        assert len(new_workers()) <= 1
    assert verdicts(judgements) == ["timeout"] * 4 + ["correct"] * 39
    assert all(judgement.milliseconds >= 500 for judgement in judgements[:4])


def test_a_forked_process_judges_with_its_own_workers() -> None:
    bystanders = children_of(os.getpid())
    verifier = Verifier(workers=1, timeout_seconds=20.0)
    assert verdicts(verifier.judge([boxed("x+1", "1+x")])) == ["correct"]
    child = os.fork()
    if child == 0:
        try:
            found = verdicts(verifier.judge([boxed(f"x+{n}", f"{n}+x") for n in range(2, 30)]))
            verifier.close()
            os._exit(0 if found == ["correct"] * 28 else 1)
        finally:
            os._exit(2)
    # At the same time, with other verdicts: answers must not be mixed up.
    found = verdicts(verifier.judge([boxed(f"x+{n}", f"{n}-x") for n in range(2, 30)]))
    assert found == ["wrong"] * 28
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    verifier.close()
    assert children_of(os.getpid()) == bystanders


def test_a_killed_fork_server_is_replaced() -> None:
    bystanders = children_of(os.getpid())
    with Verifier(workers=1, timeout_seconds=20.0) as verifier:
        verifier.judge([boxed("x+1", "1+x")])
        (fork_server,) = children_of(os.getpid()) - bystanders
        (worker,) = children_of(fork_server)
        os.kill(fork_server, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not alive(worker))
        assert verdicts(verifier.judge([boxed("x+2", "2+x")])) == ["correct"]


def test_judgements_are_returned_as_they_are_known() -> None:
    # Waiting for the last one would take hours.
    with Verifier(workers=1, timeout_seconds=10_000.0) as verifier:
        judgements = verifier.judge_each([boxed("x+1", "1+x"), boxed("5", "5"), boxed("x+1", HANG)])
        assert [next(judgements).verdict, next(judgements).verdict] == ["correct", "correct"]
        judgements.close()
        assert verdicts(verifier.judge([boxed("x+1", "2+x")])) == ["wrong"]


def test_workers_that_cannot_start_are_an_error(new_workers: Callable[[], set[int]]) -> None:
    with Verifier(memory_mb=16) as verifier, pytest.raises(VerifierUnavailable, match="memory_mb"):
        verifier.judge([boxed("x", "y")])
    assert not new_workers()


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    # The script has no main guard: workers must not import it again.
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            rf"""
            from reval_core.verification import Claim, Verifier

            verifier = Verifier(timeout_seconds=10_000.0)
            verifier.judge([Claim("x", r"\boxed{{y}}"), Claim("x", r"\boxed{{z}}")])
            print("warm", flush=True)
            verifier.judge([Claim("x", r"\boxed{{{HANG}}}")])
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "warm\n"
        workers = descendants_of(parent.pid) - children_of(parent.pid)
        before = {worker: computed(worker) for worker in workers}
        wait_until(lambda: any(computed(worker) > before[worker] + 0.2 for worker in workers))
        parent.kill()
    assert len(workers) == 2
    wait_until(lambda: not any(map(alive, workers)))


def test_the_integer_path_agrees_with_math_verify() -> None:
    spellings = [
        "25",
        "025",
        "-25",
        "+25",
        "$25$",
        r"\$25",
        "25.",
        "1,657",
        r"1,\!657",
        "1{,}657",
        r"1\,657",
        "-1,657",
    ]
    for gold in map(prepare_gold, spellings):
        for answer in map(prepare_gold, spellings):
            assert (as_integer(gold) == as_integer(answer)) == is_correct([gold], answer, lenient=False), (
                gold,
                answer,
            )


spelled = st.integers(-(10**12), 10**12).flatmap(
    lambda value: st.sampled_from(
        [f"{value}", f"{value:,}", f"${value}$", f"{value}.", f"{value:+}", f"0{value**2}"]
    )
)


@settings(max_examples=100, deadline=None)
@given(gold=spelled, answer=spelled)
def test_verdicts_of_the_fast_path_are_those_of_a_worker(gold: str, answer: str) -> None:
    for other in (gold, answer):
        claim = boxed(gold, other)
        stated = extracted_answer(claim, METHODS["strict"])
        verdict = verdict_at_sight(claim, stated, lenient=False)
        assert verdict in ("correct", "wrong")
        assert (verdict == "correct") == is_correct([prepare_gold(gold)], str(stated), lenient=False)
