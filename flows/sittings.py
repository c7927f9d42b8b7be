"""Which stage follows which in an evaluation: the sittings one by one, each answered and then judged.

`stages` is the plain functions of `reval_core.stages`, or the Prefect tasks of `tasks` under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reval_core.evaluation.examination import Examination, Sitting
from reval_core.stages.sitting import drop_other_verdicts


def examine(examination: Examination, stages: Any) -> Iterator[Sitting]:
    """Do all sittings, giving each once it is judged. What earlier attempts have published is not done again."""
    for sitting in examination.sittings:
        responses = stages.sitting_responses(examination, sitting.number)
        drop_other_verdicts(examination, sitting.number, responses)
        stages.sitting_verdicts(examination, sitting.number, responses)
        examination.judged(sitting)
        yield sitting
