"""Row files as people and their tools write them: which are read, and which are refused in one line."""

from __future__ import annotations

import csv
import datetime
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reval_core.config import ProblemSet
from reval_core.engines.response import Response
from reval_core.errors import InputError
from reval_core.problems import load_problems
from reval_core.problems.checking import check_set
from reval_core.problems.claim_files import read_claims
from reval_core.problems.golds import is_missing
from reval_core.problems.response_files import read_responses
from reval_core.rows.values import json_list

CASES = Path(__file__).parents[4] / "shared" / "cases" / "problems"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not beside the project")


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def golds(path: Path, **source: Any) -> list[str]:
    return [one.answer for one in load_problems(ProblemSet(path=str(path), **source), seed=0)]


def responses(path: Path, **columns: str) -> list[Response]:
    return read_responses(path, columns, "all")


@needs_cases
@pytest.mark.parametrize(
    ("name", "answers"), [("decimal.parquet", ["3.5", "12"]), ("parts.parquet", ["2"]), ("skywork.parquet", ["2"])]
)
def test_the_shared_problem_files_are_read(name: str, answers: list[str]) -> None:
    problems = load_problems(ProblemSet(path=str(CASES / name)), seed=0)
    assert [one.answer for one in problems] == answers
    assert {one.problem for one in problems} <= {"a", "b", "1+1?"}


@needs_cases
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("floatgold.jsonl", [("1+1=", "2.5", "2.5")]),
        ("csvresp.csv", [("1+1=", "2", "2")]),
        ("upper.JSONL", [(f"1+{n}=", f"so \\boxed{{{n + 1}}}", str(n + 1)) for n in range(4)]),
    ],
)
def test_the_shared_response_files_are_read_as_problem_files_are(
    name: str, found: list[tuple[str, str, str]]
) -> None:
    assert [(one.problem, one.text, one.gold) for one in responses(CASES / name)] == found


@needs_cases
def test_the_shared_missing_values_are_noted_with_their_lines() -> None:
    check = check_set(ProblemSet(path=str(CASES / "missing_words.jsonl")), {})
    assert check.notes["answer is a missing value"] == [f"line {number}" for number in range(1, 11)]
    assert not check.faults


@pytest.mark.parametrize(
    "kind",
    [
        pa.array([2, 25], pa.int8()),
        pa.array([2, 25], pa.uint64()),
        pa.array([2, 25], pa.float64()),
        pa.array([2, 25], pa.float32()),
        pa.array([Decimal("2.00"), Decimal("25")], pa.decimal128(18, 2)),
        pa.array([Decimal("2.00"), Decimal("25")], pa.decimal256(40, 3)),
        pa.array(["2", "25"], pa.large_string()),
        pa.array(["2", "25"], pa.string_view()),
        pa.array(["2", "25"]).dictionary_encode(),
        pa.array([["2"], ["25"]]),
        pa.array([[2.0], [25.0]]),
        pa.array(['["2"]', "[25]"]),
        pa.array(["\\boxed{2}", "#### 25"]),
    ],
    ids=lambda kind: str(kind.type),
)
def test_an_answer_of_every_type_is_the_same_text(tmp_path: Path, kind: pa.Array) -> None:
    path = parquet(tmp_path / "a.parquet", problem=["p", "q"], answer=kind)
    assert golds(path) == ["2", "25"]
    rows = parquet(tmp_path / "b.parquet", problem=["p", "q"], response=["2", "3"], gold=kind)
    assert [one.gold for one in responses(rows)] == ["2", "25"]
    if not pa.types.is_string(kind.type) or kind[0].as_py().startswith("["):
        assert [one.claim.gold for one in read_claims(rows, {}, "all")] == ["2", "25"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([-2.5], pa.float64()), "-2.5"),
        (pa.array([Decimal("1E+3")], pa.decimal128(10, 0)), "1000"),
        (pa.array([Decimal("0.050")], pa.decimal128(10, 3)), "0.05"),
        (pa.array([2**63], pa.uint64()), "9223372036854775808"),
        (pa.array(["[-2, 7]"]), "[-2, 7]"),  # an interval, not a list of two
        (pa.array(['["x, y", "z"]']), "x, y, z"),
        (pa.array(["[1, 2"]), "[1, 2"),
        (pa.array(["[true]"]), "[true]"),
    ],
)
def test_a_number_and_a_list_keep_their_meaning(tmp_path: Path, value: pa.Array, text: str) -> None:
    assert golds(parquet(tmp_path / "a.parquet", problem=["p"], answer=value)) == [text]


CHATS: list[Any] = [
    [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
    [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}],
    [{"from": "system", "value": "Think."}, {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
    [
        {"role": "user", "content": "0+0?"},
        {"role": "assistant", "content": "0"},
        {"role": "user", "content": "1+1?"},
    ],
    {"role": "user", "content": "1+1?"},
    {"role": ["system", "user"], "content": ["Think.", "1+1?"]},
    [{"type": "text", "text": "1+1?"}],
    json.dumps([{"role": "user", "content": "1+1?"}]),
    "1+1?",
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "arrow"])
def test_a_chat_in_every_layout_is_the_users_last_turn(tmp_path: Path, chat: Any, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    rows = [{"prompt": chat, "answer": "2"}]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text(json.dumps(rows if ending == "json" else rows[0]), encoding="utf-8")
    (problem,) = load_problems(ProblemSet(path=str(path)), seed=0)
    assert (problem.problem, problem.answer) == ("1+1?", "2")


def test_a_response_is_the_assistants_last_turn(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": " It is\n2. "}]
    rows = [
        {"prompt": turns[:1], "completion": turns[1:], "answer": 2},
        {"prompt": "1+1?", "completion": [{"type": "text", "text": " It is\n2. "}], "answer": "2"},
        {"prompt": turns, "completion": json.dumps(turns), "answer": 2.0},
    ]
    for one in responses(jsonl(tmp_path / "a.jsonl", *rows)):
        assert (one.problem, one.text, one.gold) == ("1+1?", " It is\n2. ", "2")
    (whole,) = responses(jsonl(tmp_path / "b.jsonl", {"messages": turns, "reward": 1}))
    assert (whole.problem, whole.text, whole.given_reward) == ("1+1?", " It is\n2. ", 1.0)
    (claim,) = read_claims(jsonl(tmp_path / "c.jsonl", {"messages": turns, "answer": 2}), {}, "all")
    assert claim.claim.response == " It is\n2. "


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": CHATS[0][:1], "answer": "2"}, "problem: is a chat without a turn of role user"),
        (
            {"prompt": "[{'role': 'user', 'content': 'q'}]", "answer": "2"},
            "problem: looks like a chat but is not JSON",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}], "answer": "2"},
            "problem: contains a part of type 'image'; only text is supported",
        ),
        ({"prompt": [{"role": "user", "content": None}], "answer": "2"}, "problem: is missing"),
        ({"prompt": ["q"], "answer": "2"}, "problem: must be text or a number, not list"),
        ({"prompt": "q", "answer": True}, "answer: must be text or a number, not bool"),
        ({"prompt": "q", "answer": float("inf")}, "answer: must be text or a number, not the number inf"),
        ({"prompt": "q", "answer": float("nan")}, "answer: is missing"),
        (
            {"prompt": "q", "answer": {"value": 2}},
            "answer: must be text or a number, not dict; specify a nested column",
        ),
    ],
)
def test_values_that_are_not_text_are_refused_by_line_and_field(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "p", "answer": "1"}, row)
    with pytest.raises(InputError) as caught:
        golds(path)
    assert str(caught.value).startswith(f"{path}:2: {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (pa.array([datetime.date(2024, 1, 2)]), "must be text or a number, not date"),
        (pa.array([datetime.datetime(2024, 1, 2)]), "must be text or a number, not datetime"),
        (pa.array([b"2"]), "must be text or a number, not bytes"),
        (pa.array([None], pa.string()), "is missing"),
        (pa.array([float("nan")]), "is missing"),
        (pa.array([[None]], pa.list_(pa.string())), "is missing"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "must be text or a number, not tuple"),
    ],
)
def test_a_column_of_another_type_is_refused_by_row_and_field(tmp_path: Path, value: pa.Array, words: str) -> None:
    path = parquet(tmp_path / "a.parquet", problem=["p"], answer=value)
    with pytest.raises(InputError, match=rf"a\.parquet: row 1: answer: {words}"):
        golds(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.JSONL", b'\xef\xbb\xbf{"problem": "p", "response": "2", "gold": 2}\r\n'),
        ("a.ndjson", b'{"problem": "p", "response": "2", "gold": "2"}'),
        ("a.Json", b'\xef\xbb\xbf[{"problem": "p", "response": "2", "gold": [2]}]'),
        ("a.CSV", b"\xef\xbb\xbfproblem,response,gold,reward\r\np,2,2,\r\n"),
    ],
)
def test_line_endings_and_byte_order_marks_make_no_difference(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (one,) = responses(tmp_path / name)
    assert (one.problem, one.text, one.gold, one.given_reward) == ("p", "2", "2", None)
    assert golds(tmp_path / name, columns={"answer": "gold"}) == ["2"]
    (row,) = read_claims(tmp_path / name, {}, "all")
    assert (row.claim.gold, row.claim.response) == ("2", "2")


def test_csv_supports_long_responses_and_rewards_as_text(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("problem", "response", "gold", "reward"), ("p", "x" * 200_000, "", "-0.5")])
        writer.writerow(("p", "", "2", "true"))
    long, empty = responses(tmp_path / "a.csv")
    assert (len(long.text or ""), long.gold, long.given_reward) == (200_000, None, -0.5)
    assert (empty.text, empty.gold, empty.given_reward) == ("", "2", 1.0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"problem,answer,answer\n1,2,3\n", "has two columns named 'answer'; rename one"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        ("a.jsonl", '{"problem": "p"}'.encode("utf-16"), "cannot be read as UTF-8"),
        ("a.jsonl.gz", b"\x1f\x8b", "cannot be read (unknown file format); the name must end in .jsonl"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (golds, responses):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {words}")
        assert "\n" not in str(caught.value)


def test_a_directory_a_loop_and_a_broken_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "directory.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "broken.parquet").symlink_to(tmp_path / "nowhere")
    for name, words in (
        ("directory.jsonl", "it is a directory"),
        ("loop.jsonl", "Too many levels of symbolic links"),
        ("broken.parquet", "No such file or directory"),
    ):
        with pytest.raises(InputError, match=rf"{name}: cannot be read \({words}\)"):
            golds(tmp_path / name)


def test_several_user_turns_are_noted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"prompt": chat, "answer": "2"} for chat in (CHATS[0], CHATS[3])))
    notes = check_set(ProblemSet(path=str(path)), {}).notes
    assert notes["several turns of the user, of which the last is asked"] == ["line 2"]


MISSING = r"""
NAN -nan none $null$ \boxed{N/A} \text{None} \(\text{NaN}\) <NA> #N/A n.a. - -- — ? ??? ... … _ () TBD tba Undefined
FIXME Unknown (missing)
"""


@pytest.mark.parametrize("gold", [*MISSING.split(), " not available "])
def test_words_for_missing_values_are_recognised(gold: str) -> None:
    assert is_missing(gold)


@pytest.mark.parametrize(
    "gold",
    ["0", "-1", "\\infty", "∞", "∅", "n", "A", "\\pi", "no solution", "None of these", "$-$1", "½", "x?", "+"],
)
def test_answers_are_not_missing_values(gold: str) -> None:
    assert not is_missing(gold)


def test_missing_values_inside_boxes_are_noted_and_stay_usable(tmp_path: Path) -> None:
    answers = ["\\boxed{nan}", "So it is \\boxed{\\text{N/A}}.", "$TODO$", ["unknown"], "7"]
    path = jsonl(tmp_path / "a.jsonl", *({"problem": f"q{n}", "answer": one} for n, one in enumerate(answers)))
    check = check_set(ProblemSet(path=str(path)), {})
    assert check.notes["answer is a missing value"] == [f"line {number}" for number in (1, 2, 3, 4)]
    assert (check.faults, check.trainable) == ({}, True)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (r'["\text{even}"]', [r"\text{even}"]),
        (r'["\\text{even}"]', [r"\text{even}"]),
        (r'["\frac{1}{2}", "\sqrt{2}"]', [r"\frac{1}{2}", r"\sqrt{2}"]),
        (r'["1\,\!000", "5\%"]', [r"1\,\!000", r"5\%"]),
        (r'["caf\u00e9", "x\"y", "1\n2"]', ["café", 'x"y', "1\n2"]),
    ],
)
def test_latex_in_a_json_list_keeps_its_commands_however_its_backslashes_were_written(text, members):
    assert json_list(text) == members


READERS = re.compile(
    r"csv\.(reader|DictReader)\(|ParquetFile\(|ipc\.open_|read_csv|read_json_auto|pd\.read_|split\(\"\\n\"\).*loads"
)


def test_nothing_else_reads_files_of_rows():
    root = Path(__file__).parents[3]
    found = {
        str(path.relative_to(root))
        for name in ("reval_core", "flows", "tasks", "reval")
        for path in (root / name).rglob("*.py")
        if READERS.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"reval_core/rows/files.py"}
