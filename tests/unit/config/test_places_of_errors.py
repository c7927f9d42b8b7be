"""Where an error of a config is: file, line and field; broken YAML; files that are none."""

from pathlib import Path

import pytest

from reval_core.config.loader import load_config
from reval_core.errors import InputError
from tests.unit.config.documents import RUN, Refused


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
