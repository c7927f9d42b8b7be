"""Problems with gold answers: their sources, their order in a run, and their prompts."""

from reval_core.problems.order import PromptOrder
from reval_core.problems.problem import Problem, problems_digest
from reval_core.problems.problem_sets import (
    RunSets,
    check_contamination,
    load_problems,
    load_run_sets,
    load_sets,
)
from reval_core.problems.prompts import Rendered, prompt_text, render

__all__ = [
    "Problem",
    "PromptOrder",
    "Rendered",
    "RunSets",
    "check_contamination",
    "load_problems",
    "load_run_sets",
    "load_sets",
    "problems_digest",
    "prompt_text",
    "render",
]
