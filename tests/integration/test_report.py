"""The report of hand-made tables: its content, and that no text of a run can escape its markup."""

from __future__ import annotations

import base64
import hashlib
import itertools
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reval_core.replay_buffer.index import sql_views
from reval_core.report import write_report
from reval_core.report.charts import amount_scale, rounds_scale, value_scale
from reval_core.report.formats import duration, number
from reval_core.storage.run_directory import RunDirectory
from tests.facts import hand_made_run, publish_stages

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "</span><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\x00\"'&\u202e"


class Page(HTMLParser):
    """A parsed page: its elements, the text in each kind of element, and whether tags were closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def text(self, tag: str | None = None) -> str:
        """The text of the page, or of one kind of element."""
        return "".join(text for inside, text in self.texts if tag in (None, inside) and inside not in ("style",))

    def count(self, tag: str) -> int:
        """The number of elements of a kind."""
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A hand-made run with its report."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "small")
    hand_made_run(directory)
    write_report(directory)
    return directory


@pytest.fixture
def page(directory: RunDirectory) -> Page:
    """Its report."""
    return Page(directory.report)


def test_describes_what_happened(page: Page) -> None:
    text = page.text()
    assert "Held-out accuracy went from 25.0% to 75.0% in 2 rounds." in text
    assert "not finished" not in text
    assert all(figure in text for figure in ("25.0% → 75.0%", "2 of 2", "1 min 30 s", "transformers", "c2"))
    assert "7+8=" in text  # the hardest prompt
    assert "0 of 4" in text
    assert "−9.50" in text  # Δ of a right answer: 0.25 + 0.25 − 1 / 0.1


def test_shows_the_queries_that_it_ran(directory: RunDirectory, page: Page) -> None:
    queries = [text for tag, text in page.texts if tag == "code" and "\nFROM " in text]
    assert len(queries) == 10
    with sql_views(directory.path, directory.manifests()) as connection:
        assert all(connection.execute(query).fetchall() for query in queries)


def test_loads_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "image", "use"}
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    style = "".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_forbids_every_script_but_its_own(page: Page) -> None:
    (policy,) = (one["content"] for _, one in page.elements if one.get("http-equiv") == "Content-Security-Policy")
    allowed = base64.b64encode(hashlib.sha256(page.text("script").encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{allowed}'" in policy


def test_hostile_texts_stay_texts(run_path: Path) -> None:
    directory = RunDirectory(run_path)
    hand_made_run(directory, response=HOSTILE)
    hostile = Page(write_report(directory))
    assert "<script>alert(1)" not in hostile.source
    assert "<img" not in hostile.source
    assert "\x00" not in hostile.source
    assert "<script>alert(1)</script>" in hostile.text()
    assert hostile.count("script") == 1
    assert not any(name.startswith("on") or name == "src" for _, given in hostile.elements for name in given)


def test_can_be_written_at_any_moment(run_path: Path) -> None:
    directory = RunDirectory(run_path)
    for manifest in publish_stages(directory):
        last = (manifest.stage, manifest.round) == ("recording", 2)
        if manifest.round < 2 or last:
            assert ("The run is not finished" in Page(write_report(directory)).text()) == (not last)
    assert not directory.summary.exists()


def test_before_the_first_stage_there_is_only_the_config(run_path: Path) -> None:
    directory = RunDirectory(run_path)
    next(publish_stages(directory))
    directory.manifest_path("warm_start", 0).unlink()
    page = Page(write_report(directory))
    assert "No policy has been evaluated yet. The run is not finished: 0 of 2 rounds are recorded." in page.text()
    assert "beta: 0.1" in page.text("pre")
    assert page.count("svg") == 0


def test_objectives_without_a_residual(run_path: Path) -> None:
    directory = RunDirectory(run_path)
    hand_made_run(directory, with_delta=False)
    text = Page(write_report(directory)).text()
    assert "Mean |Δ|" not in text
    assert "No residual" in text


def test_the_same_tables_give_the_same_page(directory: RunDirectory, page: Page, run_path: Path) -> None:
    assert write_report(directory).read_text(encoding="utf-8") == page.source
    elsewhere = RunDirectory(run_path)
    hand_made_run(elsewhere)
    assert write_report(elsewhere).read_text(encoding="utf-8") == page.source


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0],
        [None, 3.0],
        [0.843, 0.2],
        [-2.5, 7.1],
        [1e-7, 3e-7],
        [12345.6, 98765.4],
        [1.0, 2.0, 1e4],
        [float("nan"), 1.0],
    ],
)
@pytest.mark.parametrize("percent", [False, True])
def test_axes_contain_their_values(values: list[float | None], percent: bool) -> None:
    scale = value_scale(values, may_be_log=True, percent=percent)
    known = [value for value in values if value is not None and value == value]
    assert all(-1e-9 <= scale.place(value) <= 1 + 1e-9 for value in known if not percent or value <= 1)
    assert all(low < high for low, high in itertools.pairwise(scale.ticks))
    assert len({scale.label(tick) for tick in scale.ticks}) == len(scale.ticks) >= 2


@pytest.mark.parametrize("last", [*range(1, 40), 64, 99, 101, 250, 1999, 2000])
def test_the_last_tick_of_the_round_axis_is_the_last_round_and_overlaps_no_other(last: int) -> None:
    scale = rounds_scale(last, ticks=4)
    assert (scale.ticks[0], scale.ticks[-1]) == (0, last)
    gaps = [after - before for before, after in itertools.pairwise(scale.ticks)]
    assert min(gaps) >= 0.75 * gaps[0] or len(gaps) == 1
    assert len({scale.label(tick) for tick in scale.ticks}) == len(scale.ticks)


@pytest.mark.parametrize("last", [0.3, 1.0, 7.9, 44.5, 63.1, 80.1, 999.0])
def test_axes_end_at_a_tick(last: float) -> None:
    for scale in (amount_scale(last), value_scale([last]), value_scale([last] * 3 + [1e5 * last], may_be_log=True)):
        assert scale.place(scale.ticks[-1]) == pytest.approx(1)
    scale = amount_scale(last)
    assert 0.8 * scale.high <= last <= scale.high + 1e-9


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0.00"), (-0.8381, "−0.838"), (12.345, "12.3"), (6147.2, "6,147"), (2.1e-5, "2.1e−05")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.31, "0.31 s"), (59.7, "1 min 00 s"), (372, "6 min 12 s"), (14700, "4 h 05 min"), (183600, "2 d 03 h")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
