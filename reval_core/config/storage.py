"""The settings of storage: where a run is mirrored."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from reval_core.config.section import Section


def _store_url(url: str) -> str:
    """The URL of an object store, unchanged. Raises ValueError for anything else."""
    if not re.match(r"[a-z][a-z0-9+.-]+://[^/]|(file|memory):///", url) or not url.isprintable():
        raise ValueError("is not the URL of an object store, such as s3://bucket/run or file:///mnt/backup/run")
    parts = urlsplit(url)
    if "::" in url or parts.query or parts.fragment:
        raise ValueError("must be the URL of one object store without ::, ? and #")
    if "@" in parts.netloc:
        raise ValueError("contains credentials, which would be recorded with the run; set them in the environment")
    if parts.scheme == "file" and parts.netloc:
        raise ValueError("is not an absolute path; write file:///… with three slashes")
    return url.rstrip("/")


StoreUrl = Annotated[str, AfterValidator(_store_url)]
"""The URL of a place in an object store."""


class Storage(Section):
    """A copy of the run in an object store, from which `reval restore` resumes it on another host."""

    mirror: StoreUrl | None = None
    """URL of the mirror, for this run alone: `s3://bucket/run` or any other that fsspec opens. Credentials and the
    endpoint come from the environment. May be changed when a run is resumed."""
    lease_seconds: float = Field(60.0, ge=1, le=86400)
    """Time after which another host may take the run over, if this one no longer renews its lease on the mirror."""
