"""MkDocs hooks: pages made from files outside docs/, and links to them.

CONTRIBUTING.md and CHANGELOG.md become pages. So does every other file of the repository that a page links to,
below source/, so that the site is complete without a network. Decision records get an index and enter the
navigation. A page that would load something from another host ends the build.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""Files at the top of the repository, and the pages that show them."""

_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
_LOADED = re.compile(r"""<(?:script|img|iframe|link [^>]*stylesheet)[^>]*?(?:src|href)=["']?(?:https?:)?//[^>]*>""")
_LANGUAGES = {".py": "python", ".json": "json", ".yaml": "yaml", ".jsonl": "json"}


def on_config(config: Any) -> Any:
    """Give headings the anchors that GitHub gives them, and list the decision records."""
    config.mdx_configs["toc"]["slugify"] = _anchor
    records = [f"decisions/{path.name}" for path in _decisions()]
    config.nav[-1]["Project"].append({"Decision records": ["decisions/index.md", *records]})
    return config


def _anchor(heading: str, separator: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", separator)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    made = {"decisions/index.md": _decision_index()}
    for name, page in PAGES.items():
        if name != "README.md":
            made[page] = rewritten((ROOT / name).read_text(encoding="utf-8"), name, page)
    for path in sorted(_linked()):
        made[_page_of(path)] = _source(path)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that leave docs/ lead to the pages made from their targets."""
    return (
        markdown if page.file.generated_by else rewritten(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    )


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Return the page as it is, if it loads nothing from another host."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found.group()}")
    return output


def rewritten(text: str, place: str, page: str) -> str:
    """The text of the file `place`, with its links as they must be on `page`."""

    def link(match: re.Match[str]) -> str:
        target = _resolved(match[1], place)
        return os.path.relpath(_page_of(target), PurePosixPath(page).parent)

    return _LINK.sub(link, text)


def _page_of(path: str) -> str:
    """The page, or the file below docs/, that shows a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path == "docs/decisions":
        return "decisions/index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _linked() -> set[str]:
    """The files and directories outside docs/ that some page links to."""
    places = [path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")] + list(PAGES)
    found = {
        _resolved(target, place)
        for place in places
        for target in _LINK.findall((ROOT / place).read_text(encoding="utf-8"))
    }
    return {path for path in found if not path.startswith("docs/") and path not in PAGES}


def _resolved(target: str, place: str) -> str:
    """The path from the repository's top that a link in the file `place` names."""
    return os.path.normpath(PurePosixPath(place).parent / target)


def _source(path: str) -> str:
    """A file of the repository as a page; of a directory, the names in it."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(f"{one.name}{'/' * one.is_dir()}" for one in place.iterdir() if one.name != "__pycache__")
        return f"# {path}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".md":
        return rewritten(text, path, _page_of(path))
    return f"# {path}\n\n````{_LANGUAGES.get(place.suffix, 'text')}\n{text}\n````\n"


def _decisions() -> list[Path]:
    return sorted((DOCS / "decisions").glob("[0-9]*.md"))


def _decision_index() -> str:
    rows = []
    for path in _decisions():
        number, _, title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(". ")
        rows.append(f"| {number} | [{title}]({path.name}) |")
    return (
        "# Decision records\n\nWhat was decided, why, with measurements, and which alternatives were considered. A "
        "later record may replace an earlier one and says so.\n\n| | decision |\n| --- | --- |\n" + "\n".join(rows)
    )
