"""The real problem files, read without special cases. They are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reval_core.answers import alternatives
from reval_core.answers.extraction import prepare_gold
from reval_core.config import ProblemSet
from reval_core.errors import InputError
from reval_core.problems import Problem, load_problems
from reval_core.problems.checking import check_set, known_tests
from reval_core.problems.contamination import contaminated, normalised
from reval_core.problems.registered import REGISTERED, find_set
from reval_core.rows import read_rows

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared data is not beside the project")

FILES = {
    "deepscaler_all.parquet": (10323, 5),
    "gsm8k_train.parquet": (7473, 0),
    "gsm8k_test.parquet": (1319, 0),
    "aime24.parquet": (30, 0),
    "aime25.parquet": (30, 0),
    "amc_83.parquet": (83, 0),
    "math500.parquet": (500, 0),
    "minerva.parquet": (272, 0),
    "olympiadbench.parquet": (675, 0),
    "original/gsm8k_test.jsonl": (1319, 0),
    "original/math500.jsonl": (500, 0),
    "original/aime24.arrow": (30, 0),
    "original/aime25.jsonl": (30, 0),
    "original/deepscaler_amc.json": (83, 0),
    "original/deepscaler_minerva.json": (272, 0),
    "original/verl_style_dsr_sub.parquet": (1209, 1),
}
"""Rows, and those among them without an answer."""

COPIES = {
    "original/gsm8k_test.jsonl": "gsm8k",
    "original/math500.jsonl": "math500",
    "original/aime25.jsonl": "aime25",
    "original/deepscaler_amc.json": "amc",
    "original/deepscaler_minerva.json": "minerva",
}


def test_every_file_of_problems_is_known_here() -> None:
    found = {str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file() and path.suffix != ".md"}
    assert found - set(FILES) == {"stored_responses.parquet", "verifier_cases.jsonl"}


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read_and_checked(name: str) -> None:
    rows, empty = FILES[name]
    problems = load_problems(ProblemSet(path=str(DATA / name), unusable="drop"), seed=0)
    assert len(problems) == rows - empty
    assert all(one.problem and one.answer and one.problem_set == Path(name).stem for one in problems)
    assert not any(one.problem.rstrip().endswith(r"within \boxed{}.") for one in problems)
    check = check_set(ProblemSet(path=str(DATA / name)), {})
    assert (check.rows, sum(check.kinds.values())) == (rows, rows - empty)
    assert {kind: len(places) for kind, places in check.faults.items()} == (
        {"answer: is empty": empty} if empty else {}
    )
    assert check.trainable == (empty == 0)


@pytest.mark.parametrize(
    ("name", "missing"), [("stored_responses.parquet", "answer"), ("verifier_cases.jsonl", "problem")]
)
def test_a_file_that_is_not_a_problem_set_is_refused(name: str, missing: str) -> None:
    with pytest.raises(
        InputError, match=f"has no column for the {missing}; it has .*'gold'.* --column {missing}=NAME"
    ):
        load_problems(ProblemSet(path=str(DATA / name)), seed=0)


@pytest.mark.parametrize(("name", "known"), COPIES.items())
def test_an_original_and_its_copy_have_the_same_problems_and_golds(
    name: str, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVAL_DATA", str(DATA))
    copy = load_problems(ProblemSet(set=known), seed=0)
    original = load_problems(ProblemSet(set=known, path=str(DATA / name)), seed=0)
    assert golds(original) == golds(copy)
    assert {one.gold_mode for one in original} == {REGISTERED[known].gold_mode}
    assert check_set(ProblemSet(path=str(DATA / name)), known_tests([known])[0]).copies == [known]


def test_a_copy_with_other_pictures_and_an_erratum_is_found_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of the 30 problems differ in a picture, a link, or one corrected word."""
    monkeypatch.setenv("REVAL_DATA", str(DATA))
    copy = load_problems(ProblemSet(set="aime24"), seed=0)
    original = load_problems(ProblemSet(set="aime24", path=str(DATA / "original/aime24.arrow")), seed=0)
    found = contaminated(original, copy)
    assert [one.train.answer for one in found] == [one.test.answer for one in found]
    assert (len(found), sum(one.shared != "" for one in found)) == (30, 5)


def golds(problems: list[Problem]) -> dict[str, str]:
    return {normalised(one.problem): prepare_gold(one.answer) for one in problems}


def test_lists_of_alternatives_are_split_into_the_original_members() -> None:
    path = DATA / "original/deepscaler_minerva.json"
    problems = load_problems(ProblemSet(path=str(path), gold_mode="any"), seed=0)
    several = 0
    for row, problem in zip(read_rows(path), problems, strict=True):
        members = list(dict.fromkeys(prepare_gold(one) for one in row.values["answer"]))
        several += len(members) > 1
        assert alternatives(prepare_gold(problem.answer)) == members or len(members) == 1
    assert several > 30


def test_all_registered_sets_except_gpqa_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVAL_DATA", os.pathsep.join(map(str, (DATA / "original", DATA))))
    assert [name for name in REGISTERED if find_set(name) is None] == ["gpqa"]
    assert find_set("minerva") == DATA / "original/deepscaler_minerva.json"
    tests, _ = known_tests([])
    assert {name: len(problems) for name, problems in tests.items()} == {
        name: one.sizes[0] for name, one in REGISTERED.items() if one.split == "test" and name != "gpqa"
    }


def test_the_overlap_of_the_training_set_is_the_inspected_one() -> None:
    train = load_problems(ProblemSet(path=str(DATA / "deepscaler_all.parquet"), unusable="drop"), seed=0)
    tests = [
        one
        for name in ("aime24", "math500", "olympiadbench")
        for one in load_problems(ProblemSet(path=str(DATA / f"{name}.parquet")), seed=0)
    ]
    found = contaminated(train, tests)
    word_for_word = {one.train.prompt_id for one in found if not one.shared}
    assert {name.rpartition("/")[2].partition("#")[0] for name in word_for_word} == {
        "1983-1-2", "2001-2-3", "2010-1-6", "2015-2-6", "2017-2-7"
    }  # fmt: skip
    dice = [one for one in found if "when rolling a certain unfair six-sided die" in one.shared]
    assert [one.test.problem_set for one in dice] == ["math500"], "the same problem in other words"
    assert len({one.train.prompt_id for one in found}) < 100, "stock phrases are not counted"


def test_no_row_of_a_real_test_set_is_lost() -> None:
    """All rows of the file are read, whatever they contain."""
    table = pq.read_table(DATA / "olympiadbench.parquet").to_pylist()
    problems = load_problems(ProblemSet(path=str(DATA / "olympiadbench.parquet")), seed=0)
    assert [(one.prompt_id, one.problem, one.answer) for one in problems] == [
        (row["prompt_id"], row["problem"].strip(), row["answer"].strip()) for row in table
    ]
