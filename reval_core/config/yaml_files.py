"""Reading of untrusted YAML: plain values only, bounded in size, depth and expansion."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from reval_core.errors import InputError

Field = tuple[str, ...]

LONGEST = 256 * 1024
"""Maximum bytes of a file. PyYAML reads a few hundred KB per second at best."""

DEEPEST = 40
"""Maximum levels of nesting, with aliases expanded."""

LARGEST = 10_000
"""Maximum number of values and keys, with aliases expanded."""

_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}

_LONGEST_NUMBER = 40


class Yaml:
    """The values of a YAML text, and the line of each."""

    def __init__(self, values: Any, lines: dict[Field, int]) -> None:
        self._values = values
        self.lines = lines
        """The line of every key and list item, from 1."""

    @property
    def values(self) -> Any:
        """A deep copy of the values, in which no section is shared."""
        return _unshared(self._values)


def read_yaml(path: Path) -> Yaml:
    """Read a YAML file.

    Raises:
        InputError: in one line, with the file and where possible the line number, if the file cannot be read, is
            not YAML, contains a duplicate key, or is larger or more deeply nested than a config may be.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would block, a device never end
            raise InputError(f"{path}: cannot be read (it is not a regular file); give the path of a YAML file")
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
        text = content.decode("utf-8") if len(content) <= LONGEST else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML config") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error
    except ValueError as error:  # a null character in the name
        raise InputError(f"{path}: cannot be read ({error})") from error
    if text is None:
        raise InputError(f"{path}: is larger than the maximum of {LONGEST // 1024} KB for a config")
    return parse_yaml(text, str(path))


def read_section(path: Path) -> dict[str, Any]:
    """The values of a YAML file that is a mapping. Raises InputError as `read_yaml`, and if it is not a mapping."""
    values = read_yaml(path).values
    if not isinstance(values, dict):
        raise InputError(f"{path}: contains no settings; see configs/demo.yaml for an example")
    return values


@lru_cache(maxsize=8)  # the runs of a plot share one file, which takes PyYAML 50 ms
def parse_yaml(text: str, place: str) -> Yaml:
    """Parse a YAML text. Raises InputError, naming `place`, as `read_yaml`."""
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        lines = dict(_lines(root, place))
        return Yaml(None if root is None else loader.construct_document(root), lines)
    # A lone surrogate raises ValueError, and so may a scalar with a tag.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark and not place.startswith("--set") else place
        raise InputError(f"{where}: is not YAML ({_problem(error)})") from error
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, restricted to plain values, that measures every node as soon as it is composed."""

    # A date stays text, as in JSON; PyYAML resolves `=` but cannot construct it.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._measures: dict[int, tuple[int, int]] = {}
        """By node: the number of values with aliases expanded, and their depth."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, after checking that a config may contain it."""
        event = self.peek_event()
        self._level += 1
        if self._level > DEEPEST:
            raise _refused(f"nested more than {DEEPEST} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._measures:
                raise _refused(f"*{event.anchor} refers to itself", event.start_mark)
        else:
            self._measures[id(node)] = self._measured(node)
        return node

    def _measured(self, node: Any) -> tuple[int, int]:
        if node.tag not in _TAGS:
            raise _refused(f"the tag {node.tag} is not a plain value", node.start_mark)
        if len(self._measures) >= LARGEST:
            raise _refused(f"more than {LARGEST:,} values", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
            return 1, 1
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _refused("a key must be a plain value", key.start_mark)
        else:
            children = node.value
        below = [self._measures[id(child)] for child in children]
        size, depth = 1 + sum(one for one, _ in below), 1 + max((one for _, one in below), default=0)
        if size > LARGEST:
            raise _refused(f"more than {LARGEST:,} values with aliases expanded", node.start_mark)
        if depth > DEEPEST:
            raise _refused(f"nested more than {DEEPEST} deep", node.start_mark)
        return size, depth

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        """Refuse scalars that Python cannot construct, or only very slowly, before it tries."""
        kind, text = node.tag.rpartition(":")[2], node.value
        if kind == "str":
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise _refused("a lone surrogate", node.start_mark)
            return
        if len(text) > _LONGEST_NUMBER:
            raise _refused(f"a number of {len(text):,} characters", node.start_mark)
        plain = self.resolve(yaml.ScalarNode, text, (True, False)).rpartition(":")[2]
        if kind != plain and (kind, plain) != ("float", "int"):
            raise _refused(f"{text!r} is not a valid {kind}", node.start_mark)


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _lines(node: yaml.Node | None, place: str, field: Field = ()) -> Iterator[tuple[Field, int]]:
    """The line of every key and list item below `node`. Raises InputError for a duplicate key."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield (*field, str(number)), item.start_mark.line + 1
            yield from _lines(item, place, (*field, str(number)))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        inner = (*field, str(key.value))
        if key.value in seen:
            where = place if place.startswith("--set") else f"{place}:{line}"
            raise InputError(f"{where}: {'.'.join(inner)}: is a duplicate key; keep one")
        seen.add(key.value)
        yield inner, line
        yield from _lines(value, place, inner)


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _problem(error: Exception) -> str:
    """The error of a YAML parser in one line, without the YAML text."""
    return " ".join(str(getattr(error, "problem", None) or error).split())
