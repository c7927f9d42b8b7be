"""Datasets of the Hugging Face hub; needs the package `datasets` and network access."""

from __future__ import annotations

from reval_core.config import Hub
from reval_core.errors import InputError
from reval_core.rows import Row, numbered


def hub_rows(hub: Hub) -> list[Row]:
    """Load all rows of a dataset.

    Raises InputError if `datasets` is not installed, or the dataset cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"hub {hub.name}: the package datasets is not installed; pip install 'reval-rl[hub]', or give the path "
            "of a file"
        ) from error
    try:
        loaded = load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)
        rows = list(numbered(loaded, f"hub {hub.name}"))
    # Errors of any type: of the network, the hub or a dataset builder.
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"hub {hub.name}: cannot be loaded ({why}); check the name, the network and whether the dataset "
            "requires a login, or give the path of a file"
        ) from error
    if not rows:
        raise InputError(f"hub {hub.name}: contains no problems in split {hub.split}")
    return rows
