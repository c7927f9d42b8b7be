"""`reval export-model`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN


@click.command("export-model")
@RUN
@click.option("--round", type=click.IntRange(min=0), help="The policy after this round; default: the last.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="A new directory that transformers can load."
)
@click.option("--masters", is_flag=True, help="For a bfloat16 run: export the optimizer's float32 weights.")
@AS_JSON
def export_model(run: Path, round: int | None, out: Path, masters: bool, as_json: bool) -> None:
    """Export the policy of any round of RUN.

    The weights are reconstructed from the last checkpoint at or before that round and the recorded draws after it.
    """
    from reval.flows.upkeep import show_exported_model

    show_exported_model(run, round, out, as_json, masters)
