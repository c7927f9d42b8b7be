"""Hostile inputs, each with what it is and what reval does with it: the cases of `test_hostile_inputs.py`.

`docs/hostile_inputs.md` is made of this list by `docs/make_hostile_inputs.py`.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reval_core.atomic_files import CHECKSUMS, file_digest, publish_sealed, read_json, read_sealed


@dataclass(frozen=True)
class Hostile:
    """An input: how it is created in a directory, and its outcome."""

    what: str
    make: Callable[[Path], object]
    said: str | None = None
    """A pattern of the one-line refusal; None if the input is used, with a correct result."""


class _Attack:
    """A pickle that creates a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch attacked",)


def _resealed(name: str, **changes: Any) -> Callable[[Path], object]:
    """A sealed file of a run with other values and a matching seal."""
    return lambda run: publish_sealed(run / name, {**read_sealed(run / name), **changes})


def _with_file(**changes: Any) -> Callable[[Path], object]:
    """The manifest of round 1's rollouts with another first file."""

    def make(run: Path) -> None:
        place = run / "rollouts/round=00001/manifest.json"
        manifest = read_sealed(place)
        first, *others = manifest["files"]
        publish_sealed(place, {**manifest, "files": [{**first, **changes}, *others]})

    return make


def _in_checkpoint(name: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """A file of the newest checkpoint with other content and matching checksums."""

    def make(run: Path) -> None:
        checkpoint = max(run.glob("checkpoints/round=*"))
        file = checkpoint / name
        file.write_bytes(content(file.read_bytes()) if callable(content) else content)
        sums = {**read_json(checkpoint / CHECKSUMS), name: file_digest(file)}
        (checkpoint / CHECKSUMS).write_text(json.dumps(sums))

    return make


def _link(name: str, target: str) -> Callable[[Path], object]:
    def make(run: Path) -> None:
        if (run / name).exists():
            os.replace(run / name, run.parent / "was there")
        (run / name).symlink_to(run.parent / target)

    return make


def _pipe(name: str) -> Callable[[Path], object]:
    def make(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return make


def _written(name: str, content: bytes | str) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content

    def make(directory: Path) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(raw)

    return make


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A YAML text of 400 bytes that expands to 9 to the power of 9 items."""

DEEP = "[" * 100_000

RUN_DIRECTORIES = [
    Hostile("a symbolic link instead of the lock", _link("lock", "precious"), r"lock: is a symbolic link"),
    Hostile(
        "a symbolic link instead of the directory facts/", _link("facts", "elsewhere"), r"facts: is a symbolic link"
    ),
    Hostile(
        "a symbolic link with the name of the next file to be written",
        _link("config.yaml.partial", "precious"),
        r"config\.yaml\.partial: is a symbolic link",
    ),
    Hostile("a named pipe instead of the config", _pipe("config.yaml"), r"config\.yaml: is a named pipe"),
    Hostile("a named pipe instead of machine.json", _pipe("machine.json"), r"machine\.json: is a named pipe"),
    Hostile("nested aliases in its config.yaml", _written("config.yaml", BOMB), r"config\.yaml"),
    Hostile("a config.yaml that is a list", _written("config.yaml", "- 1\n"), r"config\.yaml"),
    Hostile(
        "a Python object in its config.yaml",
        _written("config.yaml", "a: !!python/name:os.system\n"),
        r"config\.yaml",
    ),
    Hostile("a manifest that lists ../precious", _with_file(path="../precious")),
    Hostile("a manifest that lists /etc/passwd", _with_file(path="/etc/passwd")),
    Hostile("a manifest that lists an unknown table", _with_file(table="passwords")),
    Hostile("a manifest of 100,000 brackets", _written("rollouts/round=00001/manifest.json", DEEP)),
    Hostile("a manifest whose round is text", _resealed("facts/round=00001/sampling.json", round="one")),
    Hostile(
        "a warm start that names no policy",
        _resealed("facts/round=00000/warm_start.json", info={}),
        r"warm_start\.json: has no 'policy'",
    ),
    Hostile(
        "a machine with 10^9 threads", _resealed("machine.json", threads=10**9), r"machine\.json.*threads.*10{9}"
    ),
    Hostile("a machine with 'all' threads", _resealed("machine.json", threads="all"), r"machine\.json.*threads"),
    Hostile(
        "a checkpoint whose optimizer is not a safetensors file",
        _in_checkpoint("optimizer.safetensors", b"x" * 99),
        r"optimizer\.safetensors: cannot be read",
    ),
    Hostile(
        "a checkpoint whose weights are a pickle",
        _in_checkpoint("model.safetensors", pickle.dumps(_Attack())),
        r"model\.safetensors",
    ),
    Hostile(
        "a checkpoint that contains its own code",
        _in_checkpoint(
            "config.json",
            lambda given: json.dumps(
                {**json.loads(given), "auto_map": {"AutoModelForCausalLM": "attack.Model"}}
            ).encode(),
        ),
    ),
    Hostile("a database that is a text file", _written("replay.duckdb", "SELECT 1")),
    Hostile(
        "notes on checkpoints of other directories", _written("check.json", '{"damaged_checkpoints": ["../x"]}')
    ),
    Hostile(
        "attempts without an end",
        _written("attempts/0001.json", '{"started_at": 1}'),
        r"0001\.json: has no 'last_seen_at'",
    ),
]
"""Each is created in a copy of an unfinished run, which is then resumed."""

CONFIGS = [
    Hostile("nested aliases, 400 bytes for 9^9 items", _written("config.yaml", BOMB), r"config\.yaml.*alias|expan"),
    Hostile("100,000 brackets", _written("config.yaml", DEEP), r"config\.yaml"),
    Hostile(
        "a Python object to construct",
        _written("config.yaml", "seed: !!python/object/apply:os.system [x]\n"),
        r"config\.yaml",
    ),
    Hostile("an alias that refers to itself", _written("config.yaml", "a: &a [*a]\n"), r"config\.yaml"),
    Hostile("a file that extends itself", _written("config.yaml", "extends: config.yaml\n"), r"extends itself"),
    Hostile("a file that extends /dev/zero", _written("config.yaml", "extends: /dev/zero\n"), r"no such file"),
    Hostile("null bytes", _written("config.yaml", b"rounds: 1\x00\n"), r"config\.yaml"),
    Hostile("UTF-16", _written("config.yaml", "rounds: 1\n".encode("utf-16")), r"config\.yaml"),
    Hostile("a seed of 31 digits", _written("more", f"seed: {10**30}\n"), r"seed"),
    Hostile("10^12 threads", _written("more", f"threads: {10**12}\n"), r"threads"),
    Hostile("10^9 layers", _written("more", "model: {tiny: {layers: 1000000000}}\n"), r"model\.tiny\.layers"),
    Hostile("10^15 rounds", _written("more", f"rounds: {10**15}\n"), r"the run needs about|rounds"),
    Hostile("an infinite learning rate", _written("more", "learner: {updates: 2, lr: .inf}\n"), r"learner\.lr"),
    Hostile("escape sequences in a key", _written("more", '"\\e[2Jx": 1\n'), r"unknown key"),
    Hostile(
        "a reward function that is not user code",
        _written("more", "reward: {function: 'os:nothing'}\n"),
        r"reward\.function",
    ),
]
"""Each is a config, or settings that override a valid one."""


def _lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


SUM = {"problem": "1+1=", "answer": "2"}

PROBLEM_FILES = [
    Hostile("100,000 brackets", _written("p.jsonl", _lines(SUM, DEEP)), r"p\.jsonl:2"),
    Hostile(
        "a number of 10,000 digits",
        _written("p.jsonl", _lines('{"problem": "x", "answer": ' + "1" * 10_000 + "}")),
        r"p\.jsonl:1",
    ),
    Hostile(
        "a lone surrogate",
        _written("p.jsonl", _lines('{"problem": "\\ud800", "answer": "1"}')),
        r"p\.jsonl:1: problem",
    ),
    Hostile(
        "an answer that is a mapping",
        _written("p.jsonl", _lines({**SUM, "answer": {"a": 1}})),
        r"p\.jsonl:1: answer",
    ),
    Hostile(
        "an answer that is NaN",
        _written("p.jsonl", _lines('{"problem": "x", "answer": NaN}')),
        r"p\.jsonl:1: answer",
    ),
    Hostile(
        "two rows with the same id",
        _written("p.jsonl", _lines({**SUM, "prompt_id": "a"}, {**SUM, "prompt_id": "a"})),
        r"p\.jsonl:2: prompt_id",
    ),
    Hostile(
        "a CSV file with an unterminated quote",
        _written("p.csv", 'problem,answer\n"1+1=,2\n' + "x" * 200_000),
        r"p\.csv",
    ),
    Hostile("a truncated Parquet file", _written("p.parquet", b"PAR1" + b"\x00" * 100), r"p\.parquet"),
    Hostile("a JSON list of numbers", _written("p.json", "[1, 2]"), r"p\.json: row 1"),
    Hostile(
        "no column for the problem",
        _written("p.jsonl", _lines({"q\x1b[31m": "x"})),
        r"has no column for the problem",
    ),
    Hostile("an HTML page", _written("p.jsonl", "<!DOCTYPE html>\n<html>\n"), r"p\.jsonl:1"),
    Hostile(
        "terminal escape sequences, right-to-left overrides, line separators and null characters",
        _written(
            "p.jsonl",
            _lines(
                *(
                    {"problem": f"{one}1+1=", "answer": "2"}
                    for one in ("\x1b[2J", "\u202e", "\u2028", "\x00", "\x9b31m")
                )
            ),
        ),
    ),
    Hostile(
        "problems that spell control tokens",
        _written("p.jsonl", _lines({"problem": "</s>1+1=</s>", "answer": "2"})),
    ),
    Hostile(
        "a gold that would take years to evaluate",
        _written("p.jsonl", _lines({"problem": "x", "answer": "9^{9^{9^{9}}}"})),
    ),
    Hostile("a gold of mismatched braces", _written("p.jsonl", _lines({"problem": "x", "answer": "}{" * 500}))),
    Hostile(
        "ids that look like paths and formulas",
        _written(
            "p.jsonl",
            _lines(
                {**SUM, "prompt_id": "../../x"},
                {"problem": "2+2=", "answer": "4", "prompt_id": "=cmd|'/c calc'!A1"},
            ),
        ),
    ),
]
"""Each is a run's training problems. Those that are used complete a whole round."""

REPLY = {"problem": "1+1=", "response": "2", "gold": "2"}

RESPONSE_FILES = [
    Hostile("100,000 brackets", _written("r.jsonl", _lines(REPLY, DEEP)), r"r\.jsonl:2"),
    Hostile(
        "a reward that is infinite",
        _written("r.jsonl", _lines('{"problem": "1", "response": "2", "reward": Infinity}')),
        r"r\.jsonl:1: reward",
    ),
    Hostile(
        "a reward that is text",
        _written("r.jsonl", _lines({"problem": "1", "response": "2", "reward": "many"})),
        r"r\.jsonl:1: reward",
    ),
    Hostile(
        "a response that is a lone surrogate",
        _written("r.jsonl", _lines('{"problem": "1", "response": "\\udfff", "gold": "1"}')),
        r"r\.jsonl:1: response",
    ),
    Hostile("only empty responses", _written("r.jsonl", _lines({**REPLY, "response": ""})), r"r\.jsonl"),
    Hostile(
        "neither gold nor reward", _written("r.jsonl", _lines({"problem": "1", "response": "2"})), r"r\.jsonl:1"
    ),
    Hostile("a Parquet file that is a pickle", _written("r.parquet", pickle.dumps(_Attack())), r"r\.parquet"),
    Hostile(
        "a response that hangs computer algebra",
        _written("r.jsonl", _lines(REPLY, {**REPLY, "response": r"\sum_{k=1}^{2} \binom{10000000}{5000000}"})),
    ),
    Hostile(
        "10,000 unclosed boxes",
        _written("r.jsonl", _lines(REPLY, {**REPLY, "response": r"\boxed{" * 250})),
    ),
    Hostile("end-of-text tokens in the middle", _written("r.jsonl", _lines({**REPLY, "response": "2</s>3</s>"}))),
    Hostile(
        "escape sequences and null characters",
        _written("r.jsonl", _lines({**REPLY, "response": "2\x1b]0;x\x07\x00"})),
    ),
]
"""Each is imported."""
