"""`--dry-run`: the problems, a rendered prompt and how answers are judged, then the settings and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reval.flows.other_machine import process_uses
from reval.flows.preparation import PreparedEvaluation, PreparedRun
from reval.flows.server import prefect_api
from reval.flows.terminal import console, print_json, print_pairs, print_quoted, print_rows, say, short, styled
from reval_core import launch
from reval_core.config import Config, EngineSettings, Reward, Rollouts, Verification, VllmEngine
from reval_core.output.control_characters import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reval_core.config.protocol import Protocol
    from reval_core.problems import Problem
    from reval_core.problems.preview import Preview
    from reval_core.problems.recorded import Prompts

_LINES = 30
"""The maximum number of prompt lines printed; `--json` has the whole prompt."""


def show_plan(run: PreparedRun, as_json: bool) -> None:
    """Print the problems and how answers are judged, the resolved config, the sizes of the run and its progress."""
    from reval_core.engines.choice import choose

    if not launch.is_first():
        return
    prefect_api()
    settings, directory, sizes = run.config, run.directory, run.forecast
    notes = [*run.notes, *(process_uses(settings, launch.count()) if launch.count() > 1 else [])]
    engine = choose(settings.model, settings.engine) if isinstance(settings.rollouts, Rollouts) else None
    replicas = _replicas(settings.engine) if engine else []
    finished = max(
        (manifest.round for manifest in directory.manifests() if manifest.stage == "recording"), default=0
    )
    planned = _planned_problems(run)
    plan = {
        "run_dir": str(directory.path),
        "engine": engine and {"kind": engine.kind, "reason": engine.reason},
        "replicas": replicas,
        "precision": settings.learner.precision,
        "gpu_notes": notes,
        "parameters": sizes.parameters,
        "trajectories": sizes.trajectories,
        "updates": sizes.updates,
        "disk_bytes": sizes.disk_bytes,
        "rounds_cached": finished,
        "rounds_to_do": max(0, settings.rounds - finished),
        "problems": planned and planned.problems,
        "left_out": planned and planned.left_out,
        "prompt": planned and planned.preview.to_json(),
    }
    if as_json:
        print_json({**plan, "config": settings.model_dump(mode="json")})
        return
    if planned is not None:
        planned.show()
    print_settings(settings)
    lines = {
        "run directory": short(directory.path),
        "engine": f"{engine.kind} ({engine.reason})" if engine else "none: offline training",
        **_shown_replicas(replicas),
        "precision": settings.learner.precision,
        "parameters": f"{sizes.parameters:,}",
        "trajectories": f"{sizes.trajectories:,}",
        "updates": f"{sizes.updates:,}",
        "disk, maximum": f"{sizes.disk_bytes / 1e6:,.0f} MB",
        "rounds completed": f"{finished}",
        "rounds to do": f"{plan['rounds_to_do']}",
    }
    print_pairs("What the run would do", lines)
    for note in notes:
        say(note)


def show_evaluation_plan(evaluation: PreparedEvaluation, as_json: bool) -> None:
    """Print the resolved protocol and the problems that it would evaluate."""
    from reval_core.engines.choice import choose

    prefect_api()
    source, settings, found = evaluation.source, evaluation.protocol, evaluation.problems
    engine, replicas = choose(source.model, settings.engine), _replicas(settings.engine)
    planned = PlannedProblems(
        found.sets, found.left_out, found.prompts, found.tokenizer, settings.verification, settings.reward
    )
    responses = sum(planned.problems.values()) * settings.samples
    plan = {
        "model": source.source,
        "round": source.round,
        "policy": source.identity,
        "engine": {"kind": engine.kind, "reason": engine.reason},
        "replicas": replicas,
        "out": str(evaluation.directory.path),
        "benchmarks": planned.problems,
        "responses": responses,
        "left_out": planned.left_out,
        "prompt": planned.preview.to_json(),
    }
    if as_json:
        print_json({**plan, "protocol": settings.model_dump(mode="json")})
        return
    planned.show()
    print_settings(settings)
    lines = {
        "policy": f"{source.name}, {source.identity[:12]}",
        "engine": f"{engine.kind} ({engine.reason})",
        **_shown_replicas(replicas),
        "problems": ", ".join(f"{name} {count:,}" for name, count in planned.problems.items()),
        "responses": f"{responses:,} of at most {settings.max_tokens:,} tokens",
        "output directory": short(evaluation.directory.path),
    }
    print_pairs("What the evaluation would do", lines)


def _replicas(engine: EngineSettings) -> list[str]:
    """The devices of each server that the engine would start."""
    from reval_core.engines.placement import places

    return [str(place) for place in places(engine)] if isinstance(engine, VllmEngine) else []


def _shown_replicas(replicas: Sequence[str]) -> dict[str, str]:
    return {"vLLM servers": f"{len(replicas)} ({'; '.join(replicas)})"} if replicas else {}


class PlannedProblems:
    """The problems of a run or an evaluation, one as the model reads it, and how its answers are judged."""

    def __init__(
        self,
        problems: Mapping[str, Sequence[Problem]],
        left_out: Mapping[str, Mapping[Problem, str]],
        prompts: Prompts,
        tokenizer: PreTrainedTokenizerBase,
        verification: Verification,
        reward: Reward,
    ) -> None:
        """`problems` has the problems of each set; the first one of the first set is shown."""
        from reval_core.problems.preview import preview
        from reval_core.problems.selection import left_out_counts
        from reval_core.verification import Verifier

        self.problems = {name: len(one) for name, one in problems.items()}
        self.left_out = left_out_counts(left_out)
        shown = next(iter(problems.values()))
        judging = verification.model_copy(update={"workers": 1})
        with Verifier.of(judging, reward) as verifier:
            self.preview: Preview = preview(shown, prompts, tokenizer, verifier)

    def show(self) -> None:
        """Print everything as text."""
        problems = {name: f"{count:,}" for name, count in self.problems.items()}
        for name, one in self.left_out.items():
            problems[f"{name}, left out"] = visible(f"{one['problems']:,}; {one['first']}")
        print_pairs("Problems", problems)
        _show_prompt(self.preview)
        _show_judged(self.preview)


def print_settings(settings: Config | Protocol) -> None:
    """Print resolved settings as YAML that can be used as a config."""
    import yaml

    console().print(styled(("Settings", "bold")))
    say(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _planned_problems(run: PreparedRun) -> PlannedProblems | None:
    """The problems of a run; None for offline training."""
    settings, problems = run.config, run.problems
    if not isinstance(settings.rollouts, Rollouts):
        return None
    sets: dict[str, list[Problem]] = {"train": problems.train}
    for problem in problems.held_out:
        sets.setdefault(f"held out, {problem.problem_set}", []).append(problem)
    return PlannedProblems(
        sets, problems.left_out, problems.prompts, problems.tokenizer, settings.verification, settings.reward
    )


def _show_prompt(shown: Preview) -> None:
    shortest, median, longest = shown.lengths
    say()
    console().print(styled(("A prompt as the model reads it", "bold")))
    say(f"  {len(shown.tokens):,} tokens; in the set {shortest:,} to {longest:,}, median {median:,}")
    more = print_quoted(shown.text, shown.special, _LINES)
    if more:
        say(f"  … {more:,} more lines; --json has them")


def _show_judged(shown: Preview) -> None:
    say()
    console().print(styled(("How answers to it would be judged", "bold")))
    say(f"  the reference answer is {visible(shown.problem.answer)}")
    rows = [
        (visible(response), one.extracted and visible(one.extracted), _verdict(one.verdict, one.outcome))
        for response, one in shown.judged
    ]
    print_rows(["response", "extracted", "verdict"], rows)


def _verdict(verdict: str, outcome: float | None) -> Any:
    """The verdict, followed by the reward of a user-defined function."""
    reward = "" if outcome is None else f" {outcome:g}"
    return styled((verdict + reward, "green" if verdict == "correct" else "yellow"))
