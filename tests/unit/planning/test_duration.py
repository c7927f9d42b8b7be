"""The estimated time of a run, compared with numbers computed by hand and with measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_model import FULL
from benchmarks.learner_gpu import BUDGET, PEAK_FLOPS, STREAM
from reval_core.config import Config
from reval_core.planning.duration import (
    BANDWIDTH,
    DISK,
    HANDOVER,
    HASHING,
    JUDGING,
    LINK,
    PEAK,
    PROMPT,
    READING,
    STEP,
    UPDATE,
    UTILISATION,
    Duration,
    Replicas,
    duration,
)
from reval_core.planning.model_sizes import HALF, Sizes
from tests.unit.planning.test_gpu_memory import GB, SIZES, settings

BASELINES = Path(__file__).parents[3] / "benchmarks/baselines"
LARGE = replace(SIZES, parameters=2 * 10**9, trained=2 * 10**9)
"""2e9 parameters. Those of the layers do not matter here, apart from 160 in the embedding and 160 in the head."""

SPEED = UTILISATION * PEAK[HALF]
WEIGHTS = 2 * (2 * 10**9 - 160)


def run(**changes: Any) -> Config:
    """A run in bfloat16 with vLLM: 4 rounds of 10 responses of at most 76 tokens."""
    given: dict[str, Any] = {
        "engine": {"kind": "vllm"},
        "learner": {"precision": "bfloat16", "micro_batch_tokens": 1000, "gradient_checkpointing": False},
        "rollouts": {"prompts": 5},
        "replay": {"capacity": 30},
        "problems": {"held_out": {"set": "aime24"}},
    }
    for name, section in changes.items():
        given[name] = {**given.get(name, {}), **section}
    return settings(**given).model_copy(update={"rounds": 4})


def seconds(config: Config, gpus: int = 1, response_tokens: int = 50, sizes: Sizes = LARGE) -> dict[str, float]:
    return dict(estimate(config, gpus, response_tokens, sizes).stage_seconds)


def estimate(config: Config, gpus: int = 1, response_tokens: int = 50, sizes: Sizes = LARGE) -> Duration:
    found = duration(config, sizes, gpus, 80 * GB, response_tokens)
    assert found is not None
    return found


def forward(tokens: float) -> float:
    """Operations per token: weights without the embedding, and 3 layers of attention of width 8."""
    return WEIGHTS + 2 * 3 * 8 * tokens


def test_an_update_takes_three_forward_passes_per_token_and_the_step():
    one_update = 3 * 10 * (PROMPT + 50) * forward(PROMPT + 50) / SPEED + UPDATE * LARGE.trained
    assert seconds(run())["learning"] == pytest.approx(one_update, rel=1e-12)
    assert seconds(run(learner={"updates": 3}))["learning"] == pytest.approx(3 * one_update)
    checkpointing = seconds(run(learner={"gradient_checkpointing": True}))["learning"]
    assert checkpointing - one_update == pytest.approx(10 * 250 * forward(250) / SPEED)
    adapters = seconds(run(model={"lora": {}}), sizes=replace(LARGE, trained=10))["learning"]
    assert adapters == pytest.approx(2 * 10 * 250 * forward(250) / SPEED + UPDATE * 10)
    exact = seconds(run(learner={"precision": "float32"}))["learning"]
    assert exact == pytest.approx(3 * 10 * 250 * forward(250) / (UTILISATION * 67e12) + UPDATE * LARGE.trained)


def test_several_gpus_divide_the_tokens_and_reduce_the_gradients_once_per_update():
    computing = 3 * 10 * 250 * forward(250) / SPEED / 4
    exchanged = 8 * LARGE.trained * 3 / 4 / LINK
    assert seconds(run(), gpus=4)["learning"] == pytest.approx(computing + exchanged + UPDATE * LARGE.trained)


def test_shards_are_gathered_twice_and_reduced_per_micro_batch():
    # 2,500 tokens on 2 GPUs are 2 micro-batches of at most 1,000 tokens on each.
    found = seconds(run(learner={"shard": "all"}), gpus=2)
    computing, each = 10 * 250 * forward(250) / SPEED / 2, LARGE.parameters / 2 / LINK
    assert found["learning"] == pytest.approx(3 * computing + 2 * 8 * each + UPDATE * LARGE.trained / 2)
    assert found["consistency"] == pytest.approx(2 * (computing + 2 * 2 * each))


def test_scoring_is_a_pass_each_for_policy_and_reference_and_for_another_temperature():
    a_pass = 10 * 250 * forward(250) / SPEED
    assert seconds(run())["consistency"] == pytest.approx(2 * a_pass)
    assert seconds(run(rollouts={"temperature": 0.5}))["consistency"] == pytest.approx(3 * a_pass)
    assert seconds(run())["reference_reset"] == 0
    # Two resets in 4 rounds score the 30 trajectories of the buffer.
    assert seconds(run(reference={"reset_every": 2}))["reference_reset"] == pytest.approx(2 / 4 * 3 * a_pass)
    averaged = seconds(run(reference={"reset_every": 2, "ema": 0.5}))["reference_reset"]
    assert averaged == pytest.approx(2 / 4 * 3 * 2 * a_pass)


def test_generation_reads_the_weights_per_step_and_the_keys_and_values_per_response():
    step = STEP + 2 * LARGE.parameters / (READING * BANDWIDTH)
    token = (PROMPT + 25) * 48 / (READING * BANDWIDTH) + forward(PROMPT + 25) / SPEED
    found = seconds(run())
    assert found["rollouts"] == pytest.approx(76 * step + 10 * 50 * token), "all 10 at once, the longest has 76"
    # 4 at once: 6 more of 50 tokens in 4 places
    few = seconds(run(engine={"max_num_seqs": 4}))["rollouts"]
    assert few == pytest.approx((76 + 6 * 50 / 4) * step + 10 * 50 * token)
    both = seconds(run(engine={"tensor_parallel_size": 2}), gpus=2)["rollouts"]
    assert both == pytest.approx(76 * (step + STEP) / 2 + 10 * 50 * token / 2, rel=1e-6)
    assert found["weight_sync"] == 2 * 2 * LARGE.parameters / HANDOVER
    assert found["verification"] == pytest.approx(10 * JUDGING / run().verification.workers)


def test_evaluations_and_checkpoints_are_spread_over_the_rounds():
    changed = run(evaluation={"every": 3, "samples": 2}, checkpoints={"every": 1}, engine={"max_num_seqs": 10})
    found = seconds(changed)
    # 30 problems of AIME 2024, 2 responses each, before the run, after round 3 and at the end
    generation = Replicas.of(changed, 1).seconds(LARGE, 80 * GB, 60, 50, 76)  # type: ignore[union-attr]
    judging = 60 * JUDGING / changed.verification.workers
    assert found["evaluation"] == pytest.approx(3 * (generation + judging) / 4)
    assert found["checkpoint"] == pytest.approx(5 * 12 * LARGE.trained / DISK / 4)


def test_the_whole_run():
    found = estimate(run(), gpus=2)
    assert found.round_seconds == sum(found.stage_seconds.values())
    assert found.hours == 4 * found.round_seconds / 3600
    assert found.gpu_hours == 2 * found.hours


def test_servers_share_the_responses():
    urls = [f"http://gpu:{port}" for port in (8000, 8001)]
    config = run(engine={"kind": "vllm-server", "urls": urls})
    replicas = Replicas.of(config, 1)
    assert replicas is not None
    assert (replicas.count, replicas.engine.max_num_seqs) == (2, 256)
    own = Replicas.of(run(engine={"kind": "vllm", "replicas": "auto", "tensor_parallel_size": 2}), 8)
    assert own is not None
    assert (own.count, own.gpus) == (4, 8)
    alone = Replicas(replicas.engine, 1).seconds(LARGE, 80 * GB, 5, 50, 76)
    assert seconds(config)["rollouts"] == alone


def test_replicas_divide_the_responses_among_the_gpus():
    alone = Replicas(run().engine, 1)  # type: ignore[arg-type]
    for replicas, gpus, count in (("auto", 4, 4), (2, 4, 2)):
        config = run(engine={"replicas": replicas})
        assert Replicas.of(config, gpus) == Replicas(config.engine, count, served=True)  # type: ignore[arg-type]
        found = seconds(config, gpus)
        assert found["rollouts"] == alone.seconds(LARGE, 80 * GB, -(-10 // count), 50, 76)
        # Each of the two bytes of a weight is written and read, and hashed both times.
        assert found["weight_sync"] == pytest.approx(4 * LARGE.parameters * (1 / HANDOVER + 1 / HASHING))
    pairs = run(engine={"replicas": "auto", "tensor_parallel_size": 2})
    of_two = [Replicas.of(pairs, gpus) for gpus in (1, 5, 8)]
    assert [one.count for one in of_two if one is not None] == [1, 2, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"kind": "transformers"}},
        {"engine": {"kind": "vllm", "gpu_memory_utilization": 0.01}},
    ],
)
def test_without_vllm_or_its_cache_there_is_no_estimate(changes: dict[str, Any]) -> None:
    assert duration(run(**changes), LARGE, 1, 80 * GB, 50) is None


@pytest.mark.parametrize("shard", ["none", "all"])
def test_more_gpus_never_take_longer_to_learn_and_score(shard: str) -> None:
    config = run(
        learner={"shard": shard, "micro_batch_tokens": 100_000},
        rollouts={"prompts": 10_000},
        replay={"capacity": 20_000},
    )
    times = [seconds(config, gpus) for gpus in (1, 2, 4, 8)]
    for stage in ("learning", "consistency"):
        assert sorted((one[stage] for one in times), reverse=True) == [one[stage] for one in times]
        assert times[-1][stage] < times[0][stage] / 4


def test_learning_agrees_with_the_measurements_on_a_gpu() -> None:
    """The model and the texts of benchmarks/learner_gpu.py: useful tokens per second, without the step."""
    speed = json.loads((BASELINES / "gpu.json").read_text(encoding="utf-8"))["checks"]["speed"]["figures"]
    assert pytest.approx(speed["stream"]["mfu"], abs=0.005) == UTILISATION
    assert PEAK[HALF] == PEAK_FLOPS["H200"]
    layers = 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072)
    weights = layers + FULL.vocabulary * FULL.width
    step = speed["the update alone"]
    assert pytest.approx(sum(step.values()) / weights, rel=0.05) == UPDATE
    mean = round(sum(STREAM) / len(STREAM))
    sizes = Sizes(weights, weights, 28, 1024, 2048, 1024, 3072, FULL.vocabulary, tied=True, context=None)
    for name, checkpointing in (("stream", False), ("stream, checkpointing", True)):
        config = run(
            learner={"gradient_checkpointing": checkpointing, "micro_batch_tokens": BUDGET},
            rollouts={"max_tokens": 8192, "prompts": len(STREAM), "samples": 1},
            replay={"capacity": len(STREAM)},
        )
        found = seconds(config, response_tokens=mean - PROMPT, sizes=sizes)["learning"]
        assert sum(STREAM) / found == pytest.approx(speed[name]["tokens_per_second"], rel=0.08)
