"""Golds of every kind that problem sets hold, for tests of the audit and of the verifier."""

from __future__ import annotations

from pathlib import Path

from reval_core.config import GoldMode, ProblemSet
from reval_core.problems import Problem
from reval_core.problems.order import shuffled
from reval_core.problems.problem_sets import read_set

DATA = Path(__file__).parents[2] / "shared" / "data"

SETS: dict[str, GoldMode] = {
    "deepscaler_all": "all",
    "gsm8k_train": "all",
    "gsm8k_test": "all",
    "aime24": "all",
    "aime25": "all",
    "amc_83": "all",
    "math500": "all",
    "minerva": "any",
    "olympiadbench": "all",
}
"""The real sets that are beside the project where tests may read them, and what their golds ask for."""

WRITTEN: dict[str, tuple[str, ...]] = {
    "integer": ("42", "-7", "0", "025", r"1,\!657", "12345"),
    "decimal": ("3.75", "-0.4", "12.5"),
    "float": ("8.7e8", "3.5e-11", "2e6"),
    "fraction": (r"\frac{7}{4}", r"-\frac{2}{9}", "3/8", r"\dfrac{11}{6}", r"\frac12"),
    "number": (r"6\sqrt{5}", r"\frac{3\pi}{4}", r"1+\sqrt{2}", r"12\pi"),
    "expression": ("2n+1", r"x^2-3x+2", r"\frac{x+1}{y}", "3ab^2", r"\frac{1}{2} m v^2"),
    "percent": (r"35\%",),
    "degrees": (r"72^\circ",),
    "money": (r"\$18", r"\$306,956.63"),
    "quantity": (r"15\text{ cm}", r"9\text{ miles}", r"12\sqrt{13}\text{ feet}"),
    "based": ("2012_3", r"-37_{8}", "1101_{(2)}"),
    "ratio": ("3:8", "1 : 2 : 5"),
    "time": (r"4:45 \text{ p.m.}", "10:30 am"),
    "list": ("4, -9", r"\frac{1}{2}, 3", r"1+\sqrt{3}, 1-\sqrt{3}"),
    "tuple": ("(3, -8)", r"\left(\frac{1}{2}, 4, 6\right)"),
    "interval": ("(2, 9]", r"[5, \infty)"),
    "matrix": (r"\begin{pmatrix} 1 & -2 \\ 3 & 6 \end{pmatrix}", r"\begin{pmatrix} 7 \\ -5 \end{pmatrix}"),
    "equation": ("y = 2x - 3",),
    "words": (r"\text{parabola}", "Tuesday"),
    "letter": (r"\text{D}",),
}
"""Golds written for the tests, by their kind."""


def written() -> list[Problem]:
    """The golds above as problems that say nothing of them."""
    golds = [gold for golds in WRITTEN.values() for gold in golds]
    return [Problem(f"written {number}", "What is it?", gold) for number, gold in enumerate(golds)]


def drawn(count: int, seed: int = 0) -> list[Problem]:
    """So many problems of each real set; none where the sets are not there."""
    problems = []
    for name, gold_mode in SETS.items() if DATA.exists() else ():
        _, reads = read_set(ProblemSet(path=str(DATA / f"{name}.parquet"), gold_mode=gold_mode))
        usable = {read.problem.prompt_id: read.problem for read in reads if read.problem is not None}
        problems += [usable[one] for one in shuffled(list(usable), seed, "property tests")[:count]]
    return problems
