"""All HTML pages: no text of a run, a comparison or a reproduction can become markup, and nothing is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reval_core
from reval_core.atomic_files import publish_json
from reval_core.comparison import write_comparison
from reval_core.comparison.pairs import pair
from reval_core.comparison.sides import open_sides
from reval_core.output.control_characters import visible_lines
from reval_core.report import write_report
from reval_core.report.page import render
from reval_core.reproduction.study_page import write_results
from reval_core.storage.run_directory import RunDirectory
from tests import facts
from tests.integration.test_comparison import made
from tests.integration.test_report import Page

TEMPLATES = sorted(Path(reval_core.__file__).parent.glob("*/templates/*.j2"))

HOSTILE = "\"'><script>alert(1)<img src=x onerror=alert(2)>&lt;{{ 7 * 7 }}\x00\x1b[2J\x9b\u202e"
"""Its printable characters can also name a directory."""

HARMLESS = "x" * len(HOSTILE)


def printable(text: str) -> str:
    """The characters of a text that the name of a directory may have."""
    return "".join(filter(str.isprintable, text))


def report(directory: Path, text: str) -> Path:
    """The report of a run with this name, these problems and golds, and a response."""
    run = RunDirectory(directory / printable(text))
    facts.hand_made_run(run, response=text)
    with run.config.open("a") as config:
        config.write(f"# {printable(text)}\n")
    return write_report(run)


def comparison(directory: Path, text: str) -> Path:
    """The page of a comparison of runs with these names, and problems, ids, sets, golds and responses."""
    texts = {"problem": text, "gold": text, "response": text, "extracted": text, "verdict": text}
    sides = [
        made(
            directory / f"{printable(text)} {number}",
            {(text, text): outcomes, (text, "2"): [1]},
            rounds=(0, 1),
            **texts,
        )
        for number, outcomes in enumerate([(1, 0), (1, 1)])
    ]
    out = directory / "compare.html"
    with open_sides(sides) as opened:
        write_comparison(out, opened, [pair(*opened)])
    return out


def reproduction(directory: Path, text: str) -> Path:
    """The page of a reproduction whose figure consists of these texts."""
    line = {"name": text, "x": [0, 2], "y": [0.5, 1.0], "low": [0.25, None], "high": [0.75, None]}
    chart = {"title": text, "lines": [line], "across": text, "percent": True, "log": False}
    table = {"title": text, "columns": [text], "rows": [[text], [None]]}
    names = ("figure", "title", "paper", "claim", "says", "date", "commit")
    found: dict[str, Any] = dict.fromkeys(names, text) | {"verdict": "not", "seeds": [0], "run_seconds": 1.5}
    found |= {"runs": [{"arm": text, "path": text}], "charts": [chart], "tables": [table], "queries": [text]}
    publish_json(directory / "figures" / "fig3.json", found)
    write_results(directory)
    return directory / "index.html"


def structure(page: Page) -> list[tuple[str, list[str]]]:
    """The elements of a page in order, with the names of their attributes."""
    return [(name, sorted(attributes)) for name, attributes in page.elements]


@pytest.mark.parametrize("write", [report, comparison, reproduction])
def test_hostile_texts_change_texts_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, str], Path]
) -> None:
    pages = []
    for text in (HARMLESS, HOSTILE):
        monkeypatch.setattr(facts, "PROBLEMS", {"easy": (text, text), "hard": (text, text)})
        directory = tmp_path / str(len(pages))
        directory.mkdir()
        pages.append(Page(write(directory, text)))
    harmless, hostile = pages
    assert structure(hostile) == structure(harmless)
    assert "<script>alert(1)<img src=x onerror=alert(2)>&lt;{{ 7 * 7 }}" in hostile.text()
    assert visible_lines(hostile.source) == hostile.source
    for _, attributes in hostile.elements:
        assert json.loads(attributes.get("data-points") or "[]") is not None
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
        assert not {"src", "srcset", "action"} & set(attributes)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_trust_no_value(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe\b|autoescape", text)
    assert not re.search(r"=\{[{%]", re.sub(r"\{%.*?%\}", "", text)), "an attribute without quotes"
    in_scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert in_scripts == (["{{ script }}"] if path.name == "layout.html.j2" else [])


def test_a_value_that_is_missing_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="'results' is undefined"):
        render("reproduction/templates/study.html.j2")
