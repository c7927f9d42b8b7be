"""The wheel: complete, the same from the sdist, and working in a directory without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import reval as public
from reval_core.config import TinyModel
from reval_core.model.loading import make_tiny_model, make_tiny_tokenizer, save_model
from tests.conftest import SMALL
from tests.faults.test_prefect import Server

ROOT = Path(__file__).parents[2]
IN_WHEEL = {
    "configs": "reval_core/configs",
    "flows": "reval/flows",
    "reval": "reval",
    "reval_core": "reval_core",
    "tasks": "reval/tasks",
}
"""Where each directory of the repository lies in the wheel."""

Reval = Callable[..., str]


def pip(*arguments: str | Path) -> None:
    """Run pip without an index, outside the repository's import path."""
    command = [sys.executable, "-m", "pip", *map(str, arguments[:1]), "--no-index", "--no-deps", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, *map(str, arguments[1:])], env=environment, check=True, timeout=300)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, since a build leaves files in its directory."""
    copy = tmp_path_factory.mktemp("source")
    for name in IN_WHEEL:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, directory], cwd=source, check=True, capture_output=True)
    (built,) = directory.iterdir()
    return built


def make_wheel(source: Path, directory: Path) -> Path:
    pip("wheel", "--no-build-isolation", "--wheel-dir", directory, source)
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(source: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the installed package; its dependencies are those of this environment."""
    directory = tmp_path_factory.mktemp("installed")
    pip("install", "--target", directory, wheel)
    return directory


@pytest.fixture
def reval(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reval:
    """The installed command, run in an empty directory."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    (tmp_path / "empty").mkdir()

    def command(*arguments: str | Path) -> str:
        done = subprocess.run(
            [installed / "bin" / "reval", *arguments], cwd=tmp_path / "empty", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights."""
    tiny, directory = TinyModel(layers=1, width=32, heads=2, feed_forward=64), tmp_path_factory.mktemp("model")
    save_model(make_tiny_model(tiny, 0), make_tiny_tokenizer(tiny.characters), directory)
    return directory


@pytest.fixture
def prefect_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = Server(tmp_path / "prefect")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield
    server.kill()


def contents(wheel: Path) -> dict[str, int]:
    """The checksum of each packaged file by its name."""
    with zipfile.ZipFile(wheel) as archive:
        names = [one.filename for one in archive.infolist()]
        assert len(names) == len(set(names))
        return {one.filename: one.CRC for one in archive.infolist() if ".dist-info/" not in one.filename}


def test_the_wheel_has_every_file_of_the_packages_once_and_nothing_else(source, wheel):
    expected = {"reval/flows/prefect.yaml"}
    for name, place in IN_WHEEL.items():
        files = (path for path in (source / name).rglob("*") if path.is_file() and not path.is_symlink())
        expected |= {f"{place}/{path.relative_to(source / name)}" for path in files}
    assert set(contents(wheel)) == expected


def test_the_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    assert contents(make_wheel(sdist, tmp_path)) == contents(wheel)


def test_the_distribution_has_a_name_of_its_own_and_the_version_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("reval-rl", public.__version__)


def test_the_installed_modules_are_those_of_the_wheel(installed, reval, tmp_path):
    code = "import reval, reval_core, reval.flows; print(reval.__file__, reval_core.__file__, reval.flows.__file__)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True, check=True).stdout
    assert all(Path(one).is_relative_to(installed) for one in found.split())
    assert reval("--version") == f"reval {public.__version__}\n"


def test_a_project_is_created_and_its_run_planned_in_an_empty_directory(reval):
    reval("init", "mine")
    assert "What the run would do" in reval("train", "mine/config.yaml", "--dry-run")


def test_the_figures_are_listed_in_an_empty_directory(reval):
    assert "fig3" in reval("reproduce")


def test_a_preset_evaluates_a_model_in_an_empty_directory(reval, model):
    shown = reval("eval", model, "--preset", "arithmetic", "--limit", "2", "--samples", "1")
    assert "2-digit differences" in shown


@pytest.mark.full
def test_the_demo_trains_through_prefect_in_an_empty_directory(installed, reval, tmp_path, prefect_server):
    """With a config of seconds in the place of the packaged one."""
    (installed / "reval_core/configs/demo.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    assert "reval sql runs/demo" in reval("demo")
    assert (tmp_path / "empty/runs/demo/summary.json").exists()
