"""What commands print: control characters are escaped, and standard output may fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from reval.flows import terminal
from reval_core.output.control_characters import json_escaped, visible, visible_lines
from reval_core.output.json_text import json_text

ROOT = Path(__file__).parents[3]
SEEN = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2\u0890\u0891\U000110bd\U000110cd")
"""Visible format characters."""
JOINING = {"\u200c", "\u200d", *map(chr, range(0x13430, 0x13460))}


def test_every_control_character_is_escaped() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        acts = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        if acts and character not in SEEN | JOINING:
            assert visible(character).isascii(), hex(code)
        elif not acts and unicodedata.category(character) != "Cn":
            assert visible(character) == character


def test_escapes_are_those_of_python_and_lines_can_be_kept() -> None:
    assert visible("a\x1b[2Jb\nc\u202ed\U000e0041\ud800") == r"a\x1b[2Jb\nc\u202ed\U000e0041\ud800"
    assert visible_lines("a\n\tb\rc") == "a\n\tb\\rc"
    assert visible("Größe 数学 \\frac12 👩‍🔬") == "Größe 数学 \\frac12 👩‍🔬"


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "\u202e", "\x7f\x9b", "\U000e0041", "\ud800", 'a"\\b', "\u2028", "\0"]
)
def test_escaped_json_parses_to_the_same(text: str) -> None:
    shown = json_escaped(json.dumps([text, {text: 1}], ensure_ascii=False))
    assert shown.isprintable()
    assert json.loads(shown) == [text, {text: 1}]


def test_json_accepts_every_value() -> None:
    value = {
        "floats": [float("nan"), float("inf"), {"deep": (float("-inf"), 1.5)}],
        1: "one",
        None: 0,
        (1, float("nan")): "a pair",
        "money": Decimal("1.50"),
        "huge": 10**5000,
        "bytes": b"\xff\x00",
        "path": Path("a"),
    }
    found = json.loads(json_text(value), parse_constant=pytest.fail)
    assert found["floats"] == [None, None, {"deep": [None, 1.5]}]
    assert (found["1"], found["null"], found["[1, null]"]) == ("one", 0, "a pair")
    assert (found["money"], int(found["huge"], 16), found["bytes"]) == ("1.50", 10**5000, "ff00")
    assert json_text("é", ascii_only=True).isascii()
    assert "\n" not in json_text(value, indent=None)


HOSTILE = "\x1b]0;x\x07[bold red]:smile:[/] [link=http://a]b\u202e\x9b"


def test_tables_pairs_and_lines_show_texts_literally(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_rows(
        [HOSTILE, HOSTILE, "n"], [[HOSTILE, f"two\nlines {HOSTILE}", 1], [None, "", 2.5]], width=200
    )
    terminal.print_table(["a", "b"], [[HOSTILE, HOSTILE]])
    terminal.print_pairs(HOSTILE, {HOSTILE: HOSTILE})
    terminal.say(f"one\ntwo {HOSTILE}")
    terminal.console().print(terminal.styled(HOSTILE, (HOSTILE, "bold")))
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert "[bold red]:smile:[/]" in shown


NAMES = ("round", "problem", "response", "verdict", "advantage", "correct", "note")
WIDE = [
    [1, "What is 7 + 8? " * 4, "The answer is \\boxed{15}. " * 3, "correct", -0.25, True, None],
    [123456, "z" * 90, "", "wrong", 12345678.5, False, "two\nlines"],
]


@pytest.mark.parametrize("width", [30, 50, 80, 120, 250])
@pytest.mark.parametrize("columns", [2, 4, 7])
def test_no_table_is_wider_than_the_terminal_or_squeezed(
    width: int, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    terminal.print_rows(NAMES[:columns], [row[:columns] for row in WIDE])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert not re.search(" $", shown, re.MULTILINE)
    words = shown.split()
    assert {"1", "123456", *NAMES[:columns]} <= set(words), "numbers and names are whole"
    assert shown.count("z") == 90
    if columns > 4:
        assert {"-0.25", "1.235e+07", "correct", "wrong"} <= set(words)


def test_a_table_that_does_not_fit_is_printed_as_a_block_per_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"column_{number}" for number in range(12)]
    monkeypatch.setenv("COLUMNS", "80")
    terminal.print_rows(names, [[HOSTILE, *range(11)], [None, *range(11)]])
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if not line.startswith("  ")] == ["row 1", "row 2"]
    assert "  column_0   –" in shown
    assert [line.split() for line in shown.splitlines() if "column_11" in line] == [["column_11", "10"]] * 2
    assert shown.replace("\n", "").isprintable()
    monkeypatch.setenv("COLUMNS", "200")
    terminal.print_rows(names, [["a", *range(11)]])
    assert capsys.readouterr().out.split()[:12] == names


def test_a_table_without_rows_has_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_rows(["a", "b"], [])
    assert capsys.readouterr().out.split()[:2] == ["a", "b"]


def test_bars_are_for_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Bar(HOSTILE) as bar:
        bar.update(1, 2)
        bar.line("half ", (HOSTILE, "bold"))
    shown = capsys.readouterr()
    assert shown.out.startswith("half ")
    assert shown.out.count("\n") == 1
    assert shown.out.strip().isprintable()
    assert shown.err == ""


def test_a_bar_on_a_terminal_shows_its_title_literally_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        with terminal.Bar("[red]problems\u202e") as bar:
            bar.update(1, 2)
            bar.line("half")
        screen.flush()
        shown = ""
        while "\x1b[?25h" not in shown:  # the cursor again, at the end
            shown += os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "[red]problems\\u202e" in shown
    assert "1/2" in shown
    assert "half" in shown
    assert "\x1b[2K" in shown, "the bar is erased"
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", re.sub(r"\x1b\[[12]m", "", shown)), "no colours"


def test_quoted_texts_are_cut_after_some_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    left_out = terminal.print_quoted(f"{'word ' * 20}\n\n{'y' * 100}\n{HOSTILE}", ["<|end|>"], most=5)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5
    assert all(line.startswith("  │") and len(line) <= 40 for line in shown)
    assert left_out > 1


def test_commands_print_only_through_the_terminal_module() -> None:
    for path in (ROOT / "flows").rglob("*.py"):
        if path.name not in ("terminal.py", "streams.py"):
            found = re.search(r"click\.echo|import rich|from rich|sys\.stdout|(?<![.\w])print\(", path.read_text())
            assert found is None, f"{path.name}: {found}"


def reval(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell command in which `reval` is the command line."""
    line = command.replace("reval ", f"{sys.executable} -m reval.flows.cli ")
    values: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", line], env=values, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("command", "code", "complaint"),
    [
        ("reval --help > /dev/full", 1, b"reval: standard output: No space left on device\n"),
        ("reval runs nowhere > /dev/full", 1, b"reval: standard output: No space left on device\n"),
        ("reval runs nowhere >&-", 0, b""),
        ("reval runs nowhere >&- 2>&- <&-", 0, b""),
        ("reval resume nowhere 2> /dev/full", 2, b""),
        ("reval resume nowhere 2>&-", 2, b""),
        ("reval --help | true; exit ${PIPESTATUS[0]}", 0, b""),
        ("reval nonsense > /dev/full 2>&1", 2, b""),
    ],
)
def test_output_that_fails_gives_no_traceback(command: str, code: int, complaint: bytes) -> None:
    done = reval(command)
    assert (done.returncode, done.stderr) == (code, complaint)


def test_an_ascii_locale_prints_everything() -> None:
    done = reval("reval runs 'é∆'", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xe9\u2206" in done.stdout
    done = reval(
        "reval runs $'\\x1b[31m\\nreval: all is well\\u202e'/a --json; reval resume $'\\x1b[2J\\nreval: fine'"
    )
    assert done.returncode == 2
    assert done.stdout == b"[]\n"
    assert done.stderr.decode().count("\n") == 1
    assert done.stderr.decode().strip().isprintable()
