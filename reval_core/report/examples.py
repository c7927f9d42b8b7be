"""The report's example responses: a right and a wrong one per prompt, with the residual of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from reval_core.report.page import Html, join, number, section, sql_note, statement, tag
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest

SHORT = 24
"""Responses of up to this many tokens show each token's residual as a number."""

HEAD, TAIL = 240, 80
"""Tokens of a long response that are shown, at its start and its end."""

LONGEST_PROMPT = 1500
"""Maximum characters of a problem that are shown."""

RECENT = 10
"""Number of the last scored rounds from which examples are taken."""

_REF = tag("sub", "ref")

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


def example_answers(directory: RunDirectory, ask: Callable[[str], list[dict[str, Any]]]) -> Html:
    """Render the section of examples. `ask` executes SQL."""
    query = statement(_EXAMPLES, rounds=RECENT, scored=_SCORED)
    rows = ask(query)
    title = "Example responses"
    if not rows:
        return section(title, "No response has been scored yet.")
    tokens = _Tokens(directory)
    largest = max((abs(step) for row in rows for step in row["step_deltas"] or ()), default=0.0)
    lead = (
        "For a few recent prompts, the likeliest right and the likeliest wrong answer under the policy. The loss "
        "is Δ²: for Δ\u00a0<\u00a00 training makes a response likelier, for Δ\u00a0>\u00a00 less likely. "
    )
    if largest:
        lead += "Each token shows its step residual δ; they sum to Δ."
    groups = groupby(rows, key=lambda row: (row["round"], row["prompt_id"]))
    shown = (_prompt([*answers], tokens, largest) for _, answers in groups)
    return section(title, lead, _legend(largest) if largest else "", *shown, sql_note(query))


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


def _prompt(answers: Sequence[dict[str, Any]], tokens: _Tokens, largest: float) -> Html:
    first = answers[0]
    problem = first["problem"]
    if len(problem) > LONGEST_PROMPT:
        problem = problem[:LONGEST_PROMPT] + " …"
    origin = f"round {first['round']}" if first["round"] else "stored"
    solved = f"{origin}, right in {first['solved']} of {first['attempts']} samples"
    title = tag("h3", tag("span", problem, class_="say"))
    answer = [", answer ", tag("span", first["gold"], class_="say")] if first["gold"] else []
    about = tag("p", solved, *answer, class_="unit")
    pair = tag("div", *(_answer(row, tokens, largest) for row in answers), class_="pair")
    return tag("div", title, about, pair, class_="example")


def _answer(row: dict[str, Any], tokens: _Tokens, largest: float) -> Html:
    verdict = tag(
        "span",
        f"{'✓' if row['correct'] else '✗'} {row['verdict']}",
        class_="verdict yes" if row["correct"] else "verdict",
    )
    found = join(["read as ", tag("span", row["extracted"], class_="say"), ", "]) if row["extracted"] else ""
    rest = f"reward {number(row['reward'])}, log\u00a0π\u00a0=\u00a0{number(row['log_policy'])}"
    about = tag("p", verdict, " ", tag("span", found, rest, class_="unit"))
    return tag("div", about, _response(row, tokens, largest), _equation(row), class_="answer")


def _response(row: dict[str, Any], tokens: _Tokens, largest: float) -> Html:
    ids, steps = row["response_tokens"], row["step_deltas"]
    if steps is None or not largest:
        return tag("div", row["response"] or "(nothing)", class_="tokens say")
    if len(ids) <= SHORT:
        marked = _marked(tokens.texts(ids), steps, 1, largest, numbers=True)
        return tag("div", *marked, class_="tokens short say")
    if len(ids) <= HEAD + TAIL:
        return tag("div", *_marked(tokens.texts(ids), steps, 1, largest), class_="tokens say")
    head = _marked(tokens.texts(ids[:HEAD]), steps[:HEAD], 1, largest)
    tail = _marked(tokens.texts(ids[-TAIL:]), steps[-TAIL:], len(ids) - TAIL + 1, largest)
    between = tag("em", f" … {len(ids) - HEAD - TAIL:,} tokens … ")
    return tag("div", *head, between, *tail, class_="tokens say")


def _marked(
    texts: Sequence[str], steps: Sequence[float], first: int, largest: float, numbers: bool = False
) -> list[Html]:
    """Render tokens tinted by δ_h. `first` is the position h of the first one."""
    return [
        tag(
            "span",
            text.replace("\n", "↵\n"),
            tag("small", number(step)) if numbers else "",
            class_="more" if step > 0 else "less",
            style=f"--t:{_tint(step, largest):.2f}",
            title=f"δ{place} = {number(step)}",
        )
        for place, (text, step) in enumerate(zip(texts, steps, strict=True), first)
    ]


def _tint(step: float, largest: float) -> float:
    """Return the strength of a tint. It uses the square root, since the last step contains −r/β and dominates."""
    return 0.6 * math.sqrt(min(1.0, abs(step) / largest)) if math.isfinite(step) else 0.0


def _legend(largest: float) -> Html:
    steps = [-largest, -largest / 4, 0.0, largest / 4, largest]
    marks = _marked([number(step) for step in steps], steps, 1, largest)
    return tag("div", tag("span", "δ", class_="unit"), tag("div", *marks, class_="short"), class_="scale")


def _equation(row: dict[str, Any]) -> Html:
    if row["delta"] is None:
        return tag("div", "No residual: this objective does not define one.", class_="unit")
    parts = [
        (number(row["delta"]), "Δ"),
        ("=", ""),
        (number(row["value_term"]), join(["V − V", _REF])),
        ("+", ""),
        (number(row["log_ratio"]), join(["log π/π", _REF])),
        ("−", ""),
        (number(row["scaled_reward"]), "r/β"),
    ]
    shown = (tag("div", value, tag("small", name)) if name else tag("div", value) for value, name in parts)
    return tag("div", *shown, class_="sum")
