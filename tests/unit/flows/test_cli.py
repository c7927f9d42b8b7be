"""The command line: output, exit codes, and what it does not change."""

import csv
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from reval.flows.cli import COMMANDS, RENAMED
from reval.flows.preparation import prepare
from reval_core.config.loader import load_config
from reval_core.learning.precision import default_precision
from reval_core.learning.resolution import resolved
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS, Manifest, publish_table
from tests.commands import Answer, Reval, command
from tests.facts import hand_made_run

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs/demo.yaml"

HEAVY = {"torch", "transformers", "prefect", "mlflow", "pandas", "numpy", "pyarrow", "duckdb", "pydantic", "sympy"}


@pytest.fixture
def reval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reval:
    """Run the command in an empty directory, with the imports of this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    return command(capsys, monkeypatch)


def process(directory: Path, *arguments: str | Path) -> Answer:
    """Run the command in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command = [sys.executable, "-m", "reval.flows.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def everything(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A hand-made run of the demo: two completed rounds, an accuracy, two recorded updates."""
    directory = RunDirectory(tmp_path / "runs/demo")
    directory.open(load_config(DEMO, ["rounds=40"]))
    schema = SCHEMAS["updates"]
    values: dict[str, list[Any]] = {field.name: [None, None] for field in schema}
    values |= {"round": [1, 1], "update": [1, 2], "loss": [0.5, None], "tokens": [10**12, 0]}
    rows = pa.table(values, schema=schema)
    file = publish_table(directory.path, directory.facts(1, "updates"), "updates", rows)
    directory.publish(Manifest("evaluation", 0, "key", info={"accuracy": 0.25}))
    directory.publish(Manifest("learning", 1, "key", (file,)))
    directory.publish(Manifest("recording", 1, "key"))
    directory.publish(Manifest("recording", 2, "key"))
    directory.publish(Manifest("evaluation", 2, "key", info={"accuracy": 0.75}))
    return directory


@pytest.mark.parametrize(
    "arguments", [("--help",), ("train", "--help"), ("import", "-h"), ("sql", "-h"), ("grade", "-h")]
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = f"""if True:
        import sys
        from reval.flows.cli import main
        sys.argv = ["reval", *{arguments!r}]
        main()
        print("imported:", *({HEAVY!r} & sys.modules.keys()))
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: reval")
    assert done.stdout.splitlines()[-1] == "imported:"


def test_the_version_is_shown(reval: Reval) -> None:
    assert reval("--version").out.startswith("reval ")


def test_help_lists_every_command(reval: Reval) -> None:
    answer = reval("--help")
    assert answer.code == 0
    listed = [
        line.split()[0] for line in answer.out.partition("Commands:\n")[2].splitlines() if line[2:3].isalpha()
    ]
    assert listed == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(reval: Reval, command: str) -> None:
    answer = reval(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: reval {command} ")


@pytest.mark.parametrize(("former", "current"), RENAMED.items())
def test_a_former_name_works_and_gives_one_line_of_notice(reval: Reval, former: str, current: str) -> None:
    answer, expected = reval(former, "--help"), reval(current, "--help")
    assert (answer.code, answer.out) == (expected.code, expected.out)
    assert answer.err == f"reval: the command {former} is now called {current}; please use the new name\n"
    assert f"\n  {former} " not in reval("--help").out


def test_the_notice_of_a_former_name_leaves_json_alone(reval: Reval, run: RunDirectory) -> None:
    expected = reval("reindex", run.path, "--json")
    answer = reval("rebuild", run.path, "--json")
    assert (answer.code, json.loads(answer.out)) == (0, json.loads(expected.out))
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("trian",), ("train",), ("sql", "runs/demo"), ("train", "a", "--nope")])
def test_an_invalid_command_line_exits_with_2(reval: Reval, arguments: tuple[str, ...]) -> None:
    answer = reval(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "Usage: " in answer.err


def test_a_bad_config_is_one_line_on_stderr_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(DEMO.read_text(encoding="utf-8") + "\nrouns: 40\n", encoding="utf-8")
    lines = (tmp_path / "bad.yaml").read_text(encoding="utf-8").count("\n")
    answer = process(tmp_path, "train", "bad.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"reval: bad.yaml:{lines}: rouns: unknown key; did you mean 'rounds'?\n"
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_bad_config_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from reval.flows.cli import main
        sys.argv = ["reval", "train", "none.yaml"]
        try:
            main()
        finally:
            print("imported:", *({"torch", "transformers", "prefect", "mlflow"} & sys.modules.keys()))
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "imported:\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.yaml"], "none.yaml: cannot be read"),
        ([DEMO, "--set", "learner.rl=1"], "--set learner.rl=1: learner.rl: unknown key; did you mean 'lr'?"),
        (
            [DEMO, "--run-dir", "new", "--set", "problems.train.limit=3"],
            "per round, but problems.train has only 3;",
        ),
        ([DEMO, "--run-dir", "new", "--set", "model={path: none}"], "none: model.path: "),
        ([DEMO, "--set", "rounds=1000000000"], "make space, or lower rounds or checkpoints.keep"),
        ([DEMO, "--run-dir", "runs/demo", "--set", "seed=5"], "made with another config (seed differ)"),
    ],
    ids=["no file", "an unknown key", "too few problems", "no model", "no space", "another config"],
)
def test_settings_that_would_stop_a_run_are_refused_before_it_starts(
    reval: Reval, run: RunDirectory, arguments: list[str], words: str
) -> None:
    root = run.path.parent.parent
    before = everything(root)
    answers = [reval("train", *arguments), reval("train", *arguments, "--dry-run")]
    for answer in answers:
        assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
        assert answer.err.startswith("reval: ")
        assert words in answer.err
    assert everything(root) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.jsonl"], "a.jsonl:2: gold: is missing, and reward as well; give one of them; fix the row"),
        (["none.jsonl"], "none.jsonl: cannot be read (No such file or directory)"),
        (["a.jsonl", "--column", "respons=text"], "--column respons=text: 'respons' is not a field of a row"),
        (["a.jsonl", "--set", "learner.rl=1"], "--set learner.rl=1: learner.rl: unknown key; did you mean 'lr'?"),
        (["b.jsonl", "--set", "problems.held_out={path: none.jsonl}"], "none.jsonl: cannot be read (No such file"),
    ],
    ids=["an empty answer", "no file", "an unknown field", "an unknown key", "no problem set"],
)
def test_files_that_cannot_be_imported_are_refused_and_nothing_is_created(
    reval: Reval, tmp_path: Path, arguments: list[str], words: str
) -> None:
    rows = [
        {"problem": "10+10=", "response": "20", "answer": "20"},
        {"problem": "1", "response": "1", "answer": ""},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    before = everything(tmp_path)
    answer = reval("import", *arguments, "--config", DEMO, "--column", "gold=answer")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert words in answer.err
    assert everything(tmp_path) == before


def test_a_dry_run_shows_the_plan_and_changes_nothing(reval: Reval, tmp_path: Path) -> None:
    overrides = ["rounds=10", "threads=1", "model={tiny: {layers: 4, width: 128, heads: 4, feed_forward: 384}}"]
    answer = reval("train", DEMO, "--dry-run", "--json", *(part for one in overrides for part in ("--set", one)))
    assert (answer.code, answer.err) == (0, "")
    plan, settings = json.loads(answer.out), resolved(load_config(DEMO, overrides))
    embedding, block = (3 + 15) * 128, 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128
    assert plan["parameters"] == 2 * embedding + 4 * block + 128
    assert plan["trajectories"] == 10 * settings.rollouts.prompts * settings.rollouts.samples
    assert plan["updates"] == 10 * settings.learner.updates
    assert (plan["rounds_cached"], plan["rounds_to_do"]) == (0, 10)
    assert plan["run_dir"] == str(tmp_path / "runs/demo")
    assert plan["disk_bytes"] > 4 * plan["parameters"]
    assert plan["problems"] == {"train": 7260, "held out, 2-digit sums": 128}
    assert (plan["prompt"]["tokens"], plan["prompt"]["text"]) == (6, plan["prompt"]["problem"])
    assert plan["prompt"]["judged"][0]["verdict"] == "correct"
    assert plan["config"] == settings.model_dump(mode="json")
    assert (plan["precision"], plan["gpu_notes"]) == (default_precision(), prepare(DEMO, [], None).notes)
    assert everything(tmp_path) == {}


def test_a_dry_run_counts_completed_rounds(reval: Reval, run: RunDirectory) -> None:
    before = everything(run.path)
    arguments = ("--dry-run", "--json", "--run-dir", run.path, "--set", "rounds=40")
    plan = json.loads(reval("train", DEMO, *arguments).out)
    assert (plan["rounds_cached"], plan["rounds_to_do"]) == (2, 38)
    assert everything(run.path) == before


def test_a_dry_run_for_people_prints_a_config_that_loads(reval: Reval, tmp_path: Path) -> None:
    answer = reval("train", DEMO, "--dry-run")
    asked, _, rest = answer.out.partition("\nSettings\n")
    config, _, plan = rest.partition("\n\n")
    (tmp_path / "again.yaml").write_text(config, encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == resolved(load_config(DEMO))
    assert "rounds to do" in plan
    assert "6 tokens; in the set 6 to 6, median 6" in asked
    assert [line.split()[-1] for line in asked.splitlines() if line.endswith(("correct", "wrong"))].count(
        "wrong"
    ) == 2


def test_sql_prints_json(reval: Reval, run: RunDirectory) -> None:
    answer = reval("sql", "runs/demo", 'SELECT "update", loss, tokens FROM updates ORDER BY 1', "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out) == [
        {"update": 1, "loss": 0.5, "tokens": 10**12},
        {"update": 2, "loss": None, "tokens": 0},
    ]


def test_sql_prints_csv(reval: Reval, run: RunDirectory) -> None:
    answer = reval("sql", "runs/demo", 'SELECT loss, \'a, "b"\nc\' AS "some text" FROM updates', "--csv")
    assert list(csv.reader(io.StringIO(answer.out))) == [
        ["loss", "some text"],
        ["0.5", 'a, "b"\nc'],
        ["", 'a, "b"\nc'],
    ]


def test_sql_prints_a_table(reval: Reval, run: RunDirectory) -> None:
    answer = reval("sql", "runs/demo", "SELECT \"update\", loss, '[red]x[/red]' AS text FROM updates ORDER BY 1")
    lines = [line.split() for line in answer.out.splitlines() if line.strip()]
    assert lines[0] == ["update", "loss", "text"]
    assert lines[2:] == [["1", "0.5", "[red]x[/red]"], ["2", "–", "[red]x[/red]"]]


def test_sql_has_the_round_of_a_row_as_a_number(reval: Reval, run: RunDirectory) -> None:
    answer = reval("sql", "runs/demo", "SELECT round, round + 1 AS next FROM updates LIMIT 1", "--json")
    assert answer.code == 0
    assert json.loads(answer.out) == [{"round": 1, "next": 2}]


@pytest.mark.parametrize("table", list(SCHEMAS))
def test_sql_finds_every_table_with_its_columns_before_it_has_rows(
    reval: Reval, run: RunDirectory, table: str
) -> None:
    answer = reval("sql", "runs/demo", f"SELECT * FROM {table} WHERE false", "--csv")
    assert answer.out == ",".join(SCHEMAS[table].names) + "\n"


@pytest.mark.parametrize(
    ("query", "words"),
    [("SELEC 1", "syntax error"), ("SELECT nothing FROM updates", "nothing"), ("SELECT * FROM nowhere", "nowhere")],
)
def test_sql_that_duckdb_refuses_exits_with_2(reval: Reval, run: RunDirectory, query: str, words: str) -> None:
    answer = reval("sql", "runs/demo", query)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("reval: the query failed: ")
    assert words in answer.err


def test_sql_of_a_directory_that_is_not_a_run_ends_with_2(reval: Reval, tmp_path: Path) -> None:
    answer = reval("sql", "nowhere", "SELECT 1")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("reval: nowhere: is not a run directory")


def test_sql_changes_nothing_on_disk(reval: Reval, run: RunDirectory) -> None:
    before = everything(run.path)
    assert reval("sql", "runs/demo", "SELECT count(*) FROM updates").code == 0
    assert everything(run.path) == before


def test_sql_names_a_missing_file(reval: Reval, run: RunDirectory) -> None:
    (run.path / run.facts(1, "updates")).unlink()
    answer = reval("sql", "runs/demo", "SELECT * FROM updates")
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert "updates.parquet" in answer.err


def test_a_corrupt_manifest_ends_with_1(reval: Reval, run: RunDirectory) -> None:
    run.manifest_path("learning", 1).write_text("{")
    answer = reval("sql", "runs/demo", "SELECT 1")
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert "learning.json: is not a manifest" in answer.err


def test_a_corrupt_run_does_not_hide_the_others(reval: Reval, run: RunDirectory) -> None:
    hand_made_run(RunDirectory(run.path.parent / "hurt"))
    RunDirectory(run.path.parent / "hurt").manifest_path("learning", 1).write_text("{")
    rows = {row["run"]: row["state"] for row in json.loads(reval("runs", "--json").out)}
    assert rows == {"demo": "interrupted", "hurt": "damaged"}


def test_a_pipe_that_closes_early_is_not_an_error(tmp_path: Path, run: RunDirectory) -> None:
    command = f"{sys.executable} -m reval.flows.cli sql runs/demo 'SELECT * FROM range(100000)' --csv | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("range\n", "")


def test_runs_lists_the_progress_of_each_run(reval: Reval, run: RunDirectory, tmp_path: Path) -> None:
    fresh = RunDirectory(tmp_path / "runs/fresh")
    fresh.open(load_config(DEMO, ["rounds=7"]))
    run.summary.write_text("{}")
    answer = reval("runs", "--json")
    assert (answer.code, answer.err) == (0, "")
    done = {"run": "demo", "state": "finished", "rounds": "2/40", "initial_accuracy": 0.25, "last_accuracy": 0.75}
    new = {"run": "fresh", "state": "interrupted", "rounds": "0/7", "initial_accuracy": None, "last_accuracy": None}
    assert json.loads(answer.out) == [done, new]
    with fresh.lock():
        assert [row["state"] for row in json.loads(reval("runs", "--json").out)] == ["finished", "running"]


def test_runs_prints_a_table(reval: Reval, run: RunDirectory) -> None:
    lines = [line.split() for line in reval("runs").out.splitlines() if line.strip()]
    assert lines[0] == ["run", "state", "rounds", "initial_accuracy", "last_accuracy"]
    assert lines[2] == ["demo", "interrupted", "2/40", "0.25", "0.75"]


def test_runs_of_an_empty_directory_shows_how_to_start_one(reval: Reval) -> None:
    assert "reval train CONFIG" in reval("runs").out
    assert json.loads(reval("runs", "--json").out) == []


def test_doctor_shows_what_is_installed(reval: Reval, tmp_path: Path) -> None:
    answer = reval("doctor", "--json")
    installed = json.loads(answer.out)
    assert installed["python"] == sys.version.split()[0]
    assert installed["torch"].startswith("2.")
    assert installed["learner.precision"] == f"auto is {default_precision()} here"
    assert installed["engines"]["transformers"] == "can run"
    assert installed["engines"]["auto"].startswith(
        "on a CPU" if find_spec("vllm") else "transformers, because vLLM"
    )
    assert everything(tmp_path) == {}


def test_json_has_null_for_nan(reval: Reval, run: RunDirectory) -> None:
    done = reval("sql", str(run.path), "SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b, 1.5::DOUBLE AS c", "--json")
    assert json.loads(done.out) == [{"a": None, "b": None, "c": 1.5}]
