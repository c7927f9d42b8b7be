"""What programs may rely on: keys of `summary.json` and of every `--json`, columns of tables, paths of files.

`tests/data/interfaces.json` is the list. A name that is on the list and no longer exists is a broken promise. A new
name is added to the list by `REVAL_UPDATE_INTERFACES=1 pytest tests/integration/test_interfaces.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from reval_core.atomic_files import publish_json, read_json
from reval_core.model.loading import load_model, load_tokenizer, save_model
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS
from tests.commands import Reval, command
from tests.runs import run, small_config

LIST = Path(__file__).parents[1] / "data" / "interfaces.json"
UPDATE = "REVAL_UPDATE_INTERFACES" in os.environ

COMMANDS = {
    "check": ["check", "first"],
    "compare": ["compare", "first", "second", "--out", "compare.html"],
    "doctor": ["doctor"],
    "eval --dry-run": ["eval", "model", "--preset", "protocol.yaml", "--out", "others", "--dry-run"],
    "export-model": ["export-model", "first", "--out", "exported"],
    "grade": ["grade", "answers.jsonl"],
    "problems audit": ["problems", "audit", "problems.jsonl"],
    "problems check": ["problems", "check", "problems.jsonl"],
    "problems list": ["problems", "list"],
    "prune": ["prune", "first"],
    "regrade": ["regrade", "first", "--out", "regraded"],
    "reindex": ["reindex", "first"],
    "runs": ["runs", "."],
    "sql": ["sql", "first", "SELECT round, reward FROM rounds"],
    "train --dry-run": ["train", "first/config.yaml", "--run-dir", "new", "--dry-run"],
}
"""Each command that prints JSON, executed in a directory with two runs, a model, problems and answers."""

FREE = {"benchmarks", "config", "golds", "notes", "protocol", "settings"}
"""Keys whose values are keyed by data or by the user's settings."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interfaces")
    publish_json(path / "first/summary.json", run(path / "first", small_config()))
    run(path / "second", small_config(learner__lr=2e-3))
    checkpoint = RunDirectory(path / "first").checkpoint(3)
    save_model(load_model(checkpoint), load_tokenizer(checkpoint), path / "model")
    sums = {"arithmetic": {"digits": 1, "operators": "+", "split": "held_out"}}
    protocol = {"benchmarks": [sums], "prompt": {}, "samples": 1, "max_tokens": 4}
    (path / "protocol.yaml").write_text(json.dumps(protocol))
    problem = {"problem": "1+1=", "answer": "2"}
    (path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    (path / "answers.jsonl").write_text(json.dumps({"gold": "2", "response": "\\boxed{2}"}) + "\n")
    return path


@pytest.fixture
def reval(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Reval:
    shutil.copytree(runs, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return command(capfd, monkeypatch)


def keys(value: Any, prefix: str = "") -> set[str]:
    """The paths of all keys: `runs[].name` for a list of objects."""
    if isinstance(value, list):
        return set().union(*(keys(one, f"{prefix}[]") for one in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    found = set()
    for name, one in value.items():
        path = f"{prefix}.{name}" if prefix else name
        found |= {path} | (set() if name in FREE else keys(one, path))
    return found


def promised(name: str, present: set[str]) -> None:
    """Compare the names that are present with the list."""
    listed: dict[str, list[str]] = json.loads(LIST.read_text()) if LIST.exists() else {}
    if UPDATE:
        listed[name] = sorted(present | set(listed.get(name, [])))
        LIST.write_text(json.dumps(listed, indent=1, sort_keys=True) + "\n")
    assert not set(listed[name]) - present, f"{name}: programs rely on these names"
    assert not present - set(listed[name]), f"{name}: new names; see the top of this file"


def test_summary_json(runs):
    promised("summary.json", keys(read_json(runs / "first/summary.json")))


@pytest.mark.parametrize("name", COMMANDS)
def test_keys_of_json_output(reval, name):
    answer = reval(*COMMANDS[name], "--json")
    assert answer.code == 0, answer.err
    promised(name, keys(json.loads(answer.out)))


def test_columns_of_tables():
    for table, schema in SCHEMAS.items():
        promised(f"table {table}", {f"{field.name} {field.type}" for field in schema})


def test_paths_of_a_run(runs):
    for pattern in (
        "config.yaml",
        "machine.json",
        "tables.duckdb",
        "facts/round=00001/draws.parquet",
        "rollouts/round=00001/shard-000.parquet",
        "checkpoints/round=00003/model.safetensors",
    ):
        assert (runs / "first" / pattern).exists(), pattern
