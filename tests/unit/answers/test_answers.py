import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.answers import alternatives, as_integer, tidy
from reval_core.answers.extraction import LONGEST_ANSWER, Method, extract, prepare_gold

EVERY_METHOD: tuple[Method, ...] = get_args(Method)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so it is $\boxed{5}$.", "5"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\{b}}", r"a \\{b}"),
        (r"\boxed{$x^2$}", "x^2"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed 5", "5"),
        (r"$\boxed \frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{\boxed{8}}", "8"),
        (r"\\boxed{9}", "9"),
        (r"line \\\boxed{10}", "10"),
        (r"\boxed{3} and then \boxed{}", "3"),
        (r"\boxed{3} and then \boxed{4", "3"),
        ("no box at all", None),
        (r"\boxed{}", None),
        (r"\boxed{", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_boxed(response: str, answer: str | None) -> None:
    assert extract(response, ("boxed",)) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 4", "4"),
        ("The answer is: 4. I hope it is correct.", "4"),
        ("The final answer is $(7, 6)$. I hope it is correct.", "(7, 6)"),
        ("Final Answer: The final answer is 12,000,023. I hope it is correct.", "12,000,023"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("**Answer:** 3.5 meters", "3.5 meters"),
        ("**Final Answer**:\n\\[ 5\n \\]", "5"),
        ("The answer is $2$ and $3$, as shown.", "2 and 3"),
        (r"The answer is $\frac{5}{6}$ of it.", r"\frac{5}{6}"),
        ("The answer is 3. Wait, the answer is 4.", "4"),
        ("Q: 1 + 1?\nA: 2", "2"),
        ("nothing", None),
        ("answer", None),
    ],
)
def test_phrase(response: str, answer: str | None) -> None:
    assert extract(response, ("phrase",)) == answer


def test_hashes() -> None:
    assert extract("6 * 3 = <<6*3=18>>18\n#### 18", ("hashes",)) == "18"
    assert extract("#### 1\n#### 1,024\n", ("hashes",)) == "1,024"
    assert extract("# heading", ("hashes",)) is None


def test_choice() -> None:
    assert extract("Not (A), so (B).", ("choice",)) == "B"
    assert extract("I think so.\n**C**\n", ("choice",)) == "C"
    assert extract("A cat", ("choice",)) is None


def test_methods_are_tried_in_order() -> None:
    response = "The answer is 3.\n#### 4"
    assert extract(response, ("boxed", "phrase", "hashes")) == "3"
    assert extract(response, ("hashes", "phrase")) == "4"
    assert extract(response, ()) is None
    assert extract(r"\boxed{} but the answer is 3", ("boxed", "phrase")) == "3"


def test_only_the_end_of_a_long_answer_is_kept() -> None:
    long = "1+" * 5000 + "7"
    assert extract(long, ("whole",)) == long[-LONGEST_ANSWER:]
    assert extract(rf"\boxed{{{long}}}", ("boxed",)) == long[-LONGEST_ANSWER:]


@pytest.mark.parametrize(
    ("gold", "prepared"),
    [
        (r"$81\sqrt{3}$.", r"81\sqrt{3}"),
        (r"\(\frac{1}{2}\)", r"\frac{1}{2}"),
        (r"\[ x \]", "x"),
        ("$69$,$84$", "69, 84"),
        ("$69$,$840$", "69, 840"),
        (r"x \left\{ 1 \right.", r"x \left\{ 1 \right."),
        ("8.7e8", "870000000.0"),
        ("2.55e-10", "0.000000000255"),
        ("1.3e23", r"1.3 \times 10^{23}"),
        (r"1\,657", "1657"),
        ("1 000 000", "1000000"),
        ("45°", r"45^\circ"),
        ("√2 × √(x+1)", r"\sqrt{2} \times  \sqrt{x+1}"),
        ("x⁴ + a₁₂", "x^{4} + a_{12}"),
        ("１２，５", "12,5"),
        ("–3", "-3"),
        ("0.333...", "0.333..."),
        ("⅕", r"\frac{1}{5}"),
        ("Müller", "Müller"),
        ("2¾", r"2\frac{3}{4}"),
        ("x ≤ −3", r"x \le  -3"),
        ("x**10 + y**n", "x^{10} + y^n"),
        ("≈ 2", "2"),
        (r"\approx 2", "2"),
        (r"Thus $x = \boxed{3}$.", "3"),
        ("6 * 3 = 18\n#### 18", "18"),
        ("  ", ""),
        ("$$", ""),
    ],
)
def test_prepared_golds(gold: str, prepared: str) -> None:
    assert prepare_gold(gold) == prepared


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("025", 25),
        ("-7", -7),
        ("+7", 7),
        ("$12$", 12),
        (r"\$12", 12),
        ("12.", 12),
        ("1,657", 1657),
        (r"1,\!657,\!000", 1657000),
        ("1{,}657", 1657),
        ("1, 657", None),
        ("1,65", None),
        ("01,657", None),
        ("1,2,3", None),
        ("12.0", None),
        (r"12\%", None),
        ("1 2", None),
        ("25_8", None),
        ("٣", None),
        ("9" * 31, None),
        ("", None),
    ],
)
def test_integers(text: str, value: int | None) -> None:
    assert as_integer(text) == value


@pytest.mark.parametrize(
    ("gold", "members"),
    [
        ("E_{1},E_{2}", ["E_{1}", "E_{2}"]),
        ("(1,2), (3,4) or 5", ["(1,2)", "(3,4)", "5"]),
        (r"5 \text{ or } 6", ["5", "6"]),
        ("1,657", ["1,657"]),
        (r"\{1,2\}", [r"\{1,2\}"]),
        ("x > 1 and x < 2; 7", ["x > 1", "x < 2", "7"]),
        ("7", ["7"]),
        ("", []),
    ],
)
def test_alternatives(gold: str, members: list[str]) -> None:
    assert alternatives(gold) == members


HOSTILE = {
    "empty boxes": r"\boxed{}" * 40_000,
    "unclosed boxes": r"\boxed{" * 40_000,
    "bare boxes": r"\boxed" * 40_000,
    "open braces": "{" * 300_000,
    "backslashes": "\\" * 300_000,
    "escaped braces": r"\{" * 150_000,
    "phrases": "the answer is " * 20_000,
    "a phrase and spaces": "answer" + " " * 300_000,
    "a phrase of words": "answer: " + "it is " * 50_000,
    "open formulas": "answer: " + r"\(" * 150_000,
    "hashes": "#" * 300_000,
    "lines": "A\n" * 150_000,
    "dollars": "$" * 300_000,
    "stars": "*" * 300_000,
}


@pytest.mark.parametrize("response", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_responses_take_linear_time(response: str) -> None:
    started = time.process_time()
    for method in EVERY_METHOD:
        extract(response, (method,))
    # 300 KB take well under a second; anything quadratic would take minutes.
    assert time.process_time() - started < 2.0


fragments = st.lists(
    st.sampled_from(
        [
            r"\boxed",
            "{",
            "}",
            "\\",
            "$",
            r"\(",
            r"\)",
            "#### ",
            "the answer is ",
            "A: ",
            "(B)",
            ",",
            " or ",
            "1e9",
            ".",
        ]
    )
    | st.text(max_size=5),
    max_size=30,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(fragments, st.lists(st.sampled_from(EVERY_METHOD), max_size=5))
def test_no_text_raises(text: str, methods: list[Method]) -> None:
    answer = extract(text, methods)
    assert answer is None or len(answer) > 0
    alternatives(prepare_gold(text))
    as_integer(text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab1+{}\\ ", max_size=30))
def test_a_balanced_box_is_extracted_completely(content: str) -> None:
    depth = 0
    for piece in content.replace("\\\\", "").replace(r"\{", "").replace(r"\}", ""):
        depth += (piece == "{") - (piece == "}")
        if depth < 0:
            return
    if depth or content.endswith("\\") or not content.strip():
        return
    assert extract(f"\\boxed{{{content}}}", ("boxed",)) == tidy(content)


@given(st.integers(-(10**29), 10**29))
def test_all_notations_of_an_integer_are_parsed(value: int) -> None:
    for spelling in (str(value), f"{value:,}", f"${value}$", f"{value:,}".replace(",", r",\!"), f" {value}. "):
        assert as_integer(spelling) == value
