"""Flow runs that Prefect still takes for running though their process is dead."""

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
    """Tell Prefect that earlier attempts at this run have ended, and note this one. The caller holds the folder.

    Whoever holds the folder's lock is alone with it: an attempt that is not this one and still counts as running
    was killed. As `Crashed` it can be retried on Prefect's page.
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
            except ObjectNotFound:  # known to another server than this one
                continue
            if state is not None and not state.is_final():
                message = f"its process died; {directory.name} goes on in another flow run"
                client.set_flow_run_state(UUID(identity), Crashed(message=message), force=True)
                log.info("flow run %s was left as %s and is Crashed now", identity, state.name)
    publish_sealed(note, {"flow_runs": [*(one for one in earlier if one != current), current]})
