"""`reval reproduce` through Prefect and real processes: prompts, runs, the page, and resuming after a kill."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from reval_core.atomic_files import read_json
from reval_core.reproduction import study
from reval_core.reproduction.measures import measure
from reval_core.reproduction.records import Record
from tests.conftest import SMALL

ROOT = Path(__file__).parents[2]
GRPO = ["objective={kind: grpo}", "replay.capacity=16"]
# Some arms share their runs.
ARMS = {
    "GRPO": [*GRPO, "learner.updates=1"],
    "ReVal": ["learner.updates=4"],
    "GRPO best": [*GRPO, "learner.updates=2"],
    "GRPO second": [*GRPO, "learner.updates=2"],
    "ReVal best": ["learner.updates=4"],
}


def configs(directory: Path) -> Path:
    """A study that takes seconds, laid out like configs/paper/small."""
    base: dict[str, Any] = copy.deepcopy(SMALL)
    base["rounds"] = 4
    base["model"]["warm_start"] |= {"seed": 0, "problems": {"arithmetic": {"digits": 1, "operators": "+"}}}
    base["problems"]["contaminated"] = "keep"
    base["rollouts"] = {"prompts": 1, "samples": 16, "max_tokens": 4}
    base["replay"] = {"capacity": 64}
    base["evaluation"] = {"every": 100, "samples": 64, "batch": 64, "target": 0.95}
    search = {
        "base": "base",
        "problems": {"arithmetic": {"digits": 1, "operators": "+"}, "limit": 12},
        "scout_samples": 8,
        "candidates": 2,
        "samples": 32,
        "levels": {"hard": 0.1, "easy": 0.7},
    }
    figure = {
        "title": "Rounds",
        "paper": "Figure 3",
        "claim": "Fewer.",
        "minutes": 0.1,
        "base": "base",
        "prompts": "search",
        "seeds": 1,
        "arms": ARMS,
    }
    for name, values in (("base", base), ("prompts/search", search), ("figures/fig3", figure)):
        path = directory / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
    return directory


# Worker processes import the first process's script, and so find the same study.
_SCRIPT = """
from pathlib import Path

from reval_core.reproduction import study
from reval_core.reproduction.measures import measure
from reval_core.reproduction.records import Record

study.SMALL = Path({directory!r})

if __name__ == "__main__":
    from reval.flows.cli import main

    main()
"""


def start(directory: Path, out: Path, **how: Any) -> subprocess.Popen[str]:
    """`reval reproduce fig3 --json` on that study."""
    script = directory / "reproduce.py"
    script.write_text(_SCRIPT.format(directory=str(directory)))
    arguments = ["reproduce", "fig3", "--json", "--out", str(out), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(directory / "prefect")}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **how,
    )


def _is_server(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has exited
        return "uvicorn" in process.cmdline()
    return False


@dataclass(frozen=True)
class Made:
    """A study that was started three times: killed, with a run that stops, and with a finished run removed."""

    configs: Path
    out: Path
    complaints: str
    """What the second start printed on standard error."""
    stopped: Path
    """The run that stopped it: its config had been edited."""
    removed: Path
    """The run that was removed before the third start."""
    before: dict[Path, tuple[int, str]]
    """The runs that were finished by then, with the times and the policies of their summaries."""
    printed: dict[str, Any]
    """What the third start printed."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The study, completed."""
    directory = configs(tmp_path_factory.mktemp("configs"))
    out = tmp_path_factory.mktemp("made") / "out"
    _start_and_kill(directory, out)
    assert not (out / "figures").exists()

    edited = sorted(out.glob("runs/*/*/*/config.yaml"))[0]
    kept = edited.read_text()
    edited.write_text(kept.replace("seed: 0", "seed: 7", 1))
    second = start(directory, out)
    _, complaints = second.communicate(timeout=400)
    assert second.returncode == 1, complaints
    edited.write_text(kept)

    before = finished(out)
    removed = sorted(before.keys() - {edited.parent})[0]
    shutil.rmtree(removed)
    third = start(directory, out)
    printed, still = third.communicate(timeout=400)
    assert third.returncode == 0, still
    return Made(directory, out, complaints, edited.parent, removed, before, json.loads(printed))


def _start_and_kill(directory: Path, out: Path) -> None:
    """Start the study and kill it in its first run."""
    first = start(directory, out)
    deadline = time.monotonic() + 300
    while not list(out.glob("runs/*/*/*/config.yaml")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = psutil.Process(first.pid).children(recursive=True)
    servers = [one for one in processes if _is_server(one)]  # Prefect's server outlives the process that started it
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    for one in servers:
        one.kill()
    psutil.wait_procs(processes)  # the workers notice that it is gone


def finished(out: Path) -> dict[Path, tuple[int, str]]:
    """The finished runs, with the times and the policies of their summaries."""
    return {
        path.parent: (path.stat().st_mtime_ns, read_json(path)["policy_digest"])
        for path in out.glob("runs/*/*/*/summary.json")
    }


def test_a_killed_reproduction_resumes_and_completes(made: Made) -> None:
    assert set(made.printed) == {"fig3"}
    assert set(made.printed["fig3"]) >= {"verdict", "same_rate", "best", "intervals"}
    found = read_json(made.out / "figures" / "fig3.json")
    assert [(run["arm"], run["prompt"], run["seed"]) for run in found["runs"]] == [
        (arm, level, 0) for level in ("hard", "easy") for arm in ARMS
    ]
    assert {Path(run["path"]) for run in found["runs"]} == finished(made.out).keys()


def test_a_run_that_stops_does_not_stop_the_others(made: Made) -> None:
    assert f"fig3: {made.stopped}: contains a run of an earlier config; give another --out" in made.complaints
    assert made.before.keys() | {made.stopped} == finished(made.out).keys()


def test_another_start_executes_only_what_is_missing_and_ends_the_same(made: Made) -> None:
    after = finished(made.out)
    assert made.removed in made.before
    assert {path for path in after if after[path] != made.before.get(path)} <= {made.removed, made.stopped}
    assert after[made.removed][0] != made.before[made.removed][0]
    assert after[made.removed][1] == made.before[made.removed][1]


def test_the_numbers_are_those_of_the_runs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "SMALL", made.configs)
    figure = study.load_figure("fig3")
    found = measure("fig3", figure, [Record(unit) for unit in study.units(figure, made.out)])
    expected = {"verdict": found["verdict"], "says": found["says"], **found["numbers"]}
    assert json.loads(json.dumps(expected)) == made.printed["fig3"]


def test_prompts_are_chosen_by_their_measured_rates(made: Made) -> None:
    found = read_json(made.out / "prompts" / "search" / "summary.json")
    assert found["hard"]["rate"] < found["easy"]["rate"]
    assert {one["samples"] for one in found.values()} == {32}
    asked = json.loads((made.out / "prompts" / "search" / "hard.jsonl").read_text())
    assert asked["problem"] == found["hard"]["problem"]


def test_the_page_is_self_contained(made: Made) -> None:
    page = (made.out / "index.html").read_text()
    assert "Rounds" in page
    assert "<svg" in page
    assert "SELECT" in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_plan_is_the_study_of_its_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "SMALL", configs(tmp_path / "study"))
    assert study.known_figures() == ["fig3"]
    planned = study.units(study.load_figure("fig3"), tmp_path / "out", seeds=2)
    assert len(planned) == 2 * 2 * len(ARMS)
    assert planned[0].path == tmp_path / "out/runs/base/hard/updates1-objective-kind-grpo-capacity16-seed0"
