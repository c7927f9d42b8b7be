"""Object stores for tests: an S3 server in a process of its own, and one that dies in the middle of a write."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fsspec.implementations.local import LocalFileSystem

from reval_core.storage.object_store import ObjectStore

BUCKET = "runs-of-tests"


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server with a bucket, found through the environment, as in use. Yields the URL of the bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        patch.dict(os.environ, settings),
    ):
        try:
            _wait_for(port)
            import s3fs

            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            server.kill()


def _wait_for(port: int) -> None:
    for _ in range(1200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the S3 server did not start")


class DyingFiles:
    """A file system that fails from the n-th write on, and leaves half of the content of the first that fails."""

    def __init__(self, writes: int) -> None:
        self.writes = writes
        """The number of writes that still succeed."""
        self._files = LocalFileSystem(auto_mkdir=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def pipe_file(self, path: str, content: bytes, mode: str = "overwrite") -> None:
        self.writes -= 1
        if self.writes < 0:
            if self.writes == -1:
                self._files.pipe_file(path, content[: len(content) // 2])
            raise ConnectionError("the store died")
        self._files.pipe_file(path, content, mode=mode)


def dying_store(directory: Path, writes: int) -> ObjectStore:
    """A store in a directory that fails from the n-th write on."""
    store = ObjectStore(f"file://{directory}")
    store._files = DyingFiles(writes)
    return store
