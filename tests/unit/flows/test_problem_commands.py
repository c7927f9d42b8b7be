"""`reval problems`: output and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Reval, command

LONG = "A farmer has {} cows and sells half of them to a neighbour who pays in apples and pears"


@pytest.fixture
def reval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reval:
    """Run the command in an empty directory; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REVAL_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    return command(capsys, monkeypatch, "problems")


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def aime(directory: Path, *texts: str) -> None:
    """A file that passes for AIME 2025, with these problems first."""
    rows = [*texts, *(f"competition problem {number}" for number in range(30 - len(texts)))]
    lines(directory / "data/aime25.jsonl", *({"problem": text, "answer": 7} for text in rows))


def test_a_valid_file_exits_with_0(reval: Reval, tmp_path: Path) -> None:
    aime(tmp_path)
    file = lines(tmp_path / "a.jsonl", {"problem": "1+1=", "answer": 2}, {"problem": "half of 1", "answer": "0.5"})
    code, out, _ = reval("check", file)
    assert code == 0
    assert out.startswith("a.jsonl: 2 rows, 2 problems\n")
    assert "golds: 1 integer, 1 number\n" in out
    assert "problems: 4 to 9 characters, median 6\n" in out
    assert ["aime25", "30", "0", "0", "0"] in [line.split() for line in out.splitlines()]
    assert out.endswith("Ready for training.\n")


ODD = [
    {"problem": "Find $x$ if $x = 1$.", "answer": "1"},
    {"problem": "Find x if x=1", "answer": "1"},
    {"problem": r"Find \(x\) if \(x=1\)!", "answer": "1"},
    {"problem": "find x if x = 1", "answer": "2"},
    {"problem": "both", "answer": ["1", "2"]},
    {"problem": "parity", "answer": "even"},
    {"problem": "which?", "answer": "C"},
    {"problem": "z" * 3000, "answer": r"\sqrt{2}"},
    {"problem": "solved", "answer": "2 + 3 = 5\n#### 5"},
    {"problem": "no answer", "answer": ""},
    {"problem": "none either", "answer": None},
    {"problem": "again none", "answer": " "},
    {"problem": LONG.format(3), "answer": 1},
    {"problem": "competition problem 4", "answer": 1},
]


def test_issues_are_counted_with_their_lines(reval: Reval, tmp_path: Path) -> None:
    aime(tmp_path, LONG.format(9))
    file = lines(tmp_path / "odd.jsonl", *ODD)
    code, out, _ = reval("check", file, "--json")
    found = json.loads(out)
    assert code == 1
    assert (found["file"], found["rows"], found["trainable"]) == (str(file), 14, False)
    assert found["faults"] == {"answer: is empty": ["line 10", "line 12"], "answer: is missing": ["line 11"]}
    assert found["notes"] == {
        "answer is a list": ["line 5"],
        "several answers": ["line 5"],
        "long problem (over 2,000 characters)": ["line 8"],
        "answer is a whole solution": ["line 9"],
        "answer is a number": ["line 13", "line 14"],
        "the same problem again, the same answer": ["line 2"],
        "the same problem again, another answer": ["line 4"],
    }, "line 3 ends with a factorial: another problem"
    assert found["golds"] == {"integer": 7, "list": 1, "text": 1, "choice": 1, "expression": 1}
    assert found["characters"] == {"shortest": 4, "median": 15, "longest": 3000}
    assert found["compared_with"] == {"aime25": 30}
    shared = "cows and sells half of them to a neighbour who pays in apples"
    assert found["audit"]["gold_accepted"]["of"] == 11
    assert found["overlaps"] == [
        {"prompt_id": "13", "test_set": "aime25", "test_id": "1", "shared": shared},
        {"prompt_id": "14", "test_set": "aime25", "test_id": "6", "shared": None},
    ]


def test_a_table_fits_80_columns_and_shows_what_to_do(reval: Reval, tmp_path: Path) -> None:
    aime(tmp_path, LONG.format(9))
    code, out, _ = reval("check", lines(tmp_path / "odd.jsonl", *ODD))
    assert code == 1
    assert max(map(len, out.splitlines())) <= 80
    shown = [" ".join(line.split()) for line in out.splitlines()]
    assert "cannot be used: answer: is empty 2 line 10, line 12" in shown
    assert "aime25 30 2 1 1" in shown
    assert shown.index("14 is in aime25: 6") < shown.index("13 is in aime25: 1"), "equal texts come first"
    assert out.endswith(
        "Before training on it:\n"
        "  fix 3 rows, or leave them out with unusable: drop\n"
        "  leave out 2 overlapping rows with problems.contaminated: drop\n"
    )


def test_a_copy_of_a_test_set_is_not_compared_with_itself(reval: Reval, tmp_path: Path) -> None:
    aime(tmp_path)
    copy = (tmp_path / "data/aime25.jsonl").rename(tmp_path / "copy.jsonl")
    aime(tmp_path)
    code, out, _ = reval("check", copy)
    assert code == 0
    assert "contains exactly the problems of aime25 and is not compared with it" in out
    code, out, _ = reval("check", copy, "--set", "aime25", "--against", "aime25", "--json")
    assert (code, json.loads(out)["copy_of"]) == (0, ["aime25"])


def test_an_incomplete_registered_set_is_skipped_unless_it_is_named(reval: Reval, tmp_path: Path) -> None:
    aime(tmp_path)
    lines(tmp_path / "data/gsm8k_test.jsonl", {"question": "1+1", "answer": "#### 2"})
    (tmp_path / "data/math500.parquet").write_bytes(b"PAR1")
    file = lines(tmp_path / "a.jsonl", {"problem": "1+1", "answer": 2})
    code, out, _ = reval("check", file)
    assert code == 0
    assert "not compared with gsm8k: data/gsm8k_test.jsonl: has 1 rows, but GSM8K has 1319\n" in out
    assert "not compared with math500: data/math500.parquet: cannot be read as Parquet" in out
    found = json.loads(reval("check", file, "--json")[1])
    assert found["compared_with"] == {"aime25": 30}
    assert list(found["left_out"]) == ["gsm8k", "math500"]
    assert "has 1 rows, but GSM8K has 1319" in found["left_out"]["gsm8k"]
    (tmp_path / "data/aime25.jsonl").unlink()
    assert "not compared with any test set: no complete one was found" in reval("check", file)[1]
    code, out, complaint = reval("check", file, "--against", "gsm8k")
    assert (code, out) == (2, "")
    assert "data/gsm8k_test.jsonl: has 1 rows, but GSM8K has 1319" in complaint


def test_columns_and_test_sets_can_be_named(reval: Reval, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"q": "1+1", "a": {"b": 2}})
    other = lines(tmp_path / "other.jsonl", {"problem": "1 + 1", "answer": 2})
    code, out, _ = reval("check", file, "--column", "problem=q", "--column", "answer=a.b", "--against", other)
    assert code == 0, "it is the same set"
    lines(other, {"problem": "1 + 1", "answer": 2}, {"problem": "2", "answer": 2})
    code, out, _ = reval("check", file, "--column", "problem=q", "--column", "answer=a.b", "--against", other)
    assert code == 1
    assert "1 is in other: 1\n    the same text\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl"], "reval: none.jsonl: cannot be read (No such file or directory)"),
        (
            ["a.jsonl", "--column", "answer"],
            "--column answer: must look like answer=NAME; the fields are",
        ),
        (
            ["a.jsonl", "--column", "gold=x"],
            "--column gold=x: 'gold' is not a field of a row; known fields are problem",
        ),
        (
            ["a.jsonl", "--set", "gsm9k"],
            "--set gsm9k: is not a registered set; known are deepscaler",
        ),
        (["a.jsonl", "--set", "gsm8k"], "a.jsonl: has 1 rows, but GSM8K has 1319"),
        (["a.jsonl", "--against", "gsm9k"], "--against gsm9k: is neither a file nor a registered set (deepscaler"),
        (["a.jsonl", "--against", "a.jsonl", "--against", "a.jsonl"], "--against: two sets are named a"),
    ],
)
def test_files_that_cannot_be_checked_are_refused(
    reval: Reval, tmp_path: Path, arguments: list[str], words: str
) -> None:
    lines(tmp_path / "a.jsonl", {"problem": "1+1", "answer": 2})
    code, out, complaint = reval("check", *arguments)
    assert (code, out) == (2, "")
    assert words in complaint
    assert complaint.count("\n") == 1


def test_the_registered_sets_are_listed_with_their_files(reval: Reval, tmp_path: Path) -> None:
    aime(tmp_path)
    lines(tmp_path / "data/gsm8k_test.jsonl", {"question": "1+1", "answer": "#### 2"})
    code, out, _ = reval("list")
    shown = [line.split() for line in out.splitlines()]
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert ["aime25", "test", "30", "30", "aime25.jsonl"] in shown
    assert ["gsm8k", "test", "1,319", "1", "(partial)", "gsm8k_test.jsonl"] in shown
    assert ["gpqa", "test", "198", "–"] in shown
    found = {row["set"]: row for row in json.loads(reval("list", "--json")[1])}
    assert (found["aime25"]["rows"], found["aime25"]["whole"]) == (30, True)
    assert (found["gsm8k"]["whole"], found["gsm8k"]["file"]) == (False, "data/gsm8k_test.jsonl")
    assert (found["gpqa"]["file"], found["gpqa"]["rows"], found["gpqa"]["hub"]) == (None, None, "Idavidrein/gpqa")


GOLDS = [
    {"problem": "six times seven", "answer": "42"},
    {"problem": "which axis?", "answer": r"\text{cm}"},
    {"problem": "when?", "answer": "N/A"},
    {"problem": "find both", "answer": "3, 4"},
    {"problem": "none", "answer": ""},
]


def test_an_audit_has_three_rates_and_names_suspicious_golds_with_their_lines(reval: Reval, tmp_path: Path) -> None:
    file = lines(tmp_path / "golds.jsonl", *GOLDS)
    code, out, _ = reval("audit", file, "--workers", "1", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["problems"], found["usable"], found["mode"]) == (4, 4, "strict")
    assert found["gold_accepted"] == {"of": 4, "count": 4, "rate": 1.0}
    assert found["rewritings_accepted"]["of"] > 30
    assert found["mutants_rejected"]["of"] > 40
    reasons = {(one["place"], reason) for one in found["suspicious"] for reason in one["reasons"]}
    assert {("line 2", "only a unit"), ("line 3", "missing-value word"), ("line 4", "several answers")} <= reasons
    failed = sum(kind["of"] - kind["count"] for kind in found["kinds"])
    assert failed == len(found["rest"])


def test_a_printed_audit_fits_80_columns_and_ends_with_0(reval: Reval, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    aime(tmp_path)
    code, out, _ = reval("audit", "aime25", "--workers", "1", "--sample", "3", "--seed", "5")
    assert code == 0
    assert out.startswith("data/aime25.jsonl: 3 of 30 problems, strict mode\n")
    assert max(map(len, out.splitlines())) <= 80
    assert ["gold", "accepted", "3", "3", "100%"] in [line.split() for line in out.splitlines()]


def test_a_check_includes_an_audit_of_some_problems(reval: Reval, tmp_path: Path) -> None:
    file = lines(tmp_path / "golds.jsonl", *GOLDS)
    _, out, _ = reval("check", file)
    assert any(line.startswith("audit of 4: gold accepted 100%, rewritings ") for line in out.splitlines())


def test_a_name_that_is_neither_a_file_nor_a_set_is_refused(reval: Reval) -> None:
    code, _, complained = reval("audit", "aime99")
    assert code == 2
    assert complained.startswith("reval: aime99: cannot be read (unknown file format)")
