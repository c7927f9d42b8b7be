"""The settings of learning: the objective, the replay buffer, the updates, the reference."""

from __future__ import annotations

from operator import not_
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from reval_core.config.section import Section, not_given
from reval_core.user_code import check_call


class ResidualObjective(Section):
    """What the objectives that square a residual have in common. The options are off by default."""

    beta: float | None = Field(None, gt=0)
    """β, the scale of the reward and the strength of the KL to the reference."""
    beta_times_length: float | None = Field(None, gt=0, exclude_if=not_given)
    """In place of beta: β is this over the mean tokens of the first responses. The paper's is 10 to 12."""
    huber: float | None = Field(None, gt=0)
    """Beyond this |Δ| the loss grows as a line. Departs from least squares: an outlier pulls no harder."""
    clip: float | None = Field(None, gt=0)
    """|Δ| is clipped to this. Departs from the paper: a trajectory further out teaches nothing."""
    length_normalised: bool = False
    """The loss is Δ² by the tokens of the response. Departs from the paper: long responses count for less."""
    mask_truncated: bool = False
    """Responses cut at the length limit have no loss. Departs from the paper, where they are wrong answers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.beta is None and self.beta_times_length is None:
            raise ValueError("beta: is missing; give it, or beta_times_length")
        if self.beta is not None and self.beta_times_length is not None:
            raise ValueError("beta_times_length: takes the place of beta; give one of the two")
        if self.huber is not None and self.clip is not None and self.huber >= self.clip:
            raise ValueError("huber: has no effect at or beyond clip; give one of the two, or a smaller one")
        return self

    @property
    def has_residual(self) -> bool:
        """Whether the objective has a residual Δ(τ): these do."""
        return True


class Reval(ResidualObjective):
    """The paper's Eq. 2: the residual carries V_θ(s_1) − V_ref(s_1)."""

    kind: Literal["reval"]


class Tbrm(ResidualObjective):
    """TBRM (arXiv 2505.15311): as ReVal with V_θ(s_1) alone."""

    kind: Literal["tbrm"]


class Regression(ResidualObjective):
    """The paper's Eq. 8: as ReVal without the V terms."""

    kind: Literal["regression"]


class Grpo(Section):
    """GRPO as the paper runs it: clip-higher, group-normalised advantage, no KL term."""

    kind: Literal["grpo"]
    clip_low: float = Field(0.2, gt=0, lt=1)
    """ε_low: the ratio of new to old probability is clipped below at 1 − this."""
    clip_high: float = Field(0.28, gt=0)
    """ε_high: and above at 1 + this."""
    importance_cap: float = Field(2.0, ge=1)
    """The cap of the importance ratio between the trainer and the engine."""
    mean: Literal["sequence", "token"] = "sequence"
    """The loss is the mean over a response's tokens, then over responses; or over all an update's tokens (DAPO)."""
    mask_truncated: bool = False
    """Responses cut at the length limit have no loss (DAPO's overlong filtering)."""

    @property
    def beta(self) -> None:
        """GRPO has no β."""
        return None

    @property
    def has_residual(self) -> bool:
        """GRPO has no residual."""
        return False


class CustomObjective(Section):
    """An objective of your own: a function from Inputs and its settings to Outputs (docs/objectives.md)."""

    kind: Literal["custom"]
    function: str
    """Where it is imported from, as `package.module:function`; the working directory is searched as well."""
    settings: dict[str, float | int | bool | str | None] = Field(default_factory=dict)
    """What it is given by name. A `beta` here is the β of the residuals that are stored and prioritised by."""
    mask_truncated: bool = False
    """Responses cut at the length limit have no loss."""
    at_sampling_temperature: bool = False
    """Score at rollouts.temperature, as ratios of probabilities want it, and not at 1, as Q-values do."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            check_call(self.function, 1, self.settings)
        except ValueError as error:
            raise ValueError(f"function: {error}") from error
        return self

    @property
    def beta(self) -> float | None:
        """β, if the function has one."""
        beta = self.settings.get("beta")
        return float(beta) if isinstance(beta, int | float) else None

    @property
    def has_residual(self) -> bool:
        """Whether the objective has a residual Δ(τ): it does if it has a β."""
        return self.beta is not None


Objective = Annotated[Reval | Tbrm | Regression | Grpo | CustomObjective, Field(discriminator="kind")]


class Replay(Section):
    """The buffer of old trajectories, and how updates draw from it."""

    capacity: int = Field(ge=1)
    """M: the live trajectories; the oldest leave first."""
    max_age: int | None = Field(None, ge=0, exclude_if=not_given)
    """Trajectories older than so many rounds leave the buffer as well; 0 keeps the fresh batch alone."""
    sampling: Literal["uniform", "prioritised", "fresh"] = "uniform"
    """`uniform` (the paper), `prioritised` by |Δ| (PER, arXiv 1511.05952) and age, `fresh` by age."""
    first: Literal["fresh", "buffer"] = "fresh"
    """What the first update of a round learns from: the fresh batch (Appendix A) or a draw."""
    priority_exponent: float = Field(0.6, ge=0, le=10)
    """Prioritised: the priority of a trajectory is (|Δ| / mean |Δ| of the buffer + offset) to this power."""
    priority_offset: float = Field(0.1, gt=0)
    """Prioritised: the offset, by which a trajectory whose residual is 0 can still be drawn."""
    importance_exponent: tuple[float, float] = (0.4, 1.0)
    """Prioritised: the exponent of the importance weights, at first and after the annealing."""
    importance_rounds: int = Field(100, ge=1)
    """Prioritised: the rounds over which that exponent is annealed."""
    importance_cap: float = Field(5.0, ge=1)
    """Prioritised: the cap of the importance weights, whose mean over a draw is 1; 1 corrects nothing."""
    age_decay: float = Field(0.7, gt=0, le=1)
    """Prioritised and fresh: the weight of a trajectory has this to the power of its age in rounds as a factor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= exponent <= 1 for exponent in self.importance_exponent):
            raise ValueError("importance_exponent: must hold two numbers from 0 to 1")
        return self


class Learner(Section):
    """The K updates of a round."""

    updates: int = Field(ge=1)
    """K, the gradient updates a round; with `least_updates` the most."""
    least_updates: int | None = Field(None, ge=1, exclude_if=not_given)
    """K follows the residual: `updates` times the share of it that is left, and at least this."""
    lr: float = Field(gt=0)
    """AdamW's learning rate at its highest."""
    warmup_updates: int = Field(0, ge=0)
    """The learning rate rises linearly over so many updates."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Then it stays, or falls to `lr_end` · lr over `decay_updates`."""
    decay_updates: int | None = Field(None, ge=1)
    """The updates over which the learning rate falls; a number of its own, so that a run can be made longer."""
    lr_end: float = Field(0.1, ge=0, le=1)
    """The share of lr that is left at the end of the fall."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments; not the paper's β."""
    adam_eps: float = Field(1e-8, gt=0, exclude_if=lambda eps: eps == 1e-8)
    """AdamW's ε, added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    grad_clip: float = Field(1.0, gt=0)
    """The largest norm of the gradient."""
    spike_limit: float | None = Field(None, gt=1)
    """The run stops when a gradient is so many times the median of the last 100; never if not given."""
    micro_batch_tokens: int = Field(65536, ge=1)
    """Places a forward pass, padding included; it bounds memory and does not change the result. On
    a CPU at most 2,048, which is faster."""
    packed: bool = False
    """Lay trajectories end to end in one row, without padding. Worth it on a GPU, with lengths that differ much."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the policy computes in; bfloat16: a copy of float32 weights. Sums and logits are float32 either way.
    `auto` is bfloat16 on a GPU that has it and float32 elsewhere, settled when the run begins."""
    noise: float | None = Field(None, gt=0)
    """The noise of a score, in nats: this · (√tokens + 1), in place of what is measured."""
    compile: bool | None = Field(None, exclude_if=not_given)
    """Compile the model's decoder layers for scoring and updates; if not given, on CUDA without `deterministic`."""
    gradient_checkpointing: bool | None = None
    """Keep no activations inside a layer and compute them again: less memory, and about a fifth less speed. If not
    given, where an update would not fit the GPU otherwise, settled when the run begins."""
    deterministic: bool = Field(False, exclude_if=not_)
    """On a GPU, take kernels that give the same bits every time, which are slower; refuse where there are none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas: must hold two numbers from 0 to below 1")
        if (self.schedule == "constant") != (self.decay_updates is None):
            raise ValueError("decay_updates: belongs to schedule: linear or cosine, which need it")
        if self.least_updates is not None and self.least_updates > self.updates:
            raise ValueError(f"least_updates: {self.least_updates} is more than updates, the most ({self.updates})")
        return self

    def compiles_on(self, device: str) -> bool:
        """Whether decoder layers are compiled on this type of device."""
        return (device == "cuda" and not self.deterministic) if self.compile is None else self.compile

    def updates_with(self, residual_left: float | None) -> int:
        """K_t, the updates of a round that begins with this share of the residual (None without a β)."""
        if self.least_updates is None:
            return self.updates
        assert residual_left is not None, "an objective without a beta is refused at load"
        return max(self.least_updates, round(self.updates * min(1.0, residual_left)))


class Reference(Section):
    """The policy that log π_ref and V_ref come from."""

    reset_every: int | None = Field(None, ge=1)
    """Every so many rounds the current policy becomes the reference; never if not given."""
    reset_below: float | None = Field(None, gt=0, lt=1)
    """Or after each round that began with less than this share of the residual left."""
    ema: float | None = Field(None, gt=0, lt=1, exclude_if=not_given)
    """At a reset the reference becomes ema · reference + (1 − ema) · policy, weight by weight; else the policy."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ema is not None and self.reset_every is None:
            raise ValueError("ema: says how far the reference moves every reset_every rounds; set reset_every")
        if self.reset_every is not None and self.reset_below is not None:
            raise ValueError("reset_below: takes the place of reset_every; give one of the two")
        return self

    def reset_after(self, round: int, residual_left: float | None) -> bool:
        """Whether the policy after a round becomes the reference; the round began with this share of the residual.

        A share of 0 is no reason: there is nothing to learn from, and the reference is where it should be.
        """
        if self.reset_every is not None:
            return round % self.reset_every == 0
        return self.reset_below is not None and 0 < (residual_left or 0) < self.reset_below
