"""Worker extension for vLLM's worker processes. Only vLLM imports this module, in each worker.

    vllm serve MODEL --worker-extension-cls reval_core.engines.vllm_worker.Worker

On a CPU, vLLM 0.32 packs linear weights when it loads them, and silently keeps using the packed copies after other
weights are loaded. Packing is therefore disabled here; plain torch layers are used instead.
"""

from __future__ import annotations

import os
import threading

import psutil
from vllm.platforms import current_platform

RUN_PROCESS = "REVAL_RUN_PROCESS"
"""The environment variable with the id of the process that owns the engine."""

if current_platform.is_cpu():
    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils

    ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda n, k, dtype: False


def _follow(process: psutil.Process) -> None:
    """Exit when the run's process ends: a process that is killed cannot close its engine."""
    process.wait()
    os._exit(1)


if RUN_PROCESS in os.environ:
    try:
        run = psutil.Process(int(os.environ[RUN_PROCESS]))
    except psutil.NoSuchProcess:
        os._exit(1)
    threading.Thread(target=_follow, args=(run,), daemon=True, name="follow the run").start()


class Worker:
    """Mixed into vLLM's worker class. Its only purpose is that vLLM imports this module."""
