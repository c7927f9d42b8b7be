"""Which stage follows which in an evaluation: the sittings one by one, each answered and then judged.

`stages` is the plain functions of `reval_core.stages`, or the Prefect tasks of `tasks` under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reval_core.evaluation.context import BenchmarkRun, EvaluationContext
from reval_core.stages.benchmark import drop_other_verdicts


def examine(context: EvaluationContext, stages: Any) -> Iterator[BenchmarkRun]:
    """Do all sittings, giving each once it is judged. What earlier attempts have published is not done again."""
    for benchmark in context.benchmarks:
        responses = stages.sitting_responses(context, benchmark.number)
        drop_other_verdicts(context, benchmark.number, responses)
        stages.sitting_verdicts(context, benchmark.number, responses)
        context.judged(benchmark)
        yield benchmark
