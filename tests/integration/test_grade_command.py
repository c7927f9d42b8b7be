"""`reval grade`: one object per row in the file's order; invalid rows are refused before anything is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reval_core.problems.claim_files import read_claims

ROOT = Path(__file__).parents[2]

ROWS: list[dict[str, Any]] = [
    {"gold": "x+1", "response": r"\boxed{1+x}"},
    {"gold": "5", "response": "it is 5"},
    {"gold": "5", "response": ""},
    {"gold": "1, 2", "response": r"\boxed{1}", "gold_mode": "any"},
    {"gold": "1, 2", "response": r"\boxed{1}"},
    {"gold": "B", "response": "(B)", "gold_mode": "choice"},
    {"gold": "5", "response": r"\boxed{5}", "truncated": True},
    {"gold": "x", "response": r"\boxed{\sum_{k=1}^{2} \binom{10000000}{5000000}}"},
    {"gold": "7", "response": r"\boxed{8}"},
]
VERDICTS = ["correct", "correct", "unparsed", "correct", "wrong", "correct", "truncated", "timeout", "wrong"]


def grade(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reval.flows.cli", "grade", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def jsonl(directory: Path, rows: list[dict[str, Any]]) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_one_object_per_row_in_order(tmp_path: Path) -> None:
    done = grade(jsonl(tmp_path, ROWS), "--json", "--workers", "2")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(list(one) == ["verdict", "extracted", "milliseconds"] for one in found)
    assert [one["verdict"] for one in found] == VERDICTS
    assert [one["extracted"] for one in found][:4] == ["1+x", "5", None, "1"]
    assert found[7]["milliseconds"] >= 2000


def test_other_files_names_and_modes(tmp_path: Path) -> None:
    rows = [{"answer": 5, "completion": r"\boxed{5}"}, {"answer": "1, 2", "completion": "so 2", "cut": False}]
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(rows))
    names = ["--column", "response=completion", "--column", "truncated=cut"]  # the latter on one row only
    done = grade(listed, "--json", *names, "--gold-mode", "any", "--mode", "strict")
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["correct", "unparsed"]
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"gold": ["5", "6"], "response": ["it is 5", "it is 5"]}), table)
    done = grade(table, "--json")
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["correct", "wrong"]


def test_csv_arrow_and_json_lines_are_read_too(tmp_path: Path) -> None:
    cells = "gold,response,gold_mode,truncated,expected\n5,it is 5,,false,True\n5,6,any,,0\n5,5,,TRUE,\n"
    (tmp_path / "rows.csv").write_text(cells)
    rows = [{"gold": "5", "response": "it is 5"}, {"gold": "5", "response": "6"}]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as file:
        file.write(table)
    found = {
        name: [
            (one.claim.response, one.claim.truncated, one.claim.gold_mode, one.expected)
            for one in read_claims(tmp_path / name, {}, "all")
        ]
        for name in ("rows.csv", "rows.json", "rows.arrow")
    }
    assert found["rows.csv"] == [
        ("it is 5", False, "all", True),
        ("6", False, "any", False),
        ("5", True, "all", None),
    ]
    plain = [("it is 5", False, "all", None), ("6", False, "all", None)]
    assert found["rows.json"] == found["rows.arrow"] == plain


def test_a_problem_next_to_the_response_may_not_be_copied(tmp_path: Path) -> None:
    rows = [
        {"gold": "1024", "response": r"\boxed{2^{10}}", "problem": problem}
        for problem in ("Find $2^{10}$.", "How much is it?", None)
    ]
    done = grade(jsonl(tmp_path, rows), "--json", "--mode", "strict")
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["wrong", "correct", "correct"]


def test_a_summary_with_agreement(tmp_path: Path) -> None:
    rows = [
        {"gold": "5", "response": "5", "label": True},
        {"gold": "5", "response": "6", "label": 1},
        {"gold": "5", "response": "7", "label": False},
    ]
    done = grade(jsonl(tmp_path, rows))
    assert ["wrong", "2", "66.7%"] in [line.split()[:3] for line in done.stdout.splitlines()]
    assert "2 of 3 agree with the expected verdicts (66.7%)" in done.stdout
    assert f"{tmp_path}/rows.jsonl:2: wrong, expected correct; gold '5', extracted '6'" in done.stdout


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "rows.jsonl:2: is not JSON"),
        ('{"gold": "5"}', "rows.jsonl:2: response: is missing"),
        ('{"gold": {"a": 5}, "response": "5"}', "rows.jsonl:2: gold: must be text or a number, not dict"),
        (
            '{"gold": "5", "response": "5", "gold_mode": "some"}',
            "rows.jsonl:2: gold_mode: must be one of all, any, choice, not 'some'",
        ),
        ('{"gold": "5", "response": "5", "truncated": "no"}', "rows.jsonl:2: truncated: must be true or false"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_judged(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    done = grade(path, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_files_and_options_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "one.json").write_text('[{"gold": "5", "response": "5"}, 5]')
    for arguments, complaint in [
        ((tmp_path / "no.parquet",), "no.parquet: cannot be read (No such file or directory)"),
        ((tmp_path / "empty.jsonl",), 'contains no rows; give a file with rows like {"gold": …, "response": …}'),
        ((tmp_path / "one.json",), 'one.json: row 2: not a JSON object; write {"gold": …, "response": …}'),
        ((tmp_path / "rows.txt",), "unknown file format"),
        ((jsonl(tmp_path, ROWS), "--column", "respnse=x"), "did you mean 'response'?"),
        (
            (jsonl(tmp_path, ROWS), "--column", "expected=label2"),
            "rows.jsonl: has no column 'label2' for the expected; it has 'gold', 'response', 'gold_mode',",
        ),
    ]:
        done = grade(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert complaint in done.stderr


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"gold": "5", "response": "6" * 200}] * 5000)
    command = f"{sys.executable} -m reval.flows.cli grade {path} --json | head -1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
