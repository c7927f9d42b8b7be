"""The documentation fits together: its navigation, its links, the commands that it shows. Needs no MkDocs."""

import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import yaml

from reval.flows.cli import COMMANDS, RENAMED, cli
from reval_core.config import Config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
MADE = {"contributing.md", "changelog.md"}
"""Pages that docs/site_hooks.py makes of files at the top."""

PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
CODE = re.compile(r"^ *(`{3,}).*?^ *\1", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"```(?:shell|bash)\n(.*?)```|((?:^    \S.*\n(?:^    .*\n)*))", re.MULTILINE | re.DOTALL)


def nav_pages(entries):
    """The pages of the navigation, in order."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            (inner,) = entry.values()
            yield from [inner] if isinstance(inner, str) else nav_pages(inner)


def anchors(page):
    """The anchors that GitHub and the site give the headings of a page."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)}


def slug(heading):
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w -]", "", plain.strip().lower()).replace(" ", "-")


def links(page):
    text = re.sub(r"`[^`\n]*`", "", CODE.sub("", page.read_text(encoding="utf-8")))
    return [unquote(target) for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def broken(page, target):
    """What is wrong with a link, or None."""
    name, _, anchor = target.partition("#")
    place = (page.parent / name).resolve() if name else page
    if not place.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(place):
        return f"{target}: no such heading"
    return None


def shown_commands(page):
    """The words of each `reval` command in the code blocks of a page."""
    for fenced, indented in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in (fenced or indented).replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\S+=\S+ )*(?:\.venv\S*/bin/)?reval ([a-z].*)", line)
            if match:
                yield match[1].partition(" #")[0].split()


def unknown(words):
    """The first word of a command that reval does not know, or None."""
    context = click.Context(cli, info_name="reval")
    command = cli.get_command(context, words[0]) if words[0] in COMMANDS else None
    rest = words[1:]
    if isinstance(command, click.Group) and rest:
        command, rest = command.get_command(context, rest[0]), rest[1:]
    if command is None:
        return words[0]
    known = {name for param in command.params for name in param.opts} | {"--help"}
    return next((word for word in rest if word.startswith("--") and word.partition("=")[0] not in known), None)


def test_the_configs_of_the_tutorial_are_valid():
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    small, changes = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    large = {key: value for key, value in (small | changes).items() if key not in ("threads", "reference")}
    assert Config.model_validate(small).rounds == Config.model_validate(large).rounds == 20


def test_the_navigation_lists_every_page_once():
    listed = [page for page in nav_pages(SITE["nav"]) if page not in MADE]
    written = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted(page for page in written if not page.startswith("decisions/"))


def test_the_site_is_built_strictly_and_loads_nothing():
    assert SITE["strict"] is True
    assert SITE["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript"} & set(SITE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert [wrong for target in links(page) if (wrong := broken(page, target))] == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "decisions" not in page.parts],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_every_command_that_is_shown_exists_with_its_options(page):
    wrong = [" ".join(words) for words in shown_commands(page) if unknown(words)]
    assert wrong == []


def test_former_names_and_unknown_options_would_be_found():
    assert {name: unknown([name, "runs/demo"]) for name in RENAMED} == {name: name for name in RENAMED}
    assert unknown(["train", "x.yaml", "--no-such"]) == "--no-such"
    assert unknown(["problems", "check", "x.jsonl", "--json"]) is None


def test_the_reference_of_commands_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_commands.py"))
    assert made["TARGET"].read_text(encoding="utf-8") == made["reference"](), "run docs/make_commands.py"
