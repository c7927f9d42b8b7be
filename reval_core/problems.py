"""Problems with known answers, their order in a run, and how they become prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reval_core import arithmetic
from reval_core.config import GoldMode, ProblemSet, Prompt
from reval_core.errors import InputError
from reval_core.files import digest
from reval_core.jsonl import read_objects, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem and its gold answer. `prompt_id` is unique within a run's problem set."""

    prompt_id: str
    problem: str
    answer: str
    gold_mode: GoldMode = "all"
    """What a gold that lists several answers asks for; `choice`: the gold is a letter from A to J."""
    problem_set: str = ""
    """What it is counted under: the file's stem, or "arithmetic"."""


def load_problems(source: ProblemSet, seed: int) -> list[Problem]:
    """All problems of a set, in the set's order; with a limit, as many chosen by `seed`.

    Raises InputError naming file, line and field of the first problem that cannot be used.
    """
    if source.arithmetic is not None:
        made = arithmetic.problems(source.arithmetic.digits, source.arithmetic.operators, source.arithmetic.split)
        problems = [Problem(text, text, answer, problem_set="arithmetic") for text, answer in made]
    else:
        assert source.path is not None
        problems = _read_jsonl(Path(source.path))
    if source.limit is None or source.limit >= len(problems):
        return problems
    kept = set(_shuffled([problem.prompt_id for problem in problems], seed, "limit")[: source.limit])
    return [problem for problem in problems if problem.prompt_id in kept]


def problems_digest(problems: Iterable[Problem]) -> str:
    """The digest of all that the problems are, in order."""
    return digest([asdict(problem) for problem in problems])


class PromptOrder:
    """The order in which a run asks its problems: seeded epochs, every problem once before any twice."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._problems = {problem.prompt_id: problem for problem in problems}
        self._seed = seed
        self._epochs: dict[tuple[int, int], list[str]] = {}

    def take(self, start: int, count: int, prompts: int) -> list[Problem]:
        """The next `count` problems after the first `start`, in a run that asks `prompts` a round.

        No two of a round are the same where rounds ask for all of their prompts.
        """
        return [self._at(position, prompts) for position in range(start, start + count)]

    def _at(self, position: int, prompts: int) -> Problem:
        last, place = divmod(position, len(self._problems))
        for epoch in range(last + 1):
            if (epoch, prompts) not in self._epochs:
                self._epochs[epoch, prompts] = self._order(epoch, prompts)
        return self._problems[self._epochs[last, prompts][place]]

    def _order(self, epoch: int, prompts: int) -> list[str]:
        order = _shuffled(list(self._problems), self._seed, f"epoch {epoch}")
        # The round that this epoch begins in has asked the end of the epoch before: those come last now.
        shared = epoch * len(order) % prompts
        asked = set(self._epochs[epoch - 1, prompts][-shared:]) if shared else set()
        return [name for name in order if name not in asked] + [name for name in order if name in asked]


def prompt_text(problem: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that a model reads before it answers `problem`."""
    if not prompt.chat:
        return prompt.user.replace("{problem}", problem)
    turns = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    for example in prompt.examples:
        turns.append({"role": "user", "content": prompt.user.replace("{problem}", example.problem)})
        turns.append({"role": "assistant", "content": example.answer})
    turns.append({"role": "user", "content": prompt.user.replace("{problem}", problem)})
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def prompt_tokens(text: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of a prompt's text. A chat template writes its own special tokens."""
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=not prompt.chat)
    return tokens


def _shuffled(ids: list[str], seed: int, purpose: str) -> list[str]:
    """`ids` in an order that depends on nothing but the arguments: by hash, so no library's RNG matters."""
    prefix = f"{seed}/{purpose}/"
    return sorted(ids, key=lambda name: (hashlib.sha256((prefix + name).encode()).digest(), name))


def _read_jsonl(path: Path) -> list[Problem]:
    problems: list[Problem] = []
    lines_by_id: dict[str, int] = {}
    for number, row in read_objects(path, example='{"problem": …, "answer": …}'):
        place = f"{path}:{number}"
        problem = Problem(
            prompt_id=text_of(row.get("prompt_id", str(number)), "prompt_id", place),
            problem=text_of(row.get("problem"), "problem", place),
            answer=text_of(row.get("answer"), "answer", place),
            problem_set=path.stem,
        )
        if problem.prompt_id in lines_by_id:
            raise InputError(
                f"{place}: prompt_id: {problem.prompt_id!r} stands on line "
                f"{lines_by_id[problem.prompt_id]} already; give every problem an id of its own"
            )
        lines_by_id[problem.prompt_id] = number
        problems.append(problem)
    if not problems:
        raise InputError(f"{path}: holds no problem; put one JSON object on each line")
    return problems
