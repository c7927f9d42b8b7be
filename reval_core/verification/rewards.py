"""From verdicts to rewards: r(τ) for the value objectives, and the group-normalised advantage for GRPO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.config import Overlong, Reward
from reval_core.verification import Judgement

_EPSILON = 1e-6


def outcomes(judgements: Sequence[Judgement], settings: Reward) -> np.ndarray:
    """1 for correct, 0 for wrong, NaN for a response that must teach nothing or was not judged. [B]

    Where a user's function has judged, it is the number that it gave. A timeout or an error says nothing about the
    answer, so it is not a wrong one.
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
    """DAPO's soft overlong penalty of responses of these lengths in tokens (Eq. 13 of arXiv 2503.14476). [B]

    0 up to max_tokens − buffer, then linear down to −penalty at max_tokens.
    """
    over = np.asarray(lengths, dtype=float) - (max_tokens - settings.buffer)
    return 0.0 - settings.penalty * np.clip(over / settings.buffer, 0.0, 1.0)


def penalised(outcome: np.ndarray, penalty: np.ndarray, settings: Reward) -> np.ndarray:
    """The outcomes from which rewards follow that are `penalty` lower, whatever their kind. [B]"""
    return outcome + (penalty / 2 if settings.kind == "signed" else penalty)


def without_signal(outcome: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Whether a response is of a group whose known outcomes are all equal, or that has none. [B] bool"""
    names, group = np.unique(np.array(groups), return_inverse=True)
    least, most = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.fmin.at(least, group, outcome)
    np.fmax.at(most, group, outcome)
    return (least >= most)[group]


def rewards(outcome: np.ndarray, groups: Sequence[str], settings: Reward) -> np.ndarray:
    """r(τ) [B]; NaN where the outcome is. Responses to one prompt have the same name in `groups`."""
    if settings.kind == "signed":
        return 2 * outcome - 1
    if settings.kind == "centred":
        mean, _, _ = _group_statistics(outcome, groups)
        return outcome - mean
    return outcome


def advantages(outcome: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """(r − mean) / (deviation + 1e-6) within each group [B]; NaN where the outcome is.

    A group of which one response was asked for has mean 0 and deviation 1, as in verl: its advantage is the outcome
    itself. Where more were asked for and only one was judged, there is nothing to compare it with, and it is 0.
    """
    mean, deviation, asked = _group_statistics(outcome, groups)
    normalised = (outcome - mean) / (deviation + _EPSILON)
    return np.where(asked == 1, outcome, normalised)


def _group_statistics(outcome: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each response's group, the mean and the deviation (n − 1) without NaN, and the size with it. [B] each."""
    names, group = np.unique(np.array(groups), return_inverse=True)
    judged = ~np.isnan(outcome)
    values = np.where(judged, outcome, 0.0)
    known = np.bincount(group, judged, len(names))
    mean = np.bincount(group, values, len(names)) / np.maximum(known, 1)
    squares = np.bincount(group, judged * (values - mean[group]) ** 2, len(names))
    deviation = np.sqrt(squares / np.maximum(known - 1, 1))
    return mean[group], deviation[group], np.bincount(group, minlength=len(names))[group]
