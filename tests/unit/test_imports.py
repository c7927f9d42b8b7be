"""Which modules need which packages: losses need torch alone, and the learner works without the pipeline."""

import subprocess
import sys

import pytest

BLOCK = """
import sys
sys.modules |= dict.fromkeys({blocked!r})  # as if they were not installed
import {modules}
"""

PIPELINE = {"prefect", "mlflow", "duckdb", "pyarrow", "pandas", "math_verify", "reval.flows", "reval.tasks"}
TRAINING = {"pydantic", "accelerate", "peft", "safetensors", "transformers"}


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (
            "reval_core.objectives, reval_core.model.scoring, reval_core.model.lm_head, "
            "reval_core.model.token_batch",
            PIPELINE | TRAINING,
        ),
        (
            "reval_core.learning.learner, reval_core.learning.checkpoints, reval_core.model.lora",
            PIPELINE | {"peft"},
        ),
    ],
    ids=["losses and scoring need torch alone", "the learner needs nothing of the pipeline"],
)
def test_modules_import_without_packages_that_they_do_not_need(modules, blocked):
    program = BLOCK.format(blocked=blocked, modules=modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
