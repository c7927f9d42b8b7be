"""The problems of a run: registered sets, several held-out sets, contaminated rows."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import yaml

from reval_core.config import PROMPTS, Arithmetic, Hub, Problems, ProblemSet, SetName
from reval_core.errors import InputError
from reval_core.problems import Problem, check_contamination, load_problems, load_run_sets
from reval_core.problems.registered import ENDINGS, REGISTERED, find_set

ROOT = Path(__file__).parents[3]
LONG = "A farmer has {} cows and sells half of them to a neighbour who pays in apples and pears"


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REVAL_DATA", raising=False)


def lines(path: Path, *texts: str) -> ProblemSet:
    """A file of problems, as a set."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"problem": text, "answer": "1"}) for text in texts), encoding="utf-8")
    return ProblemSet(path=str(path))


def test_every_name_is_registered_and_every_set_has_distinct_files() -> None:
    assert tuple(REGISTERED) == get_args(SetName)
    names = [name for one in REGISTERED.values() for name in one.files]
    assert len(set(names)) == len(names)
    assert not any("/" in name or name.endswith(ENDINGS) for name in names)


def test_the_page_describes_every_registered_set_and_its_example_is_a_config():
    page = (ROOT / "docs/problems.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    described = {name: (sizes, files, hub) for name, sizes, files, hub in rows if name in REGISTERED}
    assert list(described) == list(REGISTERED)
    for name, one in REGISTERED.items():
        sizes, files, hub = described[name]
        assert " or ".join(f"{size:,}" for size in one.sizes) == sizes.replace("about 40,000", "")
        assert files == ", ".join(f"`{file}`" for file in one.files)
        split = one.hub.split if one.hub.split == "test" or name == "gsm8k_train" else None  # train by default
        assert hub == ", ".join(part for part in (one.hub.name, one.hub.config, split) if part)
    (example,) = re.findall(r"```yaml\nproblems:\n(.*?)```", page, re.DOTALL)
    settings = Problems.model_validate(yaml.safe_load(example))
    assert (len(settings.held_out), settings.prompt) == (4, PROMPTS["qwen"])


def test_a_registered_set_is_found_in_the_given_directories_or_in_data(tmp_path, monkeypatch):
    rows = [f"problem {number}" for number in range(30)]
    lines(tmp_path / "data/aime25.jsonl", *rows)
    assert find_set("aime25") == Path("data/aime25.jsonl")
    problems = load_problems(ProblemSet(set="aime25"), seed=0)
    assert problems[0] == Problem("1", "problem 0", "1", problem_set="aime25")
    lines(tmp_path / "first/aime_2025.json", *rows)
    lines(tmp_path / "second/aime25.jsonl", *rows)
    monkeypatch.setenv("REVAL_DATA", "nowhere:first:second")
    assert find_set("aime25") == Path("first/aime_2025.json")
    monkeypatch.setenv("REVAL_DATA", "nowhere")
    assert find_set("aime25") is None, "data is for those who name no directory"


def test_an_incomplete_test_set_is_refused(tmp_path):
    lines(tmp_path / "data/gsm8k-64.jsonl", "1+1")
    assert find_set("gsm8k") is None
    part = lines(tmp_path / "data/gsm8k_test.jsonl", "1+1", "1+2")
    with pytest.raises(InputError, match=r"gsm8k_test\.jsonl: has 2 rows, but GSM8K has 1319; to use it as"):
        load_problems(ProblemSet(set="gsm8k"), seed=0)
    with pytest.raises(InputError, match="to use a part of the whole set, give a limit"):
        load_problems(ProblemSet(set="gsm8k", path=part.path), seed=0)
    trained = load_problems(ProblemSet(set="deepscaler", path=part.path), seed=0)
    assert [one.problem_set for one in trained] == ["deepscaler"] * 2, "nobody compares training sets"


@pytest.mark.skipif(find_spec("datasets") is not None, reason="the package datasets is installed")
def test_a_set_that_is_not_found_is_refused_with_instructions():
    with pytest.raises(InputError) as caught:
        load_problems(ProblemSet(set="gpqa"), seed=0)
    assert str(caught.value) == (
        f"gpqa: no file gpqa.parquet, .jsonl, .ndjson, .json, .csv or .arrow in {Path('data').absolute()} "
        "(docs/problems.md describes how to get it; REVAL_DATA sets other directories), and hub Idavidrein/gpqa: "
        "the package datasets is not installed; pip install 'reval-rl[hub]', or give the path of a file"
    )
    with pytest.raises(InputError, match=r"hub openai/gsm8k: the package datasets is not installed; pip install"):
        load_problems(ProblemSet(hub=Hub(name="openai/gsm8k")), seed=0)


def test_a_dataset_of_the_hub_is_read_like_a_file(tmp_path, monkeypatch):
    """A directory replaces the hub: the package reads both alike, and tests have no network."""
    pytest.importorskip("datasets", reason="the extra hub is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = lines(tmp_path / "sums/test.jsonl", "1+1", "1+2").path
    found = load_problems(ProblemSet(hub=Hub(name=str(tmp_path / "sums"), split="test")), seed=0)
    assert [(one.problem, one.problem_set) for one in found] == [("1+1", "sums"), ("1+2", "sums")]
    assert [one.answer for one in found] == [one.answer for one in load_problems(ProblemSet(path=path), seed=0)]
    with pytest.raises(InputError, match=r"sums: cannot be loaded \(Unknown split \"train\""):
        load_problems(ProblemSet(hub=Hub(name=str(tmp_path / "sums"))), seed=0)
    with pytest.raises(
        InputError, match=r"gpqa: no file gpqa\.parquet.* and hub Idavidrein/gpqa: cannot be loaded"
    ):
        load_problems(ProblemSet(set="gpqa"), seed=0)


def test_the_gold_mode_defaults_to_that_of_the_set(tmp_path):
    rows = [f"problem {number}" for number in range(272)]
    path = lines(tmp_path / "data/minerva.jsonl", *rows).path
    modes = [
        load_problems(source, seed=0)[0].gold_mode
        for source in (
            ProblemSet(set="minerva"),
            ProblemSet(path=path),
            ProblemSet(path=path, gold_mode="choice"),
            ProblemSet(set="minerva", gold_mode="all"),
        )
    ]
    assert modes == ["any", "all", "choice", "all"]


def test_held_out_sets_are_in_order_and_have_unique_names(tmp_path):
    first, second = lines(tmp_path / "a.jsonl", "p", "q"), lines(tmp_path / "b.jsonl", "r")
    sums = ProblemSet(arithmetic=Arithmetic(digits=1, split="held_out"), limit=2)
    sets = load_run_sets(Problems(held_out=(first, sums, second)), seed=0).held_out
    found = [one for problems in sets.values() for one in problems]
    assert [one.problem_set for one in found] == ["a", "a", "1-digit sums", "1-digit sums", "b"]
    assert [one.prompt_id for one in found if one.problem_set != "1-digit sums"] == ["1", "2", "1"]
    (tmp_path / "other").mkdir()
    same = lines(tmp_path / "other/a.jsonl", "s")
    with pytest.raises(InputError, match=r"problems\.held_out: two sets are named a; remove one, or"):
        load_run_sets(Problems(held_out=(first, same)), seed=0)


def test_contaminated_rows_are_refused_dropped_or_kept(tmp_path):
    train = lines(tmp_path / "train.jsonl", LONG.format(7), "1 + 1", "fine")
    tests = lines(tmp_path / "test.jsonl", "other", "1+1", LONG.format(8))
    held_out = tests.model_copy(update={"limit": 1})
    settings = Problems(train=train, held_out=held_out)
    with pytest.raises(InputError) as caught:
        check_contamination(load_run_sets(settings, 0), settings, 0)
    assert str(caught.value) == (
        "problems.train: 2 of 3 problems also occur in the test sets (1 with the same text, the others share 13 "
        "consecutive words), for example 2 of train and 2 of test (the same text); set problems.contaminated: drop "
        "to exclude them, or keep to train on them anyway"
    ), "the whole test set counts, whatever its limit is"
    dropped = load_run_sets(settings.model_copy(update={"contaminated": "drop"}), 0)
    assert [one.problem for one in dropped.train] == ["fine"]
    assert len(load_run_sets(settings.model_copy(update={"contaminated": "keep"}), 0).train) == 3
    elsewhere = Problems(train=train, never_train_on=tests, contaminated="drop")
    assert load_run_sets(elsewhere, 0).train == dropped.train
    nothing = Problems(train=tests, held_out=tests, contaminated="drop")
    with pytest.raises(InputError, match=r"problems\.train: every problem also occurs in a test set"):
        load_run_sets(nothing, 0)
    check_contamination(dropped, settings, 0)
