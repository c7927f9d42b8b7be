"""The recorded prompts of a run or an evaluation: rendered once, and written before generation starts."""

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
"""One row per problem text; `left_out` is the reason why a problem is dropped, or null."""

_ROWS = 1024


class Prompts:
    """The prompts of problems, by the problem's text. Stored in columns, since training sets are large."""

    def __init__(self, table: pa.Table | None = None) -> None:
        self.table = (PROMPTS.empty_table() if table is None else table).combine_chunks()
        self._places: dict[str, int] = {
            problem: place for place, problem in enumerate(self.table.column("problem").to_pylist())
        }

    @classmethod
    def of(cls, problems: Sequence[str], rendered: Iterable[Rendered]) -> Prompts:
        """Collect rendered prompts; those with a fault are marked as dropped."""
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
        """The text and the token ids of a problem's prompt."""
        place = self._places[problem]
        tokens: list[int] = self.table.column("prompt_tokens")[place].as_py()
        return self.table.column("prompt")[place].as_py(), tokens

    def left_out(self, problem: str) -> str:
        """The reason why a problem is dropped; empty if it is not."""
        return self.table.column("left_out")[self._places[problem]].as_py() or ""

    def lengths(self, problems: Iterable[str]) -> np.ndarray:
        """The number of tokens of each problem's prompt, [problems]."""
        lengths = pc.list_value_length(self.table.column("prompt_tokens")).to_numpy()
        return lengths[[self._places[problem] for problem in problems]]

    def with_more(self, more: Prompts) -> Prompts:
        """These prompts together with those of further problems."""
        new = [place for problem, place in more._places.items() if problem not in self]
        return Prompts(pa.concat_tables([self.table, more.table.take(new)])) if new else self

    def usable(self) -> Prompts:
        """The prompts of problems that are not dropped."""
        return Prompts(self.table.filter(pc.is_null(self.table.column("left_out"))))

    def leaving_out(self, why: Mapping[str, str]) -> Prompts:
        """The same prompts, with these problems marked as dropped for the given reasons."""
        reasons = self.table.column("left_out").to_pylist()
        for problem, reason in why.items():
            reasons[self._places[problem]] = reason
        return Prompts(self.table.set_column(3, PROMPTS.field("left_out"), pa.array(reasons, pa.string())))

    def publish(self, path: Path, reading: str) -> None:
        """Write the prompts atomically. `reading` is the digest of the tokenizer that produced the tokens."""
        before = [file_digest(path)] if path.exists() else []

        def write(partial: Path) -> None:
            pq.write_table(self.table, partial, compression="zstd")
            # The note is written first and lists the existing file as well, so that a crash leaves a valid pair.
            publish_sealed(_note(path), {"sha256": [file_digest(partial), *before], "reading": reading})

        publish_file(path, write)


def read_prompts(path: Path) -> Prompts:
    """Read recorded prompts. Raises CorruptData, naming the file, if it is not what was written."""
    try:
        if file_digest(path) not in read_sealed(_note(path))["sha256"]:
            raise CorruptData(f"{path}: is not what was written (its checksum differs)")
        return Prompts(pq.read_table(path, schema=PROMPTS, partitioning=None))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CorruptData(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def read_by(path: Path) -> str:
    """The `reading_digest` of the tokenizer that produced recorded prompts; empty if there are none."""
    try:
        return str(read_sealed(_note(path)).get("reading", ""))
    except CorruptData:
        return ""


def _note(path: Path) -> Path:
    return path.with_suffix(".json")
