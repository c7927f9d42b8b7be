"""The configs that come with reval: the demo, the evaluation protocols, the paper's settings."""

from __future__ import annotations

from pathlib import Path

PACKAGED = (Path(__file__).parents[1] / "configs").resolve()
"""`configs/` of the repository in a checkout, `reval_core/configs` in an installed package."""
