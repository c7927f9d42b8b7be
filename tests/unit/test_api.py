"""The public API: what `import reval` needs, and what its functions compute."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reval
from reval_core import objectives
from reval_core.errors import InputError
from reval_core.model.token_batch import collate
from tests.models import drawn, random_rows, tiny_model

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_importing_reval_imports_nothing_heavy():
    program = (
        "import sys, reval; reval.__version__; dir(reval); "
        "print([one for one in ('torch', 'prefect', 'mlflow', 'pandas', 'duckdb', 'numpy') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr[-500:]


def test_reading_a_run_needs_neither_torch_nor_prefect(tmp_path):
    program = (
        "import sys, reval\n"
        "try:\n    reval.open(sys.argv[1])\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print([one for one in ('torch', 'prefect', 'mlflow') if one in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[:2] == ["InputError", "[]"], done.stderr[-500:]


def test_every_public_name_exists_and_is_on_the_page():
    for name in reval.__all__:
        assert getattr(reval, name) is not None
        assert name == "Run" or f"reval.{name}" in PAGE, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reval.nothing


@pytest.mark.parametrize("name", ["reval", "tbrm", "regression"])
@pytest.mark.parametrize("options", [{}, {"huber": 1.0}, {"clip": 2.0}, {"length_normalised": True}])
def test_a_residual_loss_equals_the_objective_of_the_pipeline(name, options):
    model, draw, beta = tiny_model(1), drawn(tiny_model(0)), 0.3
    batch = reval.collate(draw.prompts, draw.responses)
    scores = reval.score(model, batch)
    log_ref, value_ref, reward = (torch.from_numpy(one) for one in (draw.log_ref, draw.value_ref, draw.reward))
    expected = getattr(objectives, name)(
        objectives.Inputs(
            logprobs=scores.logprobs, mask=batch.written, value=scores.value, log_ref=log_ref, value_ref=value_ref,
            reward=reward, advantage=reward, old_logprobs=scores.logprobs, engine_logprobs=scores.logprobs,
            truncated=torch.zeros(len(batch), dtype=torch.bool), mean_tokens=1.0,
        ),
        beta,
        **options,
    )  # fmt: skip
    values = {"regression": (), "tbrm": (scores.value,), "reval": (scores.value,)}[name]
    stored = {"value_ref": value_ref} if name == "reval" else {}
    outputs = getattr(reval.losses, name)(
        scores.logprobs, *values, log_ref=log_ref, reward=reward, beta=beta, mask=batch.written, **stored, **options
    )
    assert torch.equal(outputs.loss, expected.loss)
    assert torch.equal(outputs.delta, expected.delta)
    assert not outputs.delta.requires_grad
    outputs.loss.mean().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_the_grpo_loss_equals_its_formula():
    old = torch.log(torch.tensor([[0.5, 0.2], [0.4, 1.0]]))
    new = torch.log(torch.tensor([[0.75, 0.2], [0.1, 1.0]])).requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    outputs = reval.losses.grpo(new, old_logprobs=old, advantage=torch.tensor([1.0, -1.0]), mask=mask)
    # Row 1: ratio 1.5 is clipped to 1.28. Row 2: ratio 0.25, and the clipped 0.8 is worse for a negative advantage.
    assert outputs.loss.tolist() == pytest.approx([-(1.28 + 1.0) / 2, 0.8], rel=1e-6)
    assert outputs.metrics["clipped"].tolist() == [0.5, 1.0]


def test_masked_positions_do_not_count_whatever_they_hold():
    logprobs = torch.tensor([[-1.0, float("-inf")], [-2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    zero = torch.zeros(2)
    outputs = reval.losses.reval(logprobs, zero, log_ref=zero, value_ref=zero, reward=zero, beta=1.0, mask=mask)
    assert outputs.loss.tolist() == [1.0, 25.0]
    outputs.loss.sum().backward()
    assert logprobs.grad.tolist() == [[-2.0, 0.0], [-10.0, -10.0]]


def test_wrong_shapes_are_named():
    logprobs, rows = torch.zeros(2, 3), torch.zeros(2)
    known = {"log_ref": rows, "value_ref": rows, "reward": rows}
    with pytest.raises(ValueError, match=r"value: must be \[2\] like logprobs, not \[2, 1\]"):
        reval.losses.reval(logprobs, torch.zeros(2, 1), beta=0.1, **known)
    with pytest.raises(ValueError, match=r"mask: must be \[2, 3\]"):
        reval.losses.reval(logprobs, rows, beta=0.1, mask=torch.ones(2, 2), **known)
    with pytest.raises(ValueError, match=r"logprobs: must be \[B, H\]"):
        reval.losses.reval(rows, rows, beta=0.1, **known)
    with pytest.raises(ValueError, match="beta: must be positive"):
        reval.losses.reval(logprobs, rows, beta=0.0, **known)


def test_lists_and_tensors_make_the_batch_of_arrays():
    prompts, responses = random_rows(3, 2, 5), random_rows(3, 1, 4, seed=1)
    expected = collate(prompts, responses)
    for convert in (lambda row: row.tolist(), torch.from_numpy):
        batch = reval.collate(map(convert, prompts), map(convert, responses))
        for name in ("tokens", "actions", "states", "mask", "written"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    ("prompts", "responses", "written", "message"),
    [
        ([[1]], [], None, "1 prompts and 0 responses"),
        ([[1]], [[]], None, "must not be empty"),
        ([], [], None, "must not be empty"),
        ([[1]], [[2, 3]], [[True]], "one value per response token"),
    ],
)
def test_batches_that_do_not_fit_are_refused(prompts, responses, written, message):
    with pytest.raises(ValueError, match=message):
        reval.collate(prompts, responses, written)


def test_the_loss_runs_as_the_page_shows(capsys):
    program = next(one for one in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "losses" in one)
    exec(compile(program, "api.md", "exec"), {"policy": tiny_model(), "reference": tiny_model()})
    assert capsys.readouterr().out == "tensor([-10.,   0.])\n"


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml"):
        reval.open(tmp_path)
