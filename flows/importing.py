"""`reval import`: stores existing responses as a run for offline training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reval.flows.preparation import check_space
from reval.flows.terminal import lines_beside_json, print_json, print_table, say
from reval_core.atomic_files import file_digest, publish_json
from reval_core.config import Config, GoldMode, ImportedRollouts, StoredRollouts
from reval_core.config.loader import load_config
from reval_core.errors import InputError
from reval_core.problems.response_files import RESPONSE_FIELDS, read_responses
from reval_core.rows import column_options
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest

_LEFT_OUT = {
    "too_long": "were left out: longer than rollouts.max_tokens, or too long for the model's context",
    "empty": "were left out: they are empty",
    "cut": "were cut at an end-of-text token: more text followed it",
}
"""What happened to responses that were not imported unchanged."""


def import_file(
    file: Path, config: Path, overrides: Sequence[str], run_dir: Path | None, columns: Sequence[str], as_json: bool
) -> None:
    """Tokenise, verify, score and store the responses of a file, and print a count per verdict.

    The same command resumes an interrupted import. Raises InputError, before anything is written, for the first row
    that cannot be used, or if the directory belongs to another run.
    """
    names = column_options(columns, RESPONSE_FIELDS)
    settings = load_config(config, overrides)
    directory = RunDirectory(run_dir or Path("runs") / file.stem)
    directory.check_place()
    gold_mode = settings.rollouts.gold_mode if isinstance(settings.rollouts, StoredRollouts) else "all"
    responses = read_responses(file, names, gold_mode)
    settings = _import_settings(settings, file, names, gold_mode)
    _check_directory(directory, settings, file)

    # torch and transformers take seconds to import, so only now.
    from reval.flows.progress import Progress
    from reval.flows.rounds import import_responses
    from reval_core.model.loading import check_model
    from reval_core.pipeline.run_context import open_run_context
    from reval_core.planning.forecast import import_bytes
    from reval_core.problems import load_run_sets
    from reval_core.problems.selection import known_prompts, run_problems
    from reval_core.replay_buffer.imported import tokenise

    tokenizer = check_model(settings.model)
    sets = load_run_sets(settings.problems, settings.seed)
    problems = run_problems(settings, directory, tokenizer, sets)
    known = known_prompts(directory, [response.problem for response in responses])
    imported = tokenise(responses, settings, tokenizer, known)
    tokens = sum(len(one.prompt_tokens) + len(one.tokens) for one in imported.responses)
    check_space(directory, import_bytes(settings, len(imported.responses), tokens), "import fewer responses")
    with open_run_context(directory, settings, problems) as context:
        context.record_prompts(imported.prompts)
        with lines_beside_json(as_json), Progress(context):
            rollouts, verdicts = import_responses(context, imported)
        kept = {"rollouts", "verification", "consistency"} <= context.kept
    summary = _summary(directory, rollouts, verdicts)
    publish_json(directory.summary, summary)
    if as_json:
        print_json({**summary, "was_there": kept})
    else:
        _show(summary, directory, kept)


def _import_settings(settings: Config, file: Path, columns: dict[str, str], gold_mode: GoldMode) -> Config:
    """The settings of the import's own run directory."""
    rollouts = ImportedRollouts(
        source="import",
        file=file.name,
        sha256=file_digest(file),
        columns={field: columns.get(field, field) for field in RESPONSE_FIELDS.names},
        max_tokens=settings.rollouts.max_tokens,
        gold_mode=gold_mode,
    )
    replay = {"capacity": 1, "first": "buffer"}  # an import draws nothing
    values = {**settings.model_dump(mode="json"), "rounds": 1, "rollouts": rollouts.model_dump(), "replay": replay}
    return Config.model_validate(values)


def _check_directory(directory: RunDirectory, settings: Config, file: Path) -> None:
    if directory.config.exists():
        found = load_config(directory.config).rollouts
        assert isinstance(settings.rollouts, ImportedRollouts)
        if not isinstance(found, ImportedRollouts):
            raise InputError(f"{directory.path}: contains a training run; give another --run-dir")
        if found.sha256 != settings.rollouts.sha256:
            raise InputError(
                f"{directory.path}: contains the responses of {found.file}, whose content differs from {file}; "
                "give another --run-dir"
            )
    directory.check(settings)


def _summary(directory: RunDirectory, rollouts: Manifest, verdicts: Manifest) -> dict[str, Any]:
    lengths = directory.rows("rollouts", 0, "trajectories", ("response_length",)).column(0).to_pylist()
    judged = directory.rows("verification", 0, "verdicts", ("verdict",)).column(0).to_pylist()
    return {
        "run": directory.name,
        "trajectories": len(judged),
        "response_tokens": sum(lengths),
        "verdicts": dict(Counter(judged).most_common()),
        **{name: rollouts.info.get(name, 0) for name in _LEFT_OUT},  # imports by earlier versions lack some
    }


def _show(summary: dict[str, Any], directory: RunDirectory, kept: bool) -> None:
    count = summary["trajectories"]
    say(
        f"{directory.path}: {count:,} trajectories, {summary['response_tokens']:,} response tokens"
        + (" (already imported)" if kept else "")
    )
    for name, why in _LEFT_OUT.items():
        if summary[name]:
            say(f"{summary[name]:,} responses {why}")
    rows = [(verdict, f"{times:,}", f"{times / count:.1%}") for verdict, times in summary["verdicts"].items()]
    print_table(["verdict", "count", "share"], rows)
