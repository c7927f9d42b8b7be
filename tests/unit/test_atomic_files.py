"""Publishing whole or not at all, and digests that mean the same everywhere."""

import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.atomic_files import (
    CHECKSUMS,
    digest,
    file_digest,
    publish_directory,
    publish_file,
    publish_json,
    read_json,
)

ROOT = Path(__file__).parents[2]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def everything(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def half_a_file(partial: Path) -> None:
    partial.write_text("half")
    raise RuntimeError("the disk is full")


def half_a_directory(partial: Path) -> None:
    (partial / "inner").mkdir()
    (partial / "inner/one").write_text("half")
    raise KeyboardInterrupt


def test_publishing_leaves_no_temporary_files(tmp_path: Path) -> None:
    publish_file(tmp_path / "deep/down/file", lambda partial: partial.write_text("whole"))
    assert everything(tmp_path) == {"deep/down/file": b"whole"}


def test_a_writer_never_sees_the_place_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("new")
        assert partial.parent == path.parent
        assert path.read_text() == "old"

    publish_file(path, write)
    assert everything(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("before", [{}, {"file": b"old"}])
def test_a_writer_that_raises_leaves_the_old_file(tmp_path: Path, before: dict[str, bytes]) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RuntimeError, match="the disk is full"):
        publish_file(tmp_path / "file", half_a_file)
    assert everything(tmp_path) == before


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish_file(tmp_path / "file", lambda partial: None)
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("before", [{}, {"target/one": b"old", "target/inner/two": b"old"}])
def test_a_writer_of_a_directory_that_raises_leaves_the_old_directory(
    tmp_path: Path, before: dict[str, bytes]
) -> None:
    for name, content in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KeyboardInterrupt):
        publish_directory(tmp_path / "target", half_a_directory)
    assert everything(tmp_path) == before
    assert not (tmp_path / "target.partial").exists()


def test_a_published_directory_replaces_the_old_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish_directory(tmp_path / "target", lambda partial, name=name: (partial / name).write_text(name))
    assert everything(tmp_path) == {"target/two": b"two"}


def test_leftovers_of_a_killed_attempt_are_not_published(tmp_path: Path) -> None:
    (tmp_path / "target.partial/inner").mkdir(parents=True)
    (tmp_path / "target.partial/inner/one").write_text("half")
    publish_directory(tmp_path / "target", lambda partial: (partial / "two").write_text("whole"))
    assert everything(tmp_path) == {"target/two": b"whole"}


@pytest.mark.parametrize("publish", ["publish_file", "publish_directory"])
def test_a_killed_writer_leaves_the_old_content_and_the_next_one_succeeds(tmp_path: Path, publish: str) -> None:
    path = tmp_path / "kept"
    inner = {"publish_file": ".", "publish_directory": "inner"}[publish]
    program = f"""if True:
        import os, signal, sys
        from pathlib import Path
        from reval_core.atomic_files import {publish}
        def write(partial):
            (partial / {inner!r}).write_text("half")
            if sys.argv[2] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        {publish}(Path(sys.argv[1]), write)
    """
    codes = [
        subprocess.run([sys.executable, "-c", program, str(path), fate], cwd=ROOT, check=False).returncode
        for fate in ("live", "die")
    ]
    assert codes == [0, -9]
    assert (path / inner).read_text() == "half"
    assert (tmp_path / "kept.partial").exists()
    publish_again: Callable[[Path, Any], None] = {
        "publish_file": publish_file,
        "publish_directory": publish_directory,
    }[publish]
    publish_again(path, lambda partial: (partial / inner).write_text("whole"))
    assert (path / inner).read_text() == "whole"
    assert not (tmp_path / "kept.partial").exists()


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "file") == known


@settings(max_examples=40, deadline=None)
@given(values=st.dictionaries(st.text(), json_values, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(values: dict[str, Any]) -> None:
    assert digest(values) == digest(dict(reversed(values.items())))


@settings(max_examples=40, deadline=None)
@given(one=json_values, other=json_values)
def test_digests_are_equal_exactly_for_equal_values(one: Any, other: Any) -> None:
    same = repr(sorted_keys(one)) == repr(sorted_keys(other))
    assert (digest(one) == digest(other)) == same


def sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(one) for one in value] if isinstance(value, list) else value


def test_a_digest_depends_on_how_parts_are_separated() -> None:
    parts = [("ab", "c"), ("a", "bc"), ("abc",), (["ab", "c"],), (), ("",), (None,), ("1",), (1,), (True,)]
    assert len({digest(*one) for one in parts}) == len(parts)


def test_another_process_gets_the_same_digest() -> None:
    value = {"β": [1, 0.1, 1e-300, None, True, "\u2028𝔸\x00"], "a": {"y": {}, "x": []}}
    program = f"from reval_core.atomic_files import digest; print(digest({value!r}, 'key'))"
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert found == [digest(value, "key")] * 2


@pytest.mark.parametrize(
    "live",
    [object(), {1, 2}, b"bytes", Path("path"), np.float32(1), np.arange(2), Decimal(1), len, {"deep": [object()]}],
    ids=lambda live: type(live).__name__,
)
def test_a_live_object_has_no_digest(live: object) -> None:
    with pytest.raises(TypeError):
        digest("part", live)


def test_json_is_read_as_it_was_published(tmp_path: Path) -> None:
    value = {"z": [1, 0.1, None], "a": {"β": "\u2028"}}
    publish_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert list(read_json(tmp_path / "value.json")) == ["z", "a"]
