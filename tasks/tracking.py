"""MLflow: one MLflow run per training run, one batch of metrics per round, sent in the background.

Metrics carry the round's stored end time. MLflow keeps one copy of an equal (metric, step, time, value), so
logging a round again after a crash adds nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from reval_core.atomic_files import publish_json, read_json
from reval_core.config import Config, Tracking
from reval_core.replay_buffer.index import sql_views
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Argument = TypeVar("Argument")

log = logging.getLogger("reval")

_PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for pending metrics."""

_HASTY_SECONDS = 3.0
"""How long an interrupted run waits for them."""


def tracking_uri(directory: RunDirectory, settings: Tracking) -> str:
    """The MLflow store of a run: the config's, or a database next to the run directory, shared by its siblings."""
    if settings.uri:
        return settings.uri
    # With plain `sqlite:` MLflow would also create the parents of the quoted path, so the driver is named.
    return f"sqlite+pysqlite:///{quote(str(directory.path.parent / 'mlflow.db'))}"


def open_client(uri: str) -> MlflowClient:
    """A client that does not log every table of a new database and has short timeouts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A dead or slow server must not block this thread for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def new_run(
    client: MlflowClient, directory: RunDirectory, settings: Tracking, name: str, parameters: dict[str, Any]
) -> str:
    """Create an MLflow run with these parameters, and return its id."""
    from mlflow.entities import Param

    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        local = (directory.path.parent / "mlartifacts").as_uri()
        identity = client.create_experiment(
            settings.experiment, artifact_location=local if settings.uri is None else None
        )
    else:
        identity = experiment.experiment_id
    run_id: str = client.create_run(identity, run_name=name).info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)[:500]) for key, value in parameters.items()])
    return run_id


class Tracker:
    """Sends a run's rounds to MLflow from its own thread. A round that fails is sent again with the next."""

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        self._directory = directory
        self._config = config
        self._note = directory.path / "mlflow.json"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._client: MlflowClient | None = None
        self._more: dict[int, Mapping[str, float]] = {}
        self._warned = False

    def send(self, round: int, more: Mapping[str, float] | None = None) -> Future[None]:
        """Send every round up to `round` that was not sent yet, and `more` metrics of this one, without waiting."""
        self._more[round] = more or {}
        return self._thread.submit(self._guarded, self._send, round)

    def finish(self, status: str) -> None:
        """Close the MLflow run as FINISHED, FAILED or KILLED, after pending metrics were sent."""
        patience = _HASTY_SECONDS if status == "KILLED" else _PATIENCE_SECONDS
        done = self._thread.submit(self._guarded, self._finish, status)
        self._thread.shutdown(wait=False)
        try:
            done.result(timeout=patience)
        except TimeoutError:
            log.warning(
                "MLflow did not respond within %.0f s; the next start sends the remaining metrics", patience
            )

    def _guarded(self, work: Callable[[Argument], None], argument: Argument) -> None:
        """Training does not stop when the tracker cannot be reached; one warning is logged."""
        try:
            work(argument)
        except Exception as error:
            if not self._warned:
                log.warning("MLflow cannot be reached, metrics are sent later: %s", str(error).split("\n")[0])
            self._warned = True

    def _send(self, round: int) -> None:
        client, note = self._open()
        for number in range(note["rounds_sent"] + 1, round + 1):
            metrics = _metrics(self._directory, number, self._more.get(number, {}))
            client.log_batch(note["run_id"], metrics=metrics, synchronous=True)
            note["rounds_sent"] = number
            publish_json(self._note, note)

    def _finish(self, status: str) -> None:
        client, note = self._open()
        for path in (self._directory.config, self._directory.summary):
            if path.exists():
                client.log_artifact(note["run_id"], str(path))
        client.set_terminated(note["run_id"], status)

    def _open(self) -> tuple[MlflowClient, dict[str, Any]]:
        """The client and the note on this run's MLflow run, which is created the first time."""
        if self._client is None:
            client = open_client(tracking_uri(self._directory, self._config.tracking))
            if self._note.exists():
                client.update_run(read_json(self._note)["run_id"], status="RUNNING")
            else:
                publish_json(self._note, {"run_id": self._new_run(client), "rounds_sent": -1})
            self._client = client
        return self._client, read_json(self._note)

    def _new_run(self, client: MlflowClient) -> str:
        # `rounds` may change when a run is extended, and MLflow does not allow parameters to change.
        settings = dict(flat(self._config.model_dump(mode="json", exclude={"rounds"})))
        return new_run(client, self._directory, self._config.tracking, self._directory.name, settings)


@contextmanager
def tracked(directory: RunDirectory, config: Config) -> Iterator[Tracker]:
    """A tracker for one attempt at a run; the MLflow run gets the status of the attempt."""
    tracker = Tracker(directory, config)
    try:
        yield tracker
    except Exception:
        tracker.finish("FAILED")
        raise
    except BaseException:
        tracker.finish("KILLED")
        raise
    tracker.finish("FINISHED")


def _metrics(directory: RunDirectory, round: int, more: Mapping[str, float]) -> list[Metric]:
    from mlflow.entities import Metric

    if round == 0:  # round 0 has only an evaluation
        evaluation = directory.manifest("evaluation", 0)
        assert evaluation is not None
        info, seconds = evaluation.info, evaluation.ended_at
        row = {"held_out_accuracy": info.get("accuracy"), "stored_delta_abs": info.get("delta_abs")}
    else:
        row = directory.rows("recording", round, "rounds").to_pylist()[0]
        seconds = row.pop("ended_at").timestamp()
        row |= _objective_metrics(directory, round)
        if row["drawn_delta_abs"] is not None:
            row |= _delta_by_age(directory, round)
    row |= {**_accuracy_by_set(directory, round), **more}
    milliseconds = int(seconds * 1000)
    return [Metric(name, float(value), milliseconds, round) for name, value in row.items() if value is not None]


def _accuracy_by_set(directory: RunDirectory, round: int) -> dict[str, float]:
    """The accuracy on each problem set of a round evaluated on several."""
    evaluation = directory.manifest("evaluation", round)
    found = evaluation.info.get("accuracy_by_set", {}) if evaluation else {}
    return {metric_name(f"held_out/{name}"): value for name, value in found.items()} if len(found) > 1 else {}


def _objective_metrics(directory: RunDirectory, round: int) -> dict[str, float]:
    """The objective's own metrics, as means over the round's updates."""
    updates = directory.rows("learning", round, "updates", ("metrics",))
    rows = [dict(metrics) for metrics in updates.column("metrics").to_pylist()]
    return {f"objective/{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _delta_by_age(directory: RunDirectory, round: int) -> dict[str, float]:
    """The mean |Δ| of the round's draws by the age of the trajectory, as in the view `off_policy`."""
    manifests = [directory.manifest(stage, round) for stage in ("sampling", "learning")]
    with sql_views(directory.path, [one for one in manifests if one is not None]) as connection:
        found = connection.sql("SELECT age, delta_abs FROM off_policy").fetchall()
    return {f"delta_abs_by_age/{age}": delta for age, delta in found}


def metric_name(text: str) -> str:
    """`text` with characters that MLflow does not allow in a name replaced."""
    return re.sub(r"[^\w\-. :/]", "_", text)


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
