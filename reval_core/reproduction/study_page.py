"""The page of a reproduction: each claim of the paper with our curves, the measured values and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reval_core.atomic_files import publish_file, read_json
from reval_core.comparison.style import STYLE as RUN_COLOURS
from reval_core.report.charts import Scale, Series, line_chart, rounds_scale, value_scale
from reval_core.report.page import Html, duration, folded, join, number, page, percent, section, sql_note, tag
from reval_core.reproduction.markdown import results_markdown
from reval_core.reproduction.result import in_words, origin
from reval_core.reproduction.study import known_figures

_STYLE = """
.finding .verdict { font-size: 1.05rem; }
.verdict.part { color: var(--soft); }
.claims td:first-child { white-space: nowrap; }
.claims td:last-child { white-space: nowrap; font-weight: 600; }
.claim { border-left: 3px solid var(--line); padding-left: 1rem; color: var(--soft); }
.finding figure { margin-top: 2.2rem; }
.finding .spans { opacity: .3; }
.finding h3 { margin-bottom: .3rem; }
.finding .plot.named { margin-right: 10.5rem; }
.finding .end { max-width: 10rem; }
@media (max-width: 40rem) {
  .finding .plot.named { margin-right: 6.4rem; }
  .finding .end { max-width: 5.8rem; }
  .claims td:first-child, .claims td:last-child { white-space: normal; }
  .claims td:nth-child(3) { display: none; }
  .claims th:nth-child(3) { display: none; }
}
"""

_STYLES = {"reproduced": "yes", "in part": "part", "not": "no", "undecided": "part", "searched": "part"}


def write_results(out: Path) -> None:
    """Write `index.html` and `results.md` for all figures that were reproduced in a directory."""
    found = [read_json(path) for name in known_figures() if (path := out / "figures" / f"{name}.json").exists()]
    body = tag("main", _head(found), *map(_result, found), _footer())
    text = page("Small-scale reproduction of ReVal · reval", body, RUN_COLOURS + _STYLE)
    publish_file(out / "index.html", lambda partial: partial.write_text(text, encoding="utf-8"))
    table = results_markdown(found)
    publish_file(out / "results.md", lambda partial: partial.write_text(table, encoding="utf-8"))


def _head(found: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        tag(
            "tr",
            tag("td", tag("a", one["figure"], href=f"#{one['figure']}")),
            tag("td", one["title"]),
            tag("td", one["says"]),
            tag("td", in_words(one["verdict"], one["paper"]), class_=f"verdict {_STYLES[one['verdict']]}"),
        )
        for one in found
    ]
    head = tag("tr", *(tag("th", name) for name in ("figure", "title", "result", "")))
    return tag(
        "header",
        tag("h1", "Small-scale reproduction of the paper's figures"),
        tag(
            "p",
            "Off-Policy Value-Based Reinforcement Learning for Large Language Models (arXiv 2603.23355) makes "
            "its claims with models of 1.5 and 7 billion parameters. Here each is tested with the same code on "
            "arithmetic, with a model of less than a million parameters. Small-scale results need not hold at full "
            "scale, nor the other way round.",
            class_="summary",
        ),
        tag("div", tag("table", head, *rows, class_="claims"), class_="scrolled"),
    )


def _result(found: Mapping[str, Any]) -> Html:
    said, style = in_words(found["verdict"], found["paper"]), _STYLES[found["verdict"]]
    seeds = len(found["seeds"])
    about = (
        f"{len(found['runs'])} runs, {seeds} {'seed' if seeds == 1 else 'seeds'}, {duration(found['run_seconds'])} "
        f"of one core; measured {found['date']} with commit {found['commit']}"
    )
    shown = section(
        found["title"],
        origin(found["verdict"], found["paper"]),
        tag("p", found["claim"], class_="claim"),
        tag("p", tag("span", f"{said.capitalize()}. ", class_=f"verdict {style}"), found["says"]),
        *map(_chart, found["charts"]),
        *map(_table, found["tables"]),
        tag("p", about, class_="note"),
        _runs(found["runs"]),
        sql_note(*found["queries"]),
    )
    return tag("div", shown, id=found["figure"], class_="finding")


def _chart(chart: Mapping[str, Any]) -> Html:
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
    drawn = line_chart(
        lines, _across(chart), y, description=chart["title"], readings=readings, size="tall", text=text
    )
    caption = tag("figcaption", tag("b", chart["title"]), tag("output", readings[-1][1]), class_="headed")
    return tag("figure", caption, drawn)


def _across(chart: Mapping[str, Any]) -> Scale:
    last = max(at for line in chart["lines"] for at in line["x"])
    if chart["across"] == "round":
        return rounds_scale(round(last))
    ticks = value_scale([last]).ticks
    return Scale(0.0, last, tuple(tick for tick in ticks if tick <= last))


def _table(table: Mapping[str, Any]) -> Html:
    head = tag("tr", *(tag("th", name) for name in table["columns"]))
    rows = [tag("tr", *(tag("td", str(cell)) for cell in row)) for row in table["rows"]]
    return join([tag("h3", table["title"]), tag("div", tag("table", head, *rows), class_="scrolled")])


def _runs(runs: Sequence[Mapping[str, Any]]) -> Html:
    rows = [tag("tr", tag("td", one["arm"]), tag("td", tag("code", one["path"]))) for one in runs]
    return folded("Runs", tag("table", *rows))


def _footer() -> Html:
    return tag(
        "footer",
        "All values come from the runs' published tables. Lines are means over seeds, and bars show the range over "
        "seeds. The SQL shown is executed on each run: ",
        tag("code", 'reval sql RUN "SELECT …"'),
        "; for the page of a run: ",
        tag("code", "reval report RUN"),
        ".",
    )
