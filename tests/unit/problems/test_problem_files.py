"""Problem files of every format and layout: the same rows give the same problems, or one error line."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.config import ProblemSet
from reval_core.errors import InputError
from reval_core.problems import Problem, load_problems
from reval_core.problems.golds import gold_kind

ROWS = [
    {"problem": 'What is "1\u20282"?', "answer": "3,5"},
    {"problem": "One, two;\nthree", "answer": "025"},
    {"problem": "Half of 1 in %", "answer": r"\frac{1}{2}"},
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the rows in the format of the file's extension."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        make = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table)
    return path


def loaded(path: Path, **source: Any) -> list[Problem]:
    return load_problems(ProblemSet(path=str(path), **source), seed=0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.CSV", "a.parquet", "stream.arrow", "file.arrow"])
def test_every_format_gives_the_same_problems(tmp_path: Path, name: str) -> None:
    problems = loaded(written(tmp_path / name, ROWS) if name != "a.CSV" else upper(tmp_path))
    assert [(one.prompt_id, one.problem, one.answer) for one in problems] == [
        (str(number), row["problem"], row["answer"]) for number, row in enumerate(ROWS, start=1)
    ]
    assert {one.problem_set for one in problems} == {name.partition(".")[0]}


def upper(directory: Path) -> Path:
    return written(directory / "a.csv", ROWS).rename(directory / "a.CSV")


def test_a_json_file_may_have_one_object_per_line(tmp_path: Path) -> None:
    lines = written(tmp_path / "a.jsonl", ROWS).rename(tmp_path / "a.json")
    assert [one.answer for one in loaded(lines)] == [row["answer"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.txt",
            b"",
            "a.txt: cannot be read (unknown file format); the name must end in .jsonl, .ndjson, .json, .csv, ",
        ),
        ("a.json", b"[]", "a.json: contains no rows"),
        ("a.json", b"", "a.json: contains no rows"),
        ("a.json", b'[{"problem": "1",\n "answer": }]', "a.json:2: is not JSON (Expecting value at column 12)"),
        ("a.json", b'[{"problem": "1", "answer": "1"}, 5]', "a.json: row 2: not a JSON object"),
        ("a.json", b"[" * 100_000, "a.json: cannot be read"),
        ("a.json", b"\xff", "a.json: cannot be read as UTF-8"),
        ("a.csv", b"problem,answer\n1,2,3\n", "a.csv: row 1: has more fields than the header"),
        ("a.csv", b'problem,answer\n1,"2\n', "a.csv:2: is not CSV (unexpected end of data)"),
        ("a.csv", b"problem,answer\n1\n", "a.csv: row 1: answer: is missing"),
        ("a.csv", b"problem,answer\n", "a.csv: contains no rows"),
        ("a.csv", b"problem,answer\n\xff,1", "a.csv: cannot be read as UTF-8"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read as Parquet"),
        ("a.arrow", b"ARROW1", "a.arrow: cannot be read as Arrow"),
        ("a.arrow", b"", "a.arrow: cannot be read as Arrow"),
    ],
)
def test_a_file_with_the_wrong_extension_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        loaded(tmp_path / name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.csv", "none.parquet", "none.arrow"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        loaded(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (142.0, "142"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (7, "7"),
        (" 7\n", "7"),
        (["9.6\n"], "9.6"),
        (["0.01\n", "0.02\n"], "0.01, 0.02"),
        (["5", "5\n"], "5"),
        ([1, 2.0], "1, 2"),
        ("16 - 7 = <<16-7=9>>9\n9 * 2 = 18\n#### 18", "18"),
        ("So it is\n\\[ \\boxed{\\frac{1}{2}}.\\]", r"\frac{1}{2}"),
        ("it is 4, says the key", "it is 4, says the key"),
    ],
)
def test_an_answer_becomes_the_text_that_is_compared(tmp_path: Path, given: object, answer: str) -> None:
    (problem,) = loaded(written(tmp_path / "a.json", [{"problem": "p", "answer": given}]))
    assert problem.answer == answer


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("025", "integer"),
        ("$1,657$", "integer"),
        ("-0.5", "number"),
        ("50\\%", "number"),
        (r"\dfrac{-3}{14}", "number"),
        ("1,657.5", "number"),
        ("69,84", "list"),
        ("$69$,$84$", "list"),
        ("2 and 3", "list"),
        ("(1,2)", "expression"),
        (r"81\sqrt{3}", "expression"),
        ("x", "expression"),
        (r"\text{even}", "text"),
        ("Paul", "text"),
        ("It follows. " * 20, "text"),
        ("C", "choice"),
    ],
)
def test_golds_are_classified_by_their_form(gold: str, kind: str) -> None:
    assert gold_kind(gold, "all") == kind
    assert gold_kind(gold, "choice") == "choice"


def test_an_ambiguous_list_of_alternatives_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [{"problem": "p", "answer": ["x, y", "z"]}])
    assert loaded(path)[0].answer == "x, y, z", "all of them are asked for, so it does not matter who listed them"
    with pytest.raises(InputError, match="answer: contains 'x, y', itself a list"):
        loaded(path, gold_mode="any")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "p", "final_answer": ["1"], "solution": ["so"]}, {}),
        ({"Problem": "p", "Answer": 1, "Solution": "so", "ID": "x"}, {}),
        ({"question": "p", "solution": r"thus \boxed{1}"}, {}),
        ({"problem": "p", "answer": None, "truth": {"inner": {"value": 1}}}, {"answer": "truth.inner.value"}),
        ({"problem": "p", "answer": "2", "dotted.name": "1"}, {"answer": "dotted.name"}),
        ({"problem": "no", "question": "p", "answer": "1"}, {"problem": "question"}),
        ({"prompt": "p", "reward_model": {"ground_truth": "1", "style": "rule"}}, {}),
        (
            {
                "prompt": [
                    {"role": "system", "content": "Think."},
                    {
                        "role": "user",
                        "content": "p Let's think step by step and output the final answer within \\boxed{}.",
                    },
                ],
                "reward_model": {"ground_truth": "1"},
            },
            {},
        ),
    ],
)
def test_columns_are_found_by_name_or_as_configured(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str]
) -> None:
    for name in ("a.json", "a.parquet"):
        (problem,) = loaded(written(tmp_path / name, [row]), columns=columns)
        assert (problem.problem, problem.answer) == ("p", "1")


@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        (
            {"problem": "p", "answer": "1", "ground_truth": "2"},
            {},
            "the answer may be in answer or ground_truth",
        ),
        ({"text": "p", "answer": "1"}, {}, "has no column for the problem; it has 'text', 'answer'"),
        ({"problem": "p", "gold": "1"}, {}, "specify it with columns: {answer: NAME} or --column answer=NAME"),
        ({"problem": "p", "answer": "1"}, {"answer": "gold"}, "has no column 'gold' for the answer"),
        ({"problem": "p", "a": {"b": 1}}, {"answer": "a.c"}, "row 1: answer: is missing"),
    ],
)
def test_ambiguous_and_missing_columns_are_refused(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        loaded(written(tmp_path / "a.json", [row]), columns=columns)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"id": "a", "unique_id": "b", "prompt_id": "c"}, "c"),
        ({"id": "a", "unique_id": "b"}, "b"),
        ({"id": 7}, "7"),
        ({"Record ID": "r"}, "r"),
        ({"id": None}, "1"),
        ({"idx": 5}, "1"),
    ],
)
def test_an_id_comes_from_the_most_specific_column(tmp_path: Path, names: dict[str, Any], expected: str) -> None:
    (problem,) = loaded(written(tmp_path / "a.json", [{"problem": "p", "answer": "1"} | names]))
    assert problem.prompt_id == expected


CHOICES = {"question": "Which metal is liquid at 20 °C?", "options": ["Iron", "Mercury", "Tin", "Lead"]}


def test_multiple_choice_appends_options_and_has_a_letter_as_answer(tmp_path: Path) -> None:
    (problem,) = loaded(written(tmp_path / "a.json", [CHOICES | {"answer": "B", "correct_option_index": 1}]))
    question, empty, *lines = problem.problem.split("\n")
    assert (question, empty, problem.gold_mode) == (CHOICES["question"], "", "choice")
    assert [line[:4] for line in lines] == ["(A) ", "(B) ", "(C) ", "(D) "]
    assert sorted(line[4:] for line in lines) == sorted(CHOICES["options"])
    assert f"({problem.answer}) Mercury" in lines


@pytest.mark.parametrize(
    "row",
    [
        CHOICES | {"answer": 1},
        CHOICES | {"answer": "(B)"},
        CHOICES | {"answer": "Mercury"},
        CHOICES | {"correct_option_index": 1},
        CHOICES | {"options": ["Mercury", "Lead", "Tin", "Iron"], "answer": "A"},
        {"question": CHOICES["question"], "choices": CHOICES["options"], "answer": "B"},
        {
            "Question": CHOICES["question"],
            "Correct Answer": "Mercury\n",
            "Incorrect Answer 1": "Tin",
            "Incorrect Answer 2": "Iron",
            "Incorrect Answer 3": "Lead",
        },
    ],
)
def test_every_layout_and_order_of_options_gives_the_same_question_and_key(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (expected,) = loaded(written(tmp_path / "a.json", [CHOICES | {"answer": "B"}]))
    assert loaded(written(tmp_path / "a.json", [row])) == [expected]
    assert load_problems(ProblemSet(path=str(tmp_path / "a.json")), seed=99) == [expected]


def test_the_right_option_occurs_at_every_position(tmp_path: Path) -> None:
    rows = [{"question": f"q{number}", "options": list("wxyz"), "answer": "A"} for number in range(200)]
    answers = [one.answer for one in loaded(written(tmp_path / "a.json", rows))]
    assert all(30 < answers.count(letter) < 70 for letter in "ABCD")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "E"}, "answer: 'E' is not one of the 4 options"),
        ({"answer": 4}, "answer: '4' is not one of the 4 options"),
        ({"answer": "B", "correct_option_index": 2}, "is option number 1, but correct_option_index is 2"),
        (
            {"answer": 3, "options": [2, 3, 4, 5]},
            "answer: 3 is the index, from 0, of option '5', and the text of another; write",
        ),
        ({"answer": 2, "options": ["1", "2", "3", "4"]}, "answer: 2 is the index, from 0, of option '3'"),
        ({"answer": "A", "options": ["x", "x "]}, "options: contains a duplicate"),
        ({"answer": "A", "options": ["x"]}, "options: must be 2 to 10, not 1"),
        ({"answer": "A", "options": "x, y"}, "options: must be a list, not str"),
    ],
)
def test_options_without_a_right_one_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded(written(tmp_path / "a.json", [CHOICES | change]))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"answer": "3", "options": [2, 3, 4, 5]}, "3"),
        ({"answer": "D", "options": [2, 3, 4, 5]}, "5"),
        ({"answer": 4, "options": [2, 3, 4, 5]}, "4"),
        ({"answer": 1, "options": [0, 1, 2, 3]}, "1"),
        ({"answer": 1, "options": [2, 3, 4, 5]}, "3"),
        ({"correct_option_index": 3, "options": [2, 3, 4, 5]}, "5"),
        ({"answer": 3, "correct_option_index": 3, "options": [2, 3, 4, 5]}, "5"),
    ],
)
def test_a_number_among_options_that_are_numbers(tmp_path: Path, row: dict[str, Any], right: str) -> None:
    (problem,) = loaded(written(tmp_path / "a.json", [{"question": "How many?"} | row]))
    assert f"({problem.answer}) {right}" in problem.problem.split("\n")


def test_unusable_rows_are_dropped_if_configured(tmp_path: Path) -> None:
    rows = [{"problem": "p", "answer": answer} for answer in ("1", "", None, "4")]
    path = written(tmp_path / "a.json", rows)
    with pytest.raises(
        InputError, match=r"a\.json: row 2: answer: is empty; fix it, or set unusable: drop .* \(2 of 4\)"
    ):
        loaded(path)
    assert [(one.prompt_id, one.answer) for one in loaded(path, unusable="drop")] == [("1", "1"), ("4", "4")]
    with pytest.raises(InputError, match="none of its 1 rows can be used"):
        loaded(written(path, rows[1:2]), unusable="drop")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["A", "1, 2", "#### 4"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)
names = st.sampled_from(["problem", "answer", "solution", "options", "prompt", "prompt_id", "correct_option_index"])


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(st.dictionaries(names, values, max_size=6), min_size=1, max_size=3),
    mode=st.sampled_from(["all", "any"]),
)
def test_arbitrary_rows_give_problems_or_one_line_that_names_the_file(
    rows: list[dict[str, Any]], mode: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.json"
    path.write_text(json.dumps(rows), encoding="utf-8")  # including NaN and lone surrogates
    message, problems = outcome(path, gold_mode=mode)
    if message:
        assert message.startswith(str(path))
        assert "\n" not in message
        assert f"{path}: row " in message or "column" in message or "ambiguous" in message
    else:
        assert len(problems) == len(rows)
    for one in problems:
        assert one.problem.strip()
        assert one.answer.strip()
        (one.prompt_id + one.problem + one.answer).encode()


def outcome(path: Path, **source: Any) -> tuple[str, list[Problem]]:
    """The error message about a file, or its problems."""
    try:
        return "", loaded(path, **source)
    except InputError as error:
        return str(error), []


cells = st.sampled_from(
    [
        pa.array([b"\xff\xfe"], pa.binary()),
        pa.array([2**62], pa.timestamp("ns")),
        pa.array([None], pa.null()),
        pa.array([[None]], pa.list_(pa.string())),
        pa.array([1.5], pa.float32()),
        pa.array([True]),
        pa.array([{"a": None}]),
        pa.array(["x"]),
        pa.array(["x"]).dictionary_encode(),
        pa.array([10], pa.decimal128(5, 2)),
    ]
)


@settings(deadline=None, max_examples=60)
@given(problem=cells, answer=cells)
def test_arbitrary_table_columns_give_problems_or_one_line_that_names_the_file(
    problem: pa.Array, answer: pa.Array, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.parquet"
    pq.write_table(pa.table({"problem": problem, "answer": answer}), path)
    message, problems = outcome(path)
    assert message.startswith(str(path)) or len(problems) == 1
    assert "\n" not in message
    assert all(one.problem and one.answer for one in problems)
