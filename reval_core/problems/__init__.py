"""Problems with gold answers: their sources, their order in a run, and their prompts."""

from reval_core.problems.order import PromptOrder
from reval_core.problems.problem import Problem, problems_digest
from reval_core.problems.problem_sets import (
    check_contamination,
    load_held_out,
    load_problems,
    load_sets,
    load_train,
)
from reval_core.problems.prompts import Rendered, prompt_text, render

__all__ = [
    "Problem",
    "PromptOrder",
    "Rendered",
    "check_contamination",
    "load_held_out",
    "load_problems",
    "load_sets",
    "load_train",
    "problems_digest",
    "prompt_text",
    "render",
]
