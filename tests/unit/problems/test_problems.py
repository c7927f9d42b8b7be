"""Problems: the contents of files, the splits of arithmetic, and the order of the problems in a run."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.config import Arithmetic, Example, ProblemSet, Prompt
from reval_core.errors import InputError
from reval_core.model.loading import make_tiny_tokenizer
from reval_core.problems import Problem, PromptOrder, arithmetic, load_problems, problems_digest, prompt_text

ROOT = Path(__file__).parents[3]

Written = Callable[..., ProblemSet]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A problem set of these lines."""

    def write(*lines: str | bytes, limit: int | None = None) -> ProblemSet:
        raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
        (tmp_path / "some.jsonl").write_bytes(b"\n".join(raw))
        return ProblemSet(path=str(tmp_path / "some.jsonl"), limit=limit)

    return write


def row(**fields: object) -> str:
    return json.dumps({"problem": "1+1", "answer": "2"} | fields, ensure_ascii=False)


def numbered(count: int) -> list[Problem]:
    return [Problem(str(number), f"{number}+0", str(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        ([row(), '{"problem": "1", "answer": "1"'], ":2: ", "not JSON (Expecting ',' delimiter at column 31)"),
        ([row(), "1+1=2"], ":2: ", "not JSON (Extra data at column 2)"),
        ([row(), "", "[1, 2]"], ":3: ", "not a JSON object"),
        (["null"], ":1: ", "not a JSON object"),
        (['{"problem": "1+1"}'], ": ", "has no column for the answer; it has 'problem'"),
        (['{"answer": "2"}'], ": ", "has no column for the problem; it has 'answer'"),
        ([row(), '{"answer": "2"}'], ":2: problem: ", "is missing"),
        ([row(question="2+2")], ": ", "the problem may be in problem or question"),
        ([row(answer=None)], ":1: answer: ", "is missing"),
        ([row(answer="")], ":1: answer: ", "is empty"),
        ([row(), row(answer=" \t")], ":2: answer: ", "is empty"),
        ([row(answer="x + 1 = 1 + x")], ":1: answer: ", "is an identity"),
        ([row(problem="\u2028")], ":1: problem: ", "is empty"),
        ([row(answer=True)], ":1: answer: ", "must be text or a number, not bool"),
        ([row(answer={"value": "2"})], ":1: answer: ", "not dict; specify a nested column as answer.NAME"),
        ([row(answer=[])], ":1: answer: ", "is an empty list"),
        ([row(answer=["2", ""])], ":1: answer: ", "is empty"),
        ([row(answer=float("nan"))], ":1: answer: ", "is missing"),
        ([row(problem=["1+1"])], ":1: problem: ", "must be text or a number, not list"),
        ([row(prompt_id="")], ":1: prompt_id: ", "is empty"),
        (
            [row(prompt_id="a"), row(), row(prompt_id="a")],
            ":3: prompt_id: ",
            "'a' is already used on line 1",
        ),
        ([row(prompt_id="2"), row()], ":2: prompt_id: ", "'2' is already used on line 1"),
        ([], ": ", "contains no rows"),
        (["", "  ", ""], ": ", "contains no rows"),
        ([b'{"problem": "\xff"}'], ": ", "cannot be read as UTF-8"),
    ],
)
def test_a_file_is_refused_in_one_line_naming_line_and_field(
    written: Written, lines: list[str | bytes], place: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_problems(written(*lines), seed=0)
    message = str(caught.value)
    assert "some.jsonl" + place in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"problem": "1", "answer": ' + "1" * 5000 + "}", ":1: "),
        ("[" * 5000, ":1: "),
        ('{"problem": "1", "answer": "\\ud800"}', ":1: answer: "),
    ],
    ids=["thousands of digits", "thousands of brackets", "half a character"],
)
def test_json_that_python_cannot_represent_is_refused(written: Written, line: str, place: str) -> None:
    with pytest.raises(InputError, match=f"some.jsonl{place}"):
        load_problems(written(line), seed=0)


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_problems(ProblemSet(path=str(tmp_path / name)), seed=0)


def test_a_line_separator_inside_a_string_does_not_end_the_line(written: Written) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive"
    (problem,) = load_problems(written(row(problem=text)), seed=0)
    assert problem == Problem("1", text, "2", problem_set="some")


def test_integers_become_text_and_lines_become_ids(written: Written) -> None:
    lines = [row(answer=2), "", row(answer=-(10**20), prompt_id=7), row(problem=3) + "\r"]
    assert load_problems(written(*lines), seed=0) == [
        Problem("1", "1+1", "2", problem_set="some"),
        Problem("7", "1+1", "-100000000000000000000", problem_set="some"),
        Problem("4", "3", "2", problem_set="some"),
    ]


def test_a_limit_selects_by_seed_and_keeps_the_order(written: Written) -> None:
    source = written(*(row(prompt_id=f"{number:02}") for number in range(40)), limit=10)
    first, again, other = (load_problems(source, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len({problem.prompt_id for problem in first}) == 10
    assert [problem.prompt_id for problem in first] == sorted(problem.prompt_id for problem in first)


def test_a_limit_above_the_number_of_problems_selects_all(written: Written) -> None:
    lines = [row(), row()]
    assert load_problems(written(*lines, limit=3), seed=0) == load_problems(written(*lines), seed=0)


def test_the_digest_of_problems_depends_on_order_and_every_field() -> None:
    one, other = Problem("a", "1+1", "2"), Problem("b", "1+2", "3")
    sets = [[one, other], [other, one], [one], [], [Problem("a", "1+1", "3")], [Problem("a", "2+1", "2")]]
    sets += [[Problem("a", "1+1", "2", "any")], [Problem("a", "1+1", "2", problem_set="sums")]]
    assert len({problems_digest(problems) for problems in sets}) == len(sets)
    assert problems_digest(iter([one, other])) == problems_digest([one, other])


@pytest.mark.parametrize(("digits", "operators"), [(1, "+"), (1, "-"), (1, "*"), (1, "+-*"), (2, "+"), (2, "-")])
def test_the_splits_of_arithmetic_are_disjoint_and_complete(digits: int, operators: str) -> None:
    train, held_out = (arithmetic.problems(digits, operators, split) for split in ("train", "held_out"))
    operands = range(10) if digits == 1 else range(10, 100)
    every = {f"{a}{operator}{b}=" for operator in operators for a in operands for b in operands}
    texts = [text for text, _ in train + held_out]
    assert Counter(texts) == Counter(every)
    assert all(eval(text.removesuffix("=")) == int(answer) for text, answer in train + held_out)
    assert len(held_out) / len(texts) == pytest.approx(0.1, abs=0.04 if digits == 1 else 0.01)


def test_the_splits_never_change() -> None:
    held_out = arithmetic.problems(1, "+", "held_out")
    assert [text for text, _ in held_out[:4]] == ["0+5=", "2+5=", "2+8=", "3+5="]


def test_arithmetic_problems_have_unique_ids() -> None:
    problems = load_problems(ProblemSet(arithmetic=Arithmetic(digits=1, operators="+-")), seed=0)
    assert len({problem.prompt_id for problem in problems}) == len(problems)
    assert Problem("3-7=", "3-7=", "-4", problem_set="1-digit sums and differences") in problems


def test_a_duplicate_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="duplicate"):
        Arithmetic(operators="++")


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 30), prompts=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_problem_occurs_once_per_epoch(count: int, prompts: int, seed: int) -> None:
    order = PromptOrder(numbered(count), seed)
    rounds = 3 * count // prompts + 1
    asked = [
        problem
        for number in range(1, rounds + 1)
        for problem in order.take((number - 1) * prompts, prompts, prompts)
    ]
    assert len(asked) == rounds * prompts
    for start in range(0, len(asked), count):
        epoch = asked[start : start + count]
        assert len(set(epoch)) == len(epoch)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 30), part=st.integers(1, 30), seed=st.integers(0, 5))
def test_the_problems_of_a_round_are_distinct(count: int, part: int, seed: int) -> None:
    prompts = min(part, count)
    order = PromptOrder(numbered(count), seed)
    for number in range(1, 3 * count // prompts + 1):
        asked = order.take((number - 1) * prompts, prompts, prompts)
        assert len(set(asked)) == prompts


def test_rounds_can_be_computed_in_any_order() -> None:
    forwards, backwards = PromptOrder(numbered(10), 0), PromptOrder(numbered(10), 0)
    first = [forwards.take(3 * (number - 1), 3, 3) for number in range(1, 9)]
    assert [backwards.take(3 * (number - 1), 3, 3) for number in range(8, 0, -1)] == first[::-1]


def test_seeds_and_epochs_have_different_orders() -> None:
    problems = numbered(20)
    orders = [
        tuple(PromptOrder(problems, seed).take(20 * (epoch - 1), 20, 20)) for seed in (0, 1) for epoch in (1, 2)
    ]
    assert len(set(orders)) == 4


def test_every_process_uses_the_same_order() -> None:
    program = """if True:
        from reval_core.problems import Problem, PromptOrder
        order = PromptOrder([Problem(str(n), "p", "a") for n in range(50)], 3)
        print(*(problem.prompt_id for number in (1, 2, 3) for problem in order.take(30 * (number - 1), 30, 30)))
    """
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", program]
    there = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    order = PromptOrder(numbered(50), 3)
    here = [problem.prompt_id for number in (1, 2, 3) for problem in order.take(30 * (number - 1), 30, 30)]
    assert there.split() == here


CHATML = (
    "{% for one in messages %}<|{{ one.role }}|>{{ one.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STEPS = "{problem} Let's think step by step and output the final answer within \\boxed{}."
REASON = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (Prompt(user=STEPS, chat=True), "<|user|>1+2= {steps}<|end|><|assistant|>"),
        (
            Prompt(system=REASON, user=STEPS, chat=True),
            f"<|system|>{REASON}<|end|><|user|>1+2= {{steps}}<|end|><|assistant|>",
        ),
        (
            Prompt(user="Add {problem}", chat=True, examples=[Example(problem="3+4=", answer="\\boxed{7}")]),
            "<|user|>Add 3+4=<|end|><|assistant|>\\boxed{7}<|end|><|user|>Add 1+2=<|end|><|assistant|>",
        ),
        (Prompt(user="Add {problem}"), "Add 1+2="),
    ],
    ids=["the paper's for DeepSeek", "the paper's for Qwen", "an example before it", "no chat"],
)
def test_a_prompt_has_the_configured_turns(prompt, expected):
    tokenizer = make_tiny_tokenizer("0123456789+=")
    tokenizer.chat_template = CHATML
    assert prompt_text("1+2=", prompt, tokenizer) == expected.replace("{steps}", STEPS.removeprefix("{problem} "))
