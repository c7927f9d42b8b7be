"""The results of a reproduction as Markdown, for docs/reproduction.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reval_core.reproduction.result import in_words, origin


def results_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts in one table, then each figure's claim, its results and its tables."""
    rows = [
        [f"[{one['figure']}](#{one['figure']})", one["title"], in_words(one["verdict"], one["paper"])]
        for one in found
    ]
    parts = [
        _table(["figure", "what it shows", "verdict"], rows),
        *(part for one in found for part in _result(one)),
    ]
    return "\n\n".join(parts) + "\n"


def _result(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {found['figure']}"
    yield f"**{found['title']}** ({origin(found['verdict'], found['paper'])}). {found['claim']}"
    yield f"*{in_words(found['verdict'], found['paper']).capitalize()}.* {found['says']}"
    for table in found["tables"]:
        yield f"{table['title']}:"
        yield _table(table["columns"], table["rows"])
    yield (
        f"{len(found['runs'])} runs, seeds {', '.join(map(str, found['seeds']))}, "
        f"{found['run_seconds'] / 60:.0f} minutes of one core; measured {found['date']} with commit "
        f"{found['commit']}."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
