"""The memory that is reckoned for each stage, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from reval_core.config import Config
from reval_core.gpu_memory import CONTEXT, ENGINE_WORK, Sizes, StageMemory, responses_at_once, stage_memory

GB = 10**9
SIZES = Sizes(
    parameters=1000,
    trained=1000,
    layers=3,
    width=8,
    attention=8,
    keys=4,
    feed_forward=16,
    vocabulary=20,
    tied=False,
    context=4096,
)
SUMS = {"arithmetic": {"digits": 1}}


def settings(**changes: Any) -> Config:
    """A run whose micro-batches are 10 places."""
    given: dict[str, Any] = {
        "rounds": 1,
        "model": {"path": "some/model"},
        "problems": {"train": SUMS, "held_out": SUMS},
        "rollouts": {"prompts": 2, "samples": 2, "max_tokens": 76},
        "objective": {"kind": "reval", "beta": 1},
        "replay": {"capacity": 4},
        "learner": {"updates": 1, "lr": 1, "micro_batch_tokens": 10},
    }
    for name, section in changes.items():
        given[name] = {**given.get(name, {}), **section}
    return Config.model_validate(given)


def stages(config: Config, sizes: Sizes = SIZES, gpus: int = 1, gpu_bytes: int = 80 * GB) -> dict[str, StageMemory]:
    return {one.stage: one for one in stage_memory(config, sizes, gpus, gpu_bytes)}


def test_an_update_in_float32_holds_every_layers_activations():
    assert stages(settings())["learning"].parts == {
        "weights": 4000,
        "copy": 0,
        "moments": 8000,
        "gradients": 4000,
        # 10 places of 24 · 8 + 16 · (8 + 16) bytes, in 3 layers
        "activations": 3 * 10 * 576,
        # logits of 20 tokens (4 bytes) and their gradient (2), three hidden states, and the head's own gradient
        "head": 10 * (20 * 6 + 12 * 8) + 4 * 20 * 8,
        "other": CONTEXT,
    }


def test_checkpointing_holds_the_layers_ends_and_one_layer():
    learner = {"gradient_checkpointing": True, "precision": "bfloat16"}
    parts = stages(settings(learner=learner))["learning"].parts
    assert parts["activations"] == 10 * 2 * 8 * 3 + 10 * (16 * 8 + 8 * (8 + 16))


def test_bfloat16_holds_eighteen_bytes_a_weight():
    config = settings(learner={"precision": "bfloat16"})
    parts = stages(config)["learning"].parts
    assert [parts[name] for name in ("weights", "copy", "moments", "gradients")] == [4000, 2000, 8000, 4000]
    assert stages(config, gpus=4)["learning"].parts == parts, "what is exchanged is averaged in place"
    assert stages(config)["consistency"].parts["reference"] == 2000


def test_several_gpus_hold_what_they_exchange_and_divide_nothing():
    alone, together = (stages(settings(), gpus=gpus)["learning"].parts for gpus in (1, 4))
    assert together == alone | {"gradients": 8000}


def test_scoring_holds_the_reference_as_a_second_model_unless_adapters_are_trained():
    assert stages(settings())["consistency"].parts["reference"] == 4000
    adapters = settings(model={"lora": {}})
    parts = stages(adapters, Sizes(**{**vars(SIZES), "trained": 10}))
    assert parts["consistency"].parts["reference"] == 0
    assert parts["learning"].parts["gradients"] == 40
    assert parts["learning"].parts["moments"] == 80


def test_a_checkpoint_holds_the_moments_twice():
    assert stages(settings())["checkpoint"].total == 4000 + 2 * 8000 + CONTEXT


def test_vllm_takes_its_share_beside_what_torch_keeps():
    config = settings(engine={"kind": "vllm", "gpu_memory_utilization": 0.5})
    parts = stages(config, gpu_bytes=10 * GB)["rollouts"].parts
    assert parts["engine"] + parts["cache"] == 5 * GB
    assert parts["engine"] == 2 * 1000 + ENGINE_WORK
    own = ("consistency", "learning", "checkpoint")
    assert parts["freed"] == max(stages(config)[stage].total for stage in own) - 12_000 - 2 * CONTEXT
    assert stages(config, gpu_bytes=10 * GB)["evaluation"].parts == parts


def test_the_cache_holds_so_many_responses_at_full_length():
    config = settings(engine={"kind": "vllm", "kv_cache_gib": 1, "max_model_len": 100})
    # A token: keys and values of 4 numbers in 3 layers, 2 bytes each; 1 GiB holds 223,696 of 100.
    assert SIZES.cache_a_token(2) == 48
    assert responses_at_once(config, SIZES, 80 * GB) == (256, 100)
    few = settings(engine={"kind": "vllm", "kv_cache_gib": 2 * 4800 / 2**30, "max_model_len": 100})
    assert responses_at_once(few, SIZES, 80 * GB) == (2, 100)
    assert responses_at_once(settings(), SIZES, 80 * GB) is None


def test_transformers_holds_the_keys_and_values_of_a_shard():
    # 4 responses of 76 tokens after a prompt of 1,024, in float32
    assert stages(settings())["rollouts"].parts["cache"] == 4 * 1100 * 96


def test_servers_elsewhere_hold_nothing_here():
    config = settings(engine={"kind": "vllm-server", "urls": ["http://gpu:8000"]})
    assert stages(config)["rollouts"].total == 12_000 + CONTEXT


@pytest.mark.parametrize(
    ("changes", "stage", "words"),
    [
        ({}, "learning", "set learner.gradient_checkpointing: true, or train adapters (model.lora)"),
        ({"learner": {"micro_batch_tokens": 9000}}, "learning", "lower learner.micro_batch_tokens"),
        ({"engine": {"kind": "vllm"}}, "rollouts", "lower engine.gpu_memory_utilization"),
        ({"engine": {"kind": "vllm", "gpu_memory_utilization": 0.01}}, "rollouts", "raise engine.gpu_memory"),
        ({"model": {"lora": {}}}, "checkpoint", "take a smaller model"),
    ],
)
def test_a_stage_names_the_setting_that_would_help(changes: dict[str, Any], stage: str, words: str) -> None:
    assert words in stages(settings(**changes))[stage].remedy
