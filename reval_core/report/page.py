"""The frame of HTML pages: markup that escapes by default, number formats, CSS, and a small script.

A page loads nothing: its Content-Security-Policy forbids the network and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable
from html import escape
from textwrap import dedent
from typing import Any

from reval_core.output.control_characters import visible_lines

MINUS = "−"

# Control characters are shown as control pictures, other invisible ones as escapes: a response can contain any.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


class Html(str):
    """Text that is already markup. All other text is escaped when it enters a tag."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | None) -> Html:
    """Return an element. `class_` sets the attribute class, `data_x` data-x; None omits an attribute."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    shown = "".join(f' {key}="{_shown(value)}"' for key, value in given.items())
    return Html(f"<{name}{shown}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Concatenate parts, each escaped unless it is markup."""
    return Html("".join(part if isinstance(part, Html) else _shown(part) for part in parts))


def _shown(text: str) -> str:
    return escape(visible_lines(text.translate(_PICTURES)))


def folded(summary: str, *children: str) -> Html:
    """Return a collapsed block that can be expanded."""
    return tag("details", tag("summary", summary), *children)


def statement(template: str, **values: str | int) -> str:
    """Return a query as executed and shown: its template without indentation, with `values` filled in."""
    return dedent(template).strip().format(**values)


def sql_note(*queries: str) -> Html:
    """Return the SQL behind a section, collapsed."""
    return folded("SQL", *(tag("pre", tag("code", query)) for query in queries))


def section(title: str, lead: str, *children: str) -> Html:
    """Return a section of the page with a short lead."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead"), *children)


def number(value: Any) -> str:
    """Format a number with three significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", MINUS)
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("-", MINUS)
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}".replace("-", MINUS)


def percent(share: Any) -> str:
    """Format a share as a percentage."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f}%".replace("-", MINUS)


def duration(seconds: float) -> str:
    """Format seconds in the two largest units."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def page(title: str, body: Html, style: str = "") -> str:
    """Return the whole document. `style` is CSS in addition to that of every page."""
    script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{join([title])}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
{body}
<script>{_SCRIPT}</script>
</body>
</html>
"""


# The colours are Okabe and Ito's, distinguishable with every kind of colour vision.
_STYLE = """
:root {
  --paper: #fff; --ink: #1b1d21; --soft: #5d636e; --line: #e3e5e9; --wash: #f5f6f8;
  --blue: #0072b2; --orange: #b85000; --grey: #8b919c; --green: #00795a;
  --rollouts: #0072b2; --verification: #d9c300; --consistency: #56b4e9; --sampling: #cc79a7;
  --learning: #d55e00; --evaluation: #009e73; --other: #a9aeb8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --ink: #e7e9ed; --soft: #a0a6b2; --line: #2e323a; --wash: #1d2026;
    --blue: #56b4e9; --orange: #f0903c; --grey: #848b98; --green: #35c49a;
    --rollouts: #2f8fd0; --verification: #e6d44a; --consistency: #8fd0f5; --other: #6d7480;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 68rem; padding: 3.5rem 2rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 0 0 .4rem; }
h3 { font-size: 1rem; margin: 2.4rem 0 0; font-weight: 600; }
h3 + p { margin-bottom: .8rem; }
section { margin-top: 4.5rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
.summary { font-size: 1.15rem; }
.lead, .note, footer { color: var(--soft); }
.lead { margin-bottom: 1.8rem; }
.note { font-size: .875rem; margin-top: 1rem; }
code, pre, .say { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .9em; overflow-wrap: anywhere; }
pre {
  margin: .6rem 0 0; padding: 1rem 1.2rem; background: var(--wash); border-radius: 8px; overflow-x: auto;
  font-size: .8125rem; line-height: 1.5;
}
pre code { font-size: inherit; overflow-wrap: normal; }
sub { line-height: 0; }
details { margin-top: 1rem; }
summary { cursor: pointer; width: fit-content; color: var(--soft); font-size: .875rem; }
summary:hover { color: var(--ink); }

.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1.4rem 1.5rem;
  margin: 2.2rem 0 0; padding: 1.4rem 0 0; border-top: 1px solid var(--line);
}
.tiles div { min-width: 0; }
.tiles dt, .unit { font-size: .8125rem; color: var(--soft); }
.tiles dd { margin: 0; font-size: 1.2rem; font-weight: 600; line-height: 1.4; }
.tiles .whole { grid-column: 1 / -1; }
.tiles code { font-weight: 400; font-size: .875rem; }

figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { display: flex; gap: .2rem .6rem; align-items: baseline; margin-bottom: .9rem; line-height: 1.35; }
figcaption b { font-weight: 600; }
.headed { flex-wrap: wrap; }
.headed output { flex-basis: 100%; margin: 0; text-align: left; }
.grid figure { display: flex; flex-direction: column; justify-content: flex-end; }
.grid figcaption { font-size: .9375rem; }
.grid .unit { display: block; }
figcaption output { margin-left: auto; text-align: right; font-size: .875rem; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(13.5rem, 1fr)); gap: 2.4rem 2.2rem; }
.plot { position: relative; height: 7.5rem; margin: .5rem .8rem 1.9rem 3.3rem; touch-action: pan-y; }
.plot.tall { height: 19rem; }
.plot.middle { height: 14rem; }
.plot.named { margin-right: 6.6rem; }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot path { vector-effect: non-scaling-stroke; stroke-linecap: round; stroke-linejoin: round; }
.plot path:not(.bars, .band) { fill: none; }
.plot .grid-lines { stroke: var(--line); stroke-width: 1; stroke-linecap: butt; }
.plot .resets { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 1 4; }
.plot .bars { stroke: none; }
.plot .band { fill: var(--blue); opacity: .16; stroke: var(--blue); stroke-width: 1; }
.line { stroke: var(--blue); stroke-width: 1.75; }
.thin { stroke: var(--grey); stroke-width: 1.25; }
.line.many { stroke-width: 1; }
.dots { stroke: var(--blue); stroke-width: 7; }
.dots.thin { stroke: var(--grey); }
.spans { stroke: var(--blue); stroke-width: 2; opacity: .45; }
.x, .y, .end { position: absolute; font-size: .75rem; line-height: 1; color: var(--soft); white-space: nowrap; }
.x { top: calc(100% + .6rem); transform: translateX(-50%); }
.y { right: calc(100% + .6rem); transform: translateY(50%); }
.end { left: calc(100% + .8rem); transform: translateY(50%); font-size: .8125rem; line-height: 1.25; }
.end.line { color: var(--blue); }
.end b { display: block; font-weight: 600; }
.rule {
  position: absolute; top: 0; bottom: 0; width: 1px; background: var(--soft); opacity: 0; pointer-events: none;
}
.rollouts { fill: var(--rollouts); background: var(--rollouts); }
.verification { fill: var(--verification); background: var(--verification); }
.consistency { fill: var(--consistency); background: var(--consistency); }
.sampling { fill: var(--sampling); background: var(--sampling); }
.learning { fill: var(--learning); background: var(--learning); }
.evaluation { fill: var(--evaluation); background: var(--evaluation); }
.other { fill: var(--other); background: var(--other); }

table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
.narrow { max-width: 44rem; margin-top: 3.2rem; }
th { text-align: left; font-weight: 400; font-size: .8125rem; color: var(--soft); vertical-align: bottom; }
th, td { padding: .55rem 1.2rem .55rem 0; border-bottom: 1px solid var(--line); }
td { vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tr { break-inside: avoid; }
.right { text-align: right; white-space: nowrap; }
.wide { width: 45%; }
td small { display: block; color: var(--soft); }
.share { display: block; height: .55rem; border-radius: 2px; min-width: 2px; margin: .5rem 0; }
.clamp { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden; }
.say { white-space: pre-wrap; unicode-bidi: isolate; overflow-wrap: anywhere; font-size: .9em; }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem; }
.answer {
  border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem; min-width: 0; break-inside: avoid;
}
.answer > p { margin: 0; }
.verdict { font-weight: 600; color: var(--orange); }
.verdict.yes { color: var(--green); }
.tokens { margin: 1rem 0 1.2rem; max-height: 22rem; overflow-y: auto; }
.tokens span { unicode-bidi: isolate; border-radius: 3px; }
.less { background: rgb(0 114 178 / var(--t)); }
.more { background: rgb(230 130 0 / var(--t)); }
.short { display: flex; flex-wrap: wrap; gap: .35rem; }
.short span {
  padding: .3rem .5rem; text-align: center; min-width: 3rem; font-size: 1.05rem;
  box-shadow: inset 0 0 0 1px var(--line);
}
.short small { display: block; font-size: .75rem; color: var(--ink); }
.tokens em { color: var(--soft); }
.sum { display: flex; flex-wrap: wrap; gap: .3rem .7rem; align-items: baseline; }
.sum div { text-align: center; }
.sum small { display: block; font-size: .75rem; color: var(--soft); }
.scale { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: center; margin: 0 0 .4rem; }
.scale .short span { font-size: .8125rem; padding: .15rem .5rem; }
footer { margin-top: 5rem; padding-top: 1.2rem; border-top: 1px solid var(--line); font-size: .875rem; }

@media (max-width: 40rem) {
  body { padding: 2rem 1.1rem 3rem; }
  h1 { font-size: 1.6rem; }
  .summary { font-size: 1.05rem; }
  section { margin-top: 3.5rem; }
  .tiles { grid-template-columns: auto auto; gap: 1.1rem 1.2rem; }
  .plot.tall { height: 15rem; }
  .plot.named { margin-right: 5.6rem; }
  .headed output { min-height: 2.7em; }
  th, td { padding-right: .7rem; }
  .answer { padding: 1rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  section { margin-top: 2.2rem; }
  h2, h3, .lead, .scale { break-after: avoid; }
  .example { break-inside: avoid; }
  .lead { break-inside: avoid; }
  .grid { grid-template-columns: repeat(3, 1fr); gap: 1.5rem; }
  .tokens { max-height: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

# Shows the values of a chart at the pointer.
_SCRIPT = """
for (const plot of document.querySelectorAll("[data-points]")) {
  const points = JSON.parse(plot.dataset.points);
  const output = plot.closest("figure").querySelector("output"), resting = output.textContent;
  const rule = plot.appendChild(Object.assign(document.createElement("i"), {className: "rule"}));
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
    const [x, text] = points.reduce((best, one) => Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best);
    output.textContent = text;
    rule.style.left = 100 * x + "%";
    rule.style.opacity = 1;
  });
  plot.addEventListener("pointerleave", () => {
    output.textContent = resting;
    rule.style.opacity = 0;
  });
}
"""
