"""A run's settings: what each key means, what it may be, and what is refused at load.

`reval_core.config.loader` reads them from YAML. Symbols of the paper (arXiv 2603.23355) stand beside the names.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from reval_core.config.engine import AutoEngine, EngineSettings, TransformersEngine, VllmEngine, VllmServerEngine
from reval_core.config.learning import (
    CustomObjective,
    Grpo,
    Learner,
    Objective,
    Reference,
    Regression,
    Replay,
    ResidualObjective,
    Reval,
    Tbrm,
)
from reval_core.config.model import Lora, Model, TinyModel, WarmStart
from reval_core.config.problems import (
    PROMPTS,
    Arithmetic,
    Example,
    GoldMode,
    Hub,
    ProblemField,
    Problems,
    ProblemSet,
    Prompt,
    SetName,
)
from reval_core.config.rollouts import DynamicSampling, ImportedRollouts, Rollouts, RolloutSource, StoredRollouts
from reval_core.config.section import MOST_THREADS, Section
from reval_core.config.verification import Overlong, Reward, Verification

__all__ = [
    "MOST_THREADS",
    "PROMPTS",
    "Arithmetic",
    "AutoEngine",
    "Checkpoints",
    "Collapse",
    "Config",
    "CustomObjective",
    "DynamicSampling",
    "EngineSettings",
    "Evaluation",
    "Example",
    "GoldMode",
    "Grpo",
    "Hub",
    "ImportedRollouts",
    "Learner",
    "Lora",
    "Model",
    "Objective",
    "Overlong",
    "ProblemField",
    "ProblemSet",
    "Problems",
    "Prompt",
    "Reference",
    "Regression",
    "Replay",
    "ResidualObjective",
    "Reval",
    "Reward",
    "RolloutSource",
    "Rollouts",
    "Section",
    "SetName",
    "StoredRollouts",
    "Tbrm",
    "TinyModel",
    "Tracking",
    "TransformersEngine",
    "Verification",
    "VllmEngine",
    "VllmServerEngine",
    "WarmStart",
]


class Evaluation(Section):
    """Sampled accuracy on the held-out problems; of a run of stored trajectories, the mean |Δ| over all of them."""

    every: int = Field(10, ge=1)
    """Rounds between two evaluations. Policy 0 and the last policy are always evaluated."""
    samples: int = Field(8, ge=1)
    """Responses a problem. Over stored trajectories nothing is sampled."""
    batch: int | None = Field(None, ge=1)
    """Responses that the transformers engine generates together; as many as in a shard if not given."""
    target: float | None = Field(None, gt=0, le=1)
    """The run ends at the first evaluation that reaches this accuracy. An evaluation asks for `rollouts.samples`
    responses a problem first, and for twice as many, up to `samples`, while those do not rule the target out (by
    three standard errors)."""
    near: float = Field(0.2, ge=0, le=1)
    """With a target: rounds whose own rollouts come so near to it are evaluated, whatever `every` says."""


class Checkpoints(Section):
    """Full checkpoints; in between, a policy is rebuilt by replaying recorded draws."""

    every: int = Field(10, ge=1)
    """Rounds between two checkpoints."""
    keep: int = Field(3, ge=1)
    """How many of the newest stay. Round 0, the reference and the best evaluated stay as well."""


class Collapse(Section):
    """When a run gives up."""

    below: float = Field(0.1, ge=0, le=1)
    """A round has collapsed if its accuracy is below this share of the best round's."""
    rounds: int = Field(10, ge=1)
    """So many collapsed rounds one after the other stop the run."""


class Tracking(Section):
    """Where MLflow keeps the metrics."""

    uri: str | None = None
    """An MLflow tracking URI; `mlflow.db` beside the run folder if not given."""
    experiment: str = "reval"
    """The MLflow experiment that runs are filed under."""


class Config(Section):
    """A whole run."""

    seed: int = Field(0, ge=0)
    """Everything random in the run follows from this number."""
    rounds: int = Field(ge=1)
    """How long the run is. The one setting that may change later: a finished run can go on."""
    threads: int | None = Field(None, ge=1, le=MOST_THREADS)
    """torch's CPU threads. Results are the same bit for bit only under the same number."""
    model: Model
    problems: Problems = Problems()
    engine: EngineSettings = TransformersEngine()
    """What generates responses."""
    rollouts: RolloutSource
    """Where trajectories come from: generated, or stored."""
    verification: Verification = Verification()
    reward: Reward = Reward()
    objective: Objective
    replay: Replay
    learner: Learner
    memory_check: Literal["refuse", "warn"] = "refuse"
    """What to do if a stage is estimated to need more memory than the GPU has. May change while a run lasts."""
    reference: Reference = Reference()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    collapse: Collapse = Collapse()
    tracking: Tracking = Tracking()

    @property
    def generation(self) -> Rollouts:
        """The settings of generation, which only a run with an engine has."""
        assert isinstance(self.rollouts, Rollouts), "nothing is generated in this run"
        return self.rollouts

    @property
    def samples_dynamically(self) -> bool:
        """Whether groups without signal are replaced."""
        return isinstance(self.rollouts, Rollouts) and self.rollouts.dynamic_sampling is not None

    @property
    def scoring_temperature(self) -> float:
        """What the learner divides logits by: 1 for Q-values; GRPO's ratios are at what was sampled."""
        objective = self.objective
        sampled = objective.kind == "grpo" or (objective.kind == "custom" and objective.at_sampling_temperature)
        return self.generation.temperature if sampled else 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.rollouts, Rollouts):
            self._check_generation(self.rollouts)
        else:
            self._check_stored(self.rollouts)
        self._check_overlong()
        self._check_attention()
        if not self.objective.has_residual:
            self._check_without_residual()
        self._check_warm_start()
        if self.reference.ema is not None and self.model.lora is not None:
            raise ValueError(
                "reference.ema: the average of two adapters is not the average of what they add to the weights; "
                "leave it out, or model.lora"
            )
        return self

    def _check_warm_start(self) -> None:
        warm_start = self.model.warm_start
        shown = warm_start and (warm_start.problems or (self.problems.train,))
        if shown and any(one is None or one.arithmetic is None for one in shown):
            raise ValueError(
                "model.warm_start: demonstrations are made for arithmetic problems only; say of which in "
                "model.warm_start.problems"
            )

    def _check_without_residual(self) -> None:
        kind = self.objective.kind
        if self.replay.sampling == "prioritised":
            raise ValueError(
                f"replay.sampling: {kind} without a beta has no residual to prioritise by; take uniform or fresh"
            )
        if self.learner.least_updates is not None:
            raise ValueError(
                f"learner.least_updates: {kind} without a beta has no residual for K to follow; leave it out"
            )
        if self.reference.reset_below is not None:
            raise ValueError(
                f"reference.reset_below: {kind} without a beta has no residual that could fade; take reset_every"
            )

    def _check_generation(self, rollouts: Rollouts) -> None:
        for name in ("train", "held_out"):
            if not getattr(self.problems, name):
                raise ValueError(f"problems.{name}: is missing; a run that generates asks problems")
        if self.reward.kind == "centred" and rollouts.samples == 1:
            raise ValueError(
                "reward.kind: centred rewards are all 0 with rollouts.samples: 1; "
                "take binary rewards or at least 2 samples"
            )
        if self.replay.capacity < rollouts.trajectories:
            raise ValueError(
                f"replay.capacity: {self.replay.capacity} is less than one round "
                f"({rollouts.prompts} prompts × {rollouts.samples} samples = {rollouts.trajectories})"
            )
        for name in ("budget_tokens", "budget_seconds"):
            if getattr(rollouts, name) is not None and not self.engine.kind.startswith("vllm"):
                raise ValueError(
                    f"rollouts.{name}: a round can be cut off by engine.kind vllm or vllm-server only, "
                    f"not by {self.engine.kind}"
                )
        if rollouts.dynamic_sampling is not None:
            self._check_dynamic_sampling(rollouts)
        room = self.engine.max_model_len if isinstance(self.engine, VllmEngine) else None
        if room is not None and room <= rollouts.max_tokens:
            raise ValueError(
                f"engine.max_model_len: {room} leaves no room for a prompt beside rollouts.max_tokens "
                f"({rollouts.max_tokens})"
            )
        shard = rollouts.prompts_per_shard
        if shard is not None and shard > rollouts.prompts:
            raise ValueError(f"rollouts.prompts_per_shard: {shard} is more than rollouts.prompts")

    @staticmethod
    def _check_dynamic_sampling(rollouts: Rollouts) -> None:
        if rollouts.samples == 1:
            raise ValueError(
                "rollouts.dynamic_sampling: a single response is never better or worse than its group; "
                "take at least 2 rollouts.samples, or leave it out"
            )
        if rollouts.cut_off:
            raise ValueError(
                "rollouts.dynamic_sampling: what lacks signal is not known of groups that a budget cuts off; "
                "leave out dynamic_sampling, or budget_tokens and budget_seconds"
            )

    def _check_stored(self, rollouts: StoredRollouts | ImportedRollouts) -> None:
        objective, replay = self.objective, self.replay
        if self.evaluation.target is not None:
            raise ValueError("evaluation.target: no accuracy is measured over stored trajectories")
        if objective.kind == "grpo":
            raise ValueError(
                "objective.kind: grpo weighs by the probabilities of the policy that wrote a response, which are "
                "not known of stored trajectories; take reval, tbrm or regression"
            )
        if objective.kind == "custom" and objective.at_sampling_temperature:
            raise ValueError(
                "objective.at_sampling_temperature: stored trajectories have no sampling temperature that is known"
            )
        if replay.first == "fresh":
            raise ValueError("replay.first: a round over stored trajectories has no fresh batch; set buffer")
        if replay.max_age is not None:
            raise ValueError("replay.max_age: stored trajectories are drawn in all rounds; leave it out")
        if replay.sampling == "fresh":
            raise ValueError(
                "replay.sampling: fresh draws by age, and stored trajectories are all of one age; "
                "take uniform or prioritised"
            )
        if replay.capacity < rollouts.trajectories:
            raise ValueError(
                f"replay.capacity: {replay.capacity} is less than rollouts.batch ({rollouts.trajectories}), and "
                "must hold all stored trajectories"
            )

    def _check_overlong(self) -> None:
        overlong, longest = self.reward.overlong, self.rollouts.max_tokens
        if overlong is None:
            return
        if longest is None:
            raise ValueError(
                "reward.overlong: the limit that responses were written under is not known; "
                "set rollouts.max_tokens, or leave the penalty out"
            )
        if overlong.buffer >= longest:
            raise ValueError(
                f"reward.overlong.buffer: {overlong.buffer} leaves no length without a penalty; "
                f"it must be less than rollouts.max_tokens ({longest})"
            )

    def _check_attention(self) -> None:
        attention, learner = self.model.attention or "", self.learner
        if attention.startswith("flash") and learner.precision == "float32":
            raise ValueError(f"model.attention: {attention} computes in bfloat16; set learner.precision: bfloat16")
        if learner.packed and attention in ("eager", "sdpa"):
            raise ValueError(
                f"learner.packed: model.attention: {attention} takes a mask of all pairs of tokens for this; "
                "leave model.attention out, take flex_attention, or set learner.packed: false"
            )
