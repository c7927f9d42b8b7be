"""How far draws are off policy, from hand-computed log-probs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from reval_core.learning.off_policy import effective_share, writer_log_ratio


def test_the_ratio_to_the_writer_counts_the_tokens_that_it_wrote() -> None:
    drawn = SimpleNamespace(
        old_logprobs=[np.float32([-1, -2, 0]), np.float32([math.nan, math.nan]), np.float32([])],
        written=[np.array([True, True, False]), np.array([True, True]), np.array([], dtype=bool)],
        log_ref=np.float32([-4, -5, 0]),
    )
    found = writer_log_ratio(drawn, np.float32([0.5, 1, 0]))  # type: ignore[arg-type]
    assert found[0] == -0.5, "log π_θ = −3.5, log π_writer = −3"
    assert math.isnan(found[1]), "an imported response has no log-probs"
    assert found[2] == 0


@pytest.mark.parametrize(
    ("log_weights", "share"),
    [([0, 0, 0, 0], 1), ([-900, 0, -900, -900], 0.25), ([900, 900], 1), ([0, math.log(3)], 0.8)],
)
def test_the_effective_share(log_weights: list[float], share: float) -> None:
    assert effective_share(np.array(log_weights)) == pytest.approx(share)
