"""Functions of a user's own that judge, in the same guarded workers."""

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
    """1 if the gold, a pattern, matches the response whole."""
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
    """Start what sleeps, write its process id to the file `gold`, and return, or be late, or die."""
    def start(*command, **options):
        with open(gold, "a") as file:
            file.write(f"{subprocess.Popen(command, **options).pid}\\n")
    if response == "daemon":
        subprocess.run(["sh", "-c", f"setsid sleep 77 & echo $! >> {gold}"])
    elif response == "afterwards":
        threading.Timer(0.3, start, ["sleep", "77"], {"start_new_session": True}).start()
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


def test_a_function_that_misbehaves_costs_its_item_only(module: str, tmp_path: Path) -> None:
    told = tmp_path / "child"
    responses = ["raise", "loop", "child", "exit", "memory", "fine"]
    with Verifier(workers=2, timeout_seconds=2.0, memory_mb=512, function=f"{module}:hostile") as v:
        started = time.monotonic()
        found = v.judge([Claim(str(told), response) for response in responses])
        elapsed = time.monotonic() - started
    assert [one.verdict for one in found] == ["error", "timeout", "timeout", "error", "error", "correct"]
    assert elapsed < 12
    # What it has started went with it.
    state = Path(f"/proc/{int(told.read_text())}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def running(told: Path) -> list[str]:
    """Which of the processes whose ids stand in a file are there; one that is no more than a zombie is too."""
    return [number for number in told.read_text().split() if Path("/proc", number).exists()]


@NEW_SESSIONS
@pytest.mark.parametrize("response", ["child", "session", "daemon"])
def test_nothing_outlives_the_response_that_it_was_started_for(module: str, tmp_path: Path, response: str) -> None:
    told = tmp_path / "started"
    claims = [Claim(str(told), response, problem=str(number)) for number in range(4)]
    with Verifier(workers=2, timeout_seconds=20, function=f"{module}:leaves_behind") as v:
        assert [one.verdict for one in v.judge(claims)] == ["correct"] * 4
        assert len(told.read_text().split()) == 4
        assert running(told) == []


@NEW_SESSIONS
@pytest.mark.parametrize(("response", "verdict"), [("late", "timeout"), ("dead", "error")])
def test_what_a_killed_or_dead_worker_has_started_goes_with_it(
    module: str, tmp_path: Path, response: str, verdict: str
) -> None:
    told = tmp_path / "started"
    with Verifier(workers=1, timeout_seconds=2, function=f"{module}:leaves_behind") as v:
        assert [one.verdict for one in v.judge([Claim(str(told), response)])] == [verdict]
        assert len(told.read_text().split()) == 1
        assert running(told) == []


@NEW_SESSIONS
def test_closing_ends_what_was_started_after_the_response(module: str, tmp_path: Path) -> None:
    told = tmp_path / "started"
    with Verifier(workers=1, timeout_seconds=20, function=f"{module}:leaves_behind") as v:
        assert v.judge([Claim(str(told), "afterwards")])[0].verdict == "correct"
        deadline = time.monotonic() + 20
        while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(running(told)) == 1
    assert running(told) == []


@NEW_SESSIONS
def test_what_the_module_starts_is_there_for_all_calls(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, server = tmp_path / "started", tmp_path / "server"
    monkeypatch.setenv("OWN_REWARDS_SERVER", str(server))
    with Verifier(workers=1, timeout_seconds=2, function=f"{module}:leaves_behind") as v:
        found = v.judge([Claim(str(told), "late"), Claim(str(told), "session")])
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
        (None, {"case": 1}, "settings: belong to a function"),
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
    from reval_core.facts import read_table
    from reval_core.run_folder import RunFolder
    from reval_core.session import open_session
    from tests.runs import first_round, small_config

    (tmp_path / f"{module}.py").write_text(
        "def share(problem, gold, response, of):\n"
        "    assert problem and gold\n"
        "    return sum(character in of for character in response) / max(1, len(response))\n"
    )
    reward = {"function": f"{module}:share", "settings": {"of": "02468"}, "kind": "signed"}
    config = small_config(reward=reward, model__warm_start__steps=1)
    folder = RunFolder(tmp_path / "runs" / "own")
    with open_session(folder, config) as session:
        done = first_round(session, ("rollouts", "verification"))["verification"]
    verdicts = read_table(folder.path / done.file("verdicts").path, ("verdict", "correct", "reward")).to_pylist()
    assert {one["verdict"] for one in verdicts} <= {"correct", "wrong", "truncated"}
    assert any(-1 < one["reward"] < 1 for one in verdicts)
    assert all((one["reward"] == 1) == one["correct"] for one in verdicts)
