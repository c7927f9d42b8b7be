"""The stages as Prefect tasks, under the names of `reval_core.stages`."""

from reval.tasks.recording import recording
from reval.tasks.stage_task import as_task
from reval_core import stages

warm_start = as_task(stages.warm_start)
rollouts = as_task(stages.rollouts, retries=2)
verification = as_task(stages.verification, retries=2)
consistency = as_task(stages.consistency, retries=1)
sampling = as_task(stages.sampling, retries=1)
learning = as_task(stages.learning, retries=1)
evaluation = as_task(stages.evaluation, retries=2)
checkpoint = as_task(stages.checkpoint, retries=2)
reference_reset = as_task(stages.reference_reset, retries=1)
stored_rollouts = as_task(stages.stored_rollouts, retries=2)
stored_verdicts = as_task(stages.stored_verdicts, retries=2)
residual_evaluation = as_task(stages.residual_evaluation, retries=1)
sitting_responses = as_task(stages.sitting_responses, retries=2)
sitting_verdicts = as_task(stages.sitting_verdicts, retries=2)

__all__ = [
    "checkpoint",
    "consistency",
    "evaluation",
    "learning",
    "recording",
    "reference_reset",
    "residual_evaluation",
    "rollouts",
    "sampling",
    "sitting_responses",
    "sitting_verdicts",
    "stored_rollouts",
    "stored_verdicts",
    "verification",
    "warm_start",
]
