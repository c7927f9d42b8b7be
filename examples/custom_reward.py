"""A reward function of your own in the pipeline: partial credit for an answer that is close.

    cd examples
    reval train ../configs/demo.yaml --run-dir runs/close --set 'reward={kind: binary,
        function: "custom_reward:close", settings: {scale: 5}}'

It runs in guarded worker processes with limits of time and memory (docs/verification.md).
"""

from __future__ import annotations

import re


def close(problem: str, gold: str, response: str, scale: float = 5.0) -> float:
    """1 for the gold answer, falling linearly to 0 at a distance of `scale`.

    Args:
        problem: The text of the problem.
        gold: Its known answer.
        response: The text that the model wrote.
        scale: The distance from which on the reward is 0.

    Returns:
        The reward, from 0 to 1. Only 1 counts as correct in accuracies.
    """
    number = re.fullmatch(r"\s*(-?\d+)\s*", response)
    if number is None:
        return 0.0
    return max(0.0, 1.0 - abs(int(number.group(1)) - int(gold)) / scale)
