"""Untrusted YAML: invalid configs are refused in one line, with little time and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reval_core.config.loader import load_config
from reval_core.config.yaml_files import DEEPEST, LARGEST, LONGEST, parse_yaml, read_section, read_yaml
from reval_core.errors import InputError
from reval_core.storage.run_directory import RunDirectory
from tests.runs import small_config


def doubling(first: str, line: str, times: int) -> str:
    """A text in which every line refers to the previous line several times."""
    return "\n".join(
        [f"a0: &a0 {first}", *(line.replace("N", str(i)).replace("P", str(i - 1)) for i in range(1, times))]
    )


HOSTILE = {
    "lists of lists": doubling("[x, x]", "aN: &aN [*aP, *aP, *aP, *aP, *aP, *aP, *aP, *aP]", 12),
    "sections of sections": doubling("{k: 1}", "aN: &aN {x: *aP, y: *aP}", 40),
    "merges of merges": doubling("{k: 1}", "aN: &aN {<<: [*aP, *aP, *aP], kN: 1}", 20),
    "a chain of aliases": doubling("x", "aN: &aN [*aP]", 2000),
    "brackets": "[" * 10_000,
    "braces": "{a: " * 10_000,
    "dashes": "- " * 10_000,
    "questions": "? " * 10_000,
    "a list in itself": "a: &a [*a]",
    "a section in itself": "&a {b: *a}",
    "a key that is its own value": "&a {*a : 1}",
    "a merge with itself": "a: &a {<<: *a}",
    "many keys": "".join(f"k{i}: 1\n" for i in range(LARGEST)),
    "a long number": f"a: {'9' * 5000}",
    "a long number in base 60": f"a: 1{':1' * 50_000}",
    "a long number in base 16": f"a: 0x{'f' * 5000}",
    "a Python object": "a: !!python/object/apply:os.system [ls]",
    "bytes": "a: !!binary aGVq",
    "a set": "a: !!set {x}",
    "a tag of one's own": "a: !mine x",
    "no number": "a: !!int ''",
    "no truth": "a: !!bool 7",
    "half a character": 'a: "\\ud800"',
    "a list as a key": "? [a]\n: 1",
    "two documents": "a: 1\n---\nb: 2",
    "a merge with a number": "a: {<<: 3}",
    "an unknown alias": "a: *b",
    "a null character": "a: \0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(HOSTILE[name], encoding="utf-8")
    for read in (read_yaml, load_config):
        with pytest.raises(InputError) as refused:
            read(path)
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300
    with pytest.raises(InputError, match="--set"):
        load_config(config(tmp_path), [f"seed={HOSTILE[name]}"])


def config(directory: Path) -> Path:
    path = directory / "whole.yaml"
    path.write_text("seed: 0\n")
    return path


def test_the_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"a: 1\nb: {10**70}\n")
    with pytest.raises(InputError, match=r"config\.yaml:2: .*number of 71 char"):
        read_yaml(path)


def test_a_duplicate_key_is_named_with_its_section(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a:\n  b: 1\n  b: 2\n")
    with pytest.raises(InputError, match=r"config\.yaml:3: a\.b: is a duplicate key"):
        read_section(path)
    with pytest.raises(InputError, match=r"--set learner=\{lr: 1, lr: 2\}: lr: is a duplicate key"):
        load_config(config(tmp_path), ["learner={lr: 1, lr: 2}"])


def test_reading_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            read_yaml(path)


def test_a_long_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("#" * (LONGEST + 1))
    with pytest.raises(InputError, match="larger than the maximum of 256 KB"):
        read_yaml(path)


def test_legitimate_anchors_merges_and_dates_are_read() -> None:
    text = "base: &base {lr: 1.0e-4, on: 2024-01-01}\none: {<<: *base, updates: 2}\ntwo: *base\n"
    found = parse_yaml(text, "text").values
    assert found["one"] == {"lr": 1e-4, True: "2024-01-01", "updates": 2}
    found["two"]["lr"] = 1.0
    assert found["base"]["lr"] == 1e-4, "places that share an anchor share their values"
    assert parse_yaml(text, "text").lines["two",] == 3
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST, "text").values


def test_a_run_directory_with_a_hostile_config_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    for text in HOSTILE.values():
        directory.config.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"config\.yaml.*delete it"):
            directory.check(small_config())
