"""The page of a reproduction: each claim of the paper with our curves, the measured values and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reval_core.atomic_files import publish_file, read_json
from reval_core.report.charts import Panel, Series, amount_scale, line_chart, rounds_scale, value_scale
from reval_core.report.formats import number, percent
from reval_core.report.page import publish_page
from reval_core.reproduction.markdown import results_markdown
from reval_core.reproduction.result import in_words, origin
from reval_core.reproduction.study import known_figures


def write_results(out: Path) -> None:
    """Write `index.html` and `results.md` for all figures that were reproduced in a directory."""
    found = [read_json(path) for name in known_figures() if (path := out / "figures" / f"{name}.json").exists()]
    results = [
        {
            **one,
            "verdict_in_words": in_words(one["verdict"], one["paper"]),
            "origin": origin(one["verdict"], one["paper"]),
            "panels": [_panel(chart) for chart in one["charts"]],
        }
        for one in found
    ]
    publish_page(out / "index.html", "reproduction/templates/study.html.j2", results=results)
    table = results_markdown(found)
    publish_file(out / "results.md", lambda partial: partial.write_text(table, encoding="utf-8"))


def _panel(chart: Mapping[str, Any]) -> Panel:
    lines = [
        Series(line["name"], line["x"], line["y"], f"run{place}", True, line["low"], line["high"])
        for place, line in enumerate(chart["lines"])
    ]
    text = percent if chart["percent"] else number
    values = [value for line in chart["lines"] for part in ("y", "low", "high") for value in line[part]]
    y = value_scale(values, chart["log"], chart["percent"])
    points: dict[float, list[str]] = {}
    for line in chart["lines"]:
        for at, value in zip(line["x"], line["y"], strict=True):
            points.setdefault(at, []).append(f"{line['name']} {text(value)}")
    readings = [(at, f"{chart['across']} {at:g}: " + ", ".join(said)) for at, said in sorted(points.items())]
    by_round, last = chart["across"] == "round", max(points)
    plot = line_chart(
        lines,
        rounds_scale(round(last)) if by_round else amount_scale(last),
        y,
        description=chart["title"],
        readings=readings,
        size="tall",
        text=text,
        across="" if by_round else f"{chart['across']}s",
    )
    about = "Lines are means over seeds; bars show the range over seeds."
    return Panel(chart["title"], readings[-1][1], plot, about=about)
