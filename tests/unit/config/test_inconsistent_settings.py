"""Settings that exclude each other, refused with the key at fault."""

from pathlib import Path

import pytest
import yaml

from reval_core.config import (
    StoredRollouts,
)
from tests.unit.config.documents import CUSTOM, RUN, Refused, load


def test_centred_rewards_with_one_sample_are_refused_at_the_kind(refused: Refused) -> None:
    message = refused(RUN.replace("samples: 2", "samples: 1") + "reward:\n  kind: centred\n")
    assert message.startswith("run.yaml:21: reward.kind: centred rewards are all 0 with rollouts.samples: 1;")


def test_grpo_cannot_draw_by_a_residual(refused: Refused) -> None:
    message = refused(RUN, "objective={kind: grpo}", "replay.sampling=prioritised")
    assert message.startswith(
        "--set replay.sampling=prioritised: replay.sampling: grpo without a beta has no residual"
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.schedule=cosine", "learner.decay_updates: is required by schedule"),
        ("learner.decay_updates=10", "learner.decay_updates: is required by schedule"),
        ("objective={kind: reval, beta: 1, huber: 2, clip: 1}", "objective.huber: has no effect"),
        ("reward={overlong: {buffer: 8}}", "reward.overlong.buffer: 8 leaves no length without a penalty"),
        ("reward={overlong: {buffer: 0}}", "reward.overlong.buffer: "),
        ("reward={overlong: {buffer: 2, penalty: 0}}", "reward.overlong.penalty: "),
        ("learner.adam_eps=0", "learner.adam_eps: "),
        (
            "rollouts={prompts: 4, samples: 1, max_tokens: 8, dynamic_sampling: {}}",
            "dynamic_sampling: a group of one",
        ),
        (
            "rollouts={prompts: 4, samples: 2, max_tokens: 8, dynamic_sampling: {waves: 0}}",
            "rollouts.dynamic_sampling.waves: ",
        ),
        ("reference.ema=0.9", "reference.ema: is applied every reset_every rounds"),
        ("reference={ema: 0.9, reset_below: 0.3}", "reference.ema: is applied every"),
        ("reference={ema: 1.0, reset_every: 1}", "reference.ema: "),
        ("reference={ema: 0, reset_every: 1}", "reference.ema: "),
        ("objective={kind: custom, function: nowhere}", "objective.function: 'nowhere' is not of the form"),
        ("objective={kind: custom, function: 'nowhere:f'}", "objective.function: nowhere:f: cannot import nowhere"),
        (
            "objective={kind: custom, function: 'tests.models:f'}",
            "objective.function: tests.models:f: tests.models has no",
        ),
        (
            f"objective={{kind: custom, function: '{CUSTOM}', settings: {{size: 1}}}}",
            f"objective.function: {CUSTOM}: does not take these settings (got an unexpected keyword",
        ),
    ],
)
def test_inconsistent_settings_of_the_learner_are_refused(refused: Refused, override: str, words: str) -> None:
    message = refused(RUN, override)
    assert words in message
    assert message.startswith(("--set ", "run.yaml:"))


def test_flash_attention_is_refused_in_float32(refused: Refused) -> None:
    message = refused(RUN, "model.attention=flash_attention_2", "learner.precision=float32")
    assert message.startswith(
        "--set model.attention=flash_attention_2: model.attention: flash_attention_2 computes in"
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_are_refused_where_attention_would_need_a_dense_mask(refused: Refused, attention: str) -> None:
    message = refused(RUN, "learner.packed=true", f"model.attention={attention}")
    assert f"learner.packed: model.attention: {attention} needs a dense mask over all pairs of tokens; " in message
    assert "remove model.attention" in message


OFFLINE = """\
rounds: 2
model:
  tiny: {layers: 1, width: 16, heads: 2, feed_forward: 32}
rollouts:
  source: stored
  run: runs/other
  batch: 8
objective: {kind: reval, beta: 0.05}
replay:
  capacity: 16
  first: buffer
learner: {updates: 2, lr: 1.0e-4}
"""


def test_a_run_on_stored_trajectories_needs_no_problems_and_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path, OFFLINE)
    assert isinstance(config.rollouts, StoredRollouts)
    assert config.rollouts.run == str(tmp_path / "runs/other")
    assert load(tmp_path, yaml.safe_dump(config.model_dump(mode="json"))) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective={kind: grpo}", "objective.kind: grpo needs the probabilities under the behaviour policy"),
        (
            f"objective={{kind: custom, function: '{CUSTOM}', at_sampling_temperature: true}}",
            "objective.at_sampling_temperature: the sampling temperature of stored trajectories",
        ),
        ("replay.first=fresh", "replay.first: a round on stored trajectories has no fresh batch; set buffer"),
        ("replay.sampling=fresh", "replay.sampling: fresh draws by age"),
        ("replay.max_age=3", "replay.max_age: stored trajectories do not age"),
        ("replay.capacity=7", "replay.capacity: 7 is less than rollouts.batch (8)"),
        ("reward={overlong: {buffer: 4}}", "reward.overlong: the length limit of the stored responses is unknown"),
        ("rollouts.dynamic_sampling={waves: 1}", "rollouts.dynamic_sampling: unknown key"),
        ("rollouts.samples=4", "rollouts.samples: unknown key; known here: source, run, batch, max_tokens"),
        ("rollouts.source=dream", "rollouts.source: must be one of 'engine', 'stored', 'import', not 'dream'"),
        ("rollouts={prompts: 4, samples: 2, max_tokens: 8}", "problems.train: is missing; a run that generates"),
    ],
)
def test_settings_unsupported_by_a_run_on_stored_trajectories_are_refused(
    refused: Refused, override: str, words: str
) -> None:
    message = refused(OFFLINE, override)
    assert words in message
    assert message.startswith(("--set ", "run.yaml:"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "engine={kind: magic}",
            "engine.kind: must be one of 'transformers', 'auto', 'vllm', 'vllm-server', not 'magic'",
        ),
        ("engine={kind: vllm-server, urls: []}", "engine.urls: "),
        ("engine={kind: vllm-server, urls: ['localhost:8000']}", "engine.urls: must look like http://host:8000"),
        (
            "engine={kind: vllm-server, urls: ['http://me:secret@host:1']}",
            "engine.urls: must not contain a password",
        ),
        ("engine={kind: vllm-server, urls: ['http://a:1', 'http://a:1']}", "engine.urls: lists a server twice"),
        (
            "engine={kind: vllm, replicas: 0}",
            "engine.replicas: must be auto or a whole number of at least 1, not 0",
        ),
        ("engine={kind: vllm, replicas: all}", "engine.replicas: must be auto or a whole number of at least 1"),
        *(
            (
                f"engine={{kind: vllm-server, urls: ['http://a:1'], weights_url: '{url}'}}",
                f"engine.weights_url: {words}",
            )
            for url, words in {
                "http://a": "must look like http://host:8100",
                "http://a:port": "must look like http://host:8100",
                "http://a:1/directory": "must look like http://host:8100",
                "https://a:1": "must be http://host:port or object storage",
                "/shared": "must be http://host:port or object storage",
                "s3://key:secret@bucket/directory": "must not contain a password",
            }.items()
        ),
        (
            "engine={kind: vllm-server, urls: ['http://a:1'], weights: /shared, weights_url: 's3://b/c'}",
            "engine.weights_url: cannot be combined with weights",
        ),
        ("rollouts.budget_tokens=9", "rollouts.budget_tokens: only engine.kind vllm and vllm-server can cut off"),
        ("rollouts.budget_seconds=9", "rollouts.budget_seconds: only engine.kind vllm and vllm-server can cut off"),
    ],
)
def test_settings_unsupported_by_an_engine_are_refused(refused: Refused, override: str, words: str) -> None:
    message = refused(RUN, override)
    assert words in message
    assert message.startswith(("--set ", "run.yaml"))


def test_a_password_in_an_address_is_not_repeated(refused: Refused) -> None:
    message = refused(RUN + "engine: {kind: vllm-server, urls: ['http://me:secret@host:1']}")
    assert message.startswith("run.yaml:20: engine.urls: must not contain a password")
    assert "secret" not in message


def test_a_warm_start_needs_arithmetic(refused: Refused) -> None:
    message = refused(RUN, "problems.train={path: some.jsonl}", "model.warm_start={steps: 1}")
    assert message.startswith("--set model.warm_start={steps: 1}: model.warm_start: ")
