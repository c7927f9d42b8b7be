"""Closes flow runs that Prefect still considers running although their process is dead."""

from __future__ import annotations

import logging
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from reval_core.atomic_files import publish_sealed, read_sealed
from reval_core.storage.run_directory import RunDirectory

log = logging.getLogger("reval")


def close_leftovers(directory: RunDirectory) -> None:
    """Report earlier attempts at this run as crashed, and record this one. The caller holds the directory's lock.

    The lock is exclusive, so any other attempt that still counts as running was killed. As `Crashed` it can be
    retried in the Prefect UI.
    """
    note = directory.path / "prefect.json"
    earlier: list[str] = read_sealed(note)["flow_runs"] if note.exists() else []
    current = flow_run.get_id()
    with get_client(sync_client=True) as client:
        for identity in earlier:
            if identity == current:
                continue
            try:
                state = client.read_flow_run(UUID(identity)).state
            except ObjectNotFound:  # recorded by another server
                continue
            if state is not None and not state.is_final():
                message = f"its process died; {directory.name} continues in another flow run"
                client.set_flow_run_state(UUID(identity), Crashed(message=message), force=True)
                log.info("flow run %s was still %s and is now marked Crashed", identity, state.name)
    publish_sealed(note, {"flow_runs": [*(one for one in earlier if one != current), current]})
