"""Write docs/hostile_inputs.md from the cases of tests/integration/hostile.py.

Run it after a change of the cases: `PYTHONPATH=. python docs/make_hostile_inputs.py`. A test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from tests.integration.hostile import CONFIGS, PROBLEM_FILES, RESPONSE_FILES, RUN_DIRECTORIES, Hostile

PAGE = Path(__file__).with_name("hostile_inputs.md")

_INTRODUCTION = """\
# Hostile inputs

Made by `docs/make_hostile_inputs.py` from `tests/integration/hostile.py`, whose cases the test suite runs.

Each input is either refused in one line before any work (exit code 2, or 1 where a run is already under way), or
used with a right result: a resumed run ends with the weights of the undisturbed one, problems and responses are
stored as they were given. None of them executes code, touches a file outside of the run directory, or reaches the
terminal raw.
[Security](security.md) says what reval defends against, and what it does not.
"""

_GROUPS = {
    "Run directories": ("A copy of an interrupted run, changed, is resumed.", RUN_DIRECTORIES),
    "Configs": ("`reval train` is given the config.", CONFIGS),
    "Problem files": ("A run of one round trains on the file.", PROBLEM_FILES),
    "Response files": ("`reval import` is given the file.", RESPONSE_FILES),
}


def page() -> str:
    """The document."""
    parts = [_INTRODUCTION]
    for title, (how, cases) in _GROUPS.items():
        rows = "\n".join(f"| {case.what} | {_outcome(case)} |" for case in cases)
        parts.append(f"## {title}\n\n{how}\n\n| input | outcome |\n| --- | --- |\n{rows}\n")
    return "\n".join(parts)


def _outcome(case: Hostile) -> str:
    return "used" if case.said is None else "refused"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
