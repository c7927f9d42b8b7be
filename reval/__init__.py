"""The public Python API of reval: docs/api.md.

`import reval` is fast. The libraries that a name needs (torch, Prefect, pandas) are imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reval import losses
    from reval.pipeline import evaluate, train
    from reval.runs import Run, open
    from reval.scoring import collate, score

__version__ = "0.1.0"

__all__ = ["Run", "__version__", "collate", "evaluate", "losses", "open", "score", "train"]

_MODULES = {
    "Run": "reval.runs",
    "open": "reval.runs",
    "train": "reval.pipeline",
    "evaluate": "reval.pipeline",
    "collate": "reval.scoring",
    "score": "reval.scoring",
}
"""The module that defines each name."""


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("reval.losses")
    if name not in _MODULES:
        raise AttributeError(f"module 'reval' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
