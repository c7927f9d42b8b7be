r"""Extraction, normalization and parsing of answers as text, without computer algebra.

`reval_core.answers.extraction` finds answers in responses; `reval_core.verification` compares them.
"""

from reval_core.answers.text import alternatives, as_choice, as_integer, tidy

__all__ = ["alternatives", "as_choice", "as_integer", "tidy"]
