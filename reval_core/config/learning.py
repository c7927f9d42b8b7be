"""The settings of learning: the objective, the replay buffer, the updates, the reference."""

from __future__ import annotations

from operator import not_
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from reval_core.config.section import Section, not_given
from reval_core.user_code import check_call


class ResidualObjective(Section):
    """The settings that the objectives with a squared residual share. All options are off by default."""

    beta: float | None = Field(None, gt=0)
    """β, the strength of the KL regularisation towards the reference: the residual compares log-ratios with the
    reward / β. Larger values keep the policy closer to the reference."""
    beta_times_length: float | None = Field(None, gt=0, exclude_if=not_given)
    """Instead of beta: β is this value divided by the mean tokens of the first responses. The paper's values
    correspond to 10 to 12."""
    huber: float | None = Field(None, gt=0)
    """|Δ| beyond which the loss is linear (Huber). Departs from least squares: bounds the gradient of outliers."""
    clip: float | None = Field(None, gt=0)
    """|Δ| is clipped to this value. Departs from the paper: trajectories beyond it contribute no gradient."""
    length_normalised: bool = False
    """Divide Δ² by the tokens of the response. Departs from the paper: long responses have less weight."""
    mask_truncated: bool = False
    """Exclude responses cut at the length limit from the loss. Departs from the paper, which treats them as
    incorrect."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.beta is None and self.beta_times_length is None:
            raise ValueError("beta: is missing; set it, or beta_times_length")
        if self.beta is not None and self.beta_times_length is not None:
            raise ValueError("beta_times_length: replaces beta; set only one of the two")
        if self.huber is not None and self.clip is not None and self.huber >= self.clip:
            raise ValueError("huber: has no effect at or beyond clip; set only one of the two, or a smaller value")
        return self

    @property
    def has_residual(self) -> bool:
        """Whether the objective has a residual Δ(τ): these do."""
        return True


class Reval(ResidualObjective):
    """ReVal, the paper's Eq. 2: the residual contains V_θ(s_1) − V_ref(s_1)."""

    kind: Literal["reval"]


class Tbrm(ResidualObjective):
    """TBRM (arXiv 2505.15311): as ReVal, with V_θ(s_1) only."""

    kind: Literal["tbrm"]


class Regression(ResidualObjective):
    """The paper's Eq. 8: as ReVal without the V terms."""

    kind: Literal["regression"]


class Grpo(Section):
    """GRPO as the paper's baseline: clip-higher, group-normalised advantage, no KL term."""

    kind: Literal["grpo"]
    clip_low: float = Field(0.2, gt=0, lt=1)
    """ε_low: the ratio of new to old probability is clipped to at least 1 − ε_low."""
    clip_high: float = Field(0.28, gt=0)
    """ε_high: the ratio is clipped to at most 1 + ε_high."""
    importance_cap: float = Field(2.0, ge=1)
    """Maximum importance ratio between trainer and engine (truncated importance sampling)."""
    mean: Literal["sequence", "token"] = "sequence"
    """`sequence`: mean over the tokens of each response, then over responses. `token`: mean over all tokens of an
    update (DAPO)."""
    mask_truncated: bool = False
    """Exclude responses cut at the length limit from the loss (DAPO's overlong filtering)."""

    @property
    def beta(self) -> None:
        """GRPO has no β."""
        return None

    @property
    def has_residual(self) -> bool:
        """GRPO has no residual."""
        return False


class CustomObjective(Section):
    """A user-defined objective: a function of Inputs and its settings that returns Outputs (docs/objectives.md)."""

    kind: Literal["custom"]
    function: str
    """Import path of the function, as `package.module:function`; the working directory is searched as well."""
    settings: dict[str, float | int | bool | str | None] = Field(default_factory=dict)
    """Keyword arguments of the function. `beta`, if given, is the β of the residuals that are stored and used for
    prioritised sampling."""
    mask_truncated: bool = False
    """Exclude responses cut at the length limit from the loss."""
    at_sampling_temperature: bool = False
    """Compute log-probs at `rollouts.temperature`, which probability ratios need, instead of at 1, which Q-values
    need."""

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
    """The replay buffer, and how updates sample from it."""

    capacity: int = Field(ge=1)
    """M, the maximum number of trajectories in the buffer; the oldest leave first."""
    max_age: int | None = Field(None, ge=0, exclude_if=not_given)
    """Maximum age of a trajectory in rounds; older ones leave the buffer. 0 keeps only the fresh batch."""
    sampling: Literal["uniform", "prioritised", "fresh"] = "uniform"
    """How updates sample from the buffer: `uniform` (the paper), `prioritised` by |Δ| (PER, arXiv 1511.05952) and
    age, `fresh` by age."""
    first: Literal["fresh", "buffer"] = "fresh"
    """Batch of the first update of a round: `fresh` is the fresh batch (Appendix A), `buffer` a sample of the
    buffer."""
    priority_exponent: float = Field(0.6, ge=0, le=10)
    """Prioritised: the priority of a trajectory is (|Δ| / mean |Δ| of the buffer + offset) to this power."""
    priority_offset: float = Field(0.1, gt=0)
    """Prioritised: the offset of the priority, so that a trajectory with residual 0 can still be drawn."""
    importance_exponent: tuple[float, float] = (0.4, 1.0)
    """Prioritised: the exponent of the importance weights before and after annealing."""
    importance_rounds: int = Field(100, ge=1)
    """Prioritised: number of rounds over which that exponent is annealed."""
    importance_cap: float = Field(5.0, ge=1)
    """Prioritised: maximum importance weight; the mean weight of a draw is 1. 1 turns the correction off."""
    age_decay: float = Field(0.7, gt=0, le=1)
    """Prioritised and fresh: the sampling weight of a trajectory is multiplied by this value to the power of its
    age in rounds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= exponent <= 1 for exponent in self.importance_exponent):
            raise ValueError("importance_exponent: must be two numbers from 0 to 1")
        return self


class Learner(Section):
    """The optimizer and the K updates per round."""

    updates: int = Field(ge=1)
    """K, the number of gradient updates per round; with `least_updates` the maximum."""
    least_updates: int | None = Field(None, ge=1, exclude_if=not_given)
    """Minimum of K, if K adapts to the residual: K is `updates` times the fraction of the residual that is left. By
    default K is constant."""
    lr: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    warmup_updates: int = Field(0, ge=0)
    """Number of updates over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate schedule after the warm-up: constant, or a decay to `lr_end` · lr over `decay_updates`."""
    decay_updates: int | None = Field(None, ge=1)
    """Number of updates over which the learning rate decays. Independent of `rounds`, so that a run can be
    extended."""
    lr_end: float = Field(0.1, ge=0, le=1)
    """Final learning rate as a fraction of `lr`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments; unrelated to the paper's β."""
    adam_eps: float = Field(1e-8, gt=0, exclude_if=lambda eps: eps == 1e-8)
    """AdamW's ε, added to the square root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    grad_clip: float = Field(1.0, gt=0)
    """Maximum gradient norm; larger gradients are scaled down to it."""
    spike_limit: float | None = Field(None, gt=1)
    """Stop the run when the gradient norm exceeds this multiple of the median of the last 100; off by default."""
    micro_batch_tokens: int = Field(65536, ge=1)
    """Maximum tokens per micro-batch, padding included. Bounds memory and does not change the result: lower it if
    learning runs out of memory. Capped at 2,048 on a CPU, which is faster."""
    packed: bool = False
    """Pack trajectories into one row without padding. Faster on a GPU if lengths vary widely."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the policy's computation; bfloat16 uses a copy of the float32 weights. Sums and logits are
    always float32. `auto` is bfloat16 on a GPU that supports it and float32 otherwise, resolved when the run
    starts."""
    noise: float | None = Field(None, gt=0)
    """Numerical noise of a sequence log-prob, as a factor of (√tokens + 1) nats; measured if not given."""
    compile: bool | None = Field(None, exclude_if=not_given)
    """Compile the model's decoder layers for scoring and updates (torch.compile); by default on CUDA without
    `deterministic`."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a fifth slower. By default only if an update
    would not fit the GPU otherwise, resolved when the run starts."""
    shard: Literal["none", "node", "all"] = Field("none", exclude_if=lambda shard: shard == "none")
    """How weights, gradients and moments are spread over several processes: `none` holds all of them in each
    process, `node` divides them among the processes of a host, `all` among all processes (docs/scaling.md)."""
    deterministic: bool = Field(False, exclude_if=not_)
    """Use deterministic GPU kernels only, which are slower; operations without one are refused."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas: must be two numbers from 0 to below 1")
        if (self.schedule == "constant") != (self.decay_updates is None):
            raise ValueError("decay_updates: is required by schedule: linear and cosine, and only by those")
        if self.least_updates is not None and self.least_updates > self.updates:
            raise ValueError(f"least_updates: {self.least_updates} is more than updates ({self.updates})")
        return self

    def compiles_on(self, device: str) -> bool:
        """Whether decoder layers are compiled on this type of device."""
        return (device == "cuda" and not self.deterministic) if self.compile is None else self.compile

    def updates_with(self, residual_left: float | None) -> int:
        """K_t, the number of updates of a round.

        Args:
            residual_left: the fraction of the residual left at the start of the round; None without a β.
        """
        if self.least_updates is None:
            return self.updates
        assert residual_left is not None, "an objective without a beta is refused at load"
        return max(self.least_updates, round(self.updates * min(1.0, residual_left)))


class Reference(Section):
    """The reference policy, which defines log π_ref and V_ref."""

    reset_every: int | None = Field(None, ge=1)
    """Rounds between two reference resets, at which the current policy becomes the reference; by default never."""
    reset_below: float | None = Field(None, gt=0, lt=1)
    """Alternative to `reset_every`: reset after each round that started with less than this fraction of the
    residual left."""
    ema: float | None = Field(None, gt=0, lt=1, exclude_if=not_given)
    """Weight of the old reference at a reset: the reference becomes ema · reference + (1 − ema) · policy, weight by
    weight. By default it becomes the policy."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ema is not None and self.reset_every is None:
            raise ValueError("ema: is applied every reset_every rounds; set reset_every")
        if self.reset_every is not None and self.reset_below is not None:
            raise ValueError("reset_below: replaces reset_every; set only one of the two")
        return self

    def reset_after(self, round: int, residual_left: float | None) -> bool:
        """Whether the policy after a round becomes the reference.

        A residual of 0 causes no reset: there is nothing to learn from, and the reference is already right.

        Args:
            round: the number of the round.
            residual_left: the fraction of the residual left at the start of the round; None without a β.
        """
        if self.reset_every is not None:
            return round % self.reset_every == 0
        return self.reset_below is not None and 0 < (residual_left or 0) < self.reset_below
