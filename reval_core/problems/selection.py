"""Selection of the problems that can be rendered for a model, with their prompts. The only check of prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from reval_core.config import Config, EngineSettings, Model, Prompt, Rollouts
from reval_core.engines.limits import engine_context
from reval_core.errors import CorruptData, InputError
from reval_core.model.loading import context_length, stop_ids
from reval_core.problems.problem import Problem
from reval_core.problems.problem_sets import RunSets, load_problems
from reval_core.problems.prompts import render
from reval_core.problems.recorded import PROMPTS, Prompts, read_prompts
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase


TRAIN = "problems.train"
HELD_OUT = "problems.held_out "


@dataclass(frozen=True)
class TokenLimit:
    """The tokens available for a prompt and its response."""

    whose: str
    """The source of the limit, for messages."""
    tokens: int | None
    """The limit; None if there is none."""
    setting: str
    """The setting that determines the maximum length of a response."""
    response: int
    """That length in tokens."""

    @classmethod
    def of(cls, model: Model, engine: EngineSettings, setting: str, response: int) -> TokenLimit:
        """The model's context length, or the part of it that the engine uses."""
        taken = engine_context(model, engine)
        if taken == context_length(model):
            whose = "the model's context"
        else:
            whose = "engine.max_model_len" if getattr(engine, "max_model_len", None) == taken else "vLLM's context"
        return cls(whose, taken, setting, response)


@dataclass(frozen=True)
class Candidates:
    """A problem set to select from."""

    problems: Sequence[Problem]
    limit: TokenLimit
    drop: bool = False
    """Whether unusable problems are dropped; otherwise they are refused."""


@dataclass(frozen=True)
class Selected:
    """The usable problems of each set, by its name."""

    sets: Mapping[str, tuple[Problem, ...]]
    left_out: Mapping[str, Mapping[Problem, str]]
    """By set, the dropped problems with the reasons."""

    @property
    def why(self) -> dict[str, str]:
        """The texts of dropped problems with the reasons."""
        return {problem.problem: why for one in self.left_out.values() for problem, why in one.items()}


def select(candidates: Mapping[str, Candidates], prompts: Prompts, *, settled: bool = False) -> Selected:
    """Select the problems that can be rendered for the model and fit its context.

    Args:
        candidates: the problem sets by name.
        prompts: the prompts of all their problems.
        settled: whether the dropped problems are already recorded; then no others may be dropped.

    Raises:
        InputError: naming the first unusable problem that may not be dropped, and the number of such problems.
    """
    sets, left_out = {}, {}
    for name, one in candidates.items():
        faults = {problem: fault for problem in one.problems if (fault := prompts.left_out(problem.problem))}
        long = _too_long(one, prompts, faults)
        drop = one.drop and len(faults | long) < len(one.problems)
        if faults and not (drop or settled):
            raise InputError(_refusal(faults, len(one.problems)))
        if long and (settled or not drop):
            raise InputError(_length_refusal(one.limit, long, may_drop=not settled and not one.drop))
        why = faults | {problem: f"its prompt has {length:,} tokens" for problem, length in long.items()}
        left_out[name] = {problem: why[problem] for problem in one.problems if problem in why}
        sets[name] = tuple(problem for problem in one.problems if problem not in left_out[name])
    return Selected(sets, left_out)


def _refusal(faults: Mapping[Problem, str], problems: int) -> str:
    first, why = next(iter(faults.items()))
    if len(faults) == problems:
        return f"{first}: {why}, like all {problems:,} problems; use another problem set, or another model.path"
    return (
        f"{first}: {why}; fix the problem, or set unusable: drop to drop such problems ({len(faults):,} of "
        f"{problems:,})"
    )


def _too_long(candidates: Candidates, prompts: Prompts, but: Collection[Problem]) -> dict[Problem, int]:
    """The lengths, in tokens, of prompts that leave no room for a response."""
    limit, problems = candidates.limit, [problem for problem in candidates.problems if problem not in but]
    if limit.tokens is None:
        return {}
    lengths = prompts.lengths([problem.problem for problem in problems]).tolist()
    long = zip(problems, lengths, strict=True)
    return {problem: length for problem, length in long if length + limit.response > limit.tokens}


def _length_refusal(limit: TokenLimit, long: Mapping[Problem, int], may_drop: bool) -> str:
    first, length = next(iter(long.items()))
    others = f" and {len(long) - 1:,} more" if len(long) > 1 else ""
    assert limit.tokens is not None, "a prompt can be too long only with a limit"
    left = limit.tokens - max(long.values())
    remedies = [f"set {limit.setting}={left} or less"] if left > 0 else []
    if may_drop:
        remedies.append("set unusable: drop to drop such problems")
    return (
        f"{limit.setting}: {limit.response} and a prompt of {length:,} tokens ({first}{others}) exceed "
        f"{limit.whose} of {limit.tokens:,}; {', or '.join(remedies) or 'shorten it, or use another model'}"
    )


def rendered(problems: Iterable[str], prompt: Prompt, model: Model, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts of these problems. Raises InputError if they cannot be rendered."""
    texts = list(dict.fromkeys(problems))
    ends = stop_ids(model, tokenizer, ())
    return Prompts.of(texts, render(texts, prompt, tokenizer, ends))


def modified(path: Path) -> int | None:
    """When a file was last published, in nanoseconds; None if it does not exist."""
    return path.stat().st_mtime_ns if path.exists() else None


def prompts_in(path: Path) -> Prompts | None:
    """The recorded prompts; None if the file does not exist or is corrupt."""
    try:
        return read_prompts(path) if path.exists() else None
    except CorruptData:
        return None


def known_prompts(directory: RunDirectory, problems: Iterable[str]) -> Prompts:
    """The prompts of a run: as recorded, or else as found in its shards."""
    return prompts_in(directory.prompts) or _prompts_of_run(directory, problems)


def _prompts_of_run(directory: RunDirectory, problems: Iterable[str]) -> Prompts:
    return prompts_of_shards(sorted(directory.path.glob("rollouts/round=?????/*.parquet")), problems)


def prompts_of_shards(shards: Iterable[Path], problems: Iterable[str]) -> Prompts:
    """The prompts of these problems as far as the shards contain them; the first shard with a problem counts."""
    missing, found = set(problems), Prompts()
    for path in shards:
        if not missing:
            break
        try:
            rows = read_table(path, ("problem", "prompt", "prompt_tokens"))
        except CorruptData:  # reported by the code that needs the shard
            continue
        places: dict[str, int] = {}
        for place, problem in enumerate(rows.column("problem").to_pylist()):
            if problem in missing:
                places.setdefault(problem, place)
        found_rows = rows.take(list(places.values())).append_column(
            PROMPTS.field("left_out"), pa.nulls(len(places), pa.string())
        )
        found = found.with_more(Prompts(found_rows.cast(PROMPTS)))
        missing -= places.keys()
    return found


@dataclass(frozen=True)
class RunProblems:
    """The problems of a run with their prompts."""

    train: list[Problem]
    held_out: list[Problem]
    prompts: Prompts
    """Including those of the warm start's problems."""
    left_out: Mapping[str, Mapping[Problem, str]]
    """By set, the dropped problems with the reasons."""
    is_recorded: bool
    """Whether all prompts are already recorded in the run directory."""
    record: int | None
    """When that record was last published."""
    tokenizer: PreTrainedTokenizerBase
    """The model's tokenizer."""


def run_problems(
    config: Config, directory: RunDirectory, tokenizer: PreTrainedTokenizerBase, sets: RunSets
) -> RunProblems:
    """The problems of a run, with their prompts as rendered when the run started.

    Raises InputError if a prompt cannot be rendered, naming the first unusable problem.
    """
    train, held_out, record = sets.train, sets.held_out, modified(directory.prompts)
    candidates = _candidates(config, train, held_out)
    texts = list(dict.fromkeys(problem.problem for one in candidates.values() for problem in one.problems))
    kept = prompts_in(directory.prompts)
    known = kept or _prompts_of_run(directory, texts)
    new = [text for text in texts if text not in known]
    prompts = known.with_more(rendered(new, config.problems.prompt, config.model, tokenizer)) if new else known
    is_recorded = kept is not None and not new
    selected = select(candidates, prompts, settled=is_recorded)
    return RunProblems(
        list(selected.sets.get(TRAIN, train)),
        [
            problem
            for name, problems in held_out.items()
            for problem in selected.sets.get(HELD_OUT + name, problems)
        ],
        prompts.leaving_out(selected.why),
        {name: problems for name, problems in selected.left_out.items() if problems},
        is_recorded,
        record,
        tokenizer,
    )


def _candidates(
    config: Config, train: Sequence[Problem], held_out: Mapping[str, Sequence[Problem]]
) -> dict[str, Candidates]:
    """The problem sets that a run generates responses to, or demonstrates in its warm start."""
    model, problems, rollouts, warm_start = config.model, config.problems, config.rollouts, config.model.warm_start
    dropped = problems.train is not None and problems.train.unusable == "drop"
    # The response of a demonstration is a short sum: only the length of its prompt is checked.
    shown = TokenLimit("the model's context", context_length(model), "problems.prompt", 0)
    candidates = {}
    if isinstance(rollouts, Rollouts):
        limit = TokenLimit.of(model, config.engine, "rollouts.max_tokens", rollouts.max_tokens)
        candidates[TRAIN] = Candidates(train, limit, dropped)
        for source, (name, chosen) in zip(problems.held_out, held_out.items(), strict=True):
            candidates[HELD_OUT + name] = Candidates(chosen, limit, source.unusable == "drop")
    elif warm_start is not None and not warm_start.problems:
        candidates[TRAIN] = Candidates(train, shown, dropped)
    if warm_start is not None:
        for number, source in enumerate(warm_start.problems):
            candidates[f"model.warm_start.problems {number}"] = Candidates(
                load_problems(source, config.seed), shown
            )
    return candidates


def left_out_counts(left_out: Mapping[str, Mapping[Problem, str]]) -> dict[str, dict[str, Any]]:
    """By set, the number of dropped problems, and the first one with the reason."""
    found = {}
    for name, problems in left_out.items():
        if problems:
            first, why = next(iter(problems.items()))
            found[name] = {"problems": len(problems), "first": f"{first}: {why}"}
    return found
