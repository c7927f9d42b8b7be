"""Preview of a run or an evaluation: one prompt, and the verdicts on example responses to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reval_core.problems.problem import Problem
from reval_core.problems.recorded import Prompts
from reval_core.verification.claims import Claim, Judgement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reval_core.verification import Verifier


@dataclass(frozen=True)
class Preview:
    """The problem of median length as the model reads it."""

    problem: Problem
    text: str
    """The prompt with all special tokens, including those that the tokenizer adds."""
    tokens: list[int]
    lengths: tuple[int, int, int]
    """The length in tokens of the shortest, the median and the longest prompt of the set."""
    special: list[str]
    """The tokenizer's special tokens."""
    judged: list[tuple[str, Judgement]]
    """Example responses, derived from the gold answer, with their verdicts."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "problem_set": self.problem.problem_set,
            "prompt_id": self.problem.prompt_id,
            "problem": self.problem.problem,
            "gold": self.problem.answer,
            "text": self.text,
            "tokens": len(self.tokens),
            "token_ids": self.tokens,
            **dict(zip(("shortest", "median", "longest"), self.lengths, strict=True)),
            "judged": [
                {"response": response, "extracted": one.extracted, "verdict": one.verdict, "outcome": one.outcome}
                for response, one in self.judged
            ],
        }


def preview(
    problems: Sequence[Problem], prompts: Prompts, tokenizer: PreTrainedTokenizerBase, verifier: Verifier
) -> Preview:
    """Preview the problem whose prompt has the median length, with example responses, graded like real ones."""
    lengths = prompts.lengths(problem.problem for problem in problems)
    middle = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    problem = problems[middle]
    text, tokens = prompts[problem.problem]
    responses = example_responses(problem, problems)
    claims = [Claim(problem.answer, one, False, problem.gold_mode, problem.problem) for one in responses]
    return Preview(
        problem,
        _with_added_tokens(text, tokens, tokenizer),
        tokens,
        (int(lengths.min()), int(lengths[middle]), int(lengths.max())),
        list(tokenizer.all_special_tokens),
        list(zip(responses, verifier.judge(claims), strict=True)),
    )


def example_responses(problem: Problem, problems: Sequence[Problem]) -> list[str]:
    """The gold answer in several forms, and a different answer of another problem, if there is one."""
    gold = problem.answer
    forms = [gold, rf"\boxed{{{gold}}}", f"The answer is {gold}.", f"#### {gold}"]
    other = next((one.answer for one in problems if one.answer != gold), None)
    return forms if other is None else [*forms, rf"\boxed{{{other}}}"]


def _with_added_tokens(text: str, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt's text, preceded by the special tokens that the tokenizer prepends, unless the text contains
    them."""
    special = set(tokenizer.all_special_ids)
    first = next((place for place, one in enumerate(tokens) if one not in special), len(tokens))
    added = "".join(tokenizer.convert_ids_to_tokens(list(tokens[:first])))
    return text if text.startswith(added) else added + text
