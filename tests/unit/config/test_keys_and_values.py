"""Missing and misspelt keys, values of the wrong type and out of range, overrides."""

from pathlib import Path

import pytest
import yaml

from reval_core.config import (
    PROMPTS,
    Arithmetic,
    CustomObjective,
    Grpo,
    Problems,
    ProblemSet,
)
from reval_core.config.loader import load_config
from reval_core.config.section import _notice
from tests.unit.config.documents import (
    CONFIGS,
    ENGINES,
    KEYS,
    NUMBERS,
    OBJECTIVES,
    RUN,
    SOURCES,
    Refused,
    ground,
    load,
    out_of_range,
)


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


def test_an_earlier_name_of_a_key_works_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _notice.cache_clear()
    for earlier in (
        load(tmp_path, RUN, "engine.gap_limit=0.3"),
        load(tmp_path, RUN + "engine: {gap_limit: 0.3}\n"),
    ):
        assert earlier == load(tmp_path, RUN, "engine.mismatch_limit=0.3")
        assert "gap_limit" not in earlier.model_dump()["engine"]
    (notice,) = caplog.messages
    assert notice == "config: gap_limit is now called mismatch_limit; the earlier name still works"


def test_an_earlier_name_is_refused_beside_the_present_one(refused: Refused) -> None:
    message = refused(RUN + "engine: {gap_limit: 0.3, mismatch_limit: 0.2}\n")
    assert message.startswith("run.yaml:20: engine"), message
    assert message.endswith("is the earlier name of mismatch_limit; give only mismatch_limit")


def test_a_value_under_an_earlier_name_is_checked_as_under_the_present_one(refused: Refused) -> None:
    message = refused(RUN + "engine: {gap_limit: true}\n")
    assert message.endswith("must not be true or false"), message
