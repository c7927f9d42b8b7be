"""The stages of an evaluation: each benchmark run is generated, then judged.

`stages` is the plain functions of `reval_core.stages`, or the Prefect tasks of `tasks` under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reval_core.evaluation.context import BenchmarkRun, EvaluationContext
from reval_core.stages.benchmark import drop_other_verdicts


def run_benchmarks(context: EvaluationContext, stages: Any) -> Iterator[BenchmarkRun]:
    """Execute all benchmark runs, yielding each once it is judged. What earlier attempts published is reused."""
    for benchmark in context.benchmarks:
        responses = stages.sitting_responses(context, benchmark.number)
        drop_other_verdicts(context, benchmark.number, responses)
        stages.sitting_verdicts(context, benchmark.number, responses)
        context.judged(benchmark)
        yield benchmark
