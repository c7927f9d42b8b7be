"""The devices of an engine's replicas."""

import os

import pytest
import torch

from reval_core.config import VllmEngine
from reval_core.engines.placement import places, replica_count
from reval_core.errors import InputError


def engine(replicas, tensor_parallel_size=1):
    return VllmEngine(kind="vllm", replicas=replicas, tensor_parallel_size=tensor_parallel_size)


@pytest.fixture
def gpus(monkeypatch):
    def gpus(count, visible=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 1, 2, 3, 9})
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return gpus


def devices(*arguments):
    return [one.devices for one in places(engine(*arguments))]


def test_the_number_on_another_machine():
    assert [replica_count(engine(*one), 8) for one in ((None,), (2,), ("auto",), ("auto", 2))] == [1, 2, 8, 4]


def test_without_replicas_there_is_no_place(gpus):
    gpus(8)
    assert places(engine(None)) == []


def test_auto_uses_every_gpu_in_groups_that_split_the_layers(gpus):
    gpus(5)
    assert devices("auto") == [("0",), ("1",), ("2",), ("3",), ("4",)]
    assert devices("auto", 2) == [("0", "1"), ("2", "3")]
    assert devices(1, 4) == [("0", "1", "2", "3")]
    assert places(engine("auto", 2))[1].environment == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert str(places(engine("auto", 2))[1]) == "GPUs 2, 3"


def test_only_visible_gpus_are_used(gpus):
    gpus(2, "5,GPU-8932")
    assert devices("auto") == [("5",), ("GPU-8932",)]


def test_cores_are_shared_out_evenly(gpus):
    gpus(0)
    assert devices(2) == [("1", "2"), ("3", "4")]
    assert places(engine(1))[0].environment == {"VLLM_CPU_OMP_THREADS_BIND": "1,2,3,4,9"}


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (0, ("auto",), "auto is one per GPU, and this machine has none; set a number"),
        (0, (6,), "6 needs 6 cores, but this machine has 5; set 5 or less"),
        (4, (3, 2), "3 with engine.tensor_parallel_size: 2 needs 6 GPUs, but this machine has 4; set 2 or less"),
        (2, ("auto", 4), "4 exceeds the number of GPUs"),
    ],
)
def test_too_many_are_refused(gpus, count, arguments, message):
    gpus(count)
    with pytest.raises(InputError, match=message):
        places(engine(*arguments))
