"""Generation with vLLM in separate processes alongside the learner: started once, with new weights each round.

vLLM depends on its own version of torch and changes process-wide settings (threads, torch.distributed), so it runs
outside the learner's process, as its `LLM` does by default. Weights are published in memory.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reval_core import launch
from reval_core.config import VllmEngine as Settings
from reval_core.engines.engine import Enough, Sampling
from reval_core.engines.follow import RUN_PROCESS
from reval_core.engines.response import Response
from reval_core.engines.weights import drop_weights, handover_directory, write_weights
from reval_core.errors import RunStopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_RESET_SECONDS = 30.0

_ERROR = re.compile(r"\b(\w*(?:Error|Exception): [^\n]+)(?:\n(?:\(\w+ pid=\d+\))? +(\S[^\n]*))?")
"""An error in vLLM's output, and the next line if it belongs to the error."""


class EngineDied(Exception):
    """vLLM's process died while it was in use. A new engine can be started and the work retried."""


class VllmEngine:
    """The engine of `engine.kind: vllm`. The first `load` starts vLLM, which runs until `close`."""

    name = "vllm"
    streams = True

    def __init__(self, settings: Settings, log: Path, code: Path | None = None, seed: int = 0) -> None:
        """Construct an engine without starting it.

        Args:
            settings: The engine section of the config.
            log: The file that receives vLLM's output.
            code: The directory of a model with custom code.
            seed: The seed of the thresholds that round float32 weights to bfloat16.
        """
        self._settings = settings
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self._log = log
        self._code = code
        self._seed = seed
        self._directory: Path | None = None
        self._llm: Any = None
        self._loaded: str | None = None
        self._asleep = False
        self._before: set[Any] | None = None
        """vLLM processes of other engines that existed before this one was started."""

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Load the weights of `model`, unless the engine already holds those of `policy`; starts vLLM if needed.

        Raises:
            RunStopped: vLLM cannot start; the message contains its reason.
            MemoryError: vLLM cannot start for lack of memory.
            EngineDied: vLLM's process died.
        """
        torch.cuda.empty_cache()  # vLLM's processes cannot use memory that torch's allocator keeps cached
        self._wake("weights")
        if self._loaded != policy:
            self._loaded = None
            if self._directory is None:
                self._directory = handover_directory(model, self.dtype)
            write_weights(self._directory, model, self._seed, self.dtype, self._code)
            if self._llm is None:
                self._start()
            else:
                with self._alive():
                    self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self._directory)})
            drop_weights(self._directory)
            self._loaded = policy
        self._wake("kv_cache")
        self._drop_cache()

    def generate(
        self, requests: Sequence[Response], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Response]]:
        """Yield each response as it finishes. vLLM schedules the batches.

        Raises:
            EngineDied: vLLM's process died.
            RunStopped: A prompt and `max_tokens` do not fit into the engine's context.
        """
        engine = self._llm.llm_engine
        parts = {place: _Part(request) for place, request in enumerate(requests)}
        with self._alive():
            try:
                for place, request in enumerate(requests):
                    self._check_room(request, sampling)
                    context = [*request.prompt_tokens, *request.tokens]
                    parameters = _parameters(request, sampling, streamed=enough is not None)
                    engine.add_request(str(place), {"prompt_token_ids": context}, parameters)
                tokens = 0
                while engine.has_unfinished_requests() and not (enough is not None and enough(tokens)):
                    for output in engine.step():
                        place = int(output.request_id)
                        tokens += parts[place].add(output.outputs[0])
                        if output.finished:
                            yield place, parts.pop(place).response(output.outputs[0].finish_reason)
            finally:
                with suppress(Exception):  # a dead engine has nothing to abort
                    engine.abort_request([str(place) for place in parts])
        yield from ((place, part.response("partial")) for place, part in parts.items())

    def release_memory(self) -> None:
        """Release GPU memory to the learner (`sleep`). The weights are dropped: the next round loads new ones."""
        if self._llm is not None and self._settings.sleep and torch.cuda.is_available() and not self._asleep:
            with self._alive():
                self._llm.sleep(level=2)
            self._asleep, self._loaded = True, None

    def close(self) -> None:
        """Stop vLLM's processes."""
        llm, self._llm, self._loaded, self._asleep = self._llm, None, None, False
        if llm is not None:
            with suppress(Exception):  # it may be dead already
                llm.llm_engine.engine_core.shutdown()
        if self._before is not None:
            for process in _core_processes() - self._before:  # shut down above, except one that was still starting
                process.terminate()
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
            self._before = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _wake(self, part: str) -> None:
        """Wake weights before they are replaced and the cache afterwards, so that peak memory stays low."""
        if self._asleep:
            with self._alive():
                self._llm.wake_up(tags=[part])
            self._asleep = part != "kv_cache"

    def _check_room(self, request: Response, sampling: Sampling) -> None:
        """Raise RunStopped if the context is too small for `max_tokens`: vLLM would truncate without an error."""
        limit, prompt = self._llm.model_config.max_model_len, len(request.prompt_tokens)
        if prompt + sampling.max_tokens > limit:
            raise RunStopped(
                f"a prompt of {prompt} tokens plus rollouts.max_tokens ({sampling.max_tokens}) exceeds the "
                f"engine's context length ({limit}); lower rollouts.max_tokens, or raise engine.max_model_len if "
                "the model supports it"
            )

    def _drop_cache(self) -> None:
        """Reset the old policy's prefix cache. Requests that were just aborted may hold blocks for a moment."""
        deadline = time.monotonic() + _RESET_SECONDS
        with self._alive():
            while not self._llm.reset_prefix_cache():
                if time.monotonic() > deadline:
                    self.close()
                    raise EngineDied("vLLM's prefix cache could not be reset")
                time.sleep(0.02)

    def _start(self) -> None:
        assert self._directory is not None
        os.environ |= environment()
        self._before = _core_processes()
        try:
            with _output_to(self._log), launch.launcher_hidden():
                from vllm import LLM

                self._llm = LLM(**engine_arguments(self._settings, self._directory, self._code))
            _log_to(self._log)
            watched = (self._llm.llm_engine.engine_core, _core_processes() - self._before)
            threading.Thread(target=_wake_when_dead, args=watched, daemon=True, name="watch vLLM").start()
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            reason = _reason(self._log, error)
            kind = MemoryError if "out of memory" in reason else RunStopped
            raise kind(f"the engine vllm cannot start: {reason}; its full output is in {self._log}") from error

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Close the engine if vLLM fails, so that the next `load` starts a new one."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            self.close()
            raise EngineDied(f"vLLM's process died ({_reason(self._log, error)}); see {self._log}") from error


def _core_processes() -> set[Any]:
    """vLLM's engine core processes that are children of this process."""
    return {process for process in multiprocessing.active_children() if process.name.startswith("EngineCore")}


def _wake_when_dead(client: Any, processes: set[Any]) -> None:
    """Unblock callers once vLLM's process has died: vLLM 0.32 would let them wait forever."""
    from vllm.v1.engine.exceptions import EngineDeadError

    multiprocessing.connection.wait([process.sentinel for process in processes])
    client.outputs_queue.put_nowait(EngineDeadError())
    for future in list(client.utility_results.values()):
        with suppress(InvalidStateError):  # it was resolved just before
            future.set_exception(EngineDeadError())


class _Part:
    """The part of a response that has been received."""

    def __init__(self, request: Response) -> None:
        self._request = request
        self._tokens: list[int] = []
        self._logprobs: list[float] = []

    def add(self, output: Any) -> int:
        """Append new tokens and return their number."""
        self._tokens += output.token_ids
        self._logprobs += _logprobs(output)
        return len(output.token_ids)

    def response(self, reason: Any) -> Response:
        return self._request.extended(self._tokens, self._logprobs, reason)


def _logprobs(output: Any) -> list[float]:
    """The log-probs of the sampled tokens; vLLM may also list the most likely token of each position."""
    flat = output.logprobs
    return [flat.logprobs[start] for start in flat.start_indices]


def _parameters(request: Response, sampling: Sampling, streamed: bool) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens - len(request.tokens),
        seed=request.seed,
        stop_token_ids=list(sampling.stop_ids),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
    )


def engine_arguments(settings: Settings, model: Path, code: Path | None) -> dict[str, Any]:
    """The arguments of vLLM's engine.

    Args:
        settings: The engine section of the config.
        model: The directory of the model.
        code: The directory of its custom code.
    """
    on_gpu = torch.cuda.is_available()
    chosen: dict[str, Any] = {}
    if settings.kv_cache_gib is not None:
        chosen["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    return {
        "model": str(model),
        "skip_tokenizer_init": True,
        "trust_remote_code": code is not None,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enforce_eager": settings.eager or not on_gpu,
        "enable_sleep_mode": settings.sleep and on_gpu,
        # On a CPU vLLM 0.32 fails on seeded requests whose prefill is split into chunks.
        "enable_chunked_prefill": on_gpu,
        "logprobs_mode": "processed_logprobs",  # at the sampling temperature
        "generation_config": "vllm",  # the model's own defaults would change the policy
        "worker_extension_cls": "reval_core.engines.vllm_worker.Worker",
        **chosen,
    }


def environment() -> dict[str, str]:
    """Environment variables of vLLM's processes: their owner, all CPU cores, little logging."""
    defaults = {
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    kept = {name: os.environ.get(name, value) for name, value in defaults.items()}
    # CUDA needs spawned processes instead of forked ones.
    return kept | {RUN_PROCESS: str(os.getpid()), "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Redirect stdout and stderr to `log` at the level of file descriptors, for processes started meanwhile."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    with log.open("ab") as file:
        for number, _ in kept:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in kept:
            os.dup2(saved, number)
            os.close(saved)


def _log_to(log: Path) -> None:
    """Send vLLM's logging in this process to `log`: the terminal is reserved for the run's own output."""
    logger = logging.getLogger("vllm")
    for handler in logger.handlers:
        handler.close()
    logger.handlers = [logging.FileHandler(log)]


def _reason(log: Path, error: Exception) -> str:
    """A one-line reason. For an error in another process, the last error in its output."""
    said = " ".join(str(error).split())
    if "root cause" not in said and "stack trace" not in said:
        return f"{type(error).__name__}: {said[:300]}"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return last_error(text) or f"{type(error).__name__}: {said[:300]}"


def last_error(output: str) -> str | None:
    """The last error in vLLM's output that is not a consequence of another."""
    own = [one for one in _ERROR.finditer(output) if "root cause" not in one[1]]
    if not own:
        return None
    # Pydantic counts the errors in the first line, and describes the first of them in the second.
    return f"{own[-1][1]}: {own[-1][2]}" if "validation error" in own[-1][1] and own[-1][2] else own[-1][1]
