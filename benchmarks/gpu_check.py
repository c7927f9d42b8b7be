"""Checks of a GPU before training on it: `make gpu-check`, in under 4 minutes.

    python3 benchmarks/gpu_check.py [--json FILE] [--wheels DIR] [--only CHECK ...]

It uses the system's Python with torch, transformers and numpy, without a network or an environment. With a
directory of wheels (pydantic, duckdb, math-verify and their dependencies), or if these are installed, it also
compares memory with the forecast, tests the learner on draws of noise, and kills and resumes a run of three rounds.
A check that fails with an error is recorded, and the others still run. The exit status is 1 if one failed; without
a GPU it is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import circumstances, misses

Outcome = tuple[dict[str, Any], list[str]]
"""Metrics by name, and a list of failures."""
Check = Callable[[], Outcome]

NEEDED = ("torch", "transformers", "numpy")
WHEELS = ("pydantic", "duckdb", "math_verify", "pyarrow")
"""Additional requirements of a run."""
RUN_CHECKS = ("memory", "learner", "resume")
NAMES = ("head", "rounding", "scoring", "draws", "gap", "speed", *RUN_CHECKS)
LONGEST = 150
"""The timeout of each of these, in seconds."""


def main() -> int:
    """Run the requested checks. 0 if all passed or there is no GPU."""
    given = _arguments()
    reason = _why_not(given.device)
    if reason:
        print(f"gpu-check: skipped: {reason}")
        _write(given.json, {"skipped": reason})
        return 0
    return _check(given)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics here, after every check")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels to install for this check only")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="CHECK", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--device", default="cuda", help="cpu, with --small, tests whether the checks work")
    parser.add_argument("--small", action="store_true", help="a tiny model, whose metrics are meaningless")
    return parser.parse_args()


def _why_not(device: str) -> str | None:
    """Why nothing can be checked here. Raises SystemExit if there is a GPU but the requirements are missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing and Path("/dev/nvidiactl").exists():
        raise SystemExit(f"gpu-check: {sys.executable} has no {', '.join(missing)}")
    if missing:
        return f"no GPU was found, and {sys.executable} has no {', '.join(missing)}"
    import torch

    return "torch finds no GPU" if device == "cuda" and not torch.cuda.is_available() else None


def _check(given: argparse.Namespace) -> int:
    started = time.monotonic()
    found: dict[str, Any] = {**_circumstances(given.device), "passed": True, "checks": {}, "skipped": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for name, check in _checks(given, found["checks"], Path(temporary)).items():
            if given.only and name not in given.only:
                continue
            if isinstance(check, str):
                found["skipped"][name] = check
                print(f"{name:8} skipped: {check}", flush=True)
            else:
                found["checks"][name] = _result(name, check)
                found["passed"] &= found["checks"][name]["passed"]
            found["seconds"] = round(time.monotonic() - started, 1)
            _write(given.json, found)
    outcome = "passed" if found["passed"] else "FAILED"
    print(f"gpu-check: {outcome} in {found['seconds']:.0f} s on {found['device']}")
    return 0 if found["passed"] else 1


def _checks(given: argparse.Namespace, done: Mapping[str, Any], temporary: Path) -> dict[str, Check | str]:
    """All checks by name, in order, or why one is skipped. `done` has the results of the previous ones."""
    import torch

    from benchmarks import gpu_numerics, learner_gpu
    from benchmarks.gpu_model import FULL, SMALL, ModelSource

    torch.set_float32_matmul_precision("highest")
    source = ModelSource(SMALL if given.small else FULL, torch.device(given.device))

    def numerics(name: str) -> Check:
        def check() -> Outcome:
            figures = gpu_numerics.CHECKS[name](source)
            return figures, misses(figures, gpu_numerics.LIMITS[name])

        return check

    def speed() -> Outcome:
        cases = learner_gpu.check(source)
        return cases, learner_gpu.failures(cases, _device_name(given.device))

    checks: dict[str, Check | str] = {name: numerics(name) for name in gpu_numerics.CHECKS}
    return {**checks, "speed": speed, **_run_checks(given, done, temporary)}


def _run_checks(given: argparse.Namespace, done: Mapping[str, Any], temporary: Path) -> dict[str, Check | str]:
    """The checks that need the whole learner or a run, each in its own process."""
    missing = [name for name in WHEELS if find_spec(name) is None]
    if missing and given.wheels is None:
        return dict.fromkeys(RUN_CHECKS, f"needs {', '.join(missing)}: give a directory of wheels with --wheels")
    wanted = [name for name in RUN_CHECKS if not given.only or name in given.only]
    processes: dict[str, Future[Outcome]] = {}

    def check(name: str) -> Outcome:
        if not processes:  # one waits for compilers while another computes
            environment = _environment(given.wheels, temporary / "site")
            peaks = _peaks(done)
            pool = ThreadPoolExecutor(len(wanted))
            processes.update(
                {one: pool.submit(_in_a_process, one, given.device, peaks, environment) for one in wanted}
            )
        return processes[name].result()

    return {name: partial(check, name) for name in RUN_CHECKS}


def _peaks(done: Mapping[str, Any]) -> dict[str, float]:
    """The peak memory of each case of the training step, in GiB."""
    figures = done.get("speed", {}).get("figures", {})
    return {case: one["peak_gib"] for case, one in figures.items() if "peak_gib" in one}


def _environment(wheels: Path | None, site: Path) -> dict[str, str]:
    """The environment of processes, with the wheels' modules on the path."""
    paths = [str(ROOT)]
    if wheels is not None:
        _install(wheels, site)
        paths.append(str(site))
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(paths)}


def _in_a_process(name: str, device: str, peaks: Mapping[str, float], environment: Mapping[str, str]) -> Outcome:
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_run", name, "--device", device, "--peaks", json.dumps(peaks)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the runs that it started
            raise
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {(errors or output)[-3000:]}")
    found = json.loads(output.strip().splitlines()[-1])
    if found["failures"]:
        found["figures"]["stderr"] = errors[-3000:]
    return found["figures"] | {"seconds": round(time.monotonic() - started, 1)}, found["failures"]


def _install(wheels: Path, site: Path) -> None:
    """Unpack the wheels into `site`."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise RuntimeError(f"{wheels}: contains no wheels")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", str(site), *files], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip install of {wheels} failed: {done.stderr[-2000:]}")


def _result(name: str, check: Check) -> dict[str, Any]:
    """The result of a check, or its error; prints one line."""
    print(f"{name:8} ...", flush=True)
    started = time.monotonic()
    try:
        figures, failures = check()
    except Exception as error:  # the other checks still run
        figures, failures = {"traceback": traceback.format_exc()[-4000:]}, [f"{type(error).__name__}: {error}"]
    seconds = round(time.monotonic() - started, 1)
    outcome = "; ".join(failures) or "ok"
    shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if isinstance(value, float))
    print(f"{name:8} {seconds:5.1f} s  {outcome}  {shown}", flush=True)
    return {"passed": not failures, "seconds": seconds, "figures": figures, "failures": failures}


def _circumstances(device: str) -> dict[str, Any]:
    import torch

    found = {"device": _device_name(device), **circumstances(*NEEDED)}
    if device == "cuda":
        found["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found | {"python": sys.version.split()[0]}


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


def _write(path: Path | None, found: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
