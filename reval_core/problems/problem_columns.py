"""The column names that are recognised in problem files."""

from __future__ import annotations

from reval_core.rows import Fields

PROBLEM_FIELDS = Fields(
    names={
        "problem": (("problem", "question", "prompt"), ("messages", "conversations")),
        "answer": (
            ("answer", "final_answer", "ground_truth", "reward_model.ground_truth", "correct answer"),
            ("correct_option_index",),
            ("solution",),
        ),
        "prompt_id": (("prompt_id",), ("unique_id", "record id"), ("id",)),
        "options": (("options", "choices"),),
    },
    required=("problem", "answer"),
    settings="columns: {{{0}: NAME}} or ",
)
"""`reval_core.config.ProblemField` has the same names."""

OTHER_OPTIONS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
"""The columns of the wrong options in GPQA's own files; the right one is the answer."""
