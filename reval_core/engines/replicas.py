"""Generation with several vLLM servers that the run starts on this machine, watches and restarts.

Each server has its own GPUs or cores, and listens on a Unix domain socket in a directory that only this user can
open. Requests, failures and weights are handled as with other servers; here are their processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reval_core import launch
from reval_core.config import VllmEngine, VllmServerEngine
from reval_core.engines.follow import kill_group
from reval_core.engines.placement import Place
from reval_core.engines.vllm import engine_arguments, environment, last_error
from reval_core.engines.vllm_endpoint import Endpoint, Unavailable
from reval_core.engines.vllm_server import Server, VllmServers
from reval_core.engines.weight_source import sha256_of
from reval_core.engines.weights import WEIGHTS, handover_directory, write_config
from reval_core.errors import RunStopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("reval")

START_SECONDS = 1800.0
"""How long a server may take to start or to load weights."""

END_SECONDS = 10.0
"""How long a server may take to end before it is killed."""

STARTS = 3
"""How often in a row a server may end before it is ready."""

_REQUESTS = 1024
"""Concurrent requests per server unless `max_num_seqs` is set: vLLM's own default on large GPUs."""

_POLL_SECONDS = 0.2


class VllmReplicas(VllmServers):
    """The engine of `engine: {kind: vllm, replicas: …}`. The first `load` starts the servers."""

    name = "vllm"

    def __init__(
        self, settings: VllmEngine, places: Sequence[Place], logs: Path, code: Path | None = None, seed: int = 0
    ) -> None:
        """Construct an engine without starting the servers.

        Args:
            settings: The engine section of the config.
            places: The devices of each server.
            logs: The directory that receives the servers' output, as `engine-0.log` and so on.
            code: The directory of a model with custom code.
            seed: The seed of the thresholds that round float32 weights to bfloat16.
        """
        servers = VllmServerEngine(
            kind="vllm-server",
            urls=tuple(f"http://replica-{number}" for number in range(len(places))),
            dtype=settings.dtype,
            requests_per_server=settings.max_num_seqs or _REQUESTS,
            patience_seconds=START_SECONDS,
        )
        super().__init__(servers, logs / "weights", code, seed)
        self._key = secrets.token_hex(16)
        self._engine = settings
        self._places = places
        self._logs = logs
        self._home: Path | None = None
        """The directory of the sockets, the model's config and the weights."""
        self._processes: list[Process] = []
        self._released = False

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Load the weights of `model` into all servers; starts them if needed.

        Raises:
            RunStopped: A server cannot start; the message contains its reason.
            MemoryError: A server cannot start for lack of memory.
        """
        torch.cuda.empty_cache()  # the servers cannot use memory that torch's allocator keeps cached
        if self._home is None:
            self._home = handover_directory(model, self.dtype)
            self._directory = self._home / "weights"
            write_config(self._home / "model", model, self._code)
        self._released = False
        super().load(model, policy)

    def release_memory(self) -> None:
        """Release GPU memory to the learner (`sleep`). Servers that are not ready end until the next load."""
        if self._loop is not None and self._engine.sleep and torch.cuda.is_available() and not self._released:
            self._released = True
            self._run(self._release())
            if self._weights is not None:
                shutil.rmtree(self._weights.directory, ignore_errors=True)

    def close(self) -> None:
        """Stop the servers and delete the weights."""
        super().close()  # ends the tasks that would restart them
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.kill(END_SECONDS)
        self._processes = []
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def _way(self, directory: Path) -> tuple[str, dict[str, Any]]:
        file = directory / WEIGHTS
        return "take_weights", {"source": str(file), "sha256": sha256_of(file)}

    def _endpoints(self) -> list[Endpoint]:
        patience = self._settings.patience_seconds
        return [
            Endpoint(url, self._key, patience, process.socket)
            for url, process in zip(self._settings.urls, self._processes, strict=True)
        ]

    def _open(self) -> None:
        assert self._home is not None
        assert self._key is not None
        self._processes = [
            Process(
                self._home / f"{number}.sock",
                self._logs / f"engine-{number}.log",
                _options(self._engine, self._home, number, place, self._code),
                {**environment(), **place.environment, "VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": self._key},
            )
            for number, place in enumerate(self._places)
        ]
        try:
            super()._open()
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        await super()._connect()
        for process in self._processes:
            process.start()
        pairs = list(zip(self._servers, self._processes, strict=True))
        await asyncio.gather(*(_started(server, process) for server, process in pairs))
        self._sync_tasks += [asyncio.create_task(self._watch(server, process)) for server, process in pairs]

    async def _watch(self, server: Server, process: Process) -> None:
        """Restart a server's process when it has ended, unless memory is released or it does not start."""
        ended = 0
        while ended < STARTS:
            await asyncio.sleep(_POLL_SECONDS)
            if server.ready:
                ended = 0
            if self._released or process.running:
                continue
            if process.started:
                ended += 1
                reason = process.reason()
                log.warning("%s: its process has ended (%s); restarting it", server.endpoint.url, reason)
                process.kill()  # what the server has started
                server.reported = True
                self._failed(server, Unavailable(reason))
            if ended < STARTS:
                server.endpoint.restarted()
                process.start()
        log.warning("%s: did not start %s times in a row and stays excluded", server.endpoint.url, STARTS)
        process.given_up = True

    async def _release(self) -> None:
        pairs = zip(self._servers, self._processes, strict=True)
        await asyncio.gather(*(_put_to_sleep(server, process) for server, process in pairs))

    def _check(self) -> None:
        if self._processes and all(process.given_up for process in self._processes):
            raise RunStopped(
                f"engine.replicas: none of the {len(self._processes)} servers starts again: "
                f"{self._processes[0].reason()}"
            )
        super()._check()

    def _silence(self, latest: Server) -> RunStopped:
        return RunStopped(
            f"engine.replicas: no server has responded for {START_SECONDS:g} s (last error, from "
            f"{latest.endpoint.url}: {latest.reason}); their output is in {self._logs}/engine-0.log and so on"
        )


class Process:
    """The process of a server, in a session of its own. It ends with this process, however that ends."""

    def __init__(self, socket: Path, log: Path, options: Sequence[str], environment: dict[str, str]) -> None:
        self.socket = socket
        self.given_up = False
        """Whether it is not restarted any more."""
        self._log = log
        self._options = options
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def started(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, which takes a while to respond."""
        self.socket.unlink(missing_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output, launch.launcher_hidden():
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "reval_core.engines.vllm_process", *self._options],
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def terminate(self) -> None:
        """Ask the server to end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self, grace: float = 0.0) -> None:
        """Kill the server and all processes that it started, after `grace` seconds in which it may end."""
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        kill_group(self._process.pid)
        self._process.wait()
        self._process = None

    def reason(self) -> str:
        """One line: why it ended, and where its output is."""
        status = None if self._process is None else self._process.poll()
        if status is not None and status < 0:
            return f"{signal.Signals(-status).name}; its full output is in {self._log}"
        with self._log.open("rb") as output:
            output.seek(self._log_start)
            error = last_error(output.read().decode(errors="replace"))
        return f"{error or f'exit status {status}'}; its full output is in {self._log}"


def _options(settings: VllmEngine, home: Path, number: int, place: Place, code: Path | None) -> list[str]:
    """The command line of a server. Its first weights are random: it gets the policy's before any request."""
    if not place.on_gpu:  # the replicas share the machine's memory
        share = settings.gpu_memory_utilization / place.count
        settings = settings.model_copy(update={"gpu_memory_utilization": share})
    arguments = engine_arguments(settings, home / "model", code) | {
        "load_format": "dummy",
        "uds": home / f"{number}.sock",
        "middleware": "reval_core.engines.vllm_guard.Guard",
        "disable_uvicorn_access_log": True,
    }
    return [_option(name.replace("_", "-"), value) for name, value in arguments.items() if value is not None]


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


async def _started(server: Server, process: Process) -> None:
    """Wait until a server responds. Raises RunStopped or MemoryError if it ends before, or takes too long."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while not await server.endpoint.responds():
        if not process.running or asyncio.get_running_loop().time() > deadline:
            reason = process.reason()
            kind = MemoryError if "out of memory" in reason else RunStopped
            raise kind(f"the engine vllm cannot start ({server.endpoint.url}): {reason}")
        await asyncio.sleep(_POLL_SECONDS)


async def _put_to_sleep(server: Server, process: Process) -> None:
    """Release a server's memory, by ending its process if it cannot sleep."""
    if server.ready:
        server.ready = False
        try:
            await server.endpoint.sleep()
            return
        except Unavailable:
            pass
    process.kill()
    server.fail("its memory was released")
