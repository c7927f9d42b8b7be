"""Pages: templates rendered to one self-contained HTML file, with every value escaped.

A page loads nothing: its Content-Security-Policy forbids the network and every script but its own. The templates
are in the directories `templates` of the report, the comparison and the reproduction.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_core.atomic_files import publish_file
from reval_core.output.control_characters import visible_lines
from reval_core.report.formats import duration, number, percent, points

if TYPE_CHECKING:
    from jinja2 import Environment

# Control characters are shown as control pictures, other invisible ones as escapes: a response can contain any.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def publish_page(path: Path, template: str, **values: Any) -> None:
    """Render a template and write the page.

    Args:
        path: Where the page is written.
        template: The template's path in `reval_core`.
        values: Its variables. Only plain texts enter them, which the template escapes.

    Raises:
        jinja2.UndefinedError: The template uses a variable that is not among them.
    """
    page = render(template, **values)
    publish_file(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def render(template: str, **values: Any) -> str:
    """Return the document that `publish_page` writes."""
    page = _environment().get_template(template).render(values)
    return visible_lines(page.translate(_PICTURES))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "duration": duration,
        "number": number,
        "percent": percent,
        "points": points,
        "sha256": _sha256,
    }
    return environment


def _sha256(text: str) -> str:
    """Return the digest by which a Content-Security-Policy allows a script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
