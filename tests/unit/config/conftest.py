"""The error message of a config."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reval_core.config.loader import load_config
from reval_core.errors import InputError

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """The error message of a config, without the directory of the file."""

    def complaint(text: str | bytes, *overrides: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        message = "accepted"
        try:
            load_config(path, overrides)
        except InputError as error:
            message = str(error)
        assert "\n" not in message
        return message.removeprefix(f"{tmp_path}/")

    return complaint
