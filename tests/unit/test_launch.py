"""The launcher's variables around the start of an engine."""

import os

import pytest

from reval_core import launch

OF_TORCHRUN = {
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "ROLE_NAME": "default",
    "ROLE_RANK": "1",
    "ROLE_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
OTHERS = {"LOCAL_CACHE": "kept", "OMP_NUM_THREADS": "1", "HOME_RANK": "kept"}


def test_the_process_group_is_hidden_and_restored_also_after_an_error(monkeypatch):
    for name, value in {**OF_TORCHRUN, **OTHERS}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with pytest.raises(KeyError):
        start_an_engine(before)
    assert dict(os.environ) == before


def start_an_engine(before):
    with launch.launcher_hidden():
        assert before.items() - os.environ.items() == OF_TORCHRUN.items()
        assert launch.count() == 1
        os.environ["MASTER_PORT"] = "1"  # as vLLM may
        os.environ["RANK"] = "7"
        raise KeyError


def test_nothing_is_left_behind_without_a_launcher(monkeypatch):
    for name in OF_TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with launch.launcher_hidden():
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    assert "MASTER_ADDR" not in os.environ
