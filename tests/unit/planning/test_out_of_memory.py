"""Detection and handling of out-of-memory errors."""

from __future__ import annotations

import pytest
import torch

from reval_core.errors import CorruptData, RunStopped
from reval_core.planning.out_of_memory import explained_memory


def caused(cause: Exception) -> Exception:
    """An error with another one as its cause."""
    error = ValueError("the layer failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        MemoryError("the engine vllm cannot start: torch.OutOfMemoryError: CUDA out of memory."),
        caused(torch.OutOfMemoryError("CUDA out of memory.")),
    ],
)
def test_every_kind_of_out_of_memory_error_stops_the_run(error: Exception) -> None:
    with pytest.raises(RunStopped) as stopped, explained_memory("learning of round 3", lambda: "lower a.b"):
        raise error
    said = str(stopped.value)
    assert said.startswith(f"learning of round 3: out of memory ({str(error)[:40]}")
    assert said.endswith(", or lower a.b (a run may change settings of its engine; others need a new run)")
    assert "\n" not in said


def test_no_setting_is_named_if_none_helps() -> None:
    with pytest.raises(RunStopped, match=r"run the same command again$"), explained_memory("sampling", lambda: ""):
        raise MemoryError


@pytest.mark.parametrize(
    "error",
    [RuntimeError("the engine broke"), RunStopped("stopped; CUDA out of memory was seen"), CorruptData("a: b")],
)
def test_other_errors_are_not_changed(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained_memory("learning", lambda: "lower a.b"):
        raise error
    assert raised.value is error
