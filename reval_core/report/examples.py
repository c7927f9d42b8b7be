"""The report's example responses: a right and a wrong one per prompt, with the residual of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from reval_core.report.formats import number, statement
from reval_core.report.sections import Section
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest

SHORT = 24
"""Responses of up to this many tokens show each token's residual as a number."""

HEAD, TAIL = 240, 80
"""Tokens of a long response that are shown, at its start and its end."""

RECENT = 10
"""Number of the last scored rounds from which examples are taken."""

# Scored by the policy that wrote the response; a stored one has round 0 and is scored by the initial policy.
_SCORED = "s.trajectory_id = t.trajectory_id AND (s.policy = t.policy OR s.round = 0)"

# Prompts with right and wrong answers come first, then the newest; each with its likeliest answer of either kind.
_EXAMPLES = """
    WITH fresh AS (
        SELECT t.trajectory_id, t.round, t.prompt_id, v.correct, s.log_policy
        FROM trajectories t
        JOIN verdicts v USING (trajectory_id)
        JOIN scores s ON {scored}
        WHERE t.round > (SELECT max(round) FROM trajectories) - {rounds} AND v.verdict NOT IN ('timeout', 'error')
    ),
    prompts AS (
        SELECT round, prompt_id, count(*) AS attempts, count(*) FILTER (correct) AS solved
        FROM fresh
        GROUP BY ALL
        ORDER BY solved IN (0, attempts), round DESC, abs(solved / attempts - 0.5), prompt_id
        LIMIT 3
    ),
    shown AS (
        SELECT f.trajectory_id, p.attempts, p.solved
        FROM fresh f
        JOIN prompts p USING (round, prompt_id)
        QUALIFY row_number() OVER (
            PARTITION BY round, prompt_id, f.correct ORDER BY f.log_policy DESC, f.trajectory_id
        ) = 1
    )
    SELECT
        t.trajectory_id, t.round, t.prompt_id, t.problem, t.gold, t.response, t.response_tokens,
        n.attempts, n.solved, v.verdict, v.correct, v.extracted, v.reward,
        s.delta, s.value_term, s.log_ratio, s.scaled_reward, s.log_policy, s.step_deltas
    FROM shown n
    JOIN trajectories t USING (trajectory_id)
    JOIN verdicts v USING (trajectory_id)
    JOIN scores s ON {scored}
    ORDER BY t.round DESC, t.prompt_id, v.correct DESC
"""


def recent(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the manifests that the examples need: opening the files of all rounds would take seconds."""
    scored = max((manifest.round for manifest in manifests if manifest.stage == "consistency"), default=0)
    return [manifest for manifest in manifests if scored - RECENT < manifest.round <= scored]


@dataclass(frozen=True)
class Token:
    """A token of a response, tinted by its step residual δ."""

    place: int
    """Its position h in the response, from 1."""
    text: str
    step: float
    tint: float
    """The strength of the tint, 0 to 0.6."""


def example_answers(directory: RunDirectory, ask: Callable[[str], list[dict[str, Any]]]) -> Section | None:
    """Return the examples by prompt, with their tokens where these have residuals. `ask` executes SQL."""
    query = statement(_EXAMPLES, rounds=RECENT, scored=_SCORED)
    rows = ask(query)
    if not rows:
        return None
    largest = max((abs(step) for row in rows for step in row["step_deltas"] or ()), default=0.0)
    tokens = _Tokens(directory)
    shown = [{**row, **_tokens(row, tokens, largest)} for row in rows]
    groups = groupby(shown, key=lambda row: (row["round"], row["prompt_id"]))
    return {"prompts": [[*answers] for _, answers in groups], "legend": _legend(largest), "queries": [query]}


class _Tokens:
    """Decodes single tokens with the tokenizer of the run's latest checkpoint."""

    def __init__(self, directory: RunDirectory) -> None:
        from tokenizers import Tokenizer

        files = sorted(directory.checkpoints.glob("round=?????/tokenizer.json"))
        self._tokenizer = Tokenizer.from_file(str(files[-1])) if files else None

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return one text per token; a dot for tokens that complete no character, or without a tokenizer."""
        return [*self._texts(ids)] if self._tokenizer else ["·"] * len(ids)

    def _texts(self, ids: Sequence[int]) -> Iterator[str]:
        """Decode growing prefixes: a token decoded alone loses its spaces and parts of characters."""
        assert self._tokenizer is not None
        done = ""
        for count in range(1, len(ids) + 1):
            text = self._tokenizer.decode(ids[:count], skip_special_tokens=False).rstrip("\ufffd")
            yield text[_shared(done, text) :] or "·"
            done = text


def _shared(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _tokens(row: dict[str, Any], tokens: _Tokens, largest: float) -> dict[str, Any]:
    """Return the displayed tokens of a response: all, or the first and the last ones of a long response."""
    ids, steps = row["response_tokens"], row["step_deltas"]
    if steps is None or not largest:
        return {"head": [], "tail": []}
    head, tail = (HEAD, len(ids) - TAIL) if len(ids) > HEAD + TAIL else (len(ids), len(ids))
    return {
        "head": _marked(tokens.texts(ids[:head]), steps[:head], 1, largest),
        "tail": _marked(tokens.texts(ids[tail:]), steps[tail:], tail + 1, largest),
        "skipped": tail - head,
        "numbers": len(ids) <= SHORT,
    }


def _marked(texts: Sequence[str], steps: Sequence[float], first: int, largest: float) -> list[Token]:
    """Return tokens tinted by δ_h. `first` is the position h of the first one."""
    return [
        Token(place, text.replace("\n", "↵\n"), step, _tint(step, largest))
        for place, (text, step) in enumerate(zip(texts, steps, strict=True), first)
    ]


def _tint(step: float, largest: float) -> float:
    """Return the strength of a tint. It uses the square root, since the last step contains −r/β and dominates."""
    return 0.6 * math.sqrt(min(1.0, abs(step) / largest)) if math.isfinite(step) else 0.0


def _legend(largest: float) -> list[Token]:
    steps = [-largest, -largest / 4, 0.0, largest / 4, largest]
    return _marked([number(step) for step in steps], steps, 1, largest) if largest else []
