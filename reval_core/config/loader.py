"""Loading of config files. Every error message names the file, the line and the field."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from reval_core.config import Config, StoredRollouts, VllmServerEngine
from reval_core.config.places import check_local
from reval_core.config.yaml_files import Field, parse_yaml, read_section, read_yaml
from reval_core.errors import InputError

Settings = TypeVar("Settings", bound=BaseModel)

TAGS = ("kind", "source")
"""The keys that select a section of a union."""

EXTENDS = "extends"
"""The key that names a base file, whose settings the file overrides."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Load the settings of a run from a YAML file.

    Paths in the result are absolute, so that it means the same in any working directory.

    Args:
        path: the YAML file.
        overrides: settings that override the file's, such as `learner.lr=1e-4`.

    Raises:
        InputError: with one line for the first error.
    """
    return _with_absolute_paths(load_settings(path, Config, overrides))


def load_settings(
    path: Path | None, kind: type[Settings], overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> Settings:
    """Load settings of a kind: `base`, overridden by a YAML file, overridden by `overrides`.

    A file may extend another, named relative to its own directory (`extends: other.yaml`). Sections are merged key
    by key, except that a section of another `kind` or `source`, a list and a value replace the base's.

    Args:
        path: the YAML file; None for none.
        kind: the model that validates the settings.
        overrides: settings such as `learner.lr=1e-4`.
        base: the settings that the file overrides.

    Raises:
        InputError: with one line for the first error.
    """
    if path is not None:
        check_local(path)
    given, places = ({}, {}) if path is None else _read_chain(path)
    values = {**(base or {}), **given}
    for override in overrides:
        field = _lay_over(values, override)
        # The override replaces everything below its field, and creates the sections that did not exist.
        places = {known: place for known, place in places.items() if known[: len(field)] != field}
        for length in range(1, len(field) + 1):
            places.setdefault(field[:length], f"--set {override}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_complaint(error, kind, places, str(path or "settings"))) from error


def _read_chain(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Field, str]]:
    """The values of a YAML file merged with the one that it extends, and the place of each key."""
    own, places = _read(path)
    if EXTENDS not in own:
        return own, places
    place, name = places.pop((EXTENDS,)), own.pop(EXTENDS)
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: {EXTENDS}: must be a path relative to this file's directory, not {name!r}")
    other, chain = path.parent / name, (*above, path.resolve())
    if other.resolve() in chain:
        raise InputError(f"{place}: {EXTENDS}: {other} extends itself; remove one {EXTENDS} of the cycle")
    if not other.is_file():
        raise InputError(f"{place}: {EXTENDS}: no such file: {other}")
    values, below = _read_chain(other, chain)
    for field in _lay_section_over(values, own):
        below = {known: where for known, where in below.items() if known[: len(field)] != field}
    return values, below | places


def _lay_section_over(values: dict[str, Any], own: dict[str, Any], field: Field = ()) -> Iterator[Field]:
    """Merge a section into `values`, and yield every field that is replaced as a whole."""
    for key, value in own.items():
        below, inner = values.get(key), (*field, str(key))
        if isinstance(value, dict) and isinstance(below, dict) and not _of_another_kind(value, below):
            yield from _lay_section_over(below, value, inner)
        else:
            values[key] = value
            yield inner


def _of_another_kind(section: dict[str, Any], other: dict[str, Any]) -> bool:
    return any(tag in section and section[tag] != other.get(tag) for tag in TAGS)


def _read(path: Path) -> tuple[dict[str, Any], dict[Field, str]]:
    """The values of a YAML file, and the place of each key."""
    values = read_section(path)
    return values, {field: f"{path}:{line}" for field, line in read_yaml(path).lines.items()}


def _lay_over(values: dict[str, Any], override: str) -> Field:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"--set {override}: must look like learner.lr=1e-4")
    field = tuple(name.strip().split("."))
    value = parse_yaml(text, f"--set {override}").values
    section = values
    for part in field[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise InputError(f"--set {override}: {part} is not a section; set {part} itself")
    section[field[-1]] = value
    return field


def _complaint(error: ValidationError, kind: type[BaseModel], places: dict[Field, str], otherwise: str) -> str:
    first = error.errors(include_url=False)[0]
    location = tuple(map(str, first["loc"]))
    field = _without_lone_items(_without_tags(location, kind), places)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key" + _nearest(location, kind)
    elif first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "union_tag_not_found":
        field, message = (*field, first["ctx"]["discriminator"].strip("'")), "is missing"
    elif first["type"] == "union_tag_invalid":
        field = (*field, first["ctx"]["discriminator"].strip("'"))
        message = f"must be one of {first['ctx']['expected_tags']}, not {first['ctx']['tag']!r}"
    elif "input" in first and not isinstance(first["input"], dict):
        message = f"{message[0].lower()}{message[1:]}, not {first['input']!r}"
    name, colon, rest = message.partition(": ")
    inner = tuple(name.split("."))
    if colon and _known((*location, *inner), kind):  # a check of several keys names the one at fault
        field, message = (*field, *inner), rest
    return f"{_place(field, places, otherwise)}: {'.'.join(field) or 'config'}: {message}"


def _place(field: Field, places: dict[Field, str], otherwise: str) -> str:
    while field and field not in places:
        field = field[:-1]
    return places.get(field, otherwise)


def _without_tags(location: Field, kind: type[BaseModel]) -> Field:
    """A Pydantic location without the union tags that it inserts (`objective.reval.beta`)."""
    field: Field = ()
    for part in location:
        tagged = len(field) == 1 and part in {_tag(model) for model in _models(field, kind)}
        if not tagged:
            field = (*field, part)
    return field


def _without_lone_items(location: Field, places: dict[Field, str]) -> Field:
    """A location without the index of an item that was given by itself instead of as a list of one."""
    field: Field = ()
    for part in location:
        alone = part == "0" and (*field, part) not in places and any(known[:-1] == field for known in places)
        field = field if alone else (*field, part)
    return field


def _nearest(location: Field, kind: type[BaseModel]) -> str:
    names = [name for model in _models(location[:-1], kind) for name in model.model_fields]
    near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known here: {', '.join(names)}" if names else ""


def _known(location: Field, kind: type[BaseModel]) -> bool:
    return any(location[-1] in model.model_fields for model in _models(location[:-1], kind))


def _models(location: Field, kind: type[BaseModel]) -> list[type[BaseModel]]:
    """The possible sections at a location; several where the settings are a union and no tag selects one."""
    models: list[type[BaseModel]] = [kind]
    for part in location:
        if part.isdigit():  # an item of a list
            continue
        tagged = [model for model in models if _tag(model) == part]
        annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        models = tagged or [model for annotation in annotations for model in _sections(annotation)]
    return models


def _tag(model: type[BaseModel]) -> str | None:
    """The `kind` or `source` that selects a section of a union."""
    choices = (get_args(model.model_fields[name].annotation) for name in TAGS if name in model.model_fields)
    return next((values[0] for values in choices if len(values) == 1), None)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, tuple):
        for inner in get_args(annotation):
            yield from _sections(inner)


def _with_absolute_paths(config: Config) -> Config:
    """The config with absolute file paths. A model path that is not a directory is a hub name and is kept."""
    values = config.model_dump(mode="json")
    if isinstance(config.rollouts, StoredRollouts):
        values["rollouts"]["run"] = str(Path(config.rollouts.run).absolute())
    if isinstance(config.engine, VllmServerEngine) and config.engine.weights is not None:
        values["engine"]["weights"] = str(Path(config.engine.weights).absolute())
    problems = values["problems"]
    for source in (problems["train"], *problems["held_out"], *problems["never_train_on"]):
        if source is not None and source["path"] is not None:
            source["path"] = str(Path(source["path"]).absolute())
    if config.model.path is not None and Path(config.model.path).is_dir():
        values["model"]["path"] = str(Path(config.model.path).absolute())
    return Config.model_validate(values)
