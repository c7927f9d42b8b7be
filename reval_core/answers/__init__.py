r"""Answers as text: the form in which they are compared, and what is written in them. No computer algebra.

`reval_core.answers.extraction` finds answers; whether two mean the same is for `reval_core.verification`.
"""

from reval_core.answers.text import alternatives, as_choice, as_integer, tidy

__all__ = ["alternatives", "as_choice", "as_integer", "tidy"]
