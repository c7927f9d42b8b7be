"""The settings: refusals with their messages, and the round trip of dumped settings."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reval_core.answers.extraction import Method
from reval_core.config import (
    PROMPTS,
    Arithmetic,
    AutoEngine,
    Config,
    CustomObjective,
    Grpo,
    Hub,
    ImportedRollouts,
    Overlong,
    Problems,
    ProblemSet,
    Regression,
    Reval,
    StoredRollouts,
    Tbrm,
    VllmEngine,
    VllmServerEngine,
)
from reval_core.config.loader import load_config
from reval_core.errors import InputError

ROOT = Path(__file__).parents[3]
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/paper").glob("*.yaml")])
CUSTOM = "tests.models:margin_objective"
OBJECTIVES = {
    Reval: "kind: reval, beta: 1",
    Tbrm: "kind: tbrm, beta: 1",
    Regression: "kind: regression, beta: 1",
    Grpo: "kind: grpo",
    CustomObjective: f"kind: custom, function: '{CUSTOM}'",
}
SOURCES = {
    StoredRollouts: "source: stored, run: runs/other, batch: 4",
    ImportedRollouts: "source: import, file: a.jsonl, sha256: '0', columns: {}",
}
ENGINES: dict[type[BaseModel], str] = {
    AutoEngine: "kind: auto",
    VllmEngine: "kind: vllm",
    VllmServerEngine: "kind: vllm-server, urls: ['http://localhost:8000']",
}

RUN = """\
seed: 0
rounds: 2
model:
  tiny: {layers: 1, width: 16, heads: 2, feed_forward: 32}
problems:
  train: {arithmetic: {digits: 1}}
  held_out: {arithmetic: {digits: 1, split: held_out}}
rollouts:
  prompts: 4
  samples: 2
  max_tokens: 8
objective:
  kind: reval
  beta: 0.05
replay:
  capacity: 16
learner:
  updates: 2
  lr: 1.0e-4
"""

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


def load(directory: Path, text: str, *overrides: str) -> Config:
    path = directory / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def keys(model: type[BaseModel] = Config, section: str = "") -> Iterator[tuple[str, type[BaseModel], FieldInfo]]:
    """Every key with the model of its section; those of the objectives once per kind."""
    for name, field in model.model_fields.items():
        key = f"{section}.{name}".lstrip(".")
        yield key, model, field
        if get_origin(field.annotation) is tuple:  # a list of sections has no keys that --set could name
            continue
        for inner in get_args(field.annotation) or (field.annotation,):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, key)


def types(field: FieldInfo) -> set[Any]:
    return {field.annotation, *get_args(field.annotation)}


def ground(key: str, model: type[BaseModel]) -> list[str]:
    """Overrides that add the section of a key that RUN does not have."""
    if model in OBJECTIVES:
        return [f"objective={{{OBJECTIVES[model]}}}"]
    if model in SOURCES:
        return [f"rollouts={{{SOURCES[model]}}}"]
    if model in ENGINES:
        return [f"engine={{{ENGINES[model]}}}"]
    if model is Hub:
        return ["problems.train={hub: {name: some/set}}"]
    if model is Overlong:
        return ["reward.overlong.buffer=1"]
    return ["model.warm_start.steps=1"] if key.startswith("model.warm_start.") else []


KEYS = list(keys())
NUMBERS = [(key, model, field) for key, model, field in KEYS if {int, float} & types(field)]


def out_of_range(field: FieldInfo) -> list[float]:
    """The nearest values that a field refuses, by its own bounds."""
    step = 1 if int in types(field) else 1e-6
    found: list[float] = []
    for bound in field.metadata:
        found += [bound.ge - step] if getattr(bound, "ge", None) is not None else []
        found += [bound.gt] if getattr(bound, "gt", None) is not None else []
        found += [bound.le + step] if getattr(bound, "le", None) is not None else []
        found += [bound.lt] if getattr(bound, "lt", None) is not None else []
    return found


@pytest.mark.parametrize(
    ("line", "instead", "place", "words"),
    [
        ("seed: 0", "seed: -1", "run.yaml:1: seed: ", "greater than or equal to 0, not -1"),
        ("rounds: 2", "rounds: many", "run.yaml:2: rounds: ", "valid integer"),
        ("rounds: 2", "rounds: 2.5", "run.yaml:2: rounds: ", "2.5"),
        ("rounds: 2", "rounds:", "run.yaml:2: rounds: ", "not None"),
        ("rounds: 2", "rounds: [2]", "run.yaml:2: rounds: ", "not [2]"),
        ("rounds: 2", "rounds: 2\n7: 1", "run.yaml:3: 7: ", "keys should be strings"),
        ("seed: 0", "sede: 0", "run.yaml:1: sede: ", "unknown key; did you mean 'seed'?"),
        ("  tiny:", "  path: a-model\n  tiny:", "run.yaml:3: model: ", "set either path or tiny"),
        ("layers: 1, ", "layrs: 1, ", "run.yaml:4: model.tiny.layrs: ", "did you mean 'layers'?"),
        ("width: 16", "width: 18", "run.yaml:4: model.tiny", "width must be a multiple of 2 × heads"),
        ("width: 16", "width: 16, characters: aba", "run.yaml:4: model.tiny", "contains a duplicate"),
        ("  tiny:", "  warm_start: {steps: 0}\n  tiny:", "run.yaml:4: model.warm_start.steps: ", "not 0"),
        ("problems:", "problems:\n  prompt: {user: hi}", "run.yaml:6: problems.prompt", "must contain {problem}"),
        ("problems:", "problems:\n  prompt: {system: hi}", "run.yaml:6: problems.prompt", "chat: true"),
        ("{arithmetic: {digits: 1}}", "{}", "run.yaml:6: problems.train: ", "set exactly one of set, path, hub"),
        ("{arithmetic: {digits: 1}}", "{set: gsm9k}", "run.yaml:6: problems.train.set: ", "'gsm8k_train', 'gsm8k'"),
        (
            "{arithmetic: {digits: 1}}",
            "{path: a, columns: {q: b}}",
            "run.yaml:6: problems.train.columns",
            "'answer'",
        ),
        (
            "{digits: 1}}",
            "{digits: 1}, gold_mode: any}",
            "run.yaml:6: problems.train.gold_mode: ",
            "does not apply",
        ),
        (
            "problems:",
            "problems:\n  prompt: gpt",
            "run.yaml:6: problems.prompt: ",
            "known prompts are deepseek, qwen",
        ),
        ("split: held_out}", "split: held}", "run.yaml:7: problems.held_out.arithmetic.split: ", "not 'held'"),
        (
            "held_out: {arithmetic",
            "held_out:\n  - {path: a.jsonl}\n  - {limit: 0, arithmetic",
            "run.yaml:9: problems.held_out.1.limit: ",
            "not 0",
        ),
        (
            "held_out: {arithmetic",
            "held_out:\n  - {path: a.jsonl}\n  - {limt: 0, arithmetic",
            "run.yaml:9: problems.held_out.1.limt: ",
            "did you mean 'limit'?",
        ),
        ("{digits: 1}", "{digits: 4}", "run.yaml:6: problems.train.arithmetic.digits: ", "equal to 3, not 4"),
        ("{digits: 1}", "{operators: +/}", "run.yaml:6: problems.train.arithmetic.operators: ", "not '+/'"),
        (
            "  prompts: 4",
            "  prompts: 4\n  prompts_per_shard: 5",
            "run.yaml:10: rollouts.prompts_per_shard: ",
            "5 is",
        ),
        ("  beta: 0.05", "  beta: 0", "run.yaml:14: objective.beta: ", "greater than 0, not 0"),
        ("  beta: 0.05", "  beta: .nan", "run.yaml:14: objective.beta: ", "finite"),
        ("  beta: 0.05", "  beta: .inf", "run.yaml:14: objective.beta: ", "finite"),
        ("  beta: 0.05", "  beta: small", "run.yaml:14: objective.beta: ", "not 'small'"),
        ("  beta: 0.05", "  beta: 1\n  betta: 1", "run.yaml:15: objective.betta: ", "did you mean 'beta'?"),
        ("  capacity: 16", "  capacity: 7", "run.yaml:16: replay.capacity: ", "(4 prompts × 2 samples = 8)"),
        ("  capacity: 16", "  capacity: 16\n  sampling: new", "run.yaml:17: replay.sampling: ", "'prioritised'"),
        ("  capacity: 16", "  capacity: 16\n  capcity: 1", "run.yaml:17: replay.capcity: ", "mean 'capacity'?"),
        (
            "  updates: 2",
            "  zzz: 0.9\n  updates: 2",
            "run.yaml:18: learner.zzz: ",
            "known here: updates, least_",
        ),
        ("  updates: 2", "  betas: 0.9\n  updates: 2", "run.yaml:18: learner.betas: ", "not 0.9"),
        ("  updates: 2", "  betas: [0.9]\n  updates: 2", "run.yaml:18: learner.betas.1: ", "is missing"),
        ("  updates: 2", "  betas: [0, x]\n  updates: 2", "run.yaml:18: learner.betas.1: ", "not 'x'"),
        ("learner:", "learner: 3\nleaner:", "run.yaml:17: learner: ", "not 3"),
        ("seed: 0", "verification: {methods: [whole, boxd]}", "run.yaml:1: verification.methods.1: ", "'boxd'"),
        ("seed: 0", "verification: {methods: []}", "run.yaml:1: verification.methods: ", "at least 1"),
        ("seed: 0", "verification: {methods: whole}", "run.yaml:1: verification.methods: ", "not 'whole'"),
    ],
)
def test_an_error_names_file_line_and_field(
    refused: Refused, line: str, instead: str, place: str, words: str
) -> None:
    assert line in RUN
    message = refused(RUN.replace(line, instead, 1))
    assert message.startswith(place)
    assert words in message.replace(": must", " must")


@pytest.mark.parametrize(
    ("line", "instead", "place", "words"),
    [
        (
            "  capacity: 16",
            "  capacity: 16\n  importance_exponent: [0, 2]",
            "run.yaml:17: replay.impo",
            "from 0 to 1",
        ),
        ("  updates: 2", "  updates: 2\n  betas: [0.9, 1.0]", "run.yaml:19: learner.betas: ", "below 1"),
        ("{digits: 1}", "{operators: ++}", "run.yaml:6: problems.train.arithmetic.operators: ", "duplicate"),
        ("  kind: reval", "  kind: revel", "run.yaml:13: objective.kind: ", "must be one of 'reval', "),
        ("  kind: reval\n", "", "run.yaml:12: objective.kind: ", "is missing"),
        (
            "  beta: 0.05",
            "  beta: 1\n  clip_low: 0.2",
            "run.yaml:15: objective.clip_low: ",
            "unknown key",
        ),
    ],
)
def test_a_check_of_a_whole_section_names_the_key_at_fault(
    refused: Refused, line: str, instead: str, place: str, words: str
) -> None:
    assert line in RUN
    message = refused(RUN.replace(line, instead, 1))
    assert message.startswith(place)
    assert words in message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (RUN + "seed: 1\n", "run.yaml:20: seed: is a duplicate key"),
        (RUN.replace("lr: 1.0e-4", "lr: 1\n  lr: 2"), "run.yaml:20: learner.lr: is a duplicate key"),
        (RUN.replace("width: 16", "width: 16, width: 32"), "run.yaml:4: model.tiny.width: is a duplicate key"),
        (RUN + "learner: {updates: 1, lr: 1}\n", "run.yaml:20: learner: is a duplicate key"),
    ],
)
def test_a_duplicate_key_is_refused_at_its_second_occurrence(refused: Refused, text: str, place: str) -> None:
    assert refused(text).startswith(place)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- seed\n- rounds\n", "seed", "3"])
def test_a_file_without_settings_is_refused(refused: Refused, text: str) -> None:
    assert refused(text) == "run.yaml: contains no settings; see configs/demo.yaml for an example"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 0\nrounds: [1\nmodel: {}\n", 3),
        ("seed: 0\n\trounds: 1\n", 2),
        ("seed: *nothing\n", 1),
        ("seed: 0\n? [a, b]\n: 1\n", 2),
        ("seed: 0\n---\nrounds: 1\n", 2),
        ("seed: !secret 0\n", 1),
    ],
)
def test_broken_yaml_is_refused_with_its_line(refused: Refused, text: str, line: int) -> None:
    message = refused(text)
    assert message.startswith(f"run.yaml:{line}: ")
    assert "unicode string" not in message


def test_a_control_character_is_refused(refused: Refused) -> None:
    assert refused("seed: \x01\n").startswith("run.yaml: ")


@pytest.mark.parametrize(
    "text",
    ["seed: 2024-13-01\n", "seed: !!int many\n", "seed: &a {b: *a}\n", b"seed: \xff\n"],
    ids=["no date", "no integer", "its own value", "not UTF-8"],
)
def test_yaml_that_cannot_be_constructed_is_refused(refused: Refused, text: str | bytes) -> None:
    assert refused(text).startswith("run.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_directory_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        load_config(tmp_path)


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


def test_a_missing_required_key_is_named(refused: Refused) -> None:
    messages = {}
    for key, model, field in KEYS:
        if field.is_required() and key not in ("objective.kind", "rollouts.source", "engine.kind"):
            *sections, name = key.split(".")
            values = yaml.safe_load(RUN)
            section = values
            for part in sections:
                section = section.setdefault(part, {})
            if model in OBJECTIVES:
                section |= yaml.safe_load(f"{{{OBJECTIVES[model]}}}")
                if model in (Grpo, CustomObjective):
                    section.pop("beta")
            if model in SOURCES:
                section.clear()
                section |= yaml.safe_load(f"{{{SOURCES[model]}}}")
            if model in ENGINES:
                section |= yaml.safe_load(f"{{{ENGINES[model]}}}")
            section.pop(name, None)
            messages[key, model] = refused(yaml.safe_dump(values, sort_keys=False))
    assert len(messages) > 12
    assert [key for key, message in messages.items() if not message.endswith(f": {key[0]}: is missing")] == []


def test_a_misspelt_key_gets_a_suggestion(refused: Refused) -> None:
    messages = {}
    for key, model, _ in KEYS:
        name = key.split(".")[-1]
        if len(name) > 3:
            misspelt = key[:-2] + (key[:-3:-1] if name[-1] != name[-2] else "")
            messages[key, model] = refused(RUN, *ground(key, model), f"{misspelt}=1")
            expected = f"--set {misspelt}=1: {misspelt}: unknown key; did you mean '{name}'?"
            assert messages[key, model] == expected
    assert len(messages) > 60


def test_text_is_not_a_number(refused: Refused) -> None:
    for key, model, field in NUMBERS:
        value = "[many, 0]" if isinstance(field.default, tuple) else "many"
        message = refused(RUN, *ground(key, model), f"{key}={value}")
        assert message.startswith(f"--set {key}={value}: {key}")
        assert "'many'" in message


def test_true_is_not_a_number(refused: Refused) -> None:
    messages = {}
    for key, model, field in NUMBERS:
        value = "[true, 0]" if isinstance(field.default, tuple) else "true"
        message = refused(RUN, *ground(key, model), f"{key}={value}")
        if not message.startswith(f"--set {key}={value}: {key}: ") or "true" not in message:
            messages[key] = message
    assert messages == {}


def test_a_number_out_of_range_is_refused(refused: Refused) -> None:
    tried = 0
    for key, model, field in NUMBERS:
        for value in out_of_range(field):
            message = refused(RUN, *ground(key, model), f"{key}={value}")
            assert message.startswith(f"--set {key}={value}: {key}: input should be ")
            tried += 1
    assert tried > 40


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("learner.lr=-1", "learner.lr: ", "greater than 0, not -1"),
        ("learner.lr=", "learner.lr: ", "not None"),
        ("verification.methods=[boxd]", "verification.methods.0: ", "'boxd'"),
        ("replay.capacity=7", "replay.capacity: ", "7 is less than one round"),
        ("evaluation={evry: 1}", "evaluation.evry: ", "did you mean 'every'?"),
        ("learner.lr=[1", "", "','"),
        ("learner.lr=!!python/name:os.system", "", "python/name"),
        ("rounds", "", "must look like learner.lr=1e-4"),
        ("=3", "", "must look like learner.lr=1e-4"),
        ("", "", "must look like learner.lr=1e-4"),
    ],
)
def test_an_error_names_the_override_at_fault(refused: Refused, override: str, field: str, words: str) -> None:
    message = refused(RUN, override)
    assert message.startswith(f"--set {override}: {field}")
    assert words in message


@pytest.mark.parametrize("override", ["learner={lr: 1}", "learner={updates: -1, lr: 1}", "rounds.number=2"])
def test_an_override_of_a_section_is_named_for_all_its_keys(refused: Refused, override: str) -> None:
    assert refused(RUN, override).startswith(f"--set {override}: ")


def test_an_override_can_set_any_key_and_creates_missing_sections(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        RUN,
        "seed=7",
        "learner.lr=1e-4",
        "model.tiny.layers=3",
        "reference.reset_every=5",
        "problems.prompt.user='Q: {problem}'",
        "verification.methods=[whole, choice]",
        "objective={kind: grpo, clip_low: 0.1}",
        "tracking.uri=sqlite:///a=b.db",
    )
    assert (config.seed, config.learner.lr, config.reference.reset_every) == (7, 1e-4, 5)
    assert config.model.tiny is not None
    assert (config.model.tiny.layers, config.model.tiny.width) == (3, 16)
    assert config.problems.prompt.user == "Q: {problem}"
    assert config.verification.methods == ("whole", "choice")
    assert config.objective == Grpo(kind="grpo", clip_low=0.1)
    assert config.tracking.uri == "sqlite:///a=b.db"


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    assert load(tmp_path, RUN, "seed=1", "seed=2").seed == 2


def test_an_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load("1e-4"), str)  # as YAML 1.1 has it
    assert load(tmp_path, RUN.replace("1.0e-4", "1e-4")).learner.lr == 1e-4


def test_paths_of_problems_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config = load(tmp_path, RUN, "problems.train={path: data/train.jsonl}", "model={path: model}")
    assert config.problems.train.path == str(tmp_path / "data/train.jsonl")
    assert config.model.path == str(tmp_path / "model")


def test_a_model_of_the_hub_keeps_its_name(tmp_path: Path) -> None:
    assert load(tmp_path, RUN, "model={path: org/name}").model.path == "org/name"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_is_shipped_loads(path: Path) -> None:
    assert load_config(path).rounds >= 1


def test_a_demo_is_shipped() -> None:
    assert "demo.yaml" in [path.name for path in CONFIGS]


rates = st.floats(1e-9, 1e9)
shares = st.floats(0, 1)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x85"))  # PyYAML reads its own \x85 as a blank
counts = st.integers(1, 10**6)


def test_a_named_prompt_is_the_papers_and_the_config_shows_it_in_full(tmp_path: Path) -> None:
    for name, prompt in PROMPTS.items():
        config = load(tmp_path, RUN.replace("problems:", f"problems:\n  prompt: {name}"))
        assert config.problems.prompt == prompt
        assert config.model_dump()["problems"]["prompt"]["user"].startswith(
            "{problem} Let's think step by step and"
        )
    assert PROMPTS["deepseek"].system is None
    assert PROMPTS["qwen"].system == r"Please reason step by step, and put your final answer within \boxed{}."


def test_held_out_is_one_set_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = load(tmp_path, RUN)
    several = load(tmp_path, RUN, "problems.held_out=[{set: gsm8k}, {path: data/mine.csv, limit: 3}]")
    none = load(
        tmp_path,
        RUN,
        "problems.held_out=null",
        "rollouts={source: stored, run: a, batch: 4}",
        "replay.first=buffer",
    )
    assert one.problems.held_out == (ProblemSet(arithmetic=Arithmetic(digits=1, split="held_out")),)
    assert several.problems.held_out == (
        ProblemSet(set="gsm8k"),
        ProblemSet(path=str(tmp_path / "data/mine.csv"), limit=3),
    )
    assert none.problems.held_out == ()
    assert Problems(held_out=one.problems.held_out[0]) == Problems(held_out=one.problems.held_out)


def extended(directory: Path, base: str, own: str) -> Config:
    (directory / "base.yaml").write_text(base, encoding="utf-8")
    return load(directory, f"extends: base.yaml\n{own}")


def test_a_file_that_extends_another_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = extended(
        tmp_path, RUN, "rounds: 5\nlearner: {lr: 0.5}\nmodel: {tiny: {layers: 3}}\nreplay: {capacity: 9}"
    )
    changed = ("rounds=5", "learner.lr=0.5", "model.tiny.layers=3", "replay.capacity=9")
    assert config == load(tmp_path, RUN, *changed)
    assert "extends" not in config.model_dump()


def test_a_section_of_another_kind_replaces_the_extended_one(tmp_path: Path) -> None:
    assert extended(tmp_path, RUN, "objective: {kind: grpo}").objective == Grpo(kind="grpo")
    assert extended(tmp_path, RUN, "objective: {kind: tbrm, beta: 2}").objective == Tbrm(kind="tbrm", beta=2)
    assert extended(tmp_path, RUN, "objective: {kind: reval, huber: 3}").objective == Reval(
        kind="reval", beta=0.05, huber=3
    )


def test_extends_can_be_chained_and_is_relative_to_each_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "base.yaml").write_text(RUN, encoding="utf-8")
    (tmp_path / "inner/middle.yaml").write_text("extends: ../base.yaml\nseed: 1\nrounds: 7", encoding="utf-8")
    config = load(tmp_path, "extends: inner/middle.yaml\nseed: 2")
    assert (config.seed, config.rounds, config.learner.updates) == (2, 7, 2)


@pytest.mark.parametrize(
    ("base", "own", "message"),
    [
        (RUN.replace("lr: 1.0e-4", "lr: -1"), "seed: 1", "base.yaml:19: learner.lr: input should be greater"),
        (RUN, "seed: 1\nlearner: {lr: -1}", "run.yaml:3: learner.lr: input should be greater"),
        (RUN, "learner: {rl: 1}", "run.yaml:2: learner.rl: unknown key; did you mean 'lr'?"),
        (RUN.replace("seed", "sede"), "rounds: 1", "base.yaml:1: sede: unknown key"),
        (RUN, "seed: 1\nobjective: {kind: tbrm}", "run.yaml:3: objective.beta: is missing"),
        (RUN, "seed: 1\nrollouts: {samples: 5}", "base.yaml:16: replay.capacity: 16 is less than one round"),
        (RUN, "extends: base.yaml", "run.yaml:2: extends: is a duplicate key"),
        ("extends: run.yaml", "seed: 1", "base.yaml:1: extends: run.yaml extends itself"),
        ("extends: no.yaml", "seed: 1", "base.yaml:1: extends: no such file: no.yaml"),
        (
            "extends: [a]",
            "seed: 1",
            "base.yaml:1: extends: must be a path relative to this file's directory, not ['a']",
        ),
        ("seed: [", "seed: 1", "base.yaml:1: is not YAML"),
    ],
)
def test_an_error_names_the_file_at_fault(tmp_path: Path, base: str, own: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        extended(tmp_path, base, own)
    assert str(refusal.value).replace(f"{tmp_path}/", "").startswith(message)


paths = st.from_regex(r"/[a-z]{1,8}/[a-z]{1,8}\.jsonl", fullmatch=True)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any settings that pass the checks, with all optional keys drawn too."""

    def section(**values: st.SearchStrategy[Any]) -> dict[str, Any]:
        return draw(st.fixed_dictionaries({}, optional=values))

    heads = draw(st.integers(1, 8))
    characters = st.lists(
        st.characters(codec="utf-8", exclude_characters="\x85"), min_size=1, max_size=20, unique=True
    ).map("".join)
    tiny = section(layers=st.integers(1, 256), feed_forward=st.integers(8, 999), characters=characters)
    tiny |= {"heads": heads, "width": 2 * heads * draw(st.integers(8, 64))}
    arithmetic = st.fixed_dictionaries(
        {"digits": st.integers(1, 3), "operators": st.sampled_from(["+", "-*"]), "split": st.just("held_out")}
    )
    problems = st.one_of(
        st.fixed_dictionaries({"path": paths, "limit": maybe(counts)}),
        st.fixed_dictionaries({"arithmetic": arithmetic}),
    )
    chat = draw(st.booleans())
    prompt = {"user": draw(texts) + "{problem}" + draw(texts), "chat": chat}
    if chat:
        prompt["system"] = draw(maybe(texts))
    objective = draw(
        st.one_of(
            st.fixed_dictionaries({"kind": st.sampled_from(["reval", "tbrm", "regression"]), "beta": rates}),
            st.fixed_dictionaries({"kind": st.just("reval"), "beta_times_length": rates}),
            st.fixed_dictionaries({"kind": st.just("grpo")}, optional={"clip_high": rates}),
        )
    )
    prompts, samples = draw(st.integers(1, 100)), draw(st.integers(2, 16))
    with_beta = objective["kind"] != "grpo"
    kinds = ["uniform", "fresh"] + ["prioritised"] * with_beta
    resets = [{}, {"reset_every": None}, {"reset_every": 3}] + [{"reset_below": 0.3}] * with_beta
    return Config.model_validate(
        {
            "seed": draw(st.integers(0, 2**63 - 1)),
            "rounds": draw(counts),
            "threads": draw(maybe(st.integers(1, 1024))),
            "model": draw(st.sampled_from([{"tiny": tiny}, {"path": "org/name", "trust_remote_code": True}])),
            "problems": {"train": draw(problems), "held_out": draw(problems), "prompt": prompt},
            "rollouts": {"prompts": prompts, "samples": samples, "max_tokens": draw(counts)}
            | section(prompts_per_shard=st.integers(1, prompts), temperature=rates),
            "verification": section(
                methods=st.lists(st.sampled_from(get_args(Method)), min_size=1), timeout_seconds=rates
            ),
            "reward": section(kind=st.sampled_from(["binary", "centred", "signed"])),
            "objective": objective,
            "replay": {"capacity": prompts * samples + draw(counts), "sampling": draw(st.sampled_from(kinds))}
            | section(importance_exponent=st.tuples(shares, shares), priority_offset=rates),
            "learner": {"updates": draw(counts), "lr": draw(rates)}
            | section(weight_decay=rates, **{"least_updates": st.just(1)} if with_beta else {}),
            "reference": draw(st.sampled_from(resets)),
            "tracking": section(uri=maybe(texts), experiment=texts),
        }
    )


@settings(max_examples=20, deadline=None, phases=[Phase.reuse, Phase.generate, Phase.shrink])
@given(config=configs())
def test_dumped_settings_load_unchanged(config: Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    assert load(tmp_path_factory.getbasetemp(), text) == config


def test_the_reference_of_settings_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_config.py"))
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == made["reference"](), "run docs/make_config.py"


def test_the_reference_has_a_row_for_every_key() -> None:
    text = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    parts = [part.partition("\n")[2].lstrip() for part in text.split("\n#")]
    for key, model, _ in KEYS:
        about = [part for part in parts if part.startswith(str(model.__doc__))]
        assert about, model
        assert all(f"\n| `{key.split('.')[-1]}`" in part for part in about), key


def test_every_key_is_documented() -> None:
    meaning = runpy.run_path(str(ROOT / "docs/make_config.py"))["meaning"]
    assert [key for key, _, field in KEYS if len(meaning(field)) < 6] == []
