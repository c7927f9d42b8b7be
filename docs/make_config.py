"""Write docs/config.md, the reference of every setting, from reval_core/config/.

Run it after a change of the settings: `python docs/make_config.py`. A test compares the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reval_core.config import Config
from reval_core.config.loader import TAGS
from reval_core.config.protocol import Protocol
from reval_core.config.section import LocalPath

TARGET = Path(__file__).with_name("config.md")

SYMBOLS = {
    "objective.beta": "β",
    "rollouts.samples": "N",
    "replay.capacity": "M",
    "learner.updates": "K",
}
"""The paper's symbol for a key."""

_LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "of a length ≥", "pattern": "like"}
"""The limits that a field may set on its values, in words."""

_INTRODUCTION = """\
# Settings

Made by `docs/make_config.py` from `reval_core/config/`; change the settings there.

A config is a YAML file, such as [`configs/demo.yaml`](../configs/demo.yaml). Nested keys are written with dots here
and on the command line: `reval train CONFIG --set learner.lr=1e-4` lays one value over the file. A key that is not
listed here is an error. `reval train CONFIG --dry-run` prints every key at work with its value.

A file may stand on another, named from its own folder: `extends: other.yaml`. What it says goes before what the
other says, key by key; a section of another `kind` or `source` and a list replace the other's. The run folder's
`config.yaml` holds all of it.

A key with the default **–** must be given.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, _symbols(), *_section("", "The whole run", Config), *_protocol()])


def sections(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that may stand under a key; several where `kind` or `source` tells them apart."""
    parts = get_args(field.annotation) or (field.annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def meaning(field: FieldInfo) -> str:
    """What a key is for: its docstring, or that of the section under it. Empty where neither is written."""
    inner = sections(field)
    if field.description:
        text = field.description
    elif len(inner) == 1:
        text = inner[0].__doc__ or ""
    elif inner:
        text = "What an update minimises."
    else:
        text = "Chooses this." if len(_choices(field)) == 1 else ""
    return " ".join(text.split())


def _symbols() -> str:
    rows = [f"| {symbol} | `{key}` |" for key, symbol in SYMBOLS.items()]
    return "\n".join(
        ["| The paper's | Key |", "| --- | --- |", *rows, "| B | `rollouts.prompts` × N, or `rollouts.batch` |", ""]
    )


def _section(name: str, heading: str, model: type[BaseModel], level: str = "##") -> Iterator[str]:
    """The heading, the explanation and the table of a section, then those of the sections inside."""
    yield f"{level} {heading}\n"
    yield f"{model.__doc__}\n"
    rows = [_row(_join(name, key), key, field, _headings(name, model)) for key, field in model.model_fields.items()]
    yield "\n".join(["| Key | Value | Default | Meaning |", "| --- | --- | --- | --- |", *rows, ""])
    for heading, keys in groupby(_headings(name, model).items(), key=lambda item: item[1]):
        first = next(keys)[0]
        inner = sections(model.model_fields[first])
        if len(inner) == 1:
            yield from _section(_join(name, first), heading, inner[0], "###" if name else "##")
            continue
        yield f"## {heading}\n\nOne of these, told apart by `{_choice(inner[0])[0]}`.\n"
        for section in inner:
            key, value = _choice(section)
            yield from _section(_join(name, first), f"{heading} of `{key}: {value}`", section, "###")


def _protocol() -> Iterator[str]:
    """The table of an evaluation's settings; the sections that it shares with a run are described there."""
    described = dict(_described("", Config))
    fields = Protocol.model_fields.items()
    headings = {key: described[str(sections(field))] for key, field in fields if sections(field)}
    yield f"## The protocol of an evaluation\n\n{Protocol.__doc__}\n"
    rows = [_row(key, key, field, headings) for key, field in fields]
    yield "\n".join(["| Key | Value | Default | Meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _described(name: str, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The heading under which each kind of section is described."""
    for key, heading in _headings(name, model).items():
        inner = sections(model.model_fields[key])
        yield str(inner), heading
        if len(inner) == 1:
            yield from _described(_join(name, key), inner[0])


def _headings(name: str, model: type[BaseModel]) -> dict[str, str]:
    """The heading under which each inner section is described; keys of one kind share a heading."""
    kinds = {key: sections(field) for key, field in model.model_fields.items() if sections(field)}
    return {
        key: ", ".join(f"`{_join(name, other)}`" for other, kind in kinds.items() if kind == kinds[key])
        for key in kinds
    }


def _row(name: str, key: str, field: FieldInfo, headings: dict[str, str]) -> str:
    cells = [
        f"`{key}`" + (f" ({SYMBOLS[name]})" if name in SYMBOLS else ""),
        f"[section](#{_anchor(headings[key])})" if key in headings else _values(field.annotation, field.metadata),
        _default(field),
        meaning(field),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(annotation: Any, metadata: list[Any]) -> str:
    """The values that a key takes, in words."""
    inner = [part for part in get_args(annotation) if part not in (NoneType, Ellipsis)]
    if get_origin(annotation) in (Union, UnionType):
        return _values(inner[0], metadata)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if get_origin(annotation) is tuple:
        return f"two {_values(inner[0], [])}s" if len(inner) == 2 else f"list of {_values(inner[0], [])}"
    if get_origin(annotation) is dict:
        return "a value for each name"
    names = {int: "integer", float: "number", str: "text", LocalPath: "text", bool: "`true`, `false`"}
    return names[annotation] + _range(metadata)


def _range(metadata: list[Any]) -> str:
    limits = {
        name: getattr(one, name) for one in metadata for name in _LIMITS if getattr(one, name, None) is not None
    }
    if "ge" in limits and "le" in limits:
        return f" {limits['ge']} to {limits['le']}"
    shown = {name: f"`{limit}`" if isinstance(limit, str) else limit for name, limit in limits.items()}
    bounds = ", ".join(f"{_LIMITS[name]} {limit}" for name, limit in shown.items())
    return f" {bounds}" if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "–"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    if isinstance(default, BaseModel):
        return "its defaults"
    plain = isinstance(default, str) and re.fullmatch(r"\w+", default)
    return f"`{default}`" if plain else f"`{json.dumps(default, ensure_ascii=False)}`"


def _choices(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _choice(section: type[BaseModel]) -> tuple[str, str]:
    """The key and the value that choose a section among others."""
    key = next(name for name in TAGS if name in section.model_fields)
    return key, str(_choices(section.model_fields[key])[0])


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
