"""User-defined reward functions, in the same guarded workers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from reval_core.config import Reward
from reval_core.user_code import code_identity
from reval_core.verification import Claim, Verifier, VerifierUnavailable

MODULE = '''
import os, re, subprocess, sys, threading, time

def matches(problem, gold, response, ignore_case=False):
    """1 if the gold, a pattern, matches the whole response."""
    return re.fullmatch(gold, response, re.IGNORECASE if ignore_case else 0) is not None

def passes(problem, gold, response):
    """The share of a program's tests that pass."""
    tests = gold.split(";")
    programs = [response + "\\nassert " + test for test in tests]
    return sum(subprocess.run([sys.executable, "-c", one]).returncode == 0 for one in programs) / len(tests)

def about(problem, gold, response):
    return {"none": None, "half": 0.5, "two": 2.0, "text": "5", "problem": problem == "p"}[response]

def hostile(problem, gold, response):
    if response == "raise":
        raise RuntimeError("no")
    if response == "loop":
        while True:
            pass
    if response == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open(gold, "w").write(str(child.pid))
        time.sleep(60)
    if response == "exit":
        os._exit(3)
    if response == "memory":
        bytearray(1 << 34)
    return 1

def without_values():
    return 1

def leaves_behind(problem, gold, response):
    """Start a sleeping process, write its id to the file `gold`, and return, exceed the deadline, or die."""
    def start(*command, **options):
        with open(gold, "a") as file:
            file.write(f"{subprocess.Popen(command, **options).pid}\\n")
    if response == "daemon":
        subprocess.run(["sh", "-c", f"setsid sleep 77 & echo $! >> {gold}"])
    elif response == "thread":
        threading.Thread(target=time.sleep, args=[77]).start()
        open(gold, "a").write(f"{os.getpid()}\\n")
    else:
        start("sleep", "77", start_new_session=response != "child")
    if response == "late":
        time.sleep(60)
    if response == "dead":
        os._exit(3)
    return 1

if os.environ.get("OWN_REWARDS_SERVER"):
    server = subprocess.Popen(["sleep", "77"], start_new_session=True)
    open(os.environ["OWN_REWARDS_SERVER"], "w").write(str(server.pid))
'''

NEW_SESSIONS = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to a subreaper")


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory, another in each test."""
    name = f"own_rewards_{tmp_path.name}".replace("-", "_").replace("[", "").replace("]", "")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_pattern(module: str) -> None:
    claims = [Claim("a+b", "aab"), Claim("a+b", "AAB"), Claim("a+b", "b"), Claim("a+b", "aab", truncated=True)]
    with Verifier(workers=1, timeout_seconds=20, function=f"{module}:matches", settings={"ignore_case": True}) as v:
        assert [one.verdict for one in v.judge(claims)] == ["correct", "correct", "wrong", "truncated"]
    with Verifier(workers=1, timeout_seconds=20, function=f"{module}:matches") as v:
        judgements = v.judge(claims)
    assert [one.verdict for one in judgements] == ["correct", "wrong", "wrong", "truncated"]
    assert [one.outcome for one in judgements] == [1.0, 0.0, 0.0, None]


def test_unit_tests_in_a_subprocess(module: str) -> None:
    program = "def double(x):\n    return 2 * x"
    with Verifier(workers=1, timeout_seconds=30, function=f"{module}:passes") as v:
        found = v.judge(
            [Claim("double(2) == 4; double(3) == 6", program), Claim("double(2) == 4; 1 == 2", program)]
        )
    assert [(one.verdict, one.outcome) for one in found] == [("correct", 1.0), ("wrong", 0.5)]


def test_what_a_function_may_return(module: str) -> None:
    with Verifier(workers=1, timeout_seconds=20, function=f"{module}:about") as v:
        found = v.judge(
            [Claim("", response, problem="p") for response in ("none", "half", "two", "text", "problem")]
        )
    assert [(one.verdict, one.outcome) for one in found] == [
        ("unparsed", None),
        ("wrong", 0.5),
        ("error", None),
        ("error", None),
        ("correct", 1.0),
    ]


def test_a_function_that_misbehaves_affects_only_its_item(module: str, tmp_path: Path) -> None:
    pids = tmp_path / "child"
    responses = ["raise", "loop", "child", "exit", "memory", "fine"]
    with Verifier(workers=2, timeout_seconds=2.0, memory_mb=512, function=f"{module}:hostile") as v:
        found = v.judge([Claim(str(pids), response) for response in responses])
    assert [one.verdict for one in found] == ["error", "timeout", "timeout", "error", "error", "correct"]
    # Processes that it started were ended with it.
    state = Path(f"/proc/{int(pids.read_text())}/stat")
    while state.exists() and state.read_text().split()[2] != "Z":
        time.sleep(0.05)


def running(pids: Path) -> list[str]:
    """Which of the processes whose ids are in a file exist, zombies included."""
    return [number for number in pids.read_text().split() if Path("/proc", number).exists()]


@NEW_SESSIONS
@pytest.mark.parametrize("response", ["child", "session", "daemon"])
def test_nothing_outlives_the_response_that_it_was_started_for(module: str, tmp_path: Path, response: str) -> None:
    pids = tmp_path / "started"
    claims = [Claim(str(pids), response, problem=str(number)) for number in range(4)]
    with Verifier(workers=2, timeout_seconds=20, function=f"{module}:leaves_behind") as v:
        assert [one.verdict for one in v.judge(claims)] == ["correct"] * 4
        assert len(pids.read_text().split()) == 4
        assert running(pids) == []


@NEW_SESSIONS
@pytest.mark.parametrize(("response", "verdict"), [("late", "timeout"), ("dead", "error")])
def test_what_a_killed_or_dead_worker_has_started_is_ended_with_it(
    module: str, tmp_path: Path, response: str, verdict: str
) -> None:
    pids = tmp_path / "started"
    with Verifier(workers=1, timeout_seconds=2, function=f"{module}:leaves_behind") as v:
        assert [one.verdict for one in v.judge([Claim(str(pids), response)])] == [verdict]
        assert len(pids.read_text().split()) == 1
        assert running(pids) == []


@NEW_SESSIONS
def test_no_thread_outlives_its_response(module: str, tmp_path: Path) -> None:
    pids = tmp_path / "started"
    with Verifier(workers=1, timeout_seconds=20, function=f"{module}:leaves_behind") as v:
        assert v.judge([Claim(str(pids), "thread")])[0].verdict == "correct"
        assert len(pids.read_text().split()) == 1
        assert running(pids) == []


LEAVES_ITS_MARK = """
import builtins, json, math, os, random, resource, signal, sys

calls = []

def marks(problem, gold, response):
    if response == "corrupt":
        calls.append(response)
        json.dumps = lambda *_: '{"outcome": 0.0}'
        math.pi = builtins.len = 3
        random.random = lambda: 0.5
        os.environ["MARK"] = "left"
        os.chdir("/")
        os.close(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))
        sys.modules["statistics"] = None
        os.setpgid(0, os.getpgid(os.getppid()))
        return 0.0
    import statistics
    clean = len(calls) == 0 and json.dumps(1) == "1" and math.pi > 3.1 and "MARK" not in os.environ
    clean &= os.getcwd() == gold and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    os.fstat(0)
    os.dup2(0, 30)
    return clean and random.random() == random.Random(0).random()
"""


def test_a_function_cannot_change_what_is_judged_later(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(LEAVES_ITS_MARK)
    claims = [Claim(str(tmp_path), response, problem=str(n)) for n in range(3) for response in ("corrupt", "look")]
    with Verifier(workers=1, timeout_seconds=20, function=f"{module}:marks") as v:
        assert [one.outcome for one in v.judge(claims)] == [0.0, 1.0] * 3
        assert [one.outcome for one in v.judge(claims[::-1])] == [1.0, 0.0] * 3


WRITES_TO_ITS_PIPE = """
import os, stat, time

def writes(problem, gold, response):
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            mode = os.fstat(number).st_mode
            assert number < 3 or not stat.S_ISSOCK(mode), "a socket was left open to it"
            if number >= 3 and stat.S_ISFIFO(mode):
                os.write(number, bytes.fromhex(response))
        except OSError:
            pass
    if gold == "sleep":
        time.sleep(600)
    if gold == "exit":
        os._exit(0)
    return 1
"""

MALFORMED = {
    "no JSON": b"hello\n",
    "no text": b"\x80\xff\n",
    "half a line": b'{"outcome": ',
    "two lines": b'{"outcome": 1}\n{"outcome": 1}\n',
    "a list": b"[1]\n",
    "an empty report": b"{}\n",
    "ready once more": b"ready\n",
    "a number": b"1\n",
    "another outcome": b'{"outcome": 2}\n',
    "no outcome": b'{"outcome": "1"}\n',
    "no number": b'{"outcome": NaN}\n',
    "a bool": b'{"outcome": true}\n',
    "a verdict": b'{"verdict": "correct"}\n',
    "no verdict": b'{"verdict": ["error"], "message": 1}\n',
    "more than is requested": b'{"outcome": 1, "verdict": "correct"}\n',
    "nested": b"[" * 50_000 + b"\n",
    "long": b"1" * 60_000,
    "a large length": b"\xff\xff\xff\xff" + b"\x7f" * 8,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_report_is_an_error_and_affects_nothing_else(module: str, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{module}.py").write_text(WRITES_TO_ITS_PIPE)
    with Verifier(workers=1, timeout_seconds=20, function=f"{module}:writes") as v:
        found = v.judge([Claim("exit", MALFORMED[name].hex()), Claim("", "")])
    assert [(one.verdict, one.outcome) for one in found] == [("error", None), ("correct", 1.0)]


def test_the_deadline_is_paused_while_other_processes_have_the_cpu(module: str, tmp_path: Path) -> None:
    busy = """
import time

def works(problem, gold, response):
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    return 1
"""
    (tmp_path / f"{module}.py").write_text(busy)
    cores = len(os.sched_getaffinity(0))
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        with Verifier(workers=1, timeout_seconds=1, function=f"{module}:works") as v:
            (found,) = v.judge([Claim("", "")])
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert found.verdict == "correct"


def test_half_a_report_is_waited_for_until_the_deadline(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(WRITES_TO_ITS_PIPE)
    with Verifier(workers=1, timeout_seconds=1, function=f"{module}:writes") as v:
        found = v.judge([Claim("sleep", b'{"outcome": 1'.hex()), Claim("", "")])
    assert [one.verdict for one in found] == ["timeout", "correct"]


@NEW_SESSIONS
def test_what_the_module_starts_is_available_to_all_calls(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids, server = tmp_path / "started", tmp_path / "server"
    monkeypatch.setenv("OWN_REWARDS_SERVER", str(server))
    with Verifier(workers=1, timeout_seconds=2, function=f"{module}:leaves_behind") as v:
        found = v.judge([Claim(str(pids), "late"), Claim(str(pids), "session")])
        assert [one.verdict for one in found] == ["timeout", "correct"]
        assert len(running(server)) == 1
    assert running(server) == []


@pytest.mark.parametrize(
    ("function", "settings", "complaint"),
    [
        ("nowhere_to_be_found:f", {}, "function: nowhere_to_be_found:f: cannot import"),
        ("{module}:g", {}, "has no function g"),
        ("{module}:without_values", {}, "does not take these settings"),
        ("{module}:matches", {"case": 1}, "does not take these settings"),
        (None, {"case": 1}, "settings: require a function"),
    ],
)
def test_functions_that_cannot_be_called_are_refused_early(
    module: str, function: str | None, settings: dict[str, int], complaint: str
) -> None:
    name = function and function.format(module=module)
    with pytest.raises(ValidationError, match=complaint):
        Reward.model_validate({"function": name, "settings": settings})


def test_another_code_is_another_identity(module: str) -> None:
    assert code_identity(None) is None
    assert code_identity(f"{module}:matches") == code_identity(f"{module}:passes")
    assert code_identity(f"{module}:matches") != code_identity("reval_core.user_code:load_function")


def test_a_function_that_workers_cannot_import_is_an_error() -> None:
    with Verifier(workers=1, function="nowhere_to_be_found:f") as v, pytest.raises(VerifierUnavailable):
        v.judge([Claim("5", "5")])


def test_a_run_is_rewarded_by_a_function(module: str, tmp_path: Path) -> None:
    from reval_core.pipeline.run_context import open_run_context
    from reval_core.storage.run_directory import RunDirectory
    from reval_core.storage.tables import read_table
    from tests.runs import first_round, small_config

    (tmp_path / f"{module}.py").write_text(
        "def share(problem, gold, response, of):\n"
        "    assert problem and gold\n"
        "    return sum(character in of for character in response) / max(1, len(response))\n"
    )
    reward = {"function": f"{module}:share", "settings": {"of": "02468"}, "kind": "signed"}
    config = small_config(reward=reward, model__warm_start__steps=1)
    directory = RunDirectory(tmp_path / "runs" / "own")
    with open_run_context(directory, config) as context:
        done = first_round(context, ("rollouts", "verification"))["verification"]
    verdicts = read_table(directory.path / done.file("verdicts").path, ("verdict", "correct", "reward")).to_pylist()
    assert {one["verdict"] for one in verdicts} <= {"correct", "wrong", "truncated"}
    assert any(-1 < one["reward"] < 1 for one in verdicts)
    assert all((one["reward"] == 1) == one["correct"] for one in verdicts)
