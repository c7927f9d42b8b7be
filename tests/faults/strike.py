"""Fault injection at a moment specified by the stage, the round and the progress of its work, not by time.

A moment is `stage/round/event/number`: the number-th event of that kind within that stage of that round.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import torch

from reval_core.engines.transformers import TransformersEngine
from reval_core.learning.learner import Learner
from reval_core.replay_buffer.index import Store
from reval_core.stages.stage import Stage
from reval_core.verification import Verifier


@contextmanager
def strike(kill: str | None = None, trace: str | None = None, tamper: int | None = None) -> Iterator[None]:
    """Run the block and count every moment.

    Args:
        kill: The moment at which this process is sent SIGKILL.
        trace: A file to which every moment is appended.
        tamper: A round; one weight is changed by 1e-6 after its learning.
    """
    counts: Counter[str] = Counter()
    now = ["open/0"]

    def reach(event: str) -> None:
        counts[f"{now[0]}/{event}"] += 1
        moment = f"{now[0]}/{event}/{counts[f'{now[0]}/{event}']}"
        if trace is not None:
            with Path(trace).open("a") as file:
                file.write(moment + "\n")
        if moment == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            reach(event)
            return function(*args, **kwargs)

        return wrapper

    def around(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            reach(f"before {event}")
            result = function(*args, **kwargs)
            reach(f"after {event}")
            return result

        return wrapper

    def in_stage(stage: Stage, context: Any, round: int, *inputs: Any) -> Any:
        now[0] = f"{stage.name}/{round}"
        reach("start")
        manifest = call(stage, context, round, *inputs)
        reach("end")
        now[0] = f"between/{round}"
        return manifest

    def half_written(rows: Any, where: Any, **options: Any) -> None:
        write(rows, where, **options)
        size = os.path.getsize(where)
        whole = Path(where).read_bytes()
        Path(where).write_bytes(whole[: size // 2])
        reach("half written")
        Path(where).write_bytes(whole)

    def tampered(learner: Learner, *args: Any, **kwargs: Any) -> Any:
        updates = learn(learner, *args, **kwargs)
        if now[0] == f"learning/{tamper}":
            with torch.no_grad():
                next(learner.model.parameters()).view(-1)[0] += 1e-6
        return updates

    call, write, learn = Stage.__call__, pq.write_table, Learner.learn
    with (
        patch.object(Stage, "__call__", in_stage),
        patch.object(pq, "write_table", half_written),
        patch.object(os, "replace", around("rename", os.replace)),
        patch.object(os, "fsync", before("sync", os.fsync)),
        patch.object(TransformersEngine, "generate", before("batch", TransformersEngine.generate)),
        patch.object(Verifier, "judge", around("judging", Verifier.judge)),
        patch.object(torch.optim.AdamW, "step", around("step", torch.optim.AdamW.step)),
        patch.object(Store, "ingest", around("ingest", Store.ingest)),
        patch.object(Store, "_refresh_buffer", around("buffer", Store._refresh_buffer)),
        patch.object(Learner, "learn", tampered),
    ):
        yield
