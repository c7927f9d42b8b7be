"""Results of an evaluation: metrics per problem set and their average, from the published evaluations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reval_core.config.protocol import Protocol
from reval_core.evaluation.context import BenchmarkRun
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.evaluation.intervals import bootstrap, macro
from reval_core.evaluation.metrics import avg_at_k, maj_at_k, pass_at_k
from reval_core.evaluation.model_source import ModelSource
from reval_core.problems import problems_digest


def find_results(
    directory: EvaluationDirectory, source: ModelSource, protocol: Protocol, benchmarks: Sequence[BenchmarkRun]
) -> dict[str, Any]:
    """Return all metrics of these benchmark runs as JSON values, with 95% intervals over problems."""
    voted = protocol.reward.function is None
    values = {benchmark.name: _by_problem(_read(directory, benchmark), voted) for benchmark in benchmarks}
    return {
        "model": source.name,
        "source": source.source,
        "round": source.round,
        "policy": source.identity,
        "samples": protocol.samples,
        "temperature": protocol.temperature,
        "max_tokens": protocol.max_tokens,
        "seed": protocol.seed,
        "protocol": protocol.model_dump(mode="json"),
        "benchmarks": [_metrics(directory, one, values[one.name], protocol.seed) for one in benchmarks],
        "average": _average(values, protocol.seed),
    }


def _average(values: dict[str, dict[str, np.ndarray]], seed: int) -> dict[str, Any]:
    """Return the means of the sets' metrics, each set with equal weight; metrics at k with their intervals."""
    means: dict[str, Any] = {}
    for name in next(iter(values.values())):
        by_set = {title: found[name] for title, found in values.items()}
        mean = float(np.mean([found.mean() for found in by_set.values()]))
        means[name] = asdict(macro(by_set, seed)) if "@" in name else mean
    return means


def _read(directory: EvaluationDirectory, benchmark: BenchmarkRun) -> pa.Table:
    columns = ("prompt_id", "sample", "correct", "extracted", "verdict", "response_length")
    rows = directory.rows("evaluation", benchmark.number, "evaluations", columns)
    return rows.sort_by([("prompt_id", "ascending"), ("sample", "ascending")])


def _by_problem(rows: pa.Table, voted: bool) -> dict[str, np.ndarray]:
    """Return each metric's value per problem, [P]; avg@k first.

    Args:
        rows: The evaluations, sorted by problem and sample.
        voted: Whether responses have answers to vote with: a user's reward function extracts none.
    """
    problems = len(pc.unique(rows.column("prompt_id")))
    samples = len(rows) // problems

    def table(column: pa.ChunkedArray) -> np.ndarray:
        values: np.ndarray = column.to_numpy(zero_copy_only=False)
        return values.reshape(problems, samples)

    correct = table(rows.column("correct")).astype(float)
    verdict = table(rows.column("verdict"))
    return {
        f"avg@{samples}": avg_at_k(correct),
        **{f"pass@{k}": pass_at_k(correct, k) for k in _counts(samples)},
        **({f"maj@{samples}": maj_at_k(table(rows.column("extracted")).tolist(), correct)} if voted else {}),
        "tokens": table(rows.column("response_length")).mean(axis=1),
        "truncated": (verdict == "truncated").mean(axis=1),
        "unparsed": (verdict == "unparsed").mean(axis=1),
        "unjudged": np.isin(verdict, ["timeout", "error"]).mean(axis=1),
    }


def _counts(samples: int) -> list[int]:
    """Return the powers of two up to the number of samples, and that number."""
    return sorted({samples, *(2**power for power in range(samples.bit_length()))} - {0})


def _metrics(
    directory: EvaluationDirectory, benchmark: BenchmarkRun, values: dict[str, np.ndarray], seed: int
) -> dict[str, Any]:
    responses = directory.manifest("rollouts", benchmark.number)
    assert responses is not None, "a benchmark run is judged after its responses are generated"
    return {
        "name": benchmark.name,
        "sitting": benchmark.number,
        "problems": len(benchmark.problems),
        "problems_digest": problems_digest(benchmark.problems),
        "engine": responses.info["engine"],
        "generated_tokens": responses.info["generated_tokens"],
        "generation_seconds": responses.info["generation_seconds"],
        **{
            name: asdict(bootstrap(found, seed)) if "@" in name else float(found.mean())
            for name, found in values.items()
        },
    }


def results_markdown(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table that is also aligned as plain text."""
    names, rows = results_rows(results)
    widths = [max(len(row[place]) for row in [names, *rows]) for place in range(len(names))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = [
            f"{cell:<{width}}" if not place else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    head = (
        f"`{results['model']}` (policy `{results['policy'][:12]}`), {results['samples']} responses per problem at "
        f"temperature {results['temperature']:g}, at most {results['max_tokens']} tokens, seed {results['seed']}; "
        "95% intervals over problems."
    )
    return "\n".join([head, "", line(names), line(rule), *map(line, rows), ""])


def results_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of the results table and one row per problem set, followed by the average of several."""
    samples = results["samples"]
    metrics = [f"avg@{samples}", *([f"pass@{samples}", f"maj@{samples}"] if samples > 1 else [])]
    metrics = [name for name in metrics if name in results["average"]]
    names = ["problem set", "n", metrics[0], "95%", *metrics[1:], "tokens", "cut off"]
    shown = [(one["name"], str(one["problems"]), one) for one in results["benchmarks"]]
    if len(shown) > 1:
        shown.append(("average", "", results["average"]))
    rows = []
    for name, problems, found in shown:
        first, *others = (found[metric] for metric in metrics)
        rows.append(
            [
                name,
                problems,
                _percent(first["mean"]),
                _interval(first),
                *(_percent(other["mean"]) for other in others),
                f"{found['tokens']:,.0f}",
                f"{100 * found['truncated']:.0f}%",
            ]
        )
    return names, rows


def _interval(found: dict[str, float]) -> str:
    """Return the interval, or a dash where all values are equal: it would have zero width."""
    low, high = found["low"], found["high"]
    return f"{_percent(low)}–{_percent(high)}" if low < high else "–"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
