"""The contamination check: normalised texts, shared words, and stock phrases."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reval_core.problems import Problem, arithmetic
from reval_core.problems.contamination import STOCK, WORDS, contaminated, normalised

NUMBERS = " ".join(f"word{number}" for number in range(40)).split()


def problems(*texts: str, name: str = "train") -> list[Problem]:
    return [Problem(f"{name}/{number}", text, "1", problem_set=name) for number, text in enumerate(texts)]


def pairs(train: list[str], tests: list[str]) -> list[tuple[str, str, str]]:
    """The overlapping pairs by index, with the words that they share."""
    found = contaminated(problems(*train), problems(*tests, name="test"))
    return [(one.train.prompt_id[6:], one.test.prompt_id[5:], one.shared) for one in found]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find $x$ if\n x=2.", "find x  if x = 2"),
        (r"Find \(x\) in \[ x+1 \]", "Find $x$ in $$x+1$$"),
        (r"\left( \frac{1}{2} \right)^{9}", r"(\dfrac12)^9"),
        (r"$1,\!657$ miles", "1,657 miles"),
        (r"5 \text{ miles}", "5 miles"),
        ("“How many?” – Tom’s", '"how many?" - Tom\'s'),
        ("x − 1", "x - 1"),
        ("ﬁnd １", "find 1"),
        ("the point (0,3)", "the point (0, 3)"),
        ("1 + 2 =", "1+2="),
    ],
)
def test_copies_with_different_notation_have_equal_normalised_texts(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert pairs([one], [other]) == [("0", "0", "")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1+2=", "12="),
        ("1+2=", "1-2="),
        ("1+2=", "1+2"),
        ("1 2", "12"),
        ("x^{10}", "x^10"),
        ("2^{3}4", "2^{34}"),
        ("3! = ", "3 = "),
        ("f'(2)", "f(2)"),
        ("1.5", "15"),
        ("1,5", "15"),
        (r"\sin x", r"\cos x"),
        (r"\frac{12}{3}", r"\frac{1}{23}"),
    ],
)
def test_digits_letters_and_operators_are_kept(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    assert pairs([one], [other]) == []


@given(text=st.text())
def test_normalisation_is_idempotent_and_never_empty(text: str) -> None:
    once = normalised(text)
    assert bool(once) == bool(text)
    assert once == " ".join(once.split()) or not once.strip() or once == text


def test_thirteen_shared_words_overlap_and_twelve_do_not() -> None:
    test = " ".join(NUMBERS[:20])
    for count, expected in ((WORDS, [("0", "0", " ".join(NUMBERS[4 : 4 + WORDS]))]), (WORDS - 1, [])):
        train = " ".join(["quite", "another", *NUMBERS[4 : 4 + count], "beginning"])
        assert pairs([train], [test]) == expected


def test_short_problems_overlap_only_if_equal() -> None:
    test = " ".join(NUMBERS[: WORDS - 1])
    assert pairs([test + " more", test], [test]) == [("1", "0", "")]


def test_every_pair_is_reported_once_in_the_order_of_the_training_problems() -> None:
    one, other = " ".join(NUMBERS[:20]), " ".join(NUMBERS[20:])
    found = pairs([f"{one} {other}", "nothing", one], [other, one, one + " again"])
    assert [(train, test) for train, test, _ in found] == [
        ("0", "0"),
        ("0", "1"),
        ("0", "2"),
        ("2", "1"),
        ("2", "2"),
    ]
    assert [shared == "" for _, _, shared in found] == [False, False, False, True, False]


def closing(number: int) -> str:
    """A distinct problem with a common closing."""
    return " ".join(f"{letter}{number}" for letter in string.ascii_letters) + " " + " ".join(NUMBERS[:WORDS])


def test_a_stock_phrase_does_not_count() -> None:
    assert len(pairs([closing(number) for number in range(STOCK - 1)], [closing(99)])) == STOCK - 1
    assert pairs([closing(number) for number in range(STOCK)], [closing(99)]) == []
    assert pairs([closing(1)] * 9, [closing(99)]) != [], "copies of one problem do not make a phrase common"


def test_many_variants_of_one_test_problem_are_not_a_stock_phrase() -> None:
    test = " ".join(NUMBERS)
    variants = [f"{test} variant{number}" for number in range(STOCK + 5)]
    assert [train for train, _, _ in pairs(variants, [test])] == [str(number) for number in range(STOCK + 5)]
    halves = [" ".join([*NUMBERS[: WORDS + 13], f"variant{number}"]) for number in range(STOCK + 5)]
    assert len(pairs(halves, [test])) == STOCK + 5, "14 of 28"
    less = [" ".join([*NUMBERS[: WORDS + 12], f"variant{number}"]) for number in range(STOCK + 5)]
    assert pairs(less, [test]) == [], "13 of 28"


def test_the_splits_of_arithmetic_do_not_overlap() -> None:
    train, held_out = (
        problems(*(text for text, _ in arithmetic.problems(2, "+-*", split))) for split in ("train", "held_out")
    )
    assert contaminated(train, held_out) == []
    assert len(contaminated(train, train[:50])) == 50
