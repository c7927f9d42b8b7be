"""Datasets of the Hugging Face hub, where the package `datasets` is installed and a network is there."""

from __future__ import annotations

from reval_core.config import Hub
from reval_core.errors import InputError
from reval_core.rows import Row, numbered


def hub_rows(hub: Hub) -> list[Row]:
    """All rows of a dataset.

    Raises InputError if `datasets` is not installed, or the dataset cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"hub {hub.name}: the package datasets is not installed; pip install 'reval[hub]', or give the path "
            "of a file"
        ) from error
    try:
        loaded = load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)
        rows = list(numbered(loaded, f"hub {hub.name}"))
    # It raises what its own parts raise: of the network, of the hub, of a builder.
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"hub {hub.name}: cannot be had ({why}); check the name, the network and whether the hub asks you to "
            "log in, or give the path of a file"
        ) from error
    if not rows:
        raise InputError(f"hub {hub.name}: holds no problem in split {hub.split}")
    return rows
