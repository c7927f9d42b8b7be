"""Learners whose weights are sharded over processes learn, score and save the same as one learner."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reval_core.errors import InputError
from reval_core.learning.distributed import check_launch
from reval_core.model.loading import load_model, policy_digest
from tests.distributed import learners
from tests.distributed.conftest import launched

LAYOUTS = {"alone": (1, "none", 1), "all-2": (2, "all", 1), "none-2": (2, "none", 1), "node-4": (4, "node", 2)}
"""Number of processes, `learner.shard`, and number of hosts."""


@cache
def found(work: Path, layout: str) -> dict[str, Any]:
    """The results of the learners in a layout, and its checkpoint in `<layout>-saved`.

    The four processes also resume from the checkpoint of two.
    """
    processes, shard, hosts = LAYOUTS[layout]
    out = work / f"{layout}.json"
    saved = [] if layout != "node-4" else [_checkpoint(work, "all-2")]
    done = launched(processes, learners.__name__, shard, out, *saved, hosts=hosts)
    assert done.returncode == 0, done.stdout[-9000:]
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def _checkpoint(work: Path, layout: str) -> Path:
    found(work, layout)
    return work / f"{layout}-saved"


def flat(values: Any) -> np.ndarray:
    """Nested lists of unequal lengths as one array."""
    if isinstance(values, list):
        return np.concatenate([flat(value) for value in values])
    return np.array([values], dtype=np.float64)


@pytest.mark.parametrize("layout", ["all-2", "none-2", "node-4"])
def test_several_processes_learn_the_same_as_one(work, layout):
    alone, together = found(work, "alone"), found(work, layout)
    assert (alone["processes"], together["processes"]) == (1, LAYOUTS[layout][0])
    for kind in ("reval", "grpo"):
        one, several = alone[kind], together[kind]
        assert several["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert several["norms"] == pytest.approx(one["norms"], rel=1e-5)
        np.testing.assert_allclose(flat(several["deltas"]), flat(one["deltas"]), rtol=0, atol=1e-4)
        assert several["weights"] == pytest.approx(one["weights"], rel=1e-6)
        np.testing.assert_allclose(flat(several["scores"]), flat(one["scores"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["all-2", "node-4"])
def test_equal_weights_score_the_same_to_the_bit_and_have_one_checksum(work, layout):
    """Gathered weights and the weights before learning are exactly those of one process."""
    alone, together = found(work, "alone"), found(work, layout)
    assert together["reval"]["before"] == alone["reval"]["before"]
    assert (together["checksum"], together["content"]) == (alone["checksum"], alone["content"])
    assert together["checksum"] != together["resumed"]["checksum"]


@pytest.mark.parametrize("layout", ["all-2", "node-4"])
def test_sharded_bfloat16_copies_are_those_of_their_masters_to_the_bit(work, layout):
    alone, together = found(work, "alone"), found(work, layout)
    assert together["copy"] == alone["copy"] == [alone["checksum"], True]
    one, several = alone["half"], together["half"]
    assert several["copy"] is True
    assert several["before"] == one["before"]
    assert several["losses"][0] == pytest.approx(one["losses"][0], rel=1e-6)  # nothing is learned yet
    assert several["norms"][0] == pytest.approx(one["norms"][0], rel=1e-2)  # gradients are reduced in another order
    assert several["weights"] == pytest.approx(one["weights"], rel=1e-3)


@pytest.mark.parametrize("layout", ["all-2", "node-4"])
def test_a_sharded_checkpoint_is_a_model_that_transformers_loads(work, layout):
    resumed = found(work, layout)["resumed"]
    state = json.loads((work / f"{layout}-saved" / "learner.json").read_text(encoding="utf-8"))
    assert policy_digest(load_model(work / f"{layout}-saved")) == state["content"]
    alone = found(work, "alone")["resumed"]
    assert (resumed["loss"], resumed["norm"]) == pytest.approx((alone["loss"], alone["norm"]), rel=1e-5)
    shards = sorted(path.name for path in (work / f"{layout}-saved/optimizer").iterdir())
    assert len(shards) == (2 if layout == "all-2" else 4)


def test_another_number_of_processes_resumes_from_a_checkpoint(work):
    """Four from that of two, and one from that of four: the moments are those that were saved."""
    by_two, by_four = (found(work, layout)["resumed"] for layout in ("all-2", "node-4"))
    here = found(work, "node-4")["reshard"]
    assert (here["loss"], here["norm"]) == pytest.approx((by_two["loss"], by_two["norm"]), rel=1e-5)
    alone = learners.resumed("all", _checkpoint(work, "node-4"))
    assert (alone["loss"], alone["norm"]) == pytest.approx((by_four["loss"], by_four["norm"]), rel=1e-5)


@pytest.mark.parametrize("shard", ["all", "node"])
def test_shards_of_a_single_process_are_refused(shard):
    with pytest.raises(InputError, match=f"learner.shard: {shard} needs several processes; start them with"):
        check_launch(shard)


def test_unequal_hosts_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_launch("all")
    with pytest.raises(InputError, match="node needs as many processes on every host, not 2 of 5"):
        check_launch("node")


def test_shards_of_accelerate_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"--multi_gpu or torchrun, and set learner\.shard: all"):
        check_launch()
