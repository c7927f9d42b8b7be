"""The flow `reval-torchrun`: one node's part of a training run on several nodes."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from reval.flows.deployed import FLOW, final_errors, turn
from reval.flows.preparation import checked_settings, run_path
from reval.flows.terminal import short
from reval.tasks.launcher import launch
from reval_core.errors import InputError


def _name() -> str:
    """The name of a flow run: its run directory and its node."""
    given = flow_run.parameters
    path = run_path(Path(given["config"]), Path(given["run_dir"]) if given.get("run_dir") else None)
    return f"{short(path.absolute())}, node {given['node']} of {given['nodes']}"


@flow(name="reval-torchrun", flow_run_name=_name, **FLOW)
def torchrun(
    config: str,
    nodes: int,
    node: int,
    rendezvous: str,
    processes: int | None = None,
    overrides: list[str] | None = None,
    run_dir: str | None = None,
) -> None:
    """Start this node's processes of a training run, and wait for their end.

    One flow run per node, with the same parameters except `node`. The first process of node 0 executes the flow
    `reval-train`. If a process fails, torchrun ends on all nodes, and the retries of their flow runs resume.

    Args:
        config: A YAML file, on every node.
        nodes: The number of nodes.
        node: The rank of this node, from 0.
        rendezvous: HOST:PORT of node 0, where the nodes meet.
        processes: Processes per node; None for one per GPU.
        overrides: Settings such as `learner.shard=all`.
        run_dir: The run directory, which all nodes share; None for `runs/<config name>`.
    """
    with final_errors():
        _check(nodes, node, rendezvous)
        path = run_path(Path(config), Path(run_dir) if run_dir else None)
        with turn(path / f"node-{node}"):
            if node == 0:
                checked_settings(Path(config), overrides or [], path)
            options = ("--nnodes", nodes, "--node-rank", node, "--nproc-per-node", processes or "gpu")
            meeting = ("--rdzv-backend", "static", "--rdzv-endpoint", rendezvous)
            settings = [part for override in overrides or [] for part in ("--set", override)]
            program = ["reval.flows.cli", "train", config, "--run-dir", str(path), *settings]
            launch([*map(str, options), *meeting], program, node)


def _check(nodes: int, node: int, rendezvous: str) -> None:
    """Check the parameters that torchrun would only refuse after a wait for the other nodes."""
    if not 0 <= node < nodes:
        raise InputError(f"node: {node} is not one of the {nodes} nodes, which count from 0")
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"rendezvous: {rendezvous} is not HOST:PORT of node 0")
