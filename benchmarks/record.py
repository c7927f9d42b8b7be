"""Runs a benchmark's cases, checks their metrics against limits, and records them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Limits = Mapping[str, tuple[str, float]]
"""By metric: "at most" or "at least", and the limit."""


def run(*command: str, tree: Path = ROOT) -> dict[str, Any]:
    """The JSON in the last line of a process's output. It runs in `tree` and imports from there."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print("  " + json.dumps(found), flush=True)
    return found


def circumstances(*packages: str) -> dict[str, Any]:
    """Machine, date and versions."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {package: version(package) for package in packages},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str | None:
    """The measured commit, or None without git or its history."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def record(name: str, found: dict[str, Any], limits: Limits, packages: tuple[str, ...]) -> None:
    """Write benchmarks/baselines/NAME.json, and exit with 1 if metrics are beyond their limits."""
    target = ROOT / f"benchmarks/baselines/{name}.json"
    target.write_text(json.dumps(found | circumstances(*packages), indent=2) + "\n")
    for figure in limits:
        if figure in found:
            print(f"{figure:22} {found[figure]:.3f}")
    print(f"written to {target.relative_to(ROOT)}")
    missed = misses(found, limits)
    if missed:
        raise SystemExit("\n".join(missed))


def misses(found: Mapping[str, Any], limits: Limits) -> list[str]:
    """The metrics beyond their limits, in words."""
    said = []
    for name, (side, limit) in limits.items():
        if name not in found:
            continue
        holds = found[name] <= limit if side == "at most" else found[name] >= limit  # NaN satisfies neither
        if not holds:
            said.append(f"{name} is {found[name]:.3f}, and should be {side} {limit:.3f}")
    return said
