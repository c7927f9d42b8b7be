"""The estimated memory of each stage, compared with numbers computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from reval_core.config import Config
from reval_core.planning import gpu_memory
from reval_core.planning.engine_memory import ENGINE_WORK, responses_at_once
from reval_core.planning.gpu_memory import (
    CONTEXT,
    ROOM,
    WORKSPACE,
    Card,
    StageMemory,
    memory_advice,
    needs_checkpointing,
    overflows,
    stage_memory,
    tight_fit,
)
from reval_core.planning.model_sizes import Sizes

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
    """A run with micro-batches of 10 tokens."""
    given: dict[str, Any] = {
        "rounds": 1,
        "model": {"path": "some/model"},
        "problems": {"train": SUMS, "held_out": SUMS},
        "rollouts": {"prompts": 2, "samples": 2, "max_tokens": 76},
        "objective": {"kind": "reval", "beta": 1},
        "replay": {"capacity": 4},
        "learner": {"updates": 1, "lr": 1, "micro_batch_tokens": 10, "precision": "float32"},
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
        # 10 tokens of 24 · 8 + 16 · (8 + 16) bytes, in 3 layers
        "activations": 3 * 10 * 576,
        # logits of 20 tokens (4 bytes) and their gradient (2), three hidden states, and the gradient of the head,
        # of a slice and of the whole
        "head": 10 * (20 * 6 + 12 * 8) + 4 * 20 * 8 + 4 * 20 * 8,
        "other": CONTEXT + WORKSPACE,
    }


def test_checkpointing_holds_layer_boundaries_and_one_layer():
    config = settings(learner={"gradient_checkpointing": True, "precision": "bfloat16"})
    parts, tied = (
        stages(config, Sizes(**{**vars(SIZES), "tied": tied}))["learning"].parts for tied in (False, True)
    )
    ends, layer, passing = 10 * 2 * 8 * 3, 10 * (16 * 8 + 8 * (8 + 16)), 2 * 10 * 2 * 16
    assert (parts["activations"], parts["head"]) == (ends + layer + passing, 0)
    assert tied == parts | {"head": 2 * 20 * 8}, "the embedding waits for the gradient of the head"


def test_checkpointing_of_small_layers_peaks_at_the_head_with_layer_boundaries():
    small = Sizes(**{**vars(SIZES), "vocabulary": 2000})
    config = settings(learner={"gradient_checkpointing": True, "precision": "bfloat16"})
    parts = stages(config, small)["learning"].parts
    assert parts["activations"] == 10 * 2 * 8 * 3
    assert parts["head"] == 10 * (2000 * 6 + 12 * 8) + 4 * 2000 * 8 + 2 * 2000 * 8


def test_gradients_are_checkpointed_where_an_update_would_not_fit_otherwise() -> None:
    plain = stages(settings(learner={"gradient_checkpointing": False}))["learning"]
    exact = int(plain.total / ROOM) + 1
    for gpu_bytes, needed in ((exact, False), (exact - 100, True)):
        assert needs_checkpointing(settings(), SIZES, 1, gpu_bytes) is needed
        given = stages(settings(learner={"gradient_checkpointing": needed}))
        assert stages(settings(), gpu_bytes=gpu_bytes)["learning"].parts == given["learning"].parts


def test_bfloat16_holds_eighteen_bytes_per_weight():
    config = settings(learner={"precision": "bfloat16"})
    assert stages(settings(learner={"precision": "auto"})) == stages(config), "which is auto on a GPU"
    parts = stages(config)["learning"].parts
    assert [parts[name] for name in ("weights", "copy", "moments", "gradients")] == [4000, 2000, 8000, 4000]
    assert stages(config, gpus=4)["learning"].parts == parts, "what is exchanged is averaged in place"
    assert stages(config)["consistency"].parts["reference"] == 2000


def test_several_gpus_share_nothing_unless_weights_are_sharded():
    alone, together = (stages(settings(), gpus=gpus)["learning"].parts for gpus in (1, 4))
    assert together == alone


def test_sharded_weights_are_divided_and_gathered_in_part():
    sharded = settings(learner={"shard": "all"}, model={"path": "some/model"})
    found = stages(sharded, gpus=4)
    learning = found["learning"].parts
    assert [learning[name] for name in ("weights", "moments", "gradients", "reference")] == [1000, 2000, 1000, 1000]
    # Embedding and head have 320 parameters, a layer 226.
    assert found["consistency"].parts["gathered"] == 4 * (320 + 2 * 226)
    assert learning["gathered"] == 4 * (320 + 2 * 226) + 4 * (320 + 226) + 4 * 320
    assert found["rollouts"].parts.get("engine", 0) == (4000 if sharded.engine.kind == "transformers" else 0)
    assert stages(sharded, gpus=1)["learning"].parts == stages(settings(), gpus=1)["learning"].parts


def test_scoring_holds_the_reference_as_a_second_model_unless_adapters_are_trained():
    assert stages(settings())["consistency"].parts["reference"] == 4000
    adapters = settings(model={"lora": {}})
    parts = stages(adapters, Sizes(**{**vars(SIZES), "trained": 10}))
    assert parts["consistency"].parts["reference"] == 0
    assert parts["learning"].parts["gradients"] == 40
    assert parts["learning"].parts["moments"] == 80


def test_a_checkpoint_needs_no_additional_memory():
    assert stages(settings())["checkpoint"].total == 4000 + 8000 + CONTEXT + WORKSPACE


def test_vllm_uses_its_fraction_in_addition_to_the_learners_weights():
    config = settings(engine={"kind": "vllm", "gpu_memory_utilization": 0.5})
    parts = stages(config, gpu_bytes=10 * GB)["rollouts"].parts
    assert parts["engine"] + parts["cache"] == 5 * GB
    assert parts["engine"] == 2 * 1000 + ENGINE_WORK
    assert sum(parts.values()) == 5 * GB + 12_000 + 2 * CONTEXT + WORKSPACE
    assert stages(config, gpu_bytes=10 * GB)["evaluation"].parts == parts
    assert "engine" not in stages(config, gpu_bytes=10 * GB)["learning"].parts


def test_vllm_without_sleep_keeps_its_memory_during_learning():
    config = settings(engine={"kind": "vllm", "gpu_memory_utilization": 0.5, "sleep": False})
    parts = stages(config, gpu_bytes=10 * GB)["learning"].parts
    assert parts["engine"] + parts["cache"] == 5 * GB


def test_the_number_of_full_length_responses_in_the_cache():
    config = settings(engine={"kind": "vllm", "kv_cache_gib": 1, "max_model_len": 100})
    # Per token: keys and values of 4 numbers in 3 layers, 2 bytes each; 1 GiB fits 223,696 responses of 100 tokens.
    assert SIZES.cache_a_token(2) == 48
    assert responses_at_once(config, SIZES, 80 * GB) == (1024, 100), "vLLM's own limit on a large GPU"
    assert responses_at_once(config, SIZES, 48 * GB) == (256, 100)
    limited = settings(engine={**config.engine.model_dump(), "max_num_seqs": 300})
    assert responses_at_once(limited, SIZES, 80 * GB) == (300, 100)
    few = settings(engine={"kind": "vllm", "kv_cache_gib": 2 * 4800 / 2**30, "max_model_len": 100})
    assert responses_at_once(few, SIZES, 80 * GB) == (2, 100)
    assert responses_at_once(settings(), SIZES, 80 * GB) is None


def test_transformers_holds_the_keys_and_values_of_a_shard():
    # 4 responses of 76 tokens after a prompt of 1,024, in float32
    assert stages(settings())["rollouts"].parts["cache"] == 4 * 1100 * 96
    assert stages(settings(evaluation={"batch": 3}))["evaluation"].parts["cache"] == 3 * 1100 * 96


def test_remote_servers_use_no_local_memory():
    config = settings(engine={"kind": "vllm-server", "urls": ["http://gpu:8000"]})
    assert stages(config)["rollouts"].total == 12_000 + CONTEXT + WORKSPACE


@pytest.mark.parametrize(
    ("changes", "stage", "words"),
    [
        ({}, "learning", "set learner.gradient_checkpointing: true, or train adapters (model.lora)"),
        ({"learner": {"micro_batch_tokens": 9000}}, "learning", "lower learner.micro_batch_tokens"),
        ({"engine": {"kind": "vllm"}}, "rollouts", "lower engine.gpu_memory_utilization"),
        ({"engine": {"kind": "vllm", "gpu_memory_utilization": 0.01}}, "rollouts", "raise engine.gpu_memory"),
        ({"model": {"lora": {}}}, "checkpoint", "use a smaller model"),
    ],
)
def test_a_stage_names_the_setting_that_helps(changes: dict[str, Any], stage: str, words: str) -> None:
    assert words in stages(settings(**changes))[stage].remedy


def test_where_the_weights_alone_do_not_fit_no_other_setting_is_named():
    found = stages(settings(engine={"kind": "vllm"}), gpu_bytes=2 * CONTEXT)
    assert {one.remedy for one in found.values()} == {found["checkpoint"].remedy}
    assert found["checkpoint"].remedy.startswith("train adapters (model.lora)")


def card(total: int, free: int | None = None) -> Card:
    return Card("some GPU", total, total if free is None else free)


def test_a_stage_that_does_not_fit_is_named_with_its_memory_and_a_remedy():
    config = settings(learner={"micro_batch_tokens": 10**8, "gradient_checkpointing": False})
    (line,) = overflows(stage_memory(config, SIZES, 1, 80 * GB), card(80 * GB))
    # 576 bytes per token in each of 3 layers, the head's 96 and a block of logits, and CUDA; weights are small.
    assert line.startswith(
        "learning needs about 186.6 GB of GPU memory, and the GPU has 80.0 GB; set learner.gradient_ch"
    )
    found = overflows(stage_memory(config, SIZES, 1, 80 * GB), card(10 * GB))
    assert [one.split()[0] for one in found] == ["learning", "consistency"]
    assert overflows(stage_memory(config, SIZES, 1, 80 * GB), card(200 * GB)) == []


def test_a_fraction_below_vllms_weights_does_not_fit_any_gpu():
    config = settings(engine={"kind": "vllm", "gpu_memory_utilization": 0.01})
    lines = overflows(stage_memory(config, SIZES, 1, 80 * GB), card(80 * GB))
    assert lines == [
        f"{stage} has no room on the GPU for vLLM's keys and values; raise engine.gpu_memory_utilization: "
        "the weights do not fit this fraction"
        for stage in ("rollouts", "evaluation")
    ]


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (card(80 * GB, 70 * GB), []),
        (card(80 * GB, 59 * GB), ["learning needs about 60.0 GB and 59.0 GB of the GPU are free; stop other"]),
        (card(66 * GB), ["learning needs about 60.0 GB of the GPU's 66.0 GB, which is close; if it fails: lower"]),
    ],
)
def test_a_tight_fit_is_reported(gpu: Card, words: list[str]) -> None:
    found = tight_fit(
        [StageMemory("consistency", {"a": GB}), StageMemory("learning", {"a": 60 * GB}, "lower b")], gpu
    )
    assert [line[: len(start)] for line, start in zip(found, words, strict=True)] == words


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("learning", "set learner.gradient_checkpointing: true"),
        ("reference_reset", "lower learner.micro_batch_tokens"),
        ("residual_evaluation", "lower learner.micro_batch_tokens"),
        ("evaluation", "lower evaluation.batch"),
        ("warm_start", "lower model.warm_start.batch"),
    ],
)
def test_every_stage_that_runs_the_model_has_advice(stage: str, words: str) -> None:
    assert memory_advice(settings(model={"path": None, "tiny": {}, "warm_start": {"steps": 1}}), stage).startswith(
        words
    )


def test_auto_is_estimated_as_the_engine_that_it_selects(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"model": {"path": None, "tiny": {}}, "engine": {"kind": "auto"}}
    monkeypatch.setattr("reval_core.engines.choice.vllm_installed", lambda: False)
    found = {one.stage: one.parts for one in gpu_memory.run_memory(settings(**given), card(80 * GB))}
    assert "engine" not in found["rollouts"]
    monkeypatch.setattr("reval_core.engines.choice.vllm_installed", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = {one.stage: one.parts for one in gpu_memory.run_memory(settings(**given), card(80 * GB))}
    assert "engine" in found["rollouts"]
