"""The object store that holds the mirror of a run: S3, a file system or whatever else fsspec opens by URL."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reval_core.atomic_files import PARTIAL, publish_file
from reval_core.errors import InputError, RevalError, first_line

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""The package that opens the URLs of each scheme."""


class StoreError(RevalError):
    """The object store cannot be reached, or refused an operation. The message names the object and the reason."""


class ObjectStore:
    """The objects below a URL, by names such as `index/00001-0a1b2c3d/000000.json`.

    Credentials and the endpoint come from the environment or from the files of the store's client, never from the
    URL. Every method raises StoreError if the store fails.
    """

    def __init__(self, url: str) -> None:
        """Open the store without connecting to it. Raises InputError if nothing installed opens such a URL."""
        from fsspec.core import url_to_fs

        scheme = url.partition("://")[0]
        try:
            # A cached listing would hide what another host has written.
            self._files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            package = _PACKAGES.get(scheme)
            extra = "pip install 'reval-rl[s3]'" if package == "s3fs" else f"pip install {package or scheme}"
            raise InputError(f"storage.mirror: {url}: {first_line(error)}; {extra}") from error
        except ValueError as error:
            raise InputError(f"storage.mirror: {url}: cannot be opened ({first_line(error)})") from error
        self.url = url.rstrip("/")
        self._root = root.rstrip("/")

    def create(self, name: str, content: bytes) -> bool:
        """Create an object unless it exists. Of several callers, one creates it: S3 checks `If-None-Match`.

        Returns:
            Whether this call created it.
        """
        with self._explained(name):
            try:
                if self._is_local:
                    _link_file(Path(self._place(name)), content)
                else:
                    self._files.pipe_file(self._place(name), content, mode="create")
            except FileExistsError:
                return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write an object, replacing an existing one. A reader finds the one or the other."""
        with self._explained(name):
            if self._is_local:
                publish_file(Path(self._place(name)), lambda partial: partial.write_bytes(content))
            else:
                self._files.pipe_file(self._place(name), content)

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        with self._explained(name):
            try:
                content: bytes = self._files.cat_file(self._place(name))
            except FileNotFoundError:
                return None
        return content

    def upload(self, path: Path, name: str) -> None:
        """Copy a file to an object."""
        with self._explained(name):
            if self._is_local:
                publish_file(Path(self._place(name)), lambda partial: shutil.copyfile(path, partial))
            else:
                self._files.put_file(str(path), self._place(name))

    def download(self, name: str, path: Path) -> None:
        """Copy an object to a file."""
        with self._explained(name):
            self._files.get_file(self._place(name), str(path))

    def names(self, prefix: str = "") -> list[str]:
        """The names of all objects below a prefix, sorted."""
        place = self._place(prefix).rstrip("/")
        with self._explained(prefix):
            found = self._files.find(place)
        return sorted(one[len(self._root) :].lstrip("/") for one in found if not one.endswith(PARTIAL))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects that exist."""
        places = [self._place(name) for name in names]
        with self._explained(places[0] if places else ""):
            if places:
                self._files.rm(places)

    @property
    def local_path(self) -> Path | None:
        """The directory of a `file://` store; None for other stores."""
        return Path(self._root) if self._is_local else None

    @property
    def _is_local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._files, LocalFileSystem)

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the clients of the stores have no common base class
            reason = first_line(error)
            raise StoreError(f"{self.url}/{name}".rstrip("/") + f": {type(error).__name__}: {reason}") from error


def _link_file(path: Path, content: bytes) -> None:
    """Create a file with its whole content at once. Raises FileExistsError if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    publish_file(whole, lambda partial: partial.write_bytes(content))
    try:
        os.link(whole, path)
    finally:
        whole.unlink()
