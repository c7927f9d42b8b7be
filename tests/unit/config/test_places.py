"""The paths of runs: refusals at the start, in one line, before anything is written."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from pathlib import Path

import pytest

from reval.flows.cli import main
from reval_core.config import Config
from reval_core.config.loader import load_config
from reval_core.config.places import check_directory
from reval_core.errors import InputError
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.rows import read_rows
from reval_core.storage.run_directory import RunDirectory, existing_run
from tests.conftest import SMALL
from tests.models import save_byte_level_model

OWN = ("config.yaml", "lock")
URLS = ["s3://bucket/run", "gs://bucket/run", "hdfs://node:1/run", "file:///tmp/run", "https://host/run", "S3A:/x"]


def refusal(path: Path, own: tuple[str, ...] = OWN) -> str:
    with pytest.raises(InputError) as caught:
        check_directory(path, "--run-dir", own)
    message = str(caught.value)
    assert message.startswith("--run-dir ")
    assert message.isprintable(), "it is one line, and no terminal acts on it"
    return message


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_as_run_directory_config_or_file(url: str) -> None:
    for make in (RunDirectory, EvaluationDirectory, existing_run, load_config):
        with pytest.raises(InputError, match=r"^\S+://\S+: is a URL, and only local paths are supported"):
            make(Path(url))
    with pytest.raises(InputError, match="is a URL"):
        read_rows(Path(f"{url}.jsonl"))


@pytest.mark.parametrize(
    ("field", "override"),
    [
        ("problems.train.path", "problems.train={{path: '{0}/a.jsonl'}}"),
        ("problems.held_out.0.path", "problems.held_out=[{{path: '{0}/a.jsonl'}}]"),
        ("model.path", "model={{path: '{0}'}}"),
        ("rollouts.run", "rollouts={{source: stored, run: '{0}', batch: 4}}"),
        ("engine.weights", "engine={{kind: vllm-server, urls: ['http://a:1'], weights: '{0}'}}"),
    ],
)
def test_a_url_in_the_config_is_refused_by_field(tmp_path: Path, field: str, override: str) -> None:
    (tmp_path / "a.yaml").write_text("seed: 0\n" + _yaml(), encoding="utf-8")
    for url in ("s3://bucket/x", "http://host/x"):
        with pytest.raises(InputError, match=rf"{field}: is a URL, and only local paths are supported"):
            load_config(tmp_path / "a.yaml", [override.format(url)])


def _yaml() -> str:
    import yaml

    return yaml.safe_dump({name: value for name, value in SMALL.items() if name != "seed"})


@pytest.mark.parametrize("name", ["a b", "a:/b", "c:/x", "1:/x", "über", "-run", "x" * 255])
def test_unusual_paths_that_are_not_urls_are_accepted(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_directory(RunDirectory(Path(name)).path, "--run-dir", OWN)
    assert list(tmp_path.iterdir()) == [], "nothing is made"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a?b", "has a ? in its path, which DuckDB cannot open"),
        ("a\\b", "has a \\ in its path, which DuckDB cannot open"),
        ("a\nb", r"has the character '\n' in its path"),
        ("a\x1b[31mb", r"has the character '\x1b' in its path"),
        ("a\u202eb", r"has the character '\u202e' in its path"),
        ("a\u2028b", r"has the character '\u2028' in its path"),
        ("a\udcffb", r"has the character '\udcff' in its path"),
        ("x" * 256, "cannot be used (File name too long)"),
        ("/".join(["x" * 250] * 17), "cannot be used (File name too long)"),
    ],
)
def test_names_that_a_library_cannot_handle_are_refused(tmp_path: Path, name: str, words: str) -> None:
    assert words in refusal(tmp_path / name)
    if "/" not in name:
        assert words in refusal(tmp_path / name / "inside")


def test_a_foreign_directory_is_refused_with_its_entries(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"photo{number}.jpg").touch()
    assert "contains photo0.jpg, photo1.jpg, photo2.jpg and 2 more, not created by reval" in refusal(tmp_path)
    (tmp_path / "lock").touch()
    check_directory(tmp_path, "--run-dir", OWN)


@pytest.mark.parametrize("name", ["lost+found", ".DS_Store", ".gitkeep"])
def test_entries_of_a_new_disk_count_as_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    check_directory(tmp_path, "--run-dir", OWN)


def test_files_links_and_paths_below_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert "is a file; give a directory" in refusal(tmp_path / "file")
    assert "is a file; give a directory" in refusal(tmp_path / "link")
    assert "Not a directory" in refusal(tmp_path / "file" / "run")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "loop")
    assert f"is a link to {tmp_path / 'nowhere'}, which does not exist" in refusal(tmp_path / "broken")
    (tmp_path / "good").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    check_directory(tmp_path / "good", "--run-dir", OWN)


def test_a_place_without_permission_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are not accessible to others
        root = Path(name)
        root.chmod(0o755)
        for inner in ("closed", "own"):
            (root / inner).mkdir()
        (root / "own" / "lock").touch()
        for inner in ("closed", "own"):
            (root / inner).chmod(0o555)
        new, old = as_nobody([root / "closed" / "runs" / "run", root / "own"])
        assert new.endswith(f"is not writable: {root}/closed (no permission, or a read-only file system)")
        assert old.endswith("own: is not writable (no permission, or a read-only file system)")


def as_nobody(paths: list[Path]) -> list[str]:
    """The messages about paths to a user other than root, who may access everything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        said = []
        for path in paths:
            try:
                check_directory(path, "--run-dir", OWN)
                said.append("")
            except BaseException as error:
                said.append(str(error))
        os.write(writer, pickle.dumps(said))
        os._exit(0)
    os.waitpid(child, 0)
    return pickle.loads(os.read(reader, 65536))


def test_a_run_directory_that_cannot_be_created_is_refused_in_one_line() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    with (
        pytest.raises(InputError, match=r"/proc/reval-run: cannot be created"),
        RunDirectory(Path("/proc/reval-run")).lock(),
    ):
        pass


def test_an_earlier_attempt_is_resumed_whatever_files_it_left(tmp_path: Path) -> None:
    config = Config.model_validate(SMALL)
    directory = RunDirectory(tmp_path / "run")
    with directory.lock():
        directory.check(config)  # killed before the config was written
        directory.open(config)
    directory.check(config)
    directory.config.unlink()  # as docs/recovery.md describes for a corrupt one
    directory.check(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("import a.jsonl --config a.yaml --run-dir s3://bucket/run", "s3://bucket/run: is a URL"),
        ("import a.jsonl --config a.yaml --run-dir photos", "photos: contains a.jpg, not created by reval"),
        ("import a.jsonl --config a.yaml --run-dir a.yaml/run", "a.yaml/run: cannot be used (Not a directory)"),
        ("import s3://bucket/a.jsonl --config a.yaml", "s3://bucket/a.jsonl: is a URL"),
        ("import a.jsonl --config gs://bucket/a.yaml", "gs://bucket/a.yaml: is a URL"),
        ("eval model --benchmarks a.jsonl --out photos", "photos: contains a.jpg, not created by reval"),
        ("eval model --benchmarks a.jsonl --out photos --dry-run", "photos: contains a.jpg, not created by reval"),
        ("eval model --benchmarks a.jsonl --out a?b", "has a ? in its path"),
        ("eval model --benchmarks s3://bucket/a.jsonl", "must look like gsm8k, gsm8k:50 or problems.jsonl:50"),
        ("eval s3://bucket/model --benchmarks a.jsonl", "s3://bucket/model: is a URL"),
        ("eval model --benchmarks gsm8k --data hdfs://node/data", "--data hdfs://node/data: is a URL"),
        ("eval " + "x" * 300 + " --benchmarks a.jsonl", "is neither a directory nor a model on the hub"),
        ("reproduce fig7 --out photos", "photos: contains a.jpg, not created by reval"),
        ("reproduce fig7 --out s3://bucket/out", "--out s3://bucket/out: is a URL"),
        ("compare one two --out photos", "--out photos: is a directory; give a file name"),
        ("compare one two --out a.yaml/page.html", "a.yaml is not a directory"),
        ("sql s3://bucket/run select", "s3://bucket/run: is a URL"),
        ("check loop", "loop: cannot be read (Too many levels of symbolic links)"),
        ("train photos --dry-run", "photos: cannot be read (Is a directory)"),
        ("train none.yaml --dry-run", "none.yaml: cannot be read (No such file or directory)"),
        ("train latin.yaml --dry-run", "latin.yaml: is not UTF-8"),
        ("train tabs.yaml --dry-run", "tabs.yaml:2: is not YAML"),
        ("problems check hdfs://node/a.jsonl", "hdfs://node/a.jsonl: is a URL"),
        ("grade https://host/a.jsonl", "https://host/a.jsonl: is a URL"),
    ],
)
def test_every_command_refuses_in_one_line_and_creates_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    arguments: str,
    words: str,
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "a.yaml").write_text("seed: 0\n" + _yaml(), encoding="utf-8")
    (tmp_path / "latin.yaml").write_bytes("# größer\nseed: 0\n".encode("latin-1"))
    (tmp_path / "tabs.yaml").write_text("model:\n\ttiny: {}\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"problem": "1+1=", "response": "2", "answer": "2"}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reval", *arguments.split(" ")])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        main()
    out, complaint = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert complaint.startswith("reval: ")
    assert complaint.count("\n") == 1
    assert words in complaint
    assert sorted(tmp_path.iterdir()) == before
    assert [one.name for one in (tmp_path / "photos").iterdir()] == ["a.jpg"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_byte_level_model(path)
    return path
