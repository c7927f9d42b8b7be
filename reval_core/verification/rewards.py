"""Maps verdicts to rewards r(τ) for the value-based objectives and to group-normalised advantages for GRPO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.config import Overlong, Reward
from reval_core.verification import Judgement

_EPSILON = 1e-6


def outcomes(judgements: Sequence[Judgement], settings: Reward) -> np.ndarray:
    """The outcomes of responses, from which rewards follow.

    Args:
        judgements: The judgements of B responses.
        settings: The reward section of the config.

    Returns:
        [B]: 1 for correct, 0 for wrong, or the number that a user's function returned. NaN for responses that were
        not judged or are excluded from learning; a timeout or an error says nothing about the answer.
    """
    values = {
        "correct": 1.0,
        "wrong": 0.0,
        "unparsed": 0.0,
        "truncated": 0.0 if settings.truncated == "zero" else np.nan,
        "timeout": np.nan,
        "error": np.nan,
        "given": np.nan,
    }
    return np.array([values[one.verdict] if one.outcome is None else one.outcome for one in judgements])


def overlong_penalties(lengths: Sequence[int], settings: Overlong, max_tokens: int) -> np.ndarray:
    """DAPO's soft overlong penalty (Eq. 13 of arXiv 2503.14476).

    Args:
        lengths: The lengths of B responses in tokens.
        settings: The overlong section of the config.
        max_tokens: The maximum length of a response in tokens.

    Returns:
        [B]: 0 up to max_tokens − buffer, then decreasing linearly to −penalty at max_tokens.
    """
    over = np.asarray(lengths, dtype=float) - (max_tokens - settings.buffer)
    return 0.0 - settings.penalty * np.clip(over / settings.buffer, 0.0, 1.0)


def penalised(outcome: np.ndarray, penalty: np.ndarray, settings: Reward) -> np.ndarray:
    """The outcomes [B] with `penalty` (≤ 0) applied, scaled so that rewards of any kind change by exactly that."""
    return outcome + (penalty / 2 if settings.kind == "signed" else penalty)


def without_signal(outcome: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Whether the known outcomes of a response's group are all equal, or there are none. [B] bool"""
    names, group = np.unique(np.array(groups), return_inverse=True)
    least, most = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.fmin.at(least, group, outcome)
    np.fmax.at(most, group, outcome)
    return (least >= most)[group]


def rewards(outcome: np.ndarray, groups: Sequence[str], settings: Reward) -> np.ndarray:
    """The rewards r(τ) [B]; NaN where the outcome is NaN.

    Args:
        outcome: The outcomes [B].
        groups: The name of each response's group; responses to the same prompt form a group.
        settings: The reward section of the config.
    """
    if settings.kind == "signed":
        return 2 * outcome - 1
    if settings.kind == "centred":
        mean, _, _ = _group_statistics(outcome, groups)
        return outcome - mean
    return outcome


def advantages(outcome: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The advantages (r − mean) / (standard deviation + 1e-6) within each group [B]; NaN where the outcome is NaN.

    For a group of size 1 the mean is 0 and the standard deviation 1, as in verl, so its advantage is the outcome.
    If only one response of a larger group was judged, there is no baseline and its advantage is 0.
    """
    mean, deviation, size = _group_statistics(outcome, groups)
    normalised = (outcome - mean) / (deviation + _EPSILON)
    return np.where(size == 1, outcome, normalised)


def _group_statistics(outcome: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean and deviation (n − 1) of each response's group, ignoring NaN, and its size. [B] each."""
    names, group = np.unique(np.array(groups), return_inverse=True)
    judged = ~np.isnan(outcome)
    values = np.where(judged, outcome, 0.0)
    known = np.bincount(group, judged, len(names))
    mean = np.bincount(group, values, len(names)) / np.maximum(known, 1)
    squares = np.bincount(group, judged * (values - mean[group]) ** 2, len(names))
    deviation = np.sqrt(squares / np.maximum(known - 1, 1))
    return mean[group], deviation[group], np.bincount(group, minlength=len(names))[group]
