"""The definition of a figure: its settings and the resulting runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from reval_core.config import Config
from reval_core.config.loader import load_config, load_settings
from reval_core.config.packaged import PACKAGED
from reval_core.config.places import check_directory, check_local
from reval_core.config.section import Section
from reval_core.errors import InputError
from reval_core.reproduction.prompt_search import PromptSearch

SMALL = PACKAGED / "paper" / "small"
"""The base configs, with one YAML per figure in `figures/` and one per prompt search in `prompts/`."""


class Figure(Section):
    """A figure of the paper, or an extension, as a set of runs."""

    title: str
    """Title of the figure."""
    paper: str
    """Its place in the paper; empty for extensions and searches."""
    claim: str
    """The claim to test."""
    minutes: float
    """Measured time of all runs on two cores."""
    base: str
    """The base config of its runs, in `configs/paper/small/`."""
    prompts: str | None = None
    """The prompt search of a one-prompt study, in `configs/paper/small/prompts/`."""
    levels: tuple[str, ...] = ()
    """The prompt levels that each arm is run on; all by default."""
    seeds: int = Field(3, ge=1)
    """Number of runs per arm and prompt, with consecutive seeds from `first_seed`."""
    first_seed: int = Field(0, ge=0)
    """First seed. Searches use other seeds than the figures whose settings they choose."""
    arms: dict[str, tuple[str, ...]] = Field(min_length=1)
    """The compared arms by name: overrides of the base config, as for `reval train --set`."""


@dataclass(frozen=True)
class Unit:
    """One run of a figure."""

    arm: str
    level: str | None
    seed: int
    config: Config
    path: Path


def known_figures() -> list[str]:
    """Return the names of all figures, those of the paper first and in its order."""
    return sorted((path.stem for path in (SMALL / "figures").glob("*.yaml")), key=_order)


def load_figure(name: str) -> Figure:
    """Load the settings of a figure.

    Raises:
        InputError: The figure is unknown, or its settings are invalid.
    """
    if name not in known_figures():
        raise InputError(f"unknown figure {name!r}; choose from {', '.join(known_figures())}")
    return load_settings(SMALL / "figures" / f"{name}.yaml", Figure)


def load_search(name: str) -> PromptSearch:
    """Load the settings of a prompt search."""
    return load_settings(SMALL / "prompts" / f"{name}.yaml", PromptSearch)


def load_base(name: str, overrides: Sequence[str] = ()) -> Config:
    """Load a base config with overrides."""
    return load_config(SMALL / f"{name}.yaml", overrides)


def absent_model(name: str) -> str | None:
    """Return the model directory of a figure's runs if it does not exist."""
    path = load_base(load_figure(name).base).model.path
    return None if path is None or Path(path).exists() else path


def check_out(out: Path) -> None:
    """Check that figures can be reproduced in a directory.

    Raises:
        InputError: The directory cannot be used, or contains other files.
    """
    check_local(out, "--out")
    check_directory(out, "--out", ("runs", "starts", "figures", "cache", "index.html"))


def units(figure: Figure, out: Path, seeds: int | None = None) -> list[Unit]:
    """Return the runs of a figure, ordered by seed and then arm, so that early results compare all arms.

    A run directory is named after its settings, so figures share runs with equal settings.
    """
    first = figure.first_seed
    return [
        _unit(figure, arm, overrides, level, seed, out)
        for seed in range(first, first + (seeds or figure.seeds))
        for level in _levels(figure)
        for arm, overrides in figure.arms.items()
    ]


def prompt_file(out: Path, search: str, level: str) -> Path:
    """Return the file of the prompt of a level."""
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
    """Return an override as part of a directory name: `learner.lr=3e-4` is `lr3e-4`."""
    key, _, value = override.partition("=")
    last = key.rpartition(".")[2]
    return re.sub(r"[^A-Za-z0-9.+]+", "-", f"{last}{value}").strip("-")


def _order(name: str) -> tuple[bool, int, str]:
    number = re.fullmatch(r"fig(\d+)", name)
    return number is None, int(number[1]) if number else 0, name
