"""Generation by vLLM in processes of its own beside the learner: started once, given new weights each round.

vLLM is built against a torch of its own choice and changes process-wide settings (threads, torch.distributed), so
it runs outside of the learner's process, as its `LLM` does by default. Weights are handed over in memory.
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

from reval_core.config import VllmEngine as Settings
from reval_core.engines.engine import Completion, Enough, Request, Sampling
from reval_core.engines.weights import drop_weights, handover_directory, write_weights
from reval_core.errors import RunStopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_RESET_SECONDS = 30.0


class EngineDied(Exception):
    """vLLM's process is gone in the middle of its work. A new engine can be started and the work done again."""


class VllmEngine:
    """An engine starts with the first weights that it is given, and stays until it is closed."""

    name = "vllm"
    streams = True

    def __init__(self, settings: Settings, log: Path, code: Path | None = None, seed: int = 0) -> None:
        """`log` gets what vLLM prints; `code` is the folder of a model that brings its own code.

        seed: of the thresholds that float32 weights are rounded to bfloat16 by.
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
        """vLLM's processes of other engines, which were there when this one was started."""

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Take the weights of `model`, unless the engine has those of `policy` already. The first call starts it.

        Raises RunStopped with vLLM's own reason if it cannot start, MemoryError if that is a lack of memory.
        """
        torch.cuda.empty_cache()  # what torch has freed and kept for itself is no use to vLLM's processes
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
        self, requests: Sequence[Request], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Each request's completion as it ends; vLLM batches them as it sees fit.

        Raises EngineDied if vLLM's process ends.
        """
        engine = self._llm.llm_engine
        parts = {place: _Part() for place in range(len(requests))}
        with self._alive():
            try:
                for place, request in enumerate(requests):
                    self._check_room(request, sampling)
                    context = [*request.prompt_tokens, *request.written]
                    parameters = _parameters(request, sampling, streamed=enough is not None)
                    engine.add_request(str(place), {"prompt_token_ids": context}, parameters)
                tokens = 0
                while engine.has_unfinished_requests() and not (enough is not None and enough(tokens)):
                    for output in engine.step():
                        place = int(output.request_id)
                        tokens += parts[place].add(output.outputs[0])
                        if output.finished:
                            yield place, parts.pop(place).completion(output.outputs[0].finish_reason)
            finally:
                with suppress(Exception):  # of a dead engine there is nothing to call off
                    engine.abort_request([str(place) for place in parts])
        yield from ((place, part.completion("partial")) for place, part in parts.items())

    def rest(self) -> None:
        """Give the GPU's memory to the learner. The weights are not kept: the next round brings others."""
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
            for process in _core_processes() - self._before:  # told to end by now, but for one that was starting
                process.terminate()
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
            self._before = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _wake(self, part: str) -> None:
        """Weights wake before they are replaced, the cache after: at no time do both old and new lie in memory."""
        if self._asleep:
            with self._alive():
                self._llm.wake_up(tags=[part])
            self._asleep = part != "kv_cache"

    def _check_room(self, request: Request, sampling: Sampling) -> None:
        """Raise RunStopped if a response might be cut off before `max_tokens`, which nobody would be told of."""
        limit, prompt = self._llm.model_config.max_model_len, len(request.prompt_tokens)
        if prompt + sampling.max_tokens > limit:
            raise RunStopped(
                f"a prompt of {prompt} tokens and rollouts.max_tokens ({sampling.max_tokens}) are more than the "
                f"engine takes ({limit}); lower rollouts.max_tokens, or raise engine.max_model_len if the model can"
            )

    def _drop_cache(self) -> None:
        """Forget the old policy's keys and values. What was just called off may hold on to some for a moment."""
        deadline = time.monotonic() + _RESET_SECONDS
        with self._alive():
            while not self._llm.reset_prefix_cache():
                if time.monotonic() > deadline:
                    self.close()
                    raise EngineDied("vLLM does not let go of the old policy's keys and values")
                time.sleep(0.02)

    def _start(self) -> None:
        assert self._directory is not None
        os.environ |= _environment()
        self._before = _core_processes()
        settings, on_gpu = self._settings, torch.cuda.is_available()
        chosen: dict[str, Any] = {}
        if settings.kv_cache_gib is not None:
            chosen["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
        try:
            with _output_to(self._log):
                from vllm import LLM

                self._llm = LLM(
                    model=str(self._directory),
                    skip_tokenizer_init=True,
                    trust_remote_code=self._code is not None,
                    dtype=settings.dtype,
                    max_model_len=settings.max_model_len,
                    max_num_seqs=settings.max_num_seqs,
                    gpu_memory_utilization=settings.gpu_memory_utilization,
                    tensor_parallel_size=settings.tensor_parallel_size,
                    enforce_eager=settings.eager or not on_gpu,
                    enable_sleep_mode=settings.sleep and on_gpu,
                    # On a CPU vLLM 0.32 fails on a prompt with a seed that it takes in over several steps.
                    enable_chunked_prefill=on_gpu,
                    logprobs_mode="processed_logprobs",  # at the sampling temperature
                    generation_config="vllm",  # the model's own defaults would sample another policy
                    worker_extension_cls="reval_core.engines.vllm_worker.Worker",
                    **chosen,
                )
            _log_to(self._log)
            watched = (self._llm.llm_engine.engine_core, _core_processes() - self._before)
            threading.Thread(target=_wake_when_dead, args=watched, daemon=True, name="watch vLLM").start()
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            reason = _reason(self._log, error)
            kind = MemoryError if "out of memory" in reason else RunStopped
            raise kind(f"the engine vllm cannot start: {reason}; all that it printed is in {self._log}") from error

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Close the engine if vLLM breaks, so that the next `load` starts a new one."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            self.close()
            raise EngineDied(f"vLLM's process ended ({_reason(self._log, error)}); see {self._log}") from error


def _core_processes() -> set[Any]:
    """vLLM's main processes below this one."""
    return {process for process in multiprocessing.active_children() if process.name.startswith("EngineCore")}


def _wake_when_dead(client: Any, processes: set[Any]) -> None:
    """Once vLLM's process is gone, wake whoever waits for its answer: vLLM 0.32 lets them wait for good."""
    from vllm.v1.engine.exceptions import EngineDeadError

    multiprocessing.connection.wait([process.sentinel for process in processes])
    client.outputs_queue.put_nowait(EngineDeadError())
    for future in list(client.utility_results.values()):
        with suppress(InvalidStateError):  # it was answered just before
            future.set_exception(EngineDeadError())


class _Part:
    """What has come of one response."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._logprobs: list[float] = []

    def add(self, output: Any) -> int:
        """Add what is new, and say how many tokens that is."""
        self._tokens += output.token_ids
        self._logprobs += _logprobs(output)
        return len(output.token_ids)

    def completion(self, reason: Any) -> Completion:
        return Completion(self._tokens, self._logprobs, reason)


def _logprobs(output: Any) -> list[float]:
    """Of the sampled tokens; an engine may list the likeliest token of a place beside them."""
    flat = output.logprobs
    return [flat.logprobs[start] for start in flat.start_indices]


def _parameters(request: Request, sampling: Sampling, streamed: bool) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens - len(request.written),
        seed=request.seed,
        stop_token_ids=list(sampling.stop_ids),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
    )


def _environment() -> dict[str, str]:
    """What vLLM's processes are told: whose they are, to use all cores, and to say little."""
    defaults = {
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    kept = {name: os.environ.get(name, value) for name, value in defaults.items()}
    # vLLM's processes are spawned, as CUDA needs, and not forked.
    return kept | {"REVAL_RUN_PROCESS": str(os.getpid()), "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Let the processes that are started meanwhile write to `log`, whatever they call to do so."""
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
    """Let vLLM's code in this process log to `log`: the terminal, and its JSON, are the run's."""
    logger = logging.getLogger("vllm")
    for handler in logger.handlers:
        handler.close()
    logger.handlers = [logging.FileHandler(log)]


def _reason(log: Path, error: Exception) -> str:
    """What went wrong, in a line: of an error in another process that is the last one in its output."""
    said = " ".join(str(error).split())
    if "root cause" not in said and "stack trace" not in said:
        return f"{type(error).__name__}: {said[:300]}"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    errors = re.findall(r"\b(\w*(?:Error|Exception): [^\n]+)", text)
    own = [one for one in errors if "root cause above" not in one]
    return own[-1] if own else f"{type(error).__name__}: {said[:300]}"
