"""The prompts of a run or an evaluation: rendered once, and written down before anything is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reval_core.atomic_files import file_digest, publish_file, publish_sealed, read_sealed
from reval_core.errors import CorruptData
from reval_core.problems.prompts import Rendered

PROMPTS = pa.schema(
    [
        ("problem", pa.string()),
        ("prompt", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("left_out", pa.string()),
    ]
)
"""One row a problem's text; `left_out` says why it is not asked, and is null where it is."""

_ROWS = 1024


class Prompts:
    """What problems look like to a model, by their texts: in columns, since training sets are large."""

    def __init__(self, table: pa.Table | None = None) -> None:
        self.table = (PROMPTS.empty_table() if table is None else table).combine_chunks()
        self._places: dict[str, int] = {
            problem: place for place, problem in enumerate(self.table.column("problem").to_pylist())
        }

    @classmethod
    def of(cls, problems: Sequence[str], rendered: Iterable[Rendered]) -> Prompts:
        """Prompts as they are rendered; those with a fault are left out for it."""
        parts, part = [], []
        for problem, one in zip(problems, rendered, strict=True):
            tokens = np.asarray(one.tokens, np.int32)
            part.append(
                {"problem": problem, "prompt": one.text, "prompt_tokens": tokens, "left_out": one.fault or None}
            )
            if len(part) == _ROWS:
                parts.append(pa.Table.from_pylist(part, PROMPTS))
                part = []
        return cls(pa.concat_tables([*parts, pa.Table.from_pylist(part, PROMPTS)]))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, problem: str) -> bool:
        return problem in self._places

    def __getitem__(self, problem: str) -> tuple[str, list[int]]:
        """A problem's prompt as text and as tokens."""
        place = self._places[problem]
        tokens: list[int] = self.table.column("prompt_tokens")[place].as_py()
        return self.table.column("prompt")[place].as_py(), tokens

    def left_out(self, problem: str) -> str:
        """Why a problem is not asked; nothing for one that is."""
        return self.table.column("left_out")[self._places[problem]].as_py() or ""

    def lengths(self, problems: Iterable[str]) -> np.ndarray:
        """How many tokens the prompts of these have."""
        lengths = pc.list_value_length(self.table.column("prompt_tokens")).to_numpy()
        return lengths[[self._places[problem] for problem in problems]]

    def with_more(self, more: Prompts) -> Prompts:
        """These, and those of other problems."""
        new = [place for problem, place in more._places.items() if problem not in self]
        return Prompts(pa.concat_tables([self.table, more.table.take(new)])) if new else self

    def usable(self) -> Prompts:
        """Those that are asked."""
        return Prompts(self.table.filter(pc.is_null(self.table.column("left_out"))))

    def leaving_out(self, why: Mapping[str, str]) -> Prompts:
        """The same, with problems that are left out for what is said of them."""
        said = self.table.column("left_out").to_pylist()
        for problem, reason in why.items():
            said[self._places[problem]] = reason
        return Prompts(self.table.set_column(3, PROMPTS.field("left_out"), pa.array(said, pa.string())))

    def publish(self, path: Path, reading: str) -> None:
        """Write them down, whole or not at all. `reading` is the digest of what has made tokens of them."""
        before = [file_digest(path)] if path.exists() else []

        def write(partial: Path) -> None:
            pq.write_table(self.table, partial, compression="zstd")
            # The note comes before the file, and names the one that stands as well: a crash leaves a pair.
            publish_sealed(_note(path), {"sha256": [file_digest(partial), *before], "reading": reading})

        publish_file(path, write)


def read_prompts(path: Path) -> Prompts:
    """The prompts that were written down. Raises Damaged, naming the file, if they are not what was written."""
    try:
        if file_digest(path) not in read_sealed(_note(path))["sha256"]:
            raise CorruptData(f"{path}: is not what was written (its checksum differs)")
        return Prompts(pq.read_table(path, schema=PROMPTS, partitioning=None))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CorruptData(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def read_by(path: Path) -> str:
    """What has made the tokens of the prompts that were written down: a `reading_digest`, empty if none were."""
    try:
        return str(read_sealed(_note(path)).get("reading", ""))
    except CorruptData:
        return ""


def _note(path: Path) -> Path:
    return path.with_suffix(".json")
