"""`reval compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from reval.flows.cli.options import AS_JSON
from reval.flows.terminal import console, print_json, print_rows, say, short
from reval_core.errors import InputError

if TYPE_CHECKING:
    from reval_core.comparison.pairs import Pair, Part, Row, SideResult
    from reval_core.comparison.sides import Side

MOST_RUNS = 6
"""More lines than this cannot be distinguished in one chart."""

FLIPS = 3
"""How many of the largest gains, and of the largest losses, are printed."""


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, metavar="RUN RUN …")
@click.option(
    "--round", type=click.IntRange(min=0), help="The policy after this round; default: the last one evaluated."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="compare.html",
    show_default=True,
    help="The page to write.",
)
@AS_JSON
def compare(runs: tuple[Path, ...], round: int | None, out: Path, as_json: bool) -> None:
    """Compare runs or evaluations with the first one.

    Uses the problems that both share: paired intervals, changed problems, and a page with curves.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise InputError(f"reval compare takes 2 to {MOST_RUNS} runs, the baseline first; {len(runs)} were given")
    from reval_core.config.places import check_local, check_writable

    check_local(out, "--out")
    if out.is_dir():
        raise InputError(f"--out {out}: is a directory; give a file name")
    check_writable(out.parent, f"--out {out}")
    from reval_core.comparison import write_comparison
    from reval_core.comparison.pairs import pair
    from reval_core.comparison.sides import open_sides

    with open_sides(runs, round) as sides:
        pairs = [pair(sides[0], side) for side in sides[1:]]
        write_comparison(out, sides, pairs)
    if as_json:
        print_json(_comparison(sides, pairs, out))
        return
    _print_parts(pairs)
    for one in pairs:
        _print_flips(one)
    say(f"\nPage  {short(out.absolute())}")


def _print_parts(pairs: Sequence[Pair]) -> None:
    from reval_core.comparison.sections import part_names, results_of

    for name in part_names(pairs):
        say(f"\n{name}")
        names = ["run", "round", "problems", "accuracy, %", "points", "tokens", "truncated"]
        print_rows(names, [_line(side, part, result) for side, part, result in results_of(pairs, name)])


def _line(side: Side, part: Part, result: SideResult) -> list[str]:
    from reval_core.comparison.sections import responses_each, span
    from reval_core.report.formats import number, percent, points

    if result is part.baseline:
        difference = "baseline"
    else:
        clear = "clear" if part.difference.clear else "not clear"
        difference = f"{points(part.difference.mean)}, {clear}\n{span(part.difference)}"
    return [
        side.name,
        str(side.round),
        f"{part.problems:,} × {responses_each(result)}",
        "{:.1f}\n{:.1f} to {:.1f}".format(*(100 * share for share in vars(result.avg).values())),
        difference,
        number(result.tokens),
        percent(result.truncated),
    ]


def _print_flips(pair: Pair) -> None:
    from reval_core.comparison.by_problem import in_counts

    say(f"\n{fill(in_counts(pair), console().width)}\n")
    gains = [row for row in pair.rows if row.difference > 0][:FLIPS]
    losses = [row for row in pair.rows if row.difference < 0][-FLIPS:]
    if gains or losses:
        names = ["points", pair.baseline.name, pair.run.name, "problem"]
        print_rows(names, [_flip(row) for row in (*gains, *losses)])


def _flip(row: Row) -> list[str]:
    from reval_core.report.formats import points

    text = " ".join(row.problem.problem.split())
    return [
        points(row.difference),
        f"{row.baseline.right} of {row.baseline.samples}",
        f"{row.run.right} of {row.run.samples}",
        text if len(text) <= 60 else f"{text[:59]}…",
    ]


def _comparison(sides: Sequence[Side], pairs: Sequence[Pair], out: Path) -> dict[str, Any]:
    from reval_core.comparison.pairs import SEED
    from reval_core.evaluation.intervals import LEVEL, RESAMPLES

    return {
        "baseline": sides[0].name,
        "intervals": {"seed": SEED, "resamples": RESAMPLES, "level": LEVEL},
        "runs": [
            {
                "run": side.name,
                "path": str(side.source.path),
                "round": side.round,
                "problems": len(side.answers),
                "responses": sum(answers.samples for answers in side.answers.values()),
            }
            for side in sides
        ],
        "comparisons": [_pair(one) for one in pairs],
        "page": str(out.absolute()),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    sets = [_part(part) for part in pair.parts]
    return {
        "run": pair.run.name,
        "shared_problems": len(pair.rows),
        "only_baseline": pair.only_baseline,
        "only_run": pair.only_run,
        "sets": sets if len(sets) == 1 else sets[:-1],
        "average": sets[-1],
        "problems": [
            {
                "problem_set": row.problem.problem_set,
                "prompt_id": row.problem.prompt_id,
                "problem": row.problem.problem,
                "gold": row.problem.gold,
                "baseline": {"right": row.baseline.right, "samples": row.baseline.samples},
                "run": {"right": row.run.right, "samples": row.run.samples},
                "difference": row.difference,
            }
            for row in pair.rows
        ],
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "problems": part.problems,
        "baseline": _result(part.baseline),
        "run": _result(part.run),
        "difference": {**vars(part.difference), "clear": part.difference.clear},
        "better": part.better,
        "worse": part.worse,
        "same": part.same,
        "sign_test_p": part.p,
        "gained": part.gained,
        "lost": part.lost,
    }


def _result(result: SideResult) -> dict[str, Any]:
    return {
        "accuracy": vars(result.avg),
        "samples": list(result.samples),
        "tokens": result.tokens,
        "truncated": result.truncated,
    }
