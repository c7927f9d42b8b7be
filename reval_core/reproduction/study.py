"""What a figure takes: its settings, and the runs that they stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from reval_core.config import Config
from reval_core.config.loader import load_config, load_settings
from reval_core.config.places import check_directory, check_local
from reval_core.config.section import Section
from reval_core.errors import InputError
from reval_core.reproduction.prompt_search import PromptSearch

SMALL = Path(__file__).parents[2] / "configs" / "paper" / "small"
"""The configs of the runs; beside them one YAML a figure in `figures/`, one a search for prompts in `prompts/`."""


class Figure(Section):
    """A figure of the paper, or one past it, as a set of runs."""

    title: str
    """What it is about."""
    paper: str
    """Where the paper has it; empty for what the paper left open."""
    claim: str
    """What is said to hold."""
    minutes: float
    """What all of its runs took on two cores, as measured."""
    base: str
    """The config that its runs start from, in `configs/paper/small/`."""
    prompts: str | None = None
    """The search that finds the prompts of a one-prompt study, in `configs/paper/small/prompts/`."""
    levels: tuple[str, ...] = ()
    """Which of its prompts each arm is run on; all of them if not given."""
    seeds: int = Field(3, ge=1)
    """Runs of each arm and prompt, with the seeds from `first_seed` on."""
    first_seed: int = Field(0, ge=0)
    """Searches take other seeds than the figures whose settings they choose."""
    arms: dict[str, tuple[str, ...]] = Field(min_length=1)
    """What is compared, by name: overrides of the base, as `reval train --set` takes them."""


@dataclass(frozen=True)
class Unit:
    """One run of a figure."""

    arm: str
    level: str | None
    seed: int
    config: Config
    path: Path


def known_figures() -> list[str]:
    """The figures that there are, the paper's first and in its order."""
    return sorted((path.stem for path in (SMALL / "figures").glob("*.yaml")), key=_order)


def load_figure(name: str) -> Figure:
    """The settings of a figure. Raises InputError for a name that is none, and for settings that are wrong."""
    if name not in known_figures():
        raise InputError(f"no figure is called {name!r}; there are {', '.join(known_figures())}")
    return load_settings(SMALL / "figures" / f"{name}.yaml", Figure)


def load_search(name: str) -> PromptSearch:
    """The settings of a search for prompts."""
    return load_settings(SMALL / "prompts" / f"{name}.yaml", PromptSearch)


def load_base(name: str, overrides: Sequence[str] = ()) -> Config:
    """The config that runs start from."""
    return load_config(SMALL / f"{name}.yaml", overrides)


def absent_model(name: str) -> str | None:
    """The folder of the model that a figure's runs start from, if it is not there."""
    path = load_base(load_figure(name).base).model.path
    return None if path is None or Path(path).exists() else path


def check_out(out: Path) -> None:
    """Raise InputError if figures cannot be made in a directory, or something else is in it."""
    check_local(out, "--out")
    check_directory(out, "--out", ("runs", "starts", "figures", "cache", "index.html"))


def units(figure: Figure, out: Path, seeds: int | None = None) -> list[Unit]:
    """The runs of a figure, arm after arm within a seed, so that what is there early compares all arms.

    A run's folder is named by its settings: figures with a run in common share it.
    """
    first = figure.first_seed
    return [
        _unit(figure, arm, overrides, level, seed, out)
        for seed in range(first, first + (seeds or figure.seeds))
        for level in _levels(figure)
        for arm, overrides in figure.arms.items()
    ]


def prompt_file(out: Path, search: str, level: str) -> Path:
    """Where the prompt of a level is kept."""
    return out / "prompts" / search / f"{level}.jsonl"


def _levels(figure: Figure) -> tuple[str | None, ...]:
    if figure.prompts is None:
        return (None,)
    return figure.levels or tuple(load_search(figure.prompts).levels)


def _unit(figure: Figure, arm: str, overrides: tuple[str, ...], level: str | None, seed: int, out: Path) -> Unit:
    settings = [*overrides, f"seed={seed}"]
    if level is not None:
        assert figure.prompts is not None
        place = prompt_file(out, figure.prompts, level).absolute()
        settings += [f"problems.{part}={{path: {json.dumps(str(place))}}}" for part in ("train", "held_out")]
    name = "-".join([*map(_slug, sorted(overrides)), f"seed{seed}"])
    directory = out / "runs" / figure.base / (level or "") / name
    return Unit(arm, level, seed, load_base(figure.base, settings), directory)


def _slug(override: str) -> str:
    """An override as part of a folder's name: `learner.lr=3e-4` is `lr3e-4`."""
    key, _, value = override.partition("=")
    last = key.rpartition(".")[2]
    return re.sub(r"[^A-Za-z0-9.+]+", "-", f"{last}{value}").strip("-")


def _order(name: str) -> tuple[bool, int, str]:
    number = re.fullmatch(r"fig(\d+)", name)
    return number is None, int(number[1]) if number else 0, name
