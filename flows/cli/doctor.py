"""`reval doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@AS_JSON
def doctor(config: Path | None, as_json: bool) -> None:
    """Show what is installed and can run here.

    With CONFIG, also what that run would do.
    """
    from reval.flows.show import show_doctor

    show_doctor(as_json)
    if config is not None:
        from reval.flows.plan import show_plan
        from reval.flows.preparation import prepare

        show_plan(prepare(config, [], None), as_json)
