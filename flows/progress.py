"""Terminal progress of a run: a line per round, and a bar while a stage takes long."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from reval.flows.terminal import Bar, short
from reval_core.config import ImportedRollouts
from reval_core.pipeline.run_context import RunContext
from reval_core.reproduction.result import in_words

_QUIET_SECONDS = 0.5
"""A stage gets a bar after this time, or when it reports its start."""


class StageBar(Bar):
    """A progress bar for the current stage."""

    def __init__(self, host: Any, stderr: bool = False) -> None:
        """`host` is a run context or an evaluation context."""
        super().__init__(stderr=stderr)
        self._host = host
        self._stage = ""
        self._stage_started = 0.0

    def __enter__(self) -> Self:
        self._host.progress = self._tick
        return super().__enter__()

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print a line in place of the bar."""
        self.hide()
        super().line(*parts)

    def _tick(self, stage: str, number: int, done: int, total: int) -> None:
        title = self._host.title(stage, number)
        if title != self._stage:
            self._stage, self._stage_started = title, time.monotonic()
            self.begin(title)
        slow = time.monotonic() - self._stage_started > _QUIET_SECONDS
        self.update(done, total, shown=(slow or done == 0) and done < total)


class Progress:
    """Prints the rounds of a run."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._bar = StageBar(context)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C or another signal
            stage, round = self._context.stage_now
            place = f"in round {round}, {stage.replace('_', ' ')}" if stage else "before its first stage"
            imports = isinstance(self._context.config.rollouts, ImportedRollouts)
            command = "the same command" if imports else f"reval resume {short(self._context.directory.path)}"
            self._bar.line(f"stopped {place}; {command} continues from there")

    def round_done(self, round: int) -> None:
        """Print the recorded metrics of a round."""
        kept = _kept(self._context.kept)
        self._context.kept.clear()
        line = [_start_line(self._context)] if round == 0 else _round_line(self._context, round)
        self._bar.line(*line, (f"  ({kept})" if kept else "", "dim"))


class UnitBar(Bar):
    """Prints the results of a reproduction, with a bar over the runs of the current figure."""

    def __init__(self) -> None:
        super().__init__("prompts", unit="runs", stderr=True, shown=True)

    def result(self, figure: str, found: dict[str, Any], seconds: float) -> None:
        """Print the result of a figure."""
        said = in_words(found["verdict"], found["paper"])
        self.line(f"{figure}: ", (said, "bold"), f", {seconds:.0f} s. {found['says']}")


def _kept(stages: set[str]) -> str:
    """Which stages of a round were skipped because an earlier attempt had completed them."""
    if "recording" in stages:  # the last one
        return "reused"
    names = ", ".join(sorted(name.replace("_", " ") for name in stages))
    return f"reused: {names}" if names else ""


def _start_line(context: RunContext) -> str:
    evaluation = context.directory.manifest("evaluation", 0)
    assert evaluation is not None
    if context.engine is not None:
        return f"start         held-out accuracy {evaluation.info['accuracy']:.3f}"
    (row,) = context.store.query("SELECT count(*) AS stored FROM buffer").to_pylist()
    mean = _number(evaluation.info["delta_abs"])
    return f"start         {row['stored']:,} stored trajectories, mean |Δ| {mean}"


def _round_line(context: RunContext, round: int) -> list[str | tuple[str, str]]:
    (row,) = context.store.query("SELECT * FROM rounds WHERE round = $round", round=round).to_pylist()
    total = context.config.rounds
    parts = [
        f"round {round:>{len(str(total))}}/{total}",
        *(_fresh_metrics(context, row) if context.engine is not None else _stored_metrics(context, row)),
        f"{sum(value for name, value in row.items() if name.endswith('_seconds')):.1f} s",
    ]
    measured = []
    if row["held_out_accuracy"] is not None:
        target = context.config.evaluation.target
        reached = ", the target" if target is not None and row["held_out_accuracy"] >= target else ""
        measured.append(f"held-out accuracy {row['held_out_accuracy']:.3f}{reached}")
    if row["stored_delta_abs"] is not None:
        measured.append(f"|Δ| over all {row['stored_delta_abs']:.3f}")
    return ["  ".join(parts), *((f"  {text}", "bold") for text in measured)]


def _fresh_metrics(context: RunContext, row: dict[str, Any]) -> list[str]:
    sampled_as_scored = context.config.generation.temperature == context.config.scoring_temperature
    return [
        f"accuracy {_number(row['accuracy'])}",
        f"|Δ| {_number(row['delta_abs'])}",
        f"{'KL' if sampled_as_scored else 'log-ratio'} {_number(row['kl'])}",
        f"tokens {row['response_length']:.1f}",
    ]


def _stored_metrics(context: RunContext, row: dict[str, Any]) -> list[str]:
    """The metrics of each update's draw, just before the update."""
    updates = context.store.query(
        'SELECT delta_abs FROM updates WHERE round = $round ORDER BY "update"', round=row["round"]
    ).to_pylist()
    return [
        f"|Δ| of draws {' '.join(_number(update['delta_abs']) for update in updates)}",
        f"gradient {_number(row['grad_norm'])}",
    ]


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"
