"""Configs that the tests of the settings start from, and the list of every key."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reval_core.config import (
    AutoEngine,
    Config,
    CustomObjective,
    Grpo,
    Hub,
    ImportedRollouts,
    Overlong,
    Regression,
    Reval,
    StoredRollouts,
    Tbrm,
    VllmEngine,
    VllmServerEngine,
)
from reval_core.config.loader import load_config

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
