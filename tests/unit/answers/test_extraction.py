"""Extraction of answers beyond a single box: adjacent boxes, later statements, the end of a response."""

import pytest

from reval_core.answers import as_choice
from reval_core.answers.extraction import METHODS, Method, boxed_answers, extract


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1}, \boxed{2}", "1, 2"),
        (r"\boxed{1}\boxed{2}", "1, 2"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"$x = \boxed{1}$ or $y_2 = \boxed{2}$", "1, 2"),
        (r"\boxed{1} \quad \text{and} \quad \boxed{2}", "1, 2"),
        (r"\boxed{3} apples and \boxed{4} pears", "3, 4"),
        (r"**\boxed{20\%}**, **\boxed{30\%}**", r"20\%, 30\%"),
        (r"\boxed{1} \boxed{1} and \boxed{1}", "1"),
        (r"\boxed{5} is the first root, the second is \boxed{6}", "6"),
        (r"\boxed{5}. No: \boxed{6}", "6"),
        (r"\boxed{5} then \boxed{6}, \boxed{7}", "6, 7"),
        (r"\boxed{\boxed{8}}", "8"),
        (r"\boxed{1} " + "and " * 30 + r"\boxed{2}", "2"),
    ],
)
def test_adjacent_boxes_are_one_list(response: str, answer: str) -> None:
    assert extract(response, ("boxed",)) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think> \boxed{1} </think> \boxed{2}", "2"),
        (r"<think> \boxed{1} </think> So much for that.", None),
        (r"<think> \boxed{1}", "1"),
    ],
)
def test_thoughts_are_ignored(response: str, answer: str | None) -> None:
    assert extract(response, METHODS["strict"]) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"half is \boxed{255}. Final Answer: The final answer is $10,455$. I hope it is correct.", "10,455"),
        (r"The final answer is $5$, that is \boxed{6}", "6"),
        (r"\boxed{6}. I hope that the answer is correct.", "6"),
        ("Final answer: Jane started 3 hours ago.", "3"),
        ("Final answer: between 3 and 5 hours ago.", "3 and 5"),
    ],
)
def test_a_final_answer_after_the_box_supersedes_it(response: str, answer: str) -> None:
    assert extract(response, METHODS["lenient"]) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("x = 5", "x = 5"),
        ("28 percent", "28 percent"),
        ("W(x)=1orW(x)=-1", "W(x)=1orW(x)=-1"),
        ("Therefore $x > 5$ is the solution.", "x > 5"),
        (r"The sum is $\begin{pmatrix}1 \\ 2\end{pmatrix}$", r"\begin{pmatrix}1 \\ 2\end{pmatrix}"),
        ("so it is $28$ %", "28 %"),
        ("the number is not 10 which is 1,000.99€", "1,000.99"),
        ("the probability that Alice wins is 2/3. <|im_start|>user", "2/3"),
        ("there are 12 sequences that meet the conditions. I hope it is correct.", "12"),
        ("it increases by 100%.", "100%"),
        ("either $5$ or $6$ will do", "5 or 6"),
        ("it could be 5, 6, or 7", "5, 6, or 7"),
        ("[45 degrees]", "45 degrees"),
        ("The ratio is [1/2].", "1/2"),
        ("The point is (1, 2).", "(1, 2)"),
        ("It lies in $[0, 1)$", "[0, 1)"),
        ("It is $5$ or maybe $6$.", "5 or maybe 6"),
        ("It is forty-two (42).", "42"),
        ("first [60] then [90]", "90"),
        ("AZYUK2A", "AZYUK2A"),
        ("Evelyn", "Evelyn"),
        ("I do not know what this is", None),
        ("", None),
    ],
)
def test_tail(response: str, answer: str | None) -> None:
    assert extract(response, ("tail",)) == answer


def test_strict_mode_does_not_extract_from_the_tail() -> None:
    assert "tail" not in METHODS["strict"]
    assert extract("it is 5", METHODS["strict"]) is None


CHOICES: list[tuple[str, str | None]] = [
    ("B", "B"),
    ("(B)", "B"),
    ("B. the second", "B"),
    ("**B**", "B"),
    (r"\text{B}", "B"),
    (r"\textbf{(B)}", "B"),
    ("option B", "B"),
    ("(B) because A is wrong", "B"),
    ("B and C", None),
    ("B, C", None),
    ("(B) or (C)", None),
    ("A. B. C. D.", None),
    ("B is not the answer", None),
    ("B isn't it", None),
    ("(B) is wrong", None),
    (r"\text{B) } 12", "B"),
    (r"\text{B or C}", None),
    ("Bees", None),
    ("A cat", None),
    ("b", None),
    ("K", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), CHOICES)
def test_choices(text: str, letter: str | None) -> None:
    assert as_choice(text) == letter


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Not (A), so (B).", "B"),
        ("I think so.\n**C**\n", "C"),
        ("It must be option D", "D"),
        ("(A) or (B)", "A, B"),
        ("A cat sat", None),
        ("B. It follows.", "B"),
        ("A. one\nB. two\n", "A"),
    ],
)
def test_the_last_choice_of_a_text(response: str, answer: str | None) -> None:
    methods: tuple[Method, ...] = ("choice",)
    assert extract(response, methods) == answer


@pytest.mark.parametrize(
    "response",
    [
        "The answer is not 42.",
        "The answer is half of 42.",
        "The answer is anything but 42.",
        "The answer is 42 million.",
        "The answer is 42 dozen, I think.",
        "The answer isn't 42.",
        "It is certainly not $42$. The answer is not $42$.",
        "The answer is twice $42$.",
    ],
)
def test_a_negated_or_changed_number_is_not_extracted_alone(response: str) -> None:
    assert extract(response, METHODS["lenient"]) != "42"
    assert extract(response, METHODS["strict"]) != "42"


@pytest.mark.parametrize("response", ["so it is not 42", "about half of 42", "it equals 42 thousand"])
def test_a_negated_or_changed_number_is_not_extracted_from_the_tail(response: str) -> None:
    assert extract(response, ("tail",)) != "42"


def test_boxes_separated_by_hedging_are_one_list() -> None:
    assert extract(r"\boxed{42} or maybe \boxed{43}", ("boxed",)) == "42, 43"


def test_a_mistakenly_escaped_brace_closes_the_box() -> None:
    assert extract(r"so $\boxed{5\}$", ("boxed",)) == "5"


def test_all_boxes_are_returned() -> None:
    assert boxed_answers(r"<think>\boxed{1}</think> \boxed{2}, \boxed{}, \boxed{$3$}") == ["2", "3"]
