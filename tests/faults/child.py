"""A small run in a process of its own that kills itself with SIGKILL at a chosen moment.

usage: python -m tests.faults.child RUN_DIR EVENT NUMBER
EVENT is `publish` (just before a file or folder gets its name), `published` (just after), `generate` (before a
batch is generated), `update` (before an optimizer step) or `never`; NUMBER counts them from 1 in this process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reval_core.engines.transformers import TransformersEngine
from tests.runs import run, small_config


def main(path: str, event: str, number: str) -> None:
    countdown = int(number)

    def strike() -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def struck(function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not after:
                strike()
            result = function(*args, **kwargs)
            if after:
                strike()
            return result

        return wrapper

    if event == "publish":
        os.replace = struck(os.replace)
    elif event == "published":
        os.replace = struck(os.replace, after=True)
    elif event == "generate":
        TransformersEngine.generate = struck(TransformersEngine.generate)  # type: ignore[method-assign]
    elif event == "update":
        torch.optim.AdamW.step = struck(torch.optim.AdamW.step)  # type: ignore[method-assign]
    torch.set_num_threads(1)
    run(Path(path), small_config(reference__reset_every=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
