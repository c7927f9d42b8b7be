"""Comparing runs: metrics against explicit computations, the page, the JSON, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reval.flows.cli import main
from reval_core.atomic_files import publish_json
from reval_core.comparison import write_comparison
from reval_core.comparison.pairs import AVERAGE, Pair, pair
from reval_core.comparison.sides import Point, open_sides
from reval_core.errors import InputError
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.evaluation.intervals import bootstrap, macro
from reval_core.replay_buffer.index import sql_views
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS, Manifest, publish_table, read_table
from tests.integration.test_report import HOSTILE, Page
from tests.runs import run, small_config

Outcomes = Mapping[tuple[str, str], Sequence[bool | int]]
"""The verdicts of a hand-made run's responses, by problem set and prompt_id."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two real runs on the same problems: one learns fast, the other longer, and was interrupted."""
    directory = tmp_path_factory.mktemp("runs")
    fast, slow = directory / "fast", directory / "slow"
    run(fast, small_config(learner__lr=3e-3, rounds=1))
    patient = small_config(learner__lr=1e-5, rounds=3)
    run(slow, patient, until=1)
    run(slow, patient)
    return slow, fast


def made(
    path: Path,
    outcomes: Outcomes,
    rounds: Sequence[int] = (0,),
    texts: Mapping[str, str] | None = None,
    **column: Any,
) -> Path:
    """A hand-made run evaluated in `rounds`, with these outcomes each time."""
    directory = RunDirectory(path)
    directory.open(small_config())
    for round in rounds:
        rows = evaluation_rows(path.name, outcomes, round, texts or {}, **column)
        _publish(directory, "evaluation", round, "evaluations", rows)
    return path


def evaluation_rows(
    name: str, outcomes: Outcomes, round: int, texts: Mapping[str, str] = {}, **column: Any
) -> list[dict[str, Any]]:
    """One row per response. `texts` are those of problems, `column` one value for all rows."""
    return [
        {
            "round": round,
            "policy": f"p{round}",
            "prompt_id": prompt,
            "sample": sample,
            "problem": texts.get(prompt, f"problem {prompt}"),
            "gold": f"gold {prompt}",
            "problem_set": problem_set,
            "gold_mode": "all",
            "response": f"{name} says {'yes' if right else 'no'} to {prompt}, sample {sample}",
            "response_length": 10 + sample,
            "finish_reason": "stop",
            "verdict": "correct" if right else "wrong",
            "extracted": "yes" if right else "no",
            "correct": bool(right),
            **column,
        }
        for (problem_set, prompt), verdicts in outcomes.items()
        for sample, right in enumerate(verdicts)
    ]


def evaluated(path: Path, benchmarks: Mapping[int, Outcomes], latest: Sequence[int], round: int) -> Path:
    """A hand-made evaluation; `latest` are the benchmark runs of its last invocation."""
    directory = EvaluationDirectory(path)
    for number, outcomes in benchmarks.items():
        rows = evaluation_rows(path.name, outcomes, round)
        _publish(directory, "evaluation", number, "evaluations", rows)
    for number in latest:
        directory.make_current(path.name, "settings", str(number), number)
    directory.protocol.write_text("temperature: 2.75\n", encoding="utf-8")  # requested since, and not finished
    results = {"source": "m", "round": round, "protocol": {"temperature": 0.5}}
    publish_json(directory.results, {**results, "benchmarks": [{"sitting": number} for number in latest]})
    return path


def _publish(directory: RunDirectory, stage: str, round: int, table: str, rows: list[dict[str, Any]]) -> None:
    listed = pa.Table.from_pylist(rows, SCHEMAS[table])
    file = publish_table(directory.path, directory.facts(round, table), table, listed)
    directory.publish(Manifest(stage, round, f"{stage} {round}", (file,)))


def compared(baseline: Path, other: Path, round: int | None = None) -> Pair:
    with open_sides([baseline, other], round) as sides:
        return pair(*sides)


def page_of(paths: Sequence[Path], out: Path) -> Page:
    with open_sides(paths) as sides:
        write_comparison(out, sides, [pair(sides[0], side) for side in sides[1:]])
    return Page(out)


Reval = Callable[..., str]


@pytest.fixture
def reval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reval:
    """Run the command in an empty directory and return its output; it must succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["reval", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return command


def last_answers(path: Path, round: int) -> dict[str, list[dict[str, Any]]]:
    """The responses of a round per problem, read without the code under test."""
    rows = read_table(path / f"facts/round={round:05d}/evaluations.parquet").to_pylist()
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def test_real_runs_give_the_explicitly_computed_metrics(trained: tuple[Path, Path]) -> None:
    slow, fast = trained
    found = compared(slow, fast)
    (whole,) = found.parts
    sides = [last_answers(slow, 3), last_answers(fast, 1)]
    shares = [{prompt: np.mean([row["correct"] for row in rows]) for prompt, rows in one.items()} for one in sides]
    prompts = sorted(shares[0])
    before, after = (np.array([one[prompt] for prompt in prompts]) for one in shares)
    assert len(prompts) == whole.problems == len(found.rows) > 10
    assert (found.baseline.round, found.run.round) == (3, 1)
    for result, values, answers in ((whole.baseline, before, sides[0]), (whole.run, after, sides[1])):
        rows = [row for given in answers.values() for row in given]
        assert result.samples == (2, 2)
        assert result.avg.mean == pytest.approx(values.mean())
        assert result.avg.low < values.mean() < result.avg.high
        assert result.tokens == pytest.approx(np.mean([row["response_length"] for row in rows]))
        assert result.truncated == pytest.approx(np.mean([row["finish_reason"] == "length" for row in rows]))
    better, worse = int((after > before).sum()), int((after < before).sum())
    assert (whole.better, whole.worse, whole.same) == (better, worse, len(prompts) - better - worse)
    assert better + worse > 0  # the two do differ, or the test says nothing
    assert whole.gained == ((after > 0.5) & (before <= 0.5)).sum()
    assert whole.lost == ((after <= 0.5) & (before > 0.5)).sum()
    differing = better + worse
    tail = sum(comb(differing, fewer) for fewer in range(min(better, worse) + 1))
    assert whole.p == pytest.approx(min(1, 2 * tail / 2**differing))
    assert whole.difference.mean == pytest.approx((after - before).mean())
    expected = bootstrap(after - before, seed=0)
    # Resampled in another order of the problems: the same interval up to chance.
    assert (whole.difference.low, whole.difference.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_real_runs_are_followed_over_rounds_tokens_and_time(trained: tuple[Path, Path]) -> None:
    slow, _ = trained
    with open_sides(trained) as sides:
        points = sides[0].curve(list(sides[0].answers))
    rounds = [read_table(slow / f"facts/round={number:05d}/rounds.parquet").to_pylist()[0] for number in (1, 2, 3)]
    assert [point.round for point in points] == [0, 2, 3]
    for point in points:
        rows = [row for given in last_answers(slow, point.round).values() for row in given]
        assert point.accuracy == pytest.approx(np.mean([row["correct"] for row in rows]))
        done = rounds[: point.round]
        assert point.tokens == sum(row["tokens"] for row in done)
        seconds = [value for row in done for name, value in row.items() if name.endswith("_seconds")]
        assert point.seconds == pytest.approx(sum(seconds))


def test_the_page_of_real_runs_is_whole_loads_nothing_and_shows_its_queries(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    page = page_of(trained, tmp_path / "compare.html")
    text = page.text()
    assert "fast compared with slow" in text
    assert "slow was started 2 times" in text
    assert "learner.lr" in text
    assert page.count("svg") == 4  # a whisker, and curves over rounds, tokens and time
    for name, attributes in page.elements:
        assert name not in {"link", "img", "iframe", "object", "embed", "base", "image", "use"}
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    assert "url(" not in page.source
    assert "@import" not in page.source
    queries = {said for name, said in page.texts if name == "code" and "\nFROM " in said}
    assert len(queries) == 4
    for path in trained:
        directory = RunDirectory(path)
        with sql_views(directory.path, directory.manifests()) as connection:
            assert all(connection.execute(query).fetchall() for query in queries)
    assert page_of(trained, tmp_path / "again.html").source == page.source


def test_the_command_prints_a_table_that_fits_and_the_path_of_the_page(
    trained: tuple[Path, Path], reval: Reval, tmp_path: Path
) -> None:
    out = reval("compare", *trained)
    assert max(map(len, out.splitlines())) <= 80
    words, name = " ".join(out.split()), compared(*trained).whole.name
    assert all(said in words for said in ("slow", "fast", "baseline", "clear", name, "sign test: p ="))
    assert out.endswith("Page  compare.html\n")
    assert Page(tmp_path / "compare.html").count("table") >= 3


def test_json_has_all_of_it(trained: tuple[Path, Path], reval: Reval, tmp_path: Path) -> None:
    found = json.loads(reval("compare", *trained, "--json", "--out", "elsewhere/page.html"))
    (whole,) = compared(*trained).parts
    assert found["baseline"] == "slow"
    assert found["intervals"] == {"seed": 0, "resamples": 10_000, "level": 0.95}
    assert [(one["run"], one["round"], one["path"]) for one in found["runs"]] == [
        ("slow", 3, str(trained[0])),
        ("fast", 1, str(trained[1])),
    ]
    assert all(one["responses"] == 2 * one["problems"] == 2 * whole.problems for one in found["runs"])
    (comparison,) = found["comparisons"]
    (part,) = comparison["sets"]
    assert part == comparison["average"]
    assert part["difference"] == {**vars(whole.difference), "clear": whole.difference.clear}
    assert part["run"]["accuracy"] == vars(whole.run.avg)
    assert (part["better"], part["worse"], part["sign_test_p"]) == (whole.better, whole.worse, whole.p)
    rows = comparison["problems"]
    assert len(rows) == comparison["shared_problems"] == whole.problems
    assert [row["difference"] for row in rows] == sorted((row["difference"] for row in rows), reverse=True)
    right = sum(row["run"]["right"] for row in rows) / sum(row["run"]["samples"] for row in rows)
    assert right == pytest.approx(whole.run.avg.mean)
    assert found["page"] == str(tmp_path / "elsewhere/page.html")
    assert Path(found["page"]).exists()


def test_the_round_can_be_chosen(trained: tuple[Path, Path]) -> None:
    found = compared(*trained, round=0)
    assert (found.baseline.round, found.run.round) == (0, 0)
    assert found.whole.better == found.whole.worse == 0  # both have the same initial policy
    assert found.whole.difference.clear is False


SETS: Outcomes = {
    ("aime", "1"): (0, 0, 0, 0),
    ("aime", "2"): (1, 0, 0, 0),
    ("math", "1"): (1, 1),
    ("math", "2"): (1, 0),
    ("math", "3"): (0, 0),
    ("math", "4"): (1, 1),
}
BETTER: Outcomes = {
    ("aime", "1"): (1, 1, 1, 0),
    ("aime", "2"): (1, 0),
    ("math", "1"): (1, 1, 1),
    ("math", "2"): (0, 0, 0),
    ("math", "3"): (0, 1, 1),
    ("math", "4"): (1, 1, 0),
}


def test_of_several_sets_each_counts_alike_however_many_problems_and_samples_it_has(tmp_path: Path) -> None:
    found = compared(made(tmp_path / "a", SETS), made(tmp_path / "b", BETTER))
    aime, math, average = found.parts
    assert (aime.name, math.name, average.name) == ("aime", "math", AVERAGE)
    assert (aime.baseline.avg.mean, aime.run.avg.mean) == (0.125, 0.625)
    assert (math.baseline.avg.mean, math.run.avg.mean) == pytest.approx((0.625, (1 + 0 + 2 / 3 + 2 / 3) / 4))
    assert average.difference.mean == pytest.approx((0.5 + (7 / 3 - 2.5) / 4) / 2)
    differences = {"aime": np.array([0.75, 0.25]), "math": np.array([0, -0.5, 2 / 3, -1 / 3])}
    assert vars(average.difference) == pytest.approx(vars(macro(differences, seed=0)))
    assert (average.better, average.worse, average.same, average.problems) == (3, 2, 1, 6)
    assert (average.gained, average.lost) == (2, 0)
    assert average.p == 1.0
    assert (average.baseline.samples, math.run.samples) == ((2, 4), (3, 3))
    assert average.baseline.tokens == pytest.approx((11.5 + 10.5) / 2)
    ids = [(row.problem.problem_set, row.problem.prompt_id) for row in found.rows]
    assert ids == [("aime", "1"), ("math", "3"), ("aime", "2"), ("math", "1"), ("math", "4"), ("math", "2")]


def test_only_problems_that_are_the_same_in_all_respects_are_compared(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {("set", "1"): [1], ("set", "2"): [1], ("set", "3"): [1], ("other", "1"): [1]})
    b = made(tmp_path / "b", {("set", "1"): [0], ("set", "2"): [0], ("set", "4"): [0]}, texts={"2": "another"})
    found = compared(a, b)
    assert [row.problem.prompt_id for row in found.rows] == ["1"]
    assert (found.only_baseline, found.only_run) == (3, 2)
    text = page_of([a, b], tmp_path / "page.html").text()
    assert "Left out: 3 evaluated only for a and 2 evaluated only for b." in text
    with pytest.raises(InputError, match=r"c: shares no problem with a \(2 of set, and 1 of other, 3 of set\)"):
        compared(a, made(tmp_path / "c", {("set", "1"): [0], ("set", "2"): [0]}, gold="another"))


def test_a_flipped_problem_shows_a_right_and_a_wrong_response(tmp_path: Path) -> None:
    a = made(
        tmp_path / "a", {("set", "won"): (0, 1, 0, 0), ("set", "lost"): (0, 1, 1, 1), ("set", "as before"): (1, 0)}
    )
    b = made(
        tmp_path / "b", {("set", "won"): (0, 0, 1, 1), ("set", "lost"): (0, 0, 0, 1), ("set", "as before"): (1, 0)}
    )
    text = page_of([a, b], tmp_path / "page.html").text("div")
    for said in ("a says no to won, sample 0", "b says yes to won, sample 2"):
        assert said in text
    for said in ("a says yes to lost, sample 1", "b says no to lost, sample 0"):
        assert said in text
    assert "as before" not in text


def test_three_runs_and_two_sets_fit_on_one_page(tmp_path: Path) -> None:
    paths = [made(tmp_path / "a", SETS), made(tmp_path / "b", BETTER), made(tmp_path / "c", SETS)]
    page = page_of(paths, tmp_path / "page.html")
    text = page.text()
    assert "b and c compared with a" in text
    assert "Between c and a there is no clear difference (+0.0 points" in text
    assert "Both have the same accuracy on every problem." in text
    whiskers = [given["aria-label"] for name, given in page.elements if name == "svg"][:6]
    assert [str(said).split(":")[0] for said in whiskers] == [
        "b, aime", "c, aime", "b, math", "c, math", f"b, {AVERAGE}", f"c, {AVERAGE}",
    ]  # fmt: skip


def test_a_run_in_training_is_compared_by_its_published_evaluations(tmp_path: Path) -> None:
    """Round 2 is evaluated but not yet recorded: its cost is unknown."""
    a, b = made(tmp_path / "a", SETS, rounds=(0, 2)), made(tmp_path / "b", BETTER, rounds=(0, 2))
    seconds = {name: 0.5 for name in SCHEMAS["rounds"].names if name.endswith("_seconds")}
    for round in (1, 2):
        _publish(RunDirectory(b), "recording", round, "rounds", [{"round": round, "tokens": 700, **seconds}])
    with open_sides([a, b]) as sides:
        curves = [side.curve(list(side.answers)) for side in sides]
    assert curves[0] == [Point(0, 0.375, 0, 0), Point(2, 0.375, None, None)]
    assert curves[1][1].tokens == 1400
    assert curves[1][1].seconds == 2 * 0.5 * len(seconds)
    assert page_of([a, b], tmp_path / "page.html").count("svg") == 6
    assert page_of([a, made(tmp_path / "c", SETS)], tmp_path / "page.html").count("svg") == 4  # the cost is unknown


def test_an_evaluation_is_compared_by_its_latest_benchmark_runs(tmp_path: Path) -> None:
    sets = [{key: value for key, value in BETTER.items() if key[0] == name} for name in ("aime", "math")]
    other = dict.fromkeys(BETTER, (0, 0))
    model = evaluated(tmp_path / "model", {1: other, 2: sets[0], 5: sets[1]}, latest=(2, 5), round=3)
    found = compared(made(tmp_path / "a", SETS, rounds=(0, 2)), model)
    assert (found.run.round, found.only_run, found.only_baseline) == (3, 0, 0)
    assert [part.run.avg.mean for part in found.parts[:2]] == pytest.approx([0.625, (1 + 0 + 2 / 3 + 2 / 3) / 4])
    page = page_of([tmp_path / "a", model], tmp_path / "page.html")
    assert "temperature" in page.text("code")
    assert "0.5" in page.text("code")
    assert "2.75" not in page.text("code")
    assert "During training" in page.text("h2")
    again = evaluated(tmp_path / "again", {1: BETTER}, latest=(1,), round=0)
    assert "During training" not in page_of([model, again], tmp_path / "page.html").text("h2")
    EvaluationDirectory(again).results.unlink()
    with pytest.raises(InputError, match="again: is not finished; run its reval eval again"):
        compared(model, again)


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    hostile = {"problem": HOSTILE, "gold": HOSTILE}
    a = made(tmp_path / "a", {("o'set", HOSTILE): [1, 0]}, response=HOSTILE, **hostile)
    b = made(tmp_path / "b", {("o'set", HOSTILE): [1, 1]}, response=HOSTILE * 200, **hostile)
    page = page_of([a, b], tmp_path / "page.html")
    assert "<script>alert(1)" not in page.source
    assert "<img" not in page.source
    assert "\x00" not in page.source
    assert page.count("script") == 1
    assert not any(name.startswith("on") or name == "src" for _, given in page.elements for name in given)


def test_runs_with_the_same_name_are_distinguished(tmp_path: Path) -> None:
    paths = [made(tmp_path / one / "demo", SETS) for one in ("before", "after")]
    with open_sides(paths) as sides:
        assert [side.name for side in sides] == ["before/demo", "after/demo"]


def unevaluated(path: Path) -> Path:
    RunDirectory(path).open(small_config())
    return path


def stored(path: Path, **rollouts: Any) -> Path:
    RunDirectory(path).open(small_config(rollouts=rollouts, replay={"capacity": 8, "first": "buffer"}))
    return path


IMPORT = {"source": "import", "file": "a.jsonl", "sha256": "0", "columns": {}}


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (lambda path: path / "a", "a: is given twice; a run cannot be compared with itself"),
        (lambda path: path / "a/../a", "a: is given twice"),
        (lambda path: unevaluated(path / "b"), "b: has no evaluations yet"),
        (lambda path: stored(path / "b", **IMPORT), "b: is an import, which has no held-out evaluations"),
        (
            lambda path: stored(path / "b", source="stored", run="a", batch=1),
            "b: is a run on stored responses, which has no held-out",
        ),
        (lambda path: made(path / "b", {("x", "1"): [1]}), "b: shares no problem with a"),
        (lambda path: path / "b", "b: is not a run directory"),
    ],
    ids=["twice", "twice by another path", "unevaluated", "import", "stored", "other problems", "no run"],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, other: Callable[[Path], Path], complaint: str) -> None:
    made(tmp_path / "a", SETS)
    with pytest.raises(InputError, match=complaint):
        compared(tmp_path / "a", other(tmp_path))


def test_a_round_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", SETS, rounds=(0, 4)), made(tmp_path / "b", SETS, rounds=(0, 2))
    with pytest.raises(InputError, match="b: --round: round 4 was not evaluated; evaluated rounds: 0, 2"):
        compared(a, b, round=4)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_or_too_many_runs_are_refused(
    tmp_path: Path, count: int, reval: Reval, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        reval("compare", *(tmp_path / f"run{number}" for number in range(count)))
    assert ended.value.code == 2
    assert f"takes 2 to 6 runs, the baseline first; {count} were given" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_runs_cannot_be_compared(tmp_path: Path, reval: Reval) -> None:
    a, b = made(tmp_path / "a", SETS), made(tmp_path / "b", {("x", "1"): [1]})
    with pytest.raises(SystemExit):
        reval("compare", a, b)
    assert not (tmp_path / "compare.html").exists()
