"""`--dry-run`: what a run would ask and how it would judge, then its settings and its sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.text import Text

from flows.foreground import prefect_api
from flows.preparation import check_prompts, gpu_notes, prepare, run_forecast
from flows.terminal import console, print_facts, print_json, say, short, styled
from reval_core.config import Config, Reward, Rollouts, Verification
from reval_core.output.control_characters import visible, visible_lines
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from reval_core.config import Model
    from reval_core.problems import Problem
    from reval_core.problems.preview import Preview
    from reval_core.problems.recorded import Prompts

_LINES = 30
"""The most lines of a prompt that are shown to people; `--json` has all of it."""

_GUTTER = "  │ "


def show_plan(config: Path, overrides: Sequence[str], run_dir: Path | None, as_json: bool) -> None:
    """Print what is asked and how it is judged, the resolved config, the sizes of the run and what is done already.

    Raises InputError for whatever would stop the run.
    """
    import yaml

    from reval_core.engines.choice import choose

    settings, directory = prepare(config, overrides, run_dir)
    prefect_api()
    sizes = run_forecast(settings, directory)
    notes = gpu_notes(settings)
    engine = choose(settings.model, settings.engine) if isinstance(settings.rollouts, Rollouts) else None
    finished = max(
        (manifest.round for manifest in directory.manifests() if manifest.stage == "recording"), default=0
    )
    asked = _asked(config, settings, directory)
    plan = {
        "run_dir": str(directory.path),
        "engine": engine and {"kind": engine.kind, "reason": engine.reason},
        "precision": settings.learner.precision,
        "gpu_notes": notes,
        "parameters": sizes.parameters,
        "trajectories": sizes.trajectories,
        "updates": sizes.updates,
        "disk_bytes": sizes.disk_bytes,
        "rounds_cached": finished,
        "rounds_to_do": max(0, settings.rounds - finished),
        "problems": asked and asked.problems,
        "left_out": asked and asked.left_out,
        "prompt": asked and asked.preview.to_json(),
    }
    resolved = settings.model_dump(mode="json")
    if as_json:
        print_json({**plan, "config": resolved})
        return
    if asked is not None:
        asked.show()
    print_settings(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    facts = {
        "run folder": short(directory.path),
        "engine": f"{engine.kind} ({engine.reason})" if engine else "none: trajectories are stored",
        "precision": settings.learner.precision,
        "parameters": f"{sizes.parameters:,}",
        "trajectories": f"{sizes.trajectories:,}",
        "updates": f"{sizes.updates:,}",
        "disk, at most": f"{sizes.disk_bytes / 1e6:,.0f} MB",
        "rounds done and kept": f"{finished}",
        "rounds to do": f"{plan['rounds_to_do']}",
    }
    print_facts("What the run would do", facts)
    for note in notes:
        say(note)


class AskedProblems:
    """The problems that would be asked, one of them as the model reads it, and how answers to it are judged."""

    def __init__(
        self,
        problems: Mapping[str, Sequence[Problem]],
        left_out: Mapping[str, Mapping[Problem, str]],
        prompts: Prompts,
        model: Model,
        verification: Verification,
        reward: Reward,
    ) -> None:
        """`problems` are those of each set that is asked, the one that is shown first."""
        from reval_core.model.loading import tokenizer_of
        from reval_core.pipeline.run_context import make_verifier
        from reval_core.problems.asked import left_out_counts
        from reval_core.problems.preview import preview

        self.problems = {name: len(one) for name, one in problems.items()}
        self.left_out = left_out_counts(left_out)
        shown = next(iter(problems.values()))
        judging = verification.model_copy(update={"workers": 1})
        with make_verifier(judging, reward) as verifier:
            self.preview: Preview = preview(shown, prompts, tokenizer_of(model), verifier)

    def show(self) -> None:
        """Print all of it for people."""
        problems = {name: f"{count:,}" for name, count in self.problems.items()}
        for name, one in self.left_out.items():
            problems[f"{name}, left out"] = visible(f"{one['problems']:,}; {one['first']}")
        print_facts("Problems", problems)
        _show_prompt(self.preview)
        _show_judged(self.preview)


def print_settings(text: str) -> None:
    """Print resolved settings, as a file that can be given again."""
    console().print(styled(("Settings", "bold")))
    say(text)


def _asked(config: Path, settings: Config, directory: RunDirectory) -> AskedProblems | None:
    """What a run would ask; None for one that learns from stored trajectories."""
    if not isinstance(settings.rollouts, Rollouts):
        return None
    asked = check_prompts(config, settings, directory)
    sets: dict[str, list[Problem]] = {"train": asked.train}
    for problem in asked.held_out:
        sets.setdefault(f"held out, {problem.problem_set}", []).append(problem)
    return AskedProblems(
        sets, asked.left_out, asked.prompts, settings.model, settings.verification, settings.reward
    )


def _show_prompt(shown: Preview) -> None:
    place = console()
    shortest, median, longest = shown.lengths
    say()
    place.print(styled(("A prompt as the model reads it", "bold")))
    say(f"  {len(shown.tokens):,} tokens; over the set {shortest:,} to {longest:,}, the median {median:,}")
    lines = list(_lines(visible_lines(shown.text), max(20, place.width - len(_GUTTER) - 1)))
    for line in lines[:_LINES]:
        place.print(Text(_GUTTER, "dim") + _marked(line, shown.special))
    if len(lines) > _LINES:
        say(f"{_GUTTER}… {len(lines) - _LINES:,} more lines; --json has them")


def _show_judged(shown: Preview) -> None:
    place = console()
    say()
    place.print(styled(("How answers to it would be judged", "bold")))
    say(f"  the known answer is {visible(shown.problem.answer)}\n")
    width = max(12, (place.width - 24) // 2)
    rows = [
        (_cut(response, width), _cut(one.extracted or "–", width), one.verdict, _worth(one.outcome))
        for response, one in shown.judged
    ]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for response, read, verdict, worth in [("response", "read as", "verdict", ""), *rows]:
        style = {"correct": "green", "verdict": "dim"}.get(verdict, "yellow")
        line = Text(
            f"  {response:<{max(first, 8)}}  {read:<{max(second, 7)}}  ", "dim" if verdict == "verdict" else ""
        )
        place.print(line + Text(verdict + worth, style))
    say()


def _cut(text: str, width: int) -> str:
    """A text on one line, no longer than this."""
    line = visible(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def _worth(outcome: float | None) -> str:
    """What a function of the user's own finds a response worth."""
    return "" if outcome is None else f" {outcome:g}"


def _lines(text: str, width: int) -> Iterator[str]:
    for line in text.split("\n"):
        yield from wrap(line, width, drop_whitespace=False, replace_whitespace=False, expand_tabs=False) or [""]


def _marked(line: str, special: Sequence[str]) -> Text:
    """A line in which special tokens stand out."""
    text = Text(line)
    text.highlight_words([visible(one) for one in special], "bold cyan")
    return text
