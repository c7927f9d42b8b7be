"""Weights on their way to a server: offered by the run over HTTP or in object storage, checked by the server.

A server needs no directory of the run. What it reads has the SHA-256 that the run sent along, or is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from reval_core.errors import InputError

_CHUNK = 2**20

_IDLE_SECONDS = 60.0
"""How long either side waits for the other during a transfer."""

_MEMORY = Path("/dev/shm")


class Offer(Protocol):
    """A place that servers read weights from."""

    token: str | None
    """What a server must present to read them."""

    def publish(self, file: Path, name: str) -> str:
        """Offer a file instead of the one before. Returns its URL."""

    def close(self) -> None:
        """Offer nothing any more."""


def make_offer(url: str, directory: str) -> Offer:
    """The place at `url`: an HTTP server of this process, or storage that fsspec can reach.

    Args:
        url: `http://HOST:PORT`, where this process listens (port 0: any free one), or the URL of a directory.
        directory: The name of the run's own subdirectory there.
    """
    return HttpOffer(url) if urlsplit(url).scheme == "http" else StoredOffer(f"{url.rstrip('/')}/{directory}")


def check_offer(url: str) -> None:
    """Check that `make_offer` can use `url`, without writing to storage.

    Raises:
        InputError: The address is in use or not one of this machine, or the package for the storage is missing.
    """
    try:
        if urlsplit(url).scheme == "http":
            HttpOffer(url).close()
        else:
            import fsspec

            fsspec.get_filesystem_class(urlsplit(url).scheme)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"engine.weights_url: {url} cannot be used: {error}") from error


class HttpOffer:
    """Serves one file over HTTP, from a thread of this process, to clients with the token."""

    def __init__(self, url: str) -> None:
        """Listen at the host and port of `url`.

        Raises:
            OSError: The address is in use, or not one of this machine.
        """
        self.token: str | None = secrets.token_urlsafe(32)
        self._current: tuple[str, Path] | None = None
        host = urlsplit(url).hostname or ""
        self._http = _Server((host, urlsplit(url).port or 0), _handler(self))
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True, name="weights over HTTP").start()

    def publish(self, file: Path, name: str) -> str:
        """Offer a file instead of the one before. Returns its URL."""
        self._current = (f"/{name}", file)
        return f"{self._url}/{name}"

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()

    def opened(self, path: str, authorization: str | None) -> BinaryIO | int:
        """The file at `path`, or an HTTP status."""
        if not hmac.compare_digest((authorization or "").encode(), f"Bearer {self.token}".encode()):
            return 401
        current = self._current
        if current is None or path != current[0]:
            return 404
        try:
            return current[1].open("rb")
        except FileNotFoundError:  # newer weights have replaced it
            return 404


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = AF_INET6
        super().__init__(address, handler)

    def handle_error(self, *_: Any) -> None:
        """Ignore lost connections: the client reports them."""


def _handler(offer: HttpOffer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _IDLE_SECONDS

        def do_GET(self) -> None:
            found = offer.opened(self.path, self.headers.get("Authorization"))
            if isinstance(found, int):
                self.send_error(found)
                return
            with found:
                self.send_response(200)
                self.send_header("Content-Length", str(os.fstat(found.fileno()).st_size))
                self.end_headers()
                shutil.copyfileobj(found, self.wfile, _CHUNK)

        def log_message(self, *_: Any) -> None:
            """Write nothing to the run's terminal."""

    return Handler


class StoredOffer:
    """Copies one file at a time into a directory of object storage, which has its own access control."""

    token: str | None = None

    def __init__(self, directory: str) -> None:
        import fsspec

        self._files, self._directory = fsspec.core.url_to_fs(directory)
        self._url = directory
        self._forget()  # left behind by a killed run

    def publish(self, file: Path, name: str) -> str:
        """Offer a file instead of the one before. Returns its URL."""
        self._forget()
        self._files.makedirs(self._directory, exist_ok=True)
        self._files.put_file(str(file), f"{self._directory}/{name}")
        return f"{self._url}/{name}"

    def close(self) -> None:
        """Delete the weights."""
        self._forget()

    def _forget(self) -> None:
        with suppress(FileNotFoundError):
            self._files.rm(self._directory, recursive=True)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def checked(source: str, sha256: str, token: str | None = None) -> Iterator[Path]:
    """Context manager for a local file with the weights at `source`, a path or a URL.

    Args:
        source: A path of this machine, an http URL, or a URL that fsspec reads.
        sha256: The expected SHA-256 of its content, in hexadecimal.
        token: The bearer token of an http URL.

    Raises:
        ValueError: The content has another SHA-256.
        OSError: It cannot be read.
    """
    if not urlsplit(source).scheme:
        _check(source, sha256_of(Path(source)), sha256)
        yield Path(source)
        return
    with _opened(source, token) as content, tempfile.NamedTemporaryFile(dir=_room(content)) as copy:
        digest = hashlib.sha256()
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
        copy.flush()
        _check(source, digest.hexdigest(), sha256)
        yield Path(copy.name)


def _check(source: str, found: str, expected: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise ValueError(f"{source}: its SHA-256 is {found} instead of {expected}")


def _opened(url: str, token: str | None) -> AbstractContextManager[Any]:
    if urlsplit(url).scheme != "http":
        import fsspec

        opened: AbstractContextManager[Any] = fsspec.open(url, "rb")
        return opened
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the token is for the run alone
    return direct.open(request, timeout=_IDLE_SECONDS)


def _room(content: Any) -> Path | None:
    """Memory, if the content is known to fit there; otherwise the default directory of temporary files."""
    size = getattr(content, "length", None) or getattr(content, "size", None)
    fits = size is not None and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 1.5 * size
    return _MEMORY if fits else None
