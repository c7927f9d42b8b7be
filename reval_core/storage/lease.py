"""The lease on a mirror: of several hosts with a copy of a run, one writes to its mirror.

Every process that writes takes a new epoch: it creates the object `lease/<epoch>.json`, which only one process can.
It then renews the lease by heartbeats. A process that finds a later epoch has lost the lease.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from reval_core.atomic_files import publish_sealed, read_sealed
from reval_core.errors import CorruptData, InputError, RunStopped
from reval_core.storage.object_store import ObjectStore, StoreError

log = logging.getLogger("reval")

NOTE = "lease.json"
"""In a run directory: the tokens of the leases that this copy of the run has taken."""

_BEATS = 3
"""The number of heartbeats within the duration of a lease."""


@dataclass(frozen=True)
class Holder:
    """The process that took an epoch."""

    epoch: int
    token: str
    """Unique: where the store cannot create exclusively, it tells two holders of one epoch apart."""
    host: str
    process: int
    directory: str
    seconds: float
    """The lease expires this long after its last heartbeat."""
    taken_at: float

    @property
    def name(self) -> str:
        """The part of the names of objects that only this holder writes."""
        return f"{self.epoch:05d}-{self.token}"

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} ({self.directory})"


@dataclass(frozen=True)
class LeaseState:
    """The current holder of a mirror's lease, and its last heartbeat."""

    holder: Holder
    renewed_at: float
    """Seconds since the epoch, by the holder's clock."""
    released: bool
    """Whether the holder has ended."""

    @property
    def expires_in(self) -> float:
        """The seconds until the lease expires, by this host's clock; 0 if it was released or has expired."""
        left = self.renewed_at + self.holder.seconds - time.time()
        return 0.0 if self.released else max(0.0, left)


def read_lease(store: ObjectStore) -> LeaseState | None:
    """The state of a mirror's lease; None if nobody ever held it. Raises StoreError."""
    epochs = [name for name in store.names("lease") if not name.endswith("-heartbeat.json")]
    if not epochs:
        return None
    holder = Holder(**_object(store, max(epochs)))
    beat = _object(store, _heartbeat(holder), {"renewed_at": holder.taken_at, "released": False})
    return LeaseState(holder, **beat)


def check_lease(store: ObjectStore, directory: Path) -> LeaseState | None:
    """Check that the copy of a run in `directory` may write to a mirror. Changes nothing.

    Returns:
        The state of the lease; None for an empty mirror.

    Raises:
        InputError: The mirror belongs to another run, another host has taken this run over, or its lease is held.
        StoreError: The store cannot be reached.
    """
    state = read_lease(store)
    if state is None:
        others = store.names()
        if others:
            raise InputError(f"{store.url}: contains {others[0]}, which is not a mirror; give an empty prefix")
        return None
    if not owns_lease(state, directory):
        if _tokens(directory) & {_object(store, name).get("token") for name in store.names("lease")}:
            raise InputError(_lost_to(directory, state.holder))
        raise InputError(
            f"{store.url}: is the mirror of another run, last written by {state.holder}; give another "
            f"storage.mirror, or restore that run with reval restore {store.url} DIR"
        )
    here = (platform.node(), str(directory))  # the lock of the directory keeps processes on this host apart
    if (state.holder.host, state.holder.directory) != here:
        check_expired(store, state)
    return state


def check_expired(store: ObjectStore, state: LeaseState, remedy: str = "stop it") -> None:
    """Raise InputError, with a remedy, while the lease of another process is valid."""
    if state.expires_in:
        raise InputError(
            f"{store.url}: {state.holder} holds the lease, renewed {time.time() - state.renewed_at:.0f} s ago; "
            f"wait {state.expires_in:.0f} s if it has died, or {remedy}"
        )


def owns_lease(state: LeaseState, directory: Path) -> bool:
    """Whether the copy of a run in `directory` was the last to take a lease."""
    return state.holder.token in _tokens(directory)


class Lease:
    """A lease that this process has taken. Enter it to renew it in the background; leaving releases it."""

    def __init__(self, store: ObjectStore, holder: Holder) -> None:
        self._store = store
        self.holder = holder
        self.lost_to: Holder | None = None
        """The process that took the lease from this one."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @classmethod
    def take(cls, store: ObjectStore, directory: Path, seconds: float, state: LeaseState | None) -> Self:
        """Take the next epoch for the copy of a run in `directory`.

        Args:
            store: The mirror.
            directory: The run directory, whose lock the caller holds. It notes the token.
            seconds: The duration of the lease.
            state: The state of the lease that was found valid to take.

        Raises:
            InputError: Another process took the epoch just now.
            StoreError: The store cannot be written.
        """
        epoch = state.holder.epoch + 1 if state else 1
        holder = Holder(
            epoch=epoch,
            token=secrets.token_hex(4),
            host=platform.node(),
            process=os.getpid(),
            directory=str(directory),
            seconds=seconds,
            taken_at=time.time(),
        )
        # Noted first: if this process is killed after the next line, the directory still owns the epoch.
        earlier = {state.holder.token} & _tokens(directory) if state else set()
        publish_sealed(directory / NOTE, {"tokens": [holder.token, *earlier]})
        store.create(_record(epoch), json.dumps(asdict(holder)).encode())
        current = Holder(**_object(store, _record(epoch)))
        if current.token != holder.token:
            raise InputError(f"{store.url}: {current} took the lease just now; only one process may run this run")
        lease = cls(store, holder)
        lease.renew()
        return lease

    def renew(self) -> None:
        """Extend the lease, unless a later epoch has been taken, which sets `lost_to`. Raises StoreError."""
        mine, later = _record(self.holder.epoch), _record(self.holder.epoch + 1)
        current = Holder(**_object(self._store, mine))
        taken = self._store.read(later)
        if taken is not None:
            self.lost_to = Holder(**_object(self._store, later))
        elif current.token != self.holder.token:
            self.lost_to = current
        else:
            self._write_beat(released=False)

    def check(self) -> None:
        """Raise RunStopped if a heartbeat has found that another process took the lease."""
        if self.lost_to is not None:
            raise RunStopped(_lost_to(Path(self.holder.directory), self.lost_to))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if self.lost_to is None:
                self._write_beat(released=True)
        except StoreError as error:
            log.warning("the lease could not be released and expires in %.0f s: %s", self.holder.seconds, error)

    def _beat(self) -> None:
        while self.lost_to is None and not self._ended.wait(self.holder.seconds / _BEATS):
            try:
                self.renew()
            except StoreError as error:  # training continues; the mirror warns that it cannot copy
                log.debug("no heartbeat: %s", error)

    def _write_beat(self, released: bool) -> None:
        beat = {"renewed_at": time.time(), "released": released}
        self._store.write(_heartbeat(self.holder), json.dumps(beat).encode())


def _tokens(directory: Path) -> set[str]:
    """The tokens of the leases that a copy of a run has taken; empty if it has taken none, or lost its note."""
    try:
        return set(read_sealed(directory / NOTE)["tokens"])
    except CorruptData:
        return set()


def _lost_to(directory: Path, holder: Holder) -> str:
    return (
        f"{directory}: {holder} has taken the lease of this run, epoch {holder.epoch}; resume it there, or restore "
        "its mirror into a new directory with reval restore"
    )


def _object(store: ObjectStore, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """A small JSON object; the default if it is missing or unfinished. Raises StoreError if there is no default."""
    try:
        value = json.loads(store.read(name) or b"")
    except ValueError:
        value = default
    if not isinstance(value, dict):
        raise StoreError(f"{store.url}/{name}: is missing or not a record of a lease")
    return value


def _record(epoch: int) -> str:
    return f"lease/{epoch:05d}.json"


def _heartbeat(holder: Holder) -> str:
    return f"lease/{holder.name}-heartbeat.json"
