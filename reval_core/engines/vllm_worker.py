"""Worker extension for vLLM's worker processes. Only vLLM imports this module, in each worker.

    vllm serve MODEL --worker-extension-cls reval_core.engines.vllm_worker.Worker

On a CPU, vLLM 0.32 packs linear weights when it loads them, and silently keeps using the packed copies after other
weights are loaded. Packing is therefore disabled here; plain torch layers are used instead.
"""

from __future__ import annotations

import os
from typing import Any

from safetensors import safe_open
from vllm.platforms import current_platform

from reval_core.engines.follow import follow_run
from reval_core.engines.weight_source import checked

if current_platform.is_cpu():
    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils

    ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda n, k, dtype: False

follow_run(lambda: os._exit(1))


class Worker:
    """Mixed into vLLM's worker class."""

    reload_weights: Any

    def take_weights(self, source: str, sha256: str, token: str | None = None) -> None:
        """Load the weights at `source`, a path or a URL, after checking them (see `checked`)."""
        with checked(source, sha256, token) as path, safe_open(path, "pt") as file:
            names = file.keys()
            self.reload_weights(weights_iterator=((name, file.get_tensor(name)) for name in names))
