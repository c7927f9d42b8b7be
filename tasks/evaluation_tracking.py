"""An evaluation's metrics in MLflow: one MLflow run per policy and protocol in its directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from reval.tasks.tracking import flat, metric_name, new_run, open_client, tracking_uri
from reval_core.atomic_files import digest, publish_json, read_json
from reval_core.config.protocol import Protocol
from reval_core.evaluation.directory import EvaluationDirectory

log = logging.getLogger("reval")


def track_evaluation(directory: EvaluationDirectory, protocol: Protocol, results: dict[str, Any]) -> None:
    """Send the metrics unless they were sent before. If MLflow does not respond, log a warning and continue."""
    note = directory.path / "mlflow.json"
    known = read_json(note) if note.exists() else {}
    key = digest(results["policy"], results["protocol"])
    sent = known.get(key, {})
    if sent.get("results") == digest(results):
        return
    try:
        run_id = _send(directory, protocol, results, sent.get("run_id"))
    except Exception as error:
        log.warning("MLflow did not accept the metrics: %s", str(error).split("\n")[0])
    else:
        publish_json(note, {**known, key: {"run_id": run_id, "results": digest(results)}})


def _send(directory: EvaluationDirectory, protocol: Protocol, results: dict[str, Any], run_id: str | None) -> str:
    from mlflow.entities import Metric

    client = open_client(tracking_uri(directory, protocol.tracking))
    if run_id is None:
        source = {name: results[name] for name in ("model", "source", "round", "policy")}
        settings = {**source, **dict(flat(protocol.model_dump(mode="json")))}
        run_id = new_run(client, directory, protocol.tracking, f"evaluation of {directory.name}", settings)
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, results["round"]) for name, value in _metrics(results)]
    client.log_batch(run_id, metrics=metrics, synchronous=True)
    for path in (directory.protocol, directory.results, directory.table):
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    return run_id


def _metrics(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Metrics by names that MLflow accepts: `gsm8k/avg_at_16`, with `_low` and `_high` for its interval."""
    for found in [*results["benchmarks"], {"name": "average", **results["average"]}]:
        for name, value in found.items():
            title = metric_name(f"{found['name']}/{name.replace('@', '_at_')}")
            if isinstance(value, dict):
                yield title, value["mean"]
                yield f"{title}_low", value["low"]
                yield f"{title}_high", value["high"]
            elif isinstance(value, float):
                yield title, value
