"""The configs at the paper's scale: they contain its values and can be checked on any machine."""

from __future__ import annotations

import json
import re
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest

from reval.flows.cli import cli
from reval.flows.other_machine import known_model
from reval_core.config import PROMPTS, Config, Grpo, ProblemSet, Reval, Tbrm, VllmEngine
from reval_core.config.loader import load_config
from reval_core.errors import InputError
from reval_core.model.loading import count_parameters
from reval_core.planning.duration import Replicas, duration
from reval_core.planning.gpu_memory import StageMemory, stage_memory
from reval_core.planning.model_sizes import Sizes

CONFIGS = Path(__file__).parents[3] / "configs"
PAPER = CONFIGS / "paper"
BENCHMARKS = ("aime24", "aime25", "amc", "math500", "minerva", "olympiadbench", "gpqa")
SMALL, LARGE = "dpsk-r1-distill-1.5b", "qwen2.5-math-7b"


def paper(name: str) -> Config:
    return load_config(PAPER / f"{name}.yaml")


def shown(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> str:
    """What `reval train CONFIG --dry-run` prints with these arguments."""
    cli.main(["train", str(config), "--dry-run", *arguments], standalone_mode=False)
    return capsys.readouterr().out


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without models and problem sets, and no network."""

    def refuse(*address: Any) -> None:
        raise AssertionError(f"somebody connects to {address}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REVAL_DATA", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


@pytest.mark.parametrize("name", [one.stem for one in sorted(PAPER.glob("*.yaml"))])
def test_the_papers_common_settings_are_in_every_config(name: str) -> None:
    config = paper(name)
    assert config.rounds == 650
    assert config.problems.train is not None
    assert config.problems.train.set == "deepscaler"
    assert config.problems.held_out == tuple(ProblemSet(set=one, limit=100) for one in BENCHMARKS)
    assert (config.generation.prompts, config.generation.samples, config.generation.trajectories) == (128, 8, 1024)
    assert config.generation.temperature == 1.0
    assert config.learner.lr == 1e-6
    assert (config.evaluation.every, config.evaluation.samples) == (10, 16)
    assert (config.replay.sampling, config.replay.first) == ("uniform", "fresh")
    assert config.model.lora is None


@pytest.mark.parametrize("suffix", ["", "-grpo", "-tbrm"])
def test_the_papers_settings_per_model_are_in_its_configs(suffix: str) -> None:
    small, large = paper(SMALL + suffix), paper(LARGE + suffix)
    assert small.model.path == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    assert large.model.path == "Qwen/Qwen2.5-Math-7B"
    assert (small.problems.prompt, large.problems.prompt) == (PROMPTS["deepseek"], PROMPTS["qwen"])
    assert small.generation.max_tokens == 8192
    assert large.generation.max_tokens == 3072, "departs from 8K: its context is 4,096"
    assert (small.reward.kind, large.reward.kind) == ("binary", "centred")


def test_reval_has_the_papers_beta_buffer_updates_and_resets() -> None:
    small, large = paper(SMALL), paper(LARGE)
    assert small.objective == Reval(kind="reval", beta=0.002)
    assert large.objective == Reval(kind="reval", beta=0.02)
    assert [(one.replay.capacity, one.learner.updates) for one in (small, large)] == [(5120, 2)] * 2
    assert (small.reference.reset_every, large.reference.reset_every) == (None, 200)


@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_the_baselines_learn_from_the_fresh_batch_only(name: str) -> None:
    grpo, tbrm, reval = paper(f"{name}-grpo"), paper(f"{name}-tbrm"), paper(name)
    assert grpo.objective == Grpo(kind="grpo", clip_low=0.2, clip_high=0.28)
    assert tbrm.objective == Tbrm(kind="tbrm", beta=reval.objective.beta or 0)
    for one in (grpo, tbrm):
        assert (one.replay.capacity, one.learner.updates) == (1024, 1)
    parts = {"objective", "replay", "learner", "reference"}
    assert grpo.model_dump(exclude=parts) == tbrm.model_dump(exclude=parts) == reval.model_dump(exclude=parts)


def test_the_architectures_have_as_many_parameters_as_the_models() -> None:
    counts = {}
    for name in (SMALL, LARGE):
        model = known_model(PAPER / f"{name}.yaml", paper(name).model)
        assert model is not None
        counts[name] = count_parameters(model)[0]
    assert counts == {SMALL: 1_777_088_000, LARGE: 7_615_616_512}


def test_departures_and_open_choices_are_marked_in_the_files() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAPER.glob("*.yaml"))
    assert len(re.findall(r"# .*Departs: ", text)) >= 3
    assert len(re.findall(r"# .*Open[:,]", text)) >= 12


@pytest.mark.parametrize(
    "config", sorted([*CONFIGS.glob("*.yaml"), *PAPER.glob("*.yaml")]), ids=lambda path: path.stem
)
def test_every_config_can_be_planned_without_its_model_its_data_and_a_network(
    laptop: Path, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    plan = json.loads(shown(capsys, config, "--gpus", "2", "--json"))
    assert plan["gpus"] == 2
    assert plan["config"] == load_config(config).model_dump(mode="json")
    assert bool(plan["stages"]) == (plan["parameters"] is not None)
    assert not list(laptop.iterdir())
    if config.parent == PAPER:
        assert [row["stage"] for row in plan["stages"]][:3] == ["rollouts", "consistency", "learning"]
        assert sum(row["disk_bytes"] for row in plan["stages"]) == plan["disk_bytes"] > 10**11
        assert any("problems: deepscaler, aime24" in one for one in plan["unchecked"])


def test_both_models_fit_8_gpus_of_80_gb_and_the_large_one_only_with_shards(
    laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = shown(capsys, PAPER / f"{SMALL}.yaml", "--gpus", "8")
    assert " NO " not in small
    assert "learner.shard: none: each holds all weights" in small
    sharded = shown(capsys, PAPER / f"{LARGE}.yaml", "--gpus", "8", "--gpu-memory", "80")
    assert " NO " not in sharded
    assert "divided among all of them" in sharded
    assert "8 vLLM engines on the first 8 of the same GPUs generate" in sharded
    too_many = shown(capsys, PAPER / f"{LARGE}.yaml", "--gpus", "2", "--set", "engine.replicas=4")
    assert "engine: 4 × tensor_parallel_size 1 is more than the 2 GPUs" in too_many
    whole = shown(capsys, PAPER / f"{LARGE}.yaml", "--gpus", "8", "--set", "learner.shard=none")
    assert "learning does not fit: train adapters (model.lora), or shard the weights over several GPUs" in whole
    assert "gradients and moments alone are 137 GB" in whole


def held(name: str, gpus: int, *overrides: str) -> dict[str, StageMemory]:
    """What a GPU of 80 GB holds in each stage."""
    path = PAPER / f"{name}.yaml"
    config = load_config(path, overrides)
    model = known_model(path, config.model)
    assert model is not None
    return {one.stage: one for one in stage_memory(config, Sizes.of(model), gpus, 80 * 10**9)}


def test_one_gpu_holds_what_it_held_before_weights_could_be_sharded() -> None:
    before = {
        SMALL: (58_912_786_432, 32_614_446_080, 37_796_012_032, 58_912_786_432, 26_912_786_432),
        LARGE: (140_652_185_600, 128_279_049_216, 147_536_814_080, 140_652_185_600, 108_652_185_600),
    }
    for name, totals in before.items():
        for shard in ("none", "all"):
            assert tuple(one.total for one in held(name, 1, f"learner.shard={shard}").values()) == totals


def test_an_eighth_of_the_large_model_fits_a_gpu_of_80_gb() -> None:
    """7,615,616,512 weights, of which the embedding and the head have 152,064 · 3,584 each."""
    eighth, ends = 7_615_616_512 // 8, 2 * 152_064 * 3_584
    layer = (7_615_616_512 - ends) // 28
    learning = held(LARGE, 8)["learning"].parts
    assert learning["weights"] == learning["gradients"] == 4 * eighth
    assert learning["copy"] == learning["reference"] == 2 * eighth
    assert learning["moments"] == 8 * eighth
    assert learning["gathered"] == 2 * (ends + 2 * layer) + 2 * (ends + layer) + 4 * ends
    # 28 boundaries of layers, one layer that is recomputed, and its gradients, for 16,384 tokens
    recomputed = 16 * 3584 + 8 * (3584 + 18944)
    assert learning["activations"] == 16384 * (2 * 3584 * 28 + recomputed + 2 * 2 * 18944)
    rollouts = held(LARGE, 8)["rollouts"].parts
    assert rollouts["engine"] + rollouts["cache"] == 0.4 * 80 * 10**9
    assert all(one.fits(80 * 10**9) for one in held(LARGE, 8).values())
    assert not all(one.fits(80 * 10**9) for one in held(LARGE, 1, "learner.shard=none").values())
    assert all(one.fits(80 * 10**9) for one in held(LARGE, 1, "learner.shard=none", "model.lora={}").values())


@pytest.mark.parametrize("shard", ["node", "all"])
def test_more_gpus_hold_less_each_if_weights_are_sharded(shard: str) -> None:
    stages = [held(LARGE, gpus, f"learner.shard={shard}") for gpus in (1, 2, 3, 4, 8, 16)]
    for stage in stages[0]:
        totals = [one[stage].total for one in stages]
        assert totals == sorted(set(totals), reverse=True), stage
    whole = [held(LARGE, gpus, "learner.shard=none") for gpus in (1, 8)]
    assert whole[0] == whole[1]


def test_the_forecast_on_the_page_is_up_to_date() -> None:
    made = runpy.run_path(str(CONFIGS.parent / "docs/make_paper.py"))
    recorded = made["TARGET"].read_text(encoding="utf-8")
    assert recorded == made["page"](recorded), "run docs/make_paper.py"


def test_the_papers_own_seconds_are_estimated_within_a_seventh() -> None:
    """36.8 s of generation and 2.8 s of an update, read as 128 responses of the small model on 8 GPUs."""
    path = PAPER / f"{SMALL}.yaml"
    config = load_config(path, ["rollouts.samples=1", "learner.gradient_checkpointing=false"])
    model = known_model(path, config.model)
    assert model is not None
    assert isinstance(config.engine, VllmEngine)
    sizes, gpu_bytes = Sizes.of(model), 80 * 10**9
    found = duration(config, sizes, 8, gpu_bytes, response_tokens=5000)
    assert found is not None
    generation = Replicas(config.engine, 8).seconds(sizes, gpu_bytes, 128, 5000, longest=8192)
    update = found.stage_seconds["learning"] / config.learner.updates
    text = (CONFIGS.parent / "docs/paper.md").read_text(encoding="utf-8")
    assert f"formulas give {generation:.1f} s and {update:.1f} s ({generation / update:.0f})" in text
    assert generation == pytest.approx(36.8, rel=1 / 7)
    assert update == pytest.approx(2.8, rel=1 / 7)


def test_time_and_cost_are_estimated_from_the_mean_length_of_a_response(
    laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PAPER / f"{LARGE}.yaml"
    given = ("--gpus", "8", "--response-tokens", "600", "--gpu-price", "3")
    time = json.loads(shown(capsys, config, *given, "--json"))["time"]
    assert time["response_tokens"] == 600
    assert time["round_seconds"] == pytest.approx(sum(time["stage_seconds"].values()))
    assert time["gpu_hours"] == 8 * time["hours"] == pytest.approx(8 * 650 * time["round_seconds"] / 3600)
    assert time["cost"] == pytest.approx(3 * time["gpu_hours"])
    printed = shown(capsys, config, *given)
    assert f"{time['gpu_hours']:,.0f} GPU hours: {time['cost']:,.0f} at 3 per GPU hour" in printed
    tables = printed.partition("Peak GB")[2].partition("Notes")[0]
    assert all(len(line) <= 80 for line in tables.splitlines()), "without the list of notes"
    longest = json.loads(shown(capsys, config, "--gpus", "8", "--json"))["time"]
    assert longest["response_tokens"] == 3072
    assert longest["gpu_price"] == 2
    with pytest.raises(InputError, match=r"3073 is more than rollouts\.max_tokens \(3072\)"):
        shown(capsys, config, "--gpus", "8", "--response-tokens", "3073")
    with pytest.raises(InputError, match="give --dry-run --gpus N"):
        shown(capsys, config, "--gpu-price", "3")


@pytest.mark.parametrize("stem", ["demo", "offline"])
def test_without_vllm_time_is_not_estimated(laptop: Path, capsys: pytest.CaptureFixture[str], stem: str) -> None:
    plan = json.loads(shown(capsys, CONFIGS / f"{stem}.yaml", "--gpus", "1", "--json"))
    assert plan["time"] is None


def test_invalid_settings_are_refused_on_any_machine(laptop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PAPER / f"{SMALL}.yaml"
    with pytest.raises(InputError, match=r"objective\.beta"):
        shown(capsys, config, "--gpus", "1", "--set", "objective.beta=0")
    (laptop / "mine.jsonl").write_text('{"problem": "1+1=", "answer": ""}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.jsonl:1: answer: is empty"):
        shown(capsys, config, "--gpus", "1", "--set", "problems.train={path: mine.jsonl}")
    with pytest.raises(InputError, match="give --dry-run --gpus N"):
        shown(capsys, config, "--gpu-memory", "80")


def test_without_gpus_a_dry_run_still_refuses_missing_files(
    laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="deepscaler: no file deepscaler"):
        shown(capsys, PAPER / f"{SMALL}.yaml")
