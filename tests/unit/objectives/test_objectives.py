"""The objectives compared with their equations, and the properties that the paper states."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.config import CustomObjective, Grpo, Reval
from reval_core.objectives import (
    Inputs,
    grpo,
    make_objective,
    regression,
    residual,
    reval,
    step_residuals,
    tbrm,
)

BETA = 0.05


def random_inputs(seed: int, rows: int = 6, steps: int = 5, dtype: torch.dtype = torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    lengths = torch.randint(1, steps + 1, (rows,), generator=generator)
    mask = torch.arange(steps) < lengths.unsqueeze(1)
    logprobs = -normal(rows, steps).abs() * mask
    return Inputs(
        logprobs=logprobs.requires_grad_(),
        mask=mask,
        value=normal(rows).requires_grad_(),
        log_ref=-normal(rows).abs() * 3,
        value_ref=normal(rows),
        reward=torch.randint(0, 2, (rows,), generator=generator).to(dtype),
        advantage=normal(rows),
        old_logprobs=(logprobs + 0.3 * normal(rows, steps)).detach() * mask,
        engine_logprobs=(logprobs + 0.3 * normal(rows, steps)).detach() * mask,
        truncated=torch.zeros(rows, dtype=torch.bool),
        mean_tokens=float(mask.sum() / rows),
    )


def at_the_reference(seed: int, reward: float) -> Inputs:
    """θ = θ_ref, with one reward for all trajectories."""
    inputs = random_inputs(seed)
    return dataclasses.replace(
        inputs,
        log_ref=inputs.logprobs.detach().sum(1),
        value_ref=inputs.value.detach().clone(),
        reward=torch.full_like(inputs.reward, reward),
    )


def gradients(objective, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    loss = objective(inputs).loss.sum()
    found = torch.autograd.grad(loss, (inputs.logprobs, inputs.value), allow_unused=True)
    return tuple(torch.zeros(()) if gradient is None else gradient for gradient in found)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 2))
def test_step_residuals_sum_to_the_trajectory_residual(seed, beta):
    generator = torch.Generator().manual_seed(seed)
    rows, steps = 5, 7
    lengths = torch.randint(1, steps + 1, (rows,), generator=generator)
    mask = torch.arange(steps) < lengths.unsqueeze(1)
    values, values_ref, logprobs, logprobs_ref = (
        torch.randn(rows, steps, generator=generator, dtype=torch.float64) * mask for _ in range(4)
    )
    reward = torch.rand(rows, generator=generator, dtype=torch.float64)
    steps_found = step_residuals(values, values_ref, logprobs, logprobs_ref, mask, reward / beta)
    delta = values[:, 0] - values_ref[:, 0] + logprobs.sum(1) - logprobs_ref.sum(1) - reward / beta
    torch.testing.assert_close(steps_found.sum(1), delta)
    assert not steps_found[~mask].any()


def test_reval_is_the_square_of_equation_2():
    inputs = random_inputs(1)
    out = reval(inputs, BETA)
    delta = (inputs.value - inputs.value_ref) + inputs.logprobs.sum(1) - inputs.log_ref - inputs.reward / BETA
    torch.testing.assert_close(out.loss, delta.square())
    torch.testing.assert_close(out.delta, delta.detach())


def test_tbrm_and_regression_differ_from_reval_only_in_the_value_term():
    inputs = random_inputs(2)
    for objective, value in ((tbrm, inputs.value), (regression, torch.zeros_like(inputs.value))):
        delta = value + inputs.logprobs.sum(1) - inputs.log_ref - inputs.reward / BETA
        torch.testing.assert_close(objective(inputs, BETA).loss, delta.square())


@pytest.mark.parametrize("kind", ["reval", "tbrm", "regression"])
def test_the_recorded_residual_equals_that_of_the_objective_bit_for_bit(kind):
    inputs = random_inputs(17, dtype=torch.float32)
    out = make_objective(kind, beta=BETA)(inputs)
    log_policy = inputs.logprobs.sum(dim=1)
    found = residual(kind, log_policy, inputs.log_ref, inputs.value, inputs.value_ref, inputs.reward, BETA)
    for name in ("delta", "value_term", "log_ratio"):
        assert torch.equal(getattr(found, name), getattr(out, name))
    assert torch.equal(found.delta, found.value_term + found.log_ratio - found.scaled_reward)


def test_without_beta_the_residual_is_nan_and_its_value_and_ratio_are_kept():
    inputs = random_inputs(18)
    scores = (inputs.logprobs.sum(dim=1), inputs.log_ref, inputs.value, inputs.value_ref, inputs.reward)
    found, with_beta = residual("custom", *scores, None), residual("custom", *scores, BETA)
    assert found.delta.isnan().all()
    assert found.scaled_reward.isnan().all()
    assert torch.equal(found.value_term, with_beta.value_term)
    assert torch.equal(found.log_ratio, with_beta.log_ratio)


def test_an_objective_has_a_residual_if_it_squares_one_or_has_a_beta():
    own = {"kind": "custom", "function": "tests.models:margin_objective"}
    assert Reval(kind="reval", beta_times_length=11).has_residual
    assert CustomObjective(**own, settings={"beta": 0.5, "margin": 0.5}).has_residual
    assert not CustomObjective(**own, settings={"beta": None, "margin": 0.5}).has_residual
    assert not Grpo(kind="grpo").has_residual


@pytest.mark.parametrize("objective", [reval, tbrm, regression])
def test_gradients_equal_finite_differences(objective):
    inputs = random_inputs(3, rows=3, steps=3)

    def loss(logprobs, value):
        return objective(dataclasses.replace(inputs, logprobs=logprobs, value=value), 0.5).loss.sum()

    assert torch.autograd.gradcheck(loss, (inputs.logprobs, inputs.value))


def test_the_gradient_flows_through_the_value_of_the_prompt():
    _, through_value = gradients(lambda inputs: reval(inputs, BETA), random_inputs(4))
    assert through_value.abs().min() > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_calibrated_initialisation_gives_exactly_zero_loss_and_gradient(seed):
    """Proposition 2: r = 0 and θ = θ_ref."""
    inputs = at_the_reference(seed, reward=0.0)
    assert not reval(inputs, BETA).loss.any()
    for gradient in gradients(lambda given: reval(given, BETA), inputs):
        assert not gradient.any()


def test_tbrm_pushes_the_policy_even_without_reward():
    inputs = at_the_reference(5, reward=0.0)
    assert gradients(lambda given: tbrm(given, BETA), inputs)[0].abs().max() > 0.1


def test_equal_policies_with_shifted_logits_are_not_calibrated():
    """A constant added to all logits keeps π and moves V."""
    inputs = at_the_reference(6, reward=0.0)
    shifted = dataclasses.replace(inputs, value=(inputs.value.detach() + 0.5).requires_grad_())
    torch.testing.assert_close(reval(shifted, BETA).loss, torch.full((6,), 0.25, dtype=torch.float64))


def grpo_of(inputs: Inputs):
    return grpo(inputs, clip_low=0.2, clip_high=0.28, importance_cap=2.0)


def test_grpo_equals_its_formula_token_by_token():
    inputs = random_inputs(7)
    inputs = dataclasses.replace(inputs, logprobs=inputs.logprobs.detach())
    for row in range(6):
        tokens = int(inputs.mask[row].sum())
        total = 0.0
        for step in range(tokens):
            ratio = torch.exp(inputs.logprobs[row, step] - inputs.old_logprobs[row, step])
            correction = torch.exp(inputs.old_logprobs[row, step] - inputs.engine_logprobs[row, step]).clamp(
                max=2.0
            )
            clipped = ratio.clamp(0.8, 1.28)
            total += float(
                -correction * torch.minimum(ratio * inputs.advantage[row], clipped * inputs.advantage[row])
            )
        assert float(grpo_of(inputs).loss[row]) == pytest.approx(total / tokens)


def test_grpo_has_no_gradient_where_all_rewards_of_the_group_are_equal():
    inputs = dataclasses.replace(random_inputs(8), advantage=torch.zeros(6, dtype=torch.float64))
    assert not gradients(grpo_of, inputs)[0].any()


def test_grpo_clips_higher_above_than_below():
    inputs = random_inputs(9, rows=2, steps=1)
    old = torch.zeros(2, 1, dtype=torch.float64)
    ratio = torch.tensor([[1.27], [1.29]], dtype=torch.float64)
    up = dataclasses.replace(
        inputs,
        logprobs=ratio.log().requires_grad_(),
        mask=torch.ones(2, 1, dtype=torch.bool),
        old_logprobs=old,
        engine_logprobs=old,
        advantage=torch.ones(2, dtype=torch.float64),
    )
    assert grpo_of(up).metrics["clipped"].tolist() == [0.0, 1.0]
    gradient, _ = gradients(grpo_of, up)
    assert gradient[0] != 0
    assert gradient[1] == 0


def test_make_objective_finds_an_objective_by_name_and_applies_its_settings():
    inputs = random_inputs(10)
    torch.testing.assert_close(make_objective("reval", beta=0.3)(inputs).loss, reval(inputs, 0.3).loss)


def plain_delta(inputs: Inputs) -> torch.Tensor:
    return (inputs.value - inputs.value_ref) + inputs.logprobs.sum(1) - inputs.log_ref - inputs.reward / BETA


def test_beyond_the_huber_point_the_loss_is_the_tangent_of_the_square():
    inputs = random_inputs(11)
    delta = plain_delta(inputs)
    bend = float(delta.detach().abs().median())
    out = reval(inputs, BETA, huber=bend)
    expected = [float(d**2 if abs(d) <= bend else 2 * bend * abs(d) - bend**2) for d in delta.detach()]
    torch.testing.assert_close(out.loss, torch.tensor(expected, dtype=torch.float64))
    (slope,) = torch.autograd.grad(out.loss.sum(), inputs.value)
    torch.testing.assert_close(slope, 2 * delta.detach().clamp(-bend, bend))
    torch.testing.assert_close(out.metrics["outliers"].mean(), (delta.abs() > bend).double().mean())


def test_a_clipped_residual_has_no_gradient_and_is_reported_unclipped():
    inputs = random_inputs(12)
    delta = plain_delta(inputs).detach()
    limit = float(delta.abs().median())
    out = reval(inputs, BETA, clip=limit)
    torch.testing.assert_close(out.delta, delta)
    torch.testing.assert_close(out.loss, delta.clamp(-limit, limit).square())
    (slope,) = torch.autograd.grad(out.loss.sum(), inputs.value)
    assert (slope == 0).tolist() == (delta.abs() > limit).tolist()


def test_a_length_normalised_loss_is_a_loss_per_token():
    inputs = random_inputs(13)
    torch.testing.assert_close(
        tbrm(inputs, BETA, length_normalised=True).loss, tbrm(inputs, BETA).loss / inputs.mask.sum(1)
    )


def test_masked_truncated_responses_have_no_loss_and_no_gradient():
    inputs = random_inputs(14)
    inputs = dataclasses.replace(inputs, truncated=torch.tensor([True, False] * 3))
    for kind, chosen in (("reval", {"beta": BETA}), ("grpo", GRPO)):
        plain, masked = make_objective(kind, **chosen), make_objective(kind, mask_truncated=True, **chosen)
        assert masked(inputs).loss.tolist() == (plain(inputs).loss * ~inputs.truncated).tolist()
        assert not gradients(masked, inputs)[0][inputs.truncated].any()


GRPO = {"clip_low": 0.2, "clip_high": 0.28, "importance_cap": 2.0}


def test_the_token_mean_of_grpo_is_over_all_tokens_of_the_update():
    inputs = random_inputs(15)
    by_sequence, by_token = (grpo(inputs, **GRPO, mean=mean) for mean in ("sequence", "token"))
    all_tokens = (by_sequence.loss * inputs.mask.sum(1)).sum() / inputs.mask.sum()
    torch.testing.assert_close(by_token.loss.mean(), all_tokens)


def test_grpo_reports_the_share_of_corrections_at_the_cap_and_the_divergence():
    inputs = random_inputs(16)
    out = grpo(inputs, **GRPO)
    over = ((inputs.old_logprobs - inputs.engine_logprobs).exp() > 2.0) & inputs.mask
    torch.testing.assert_close(out.metrics["corrected"], over.sum(1) / inputs.mask.sum(1))
    assert (out.metrics["kl"] >= 0).all()
    still = dataclasses.replace(inputs, old_logprobs=inputs.logprobs.detach())
    assert not grpo(still, **GRPO).metrics["kl"].any()
