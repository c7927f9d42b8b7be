"""The stages of a round: plain functions that publish tables and run without Prefect.

A stage that has already published under the same key is not run again; its manifest is read instead.
"""

from reval_core.stages.benchmark import sitting_responses, sitting_verdicts
from reval_core.stages.consistency import consistency
from reval_core.stages.evaluation import evaluation
from reval_core.stages.importing import importing
from reval_core.stages.learning import checkpoint, learning
from reval_core.stages.offline import stored_rollouts, stored_verdicts
from reval_core.stages.recording import recording
from reval_core.stages.reference_reset import reference_reset
from reval_core.stages.residual_evaluation import residual_evaluation
from reval_core.stages.rollouts import rollouts
from reval_core.stages.sampling import sampling
from reval_core.stages.stage import Stage
from reval_core.stages.verification import verification
from reval_core.stages.warm_start import warm_start

__all__ = [
    "Stage",
    "checkpoint",
    "consistency",
    "evaluation",
    "importing",
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
