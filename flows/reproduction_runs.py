"""What a reproduction executes in worker processes: a whole run, or the search for its prompts.

A short run is not worth one Prefect task per stage; it still resumes from its run directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reval.flows.rounds import run_benchmarks, train_rounds
from reval_core import stages
from reval_core.atomic_files import digest, publish_json, read_json
from reval_core.config import Config, ProblemSet
from reval_core.config.protocol import Protocol
from reval_core.errors import InputError
from reval_core.evaluation.context import open_evaluation_context
from reval_core.evaluation.directory import EvaluationDirectory, published_tables
from reval_core.evaluation.model_source import ModelSource, find_model_source
from reval_core.pipeline.run_context import open_run_context
from reval_core.replay_buffer.index import sql_views
from reval_core.report.summary import summarise
from reval_core.reproduction.prompt_search import MeasuredProblem, nearest, read_prompt, write_prompts
from reval_core.reproduction.study import load_base, load_search, prompt_file
from reval_core.storage.run_directory import RunDirectory

_RATES = """
    SELECT prompt_id, problem, gold AS answer, avg(correct::INTEGER) AS rate, count(*) AS samples
    FROM evaluations GROUP BY ALL ORDER BY prompt_id
"""


def finish_run(settings: dict[str, Any], path: str) -> dict[str, Any]:
    """Execute a run, or resume it, and return its summary.

    Raises InputError if the directory contains a run with other settings, as after the config was edited.
    """
    config, directory = Config.model_validate(settings), RunDirectory(Path(path))
    try:
        directory.check(config)
    except InputError as error:
        raise InputError(
            f"{path}: contains a run of an earlier config; give another --out, or delete it ({error})"
        ) from error
    with open_run_context(directory, config) as context:
        for _ in train_rounds(context):
            pass
        summary = summarise(directory)
        publish_json(directory.summary, summary)
    return summary


def is_finished(settings: dict[str, Any], path: str) -> bool:
    """Whether a run is complete and has these settings."""
    directory, config = RunDirectory(Path(path)), Config.model_validate(settings)
    return _is_of(directory, config) and directory.summary.exists() and directory.is_finished(config)


def _is_of(directory: RunDirectory, config: Config) -> bool:
    try:
        directory.check(config)
    except InputError:
        return False  # finish_run reports what is wrong
    return True


def make_start(base: str, out: str) -> dict[str, Any]:
    """Create the initial policy that all runs of a base share, so that parallel runs do not each fit it."""
    with open_run_context(_start(base, out), load_base(base)) as context:
        return stages.warm_start(context, 0).to_json()


def has_start(base: str, out: str) -> bool:
    """Whether that policy exists, created with the base's current settings."""
    directory = _start(base, out)
    return _is_of(directory, load_base(base)) and directory.checkpoint(0).exists()


def find_prompts(name: str, out: str) -> dict[str, Any]:
    """Search the prompts of a one-prompt study, publish a file per level, and return the prompts found."""
    search, place = load_search(name), Path(out) / "prompts" / name
    config = load_base(search.base)
    source = find_model_source(str(_start(search.base, out).checkpoint(0)))
    scouted = _solve_rates(
        place / "scouted", source, search.protocol(search.problems, search.scout_samples, config)
    )
    candidates = {one for rate in search.levels.values() for one in nearest(scouted, rate, search.candidates)}
    write_prompts(place / "candidates.jsonl", sorted(candidates, key=lambda one: one.prompt_id))
    again = ProblemSet(path=str(place / "candidates.jsonl"))
    measured = _solve_rates(place / "measured", source, search.protocol(again, search.samples, config))
    found = {level: nearest(measured, rate, 1)[0] for level, rate in search.levels.items()}
    for level, one in found.items():
        path = prompt_file(Path(out), name, level)
        if path.exists() and read_prompt(path) != one:
            raise InputError(
                f"{path}: existing runs use this prompt, and the search now finds another; give another --out"
            )
        write_prompts(path, [one])
    summary = {level: vars(one) for level, one in found.items()}
    publish_json(place / "summary.json", summary)
    publish_json(place / "asked.json", {"asked": _search_digest(name)})
    return summary


def has_prompts(name: str, out: str) -> bool:
    """Whether an earlier search with the current settings has found all of them."""
    note = Path(out) / "prompts" / name / "asked.json"
    if not note.exists() or read_json(note).get("asked") != _search_digest(name):
        return False
    return all(prompt_file(Path(out), name, level).exists() for level in load_search(name).levels)


def _search_digest(name: str) -> str:
    search = load_search(name)
    return digest(search.model_dump(mode="json"), load_base(search.base).model_dump(mode="json"))


def _start(base: str, out: str) -> RunDirectory:
    return RunDirectory(Path(out) / "starts" / base)


def _solve_rates(place: Path, source: ModelSource, protocol: Protocol) -> list[MeasuredProblem]:
    """How often the policy solves each problem of the protocol."""
    directory = EvaluationDirectory(place)
    with open_evaluation_context(directory, source, protocol) as context:
        for _ in run_benchmarks(context):
            pass
    with sql_views(directory.path, published_tables(directory.path)) as views:
        rows = views.sql(_RATES).to_arrow_table().to_pylist()
    return [MeasuredProblem(**row) for row in rows]
