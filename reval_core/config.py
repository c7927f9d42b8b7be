"""A run's settings: what each key means, what it may be, and what is refused at load.

`reval_core.loading` reads them from YAML. Symbols of the paper (arXiv 2603.23355) stand beside the names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reval_core.answers import Method
from reval_core.user_code import check_call


class Section(BaseModel):
    """A part of the settings. Unknown keys are errors, and true is not 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            inner = value if isinstance(value, list) else [value]
            if field is not None and field.annotation is not bool and any(isinstance(one, bool) for one in inner):
                raise ValueError(f"{name}: true and false are no values here")
        return values


class TinyModel(Section):
    """A small Llama with a character tokenizer, made by reval itself."""

    layers: int = Field(2, ge=1)
    """Transformer blocks."""
    width: int = Field(128, ge=8)
    """The size of a hidden state; a multiple of 2 × heads."""
    heads: int = Field(16, ge=1)
    """Attention heads a block."""
    feed_forward: int = Field(512, ge=8)
    """The inner size of a block's feed-forward layer."""
    initializer_range: float = Field(0.06, gt=0)
    """The deviation of the first weights. At transformers' 0.02 a model this small learns several times slower."""
    characters: str = Field("0123456789+-*= ", min_length=1)
    """Every character that a prompt or a response may hold."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError("width: must be a multiple of 2 × heads")
        if len(set(self.characters)) != len(self.characters):
            raise ValueError("characters: holds one twice")
        return self


class WarmStart(Section):
    """Supervised fitting to demonstrations before the first round."""

    steps: int = Field(ge=1)
    """Gradient steps."""
    batch: int = Field(64, ge=1)
    """Demonstrations a step."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate: a linear warm-up over the first 15% of the steps, then a cosine."""
    right: float = Field(0.3, ge=0, le=1)
    """The share of demonstrations that carry the right answer; the rest carry plausible mistakes."""


class Lora(Section):
    """Low-rank adapters (peft): the base stays as it is, and is the reference without a second copy."""

    rank: int = Field(16, ge=1)
    """r, the inner size of an adapter."""
    alpha: int = Field(32, gt=0)
    """An adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """The layers that get one, by the end of their names; `all-linear` is all but the head."""


class Model(Section):
    """The policy before training: a folder of transformers, or a tiny model."""

    path: str | None = None
    """A folder (or hub name) that transformers can load, with its tokenizer."""
    tiny: TinyModel | None = None
    warm_start: WarmStart | None = None
    lora: Lora | None = None
    """Train adapters instead of the weights; needs `pip install 'reval[lora]'`."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    """transformers' implementation of attention; its own choice (sdpa for most models) if not given."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.tiny is None):
            raise ValueError("give either path or tiny")
        return self


class Arithmetic(Section):
    """All problems of two operands with `digits` digits, parted into two splits by a fixed hash."""

    digits: int = Field(2, ge=1, le=3)
    """The digits of each operand: 2 is from 10 to 99, 1 is from 0 to 9."""
    operators: str = Field("+", pattern=r"^[-+*]+$")
    """Which of `+`, `-` and `*` stand between the operands; each makes problems of its own."""
    split: Literal["train", "held_out"] = "train"
    """One problem in ten is held out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.operators)) != len(self.operators):
            raise ValueError("operators: holds one twice")
        return self


class ProblemSet(Section):
    """Problems with known answers: a file, or arithmetic that is made on the spot."""

    path: str | None = None
    """A JSONL file with `problem` and `answer` on each line, and optionally `prompt_id`."""
    arithmetic: Arithmetic | None = None
    limit: int | None = Field(None, ge=1)
    """Use only this many, chosen by the run's seed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.arithmetic is None):
            raise ValueError("give either path or arithmetic")
        return self


class Prompt(Section):
    """How a problem becomes a prompt."""

    user: str = "{problem}"
    """The user's turn; `{problem}` stands for the problem's text."""
    system: str | None = None
    """The system turn, in a chat."""
    chat: bool = False
    """Wrap the turns in the tokenizer's chat template."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{problem}" not in self.user:
            raise ValueError("user: must contain {problem}")
        if self.system is not None and not self.chat:
            raise ValueError("system: a system turn needs chat: true")
        return self


class Problems(Section):
    """What is practised on, and what accuracy is measured on."""

    train: ProblemSet
    """What rollouts answer and updates learn from."""
    held_out: ProblemSet
    """What accuracy is measured on; nothing is learned from it."""
    prompt: Prompt = Prompt()


class TransformersEngine(Section):
    """Generation by transformers, with the learner's own weights."""

    kind: Literal["transformers"] = "transformers"


class Rollouts(Section):
    """The fresh trajectories of a round."""

    prompts: int = Field(ge=1)
    """Problems a round."""
    samples: int = Field(ge=1)
    """Responses a prompt (N). B = prompts × samples."""
    prompts_per_shard: int | None = Field(None, ge=1)
    """A shard is one batch of generation and one unit of recovery; all prompts if not given."""
    temperature: float = Field(1.0, gt=0)
    """Of the distribution that responses are drawn from."""
    max_tokens: int = Field(ge=1)
    """The longest response, in tokens, the end-of-sequence token included."""

    @property
    def trajectories(self) -> int:
        """B, the fresh trajectories of a round."""
        return self.prompts * self.samples

    @property
    def batch(self) -> int:
        """The responses of a shard, which are generated together."""
        return (self.prompts_per_shard or self.prompts) * self.samples


class Verification(Section):
    """How a response is judged against the known answer."""

    methods: tuple[Method, ...] = Field(("boxed", "phrase", "hashes"), min_length=1)
    """Where the answer is looked for, in this order."""
    workers: int = Field(2, ge=1)
    """The processes that compare answers, side by side."""
    timeout_seconds: float = Field(2.0, gt=0)
    """A worker that takes longer over one item is killed; the verdict is `timeout`."""
    memory_mb: int = Field(1024, ge=256)
    """The address space of a worker, in MiB."""
    unjudged_limit: float = Field(0.05, ge=0, le=1)
    """The run stops when a larger share of a round ends as `timeout` or `error`."""


class Reward(Section):
    """r(τ), the outcome reward of a whole response."""

    kind: Literal["binary", "centred", "signed"] = "binary"
    """`binary` 0/1, `centred` minus the mean of the prompt's group, `signed` ±1."""
    truncated: Literal["zero", "drop"] = "zero"
    """A response cut at the length limit counts as wrong, or stays out of the buffer."""


class ResidualObjective(Section):
    """What the objectives that square a residual have in common. The options are off by default."""

    beta: float = Field(gt=0)
    """β, the scale of the reward and the strength of the KL to the reference."""
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
        if self.huber is not None and self.clip is not None and self.huber >= self.clip:
            raise ValueError("huber: has no effect at or beyond clip; give one of the two, or a smaller one")
        return self


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
        """GRPO has no β, and no residual."""
        return None


class CustomObjective(Section):
    """An objective of your own: a function from Inputs and its settings to Outputs (docs/objectives.md)."""

    kind: Literal["custom"]
    function: str
    """Where it is imported from, as `package.module:function`; the working directory is searched as well."""
    settings: dict[str, float | int | bool | str | None] = {}
    """What it is given by name. A `beta` here is the β of the residuals that are stored and prioritised by."""
    mask_truncated: bool = False
    """Responses cut at the length limit have no loss."""

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


Objective = Annotated[Reval | Tbrm | Regression | Grpo | CustomObjective, Field(discriminator="kind")]


class Replay(Section):
    """The buffer of old trajectories, and how updates draw from it."""

    capacity: int = Field(ge=1)
    """M: the live trajectories; the oldest leave first."""
    sampling: Literal["uniform", "prioritised", "fresh"] = "uniform"
    """`uniform` (the paper), `prioritised` by |Δ| (PER, arXiv 1511.05952), `fresh` by age."""
    first: Literal["fresh", "buffer"] = "fresh"
    """What the first update of a round learns from: the fresh batch (Appendix A) or a draw."""
    priority_exponent: float = Field(0.6, ge=0)
    """Prioritised: the weight of a trajectory is (|Δ| + 1e-3) to this power."""
    importance_exponent: tuple[float, float] = (0.4, 1.0)
    """Prioritised: the exponent of the importance weights, at first and after the annealing."""
    importance_rounds: int = Field(100, ge=1)
    """Prioritised: the rounds over which that exponent is annealed."""
    age_decay: float = Field(0.7, gt=0, le=1)
    """Fresh: the weight of a trajectory is this to the power of its age in rounds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= exponent <= 1 for exponent in self.importance_exponent):
            raise ValueError("importance_exponent: must hold two numbers from 0 to 1")
        return self


class Learner(Section):
    """The K updates of a round."""

    updates: int = Field(ge=1)
    """K, the gradient updates a round."""
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
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    grad_clip: float = Field(1.0, gt=0)
    """The largest norm of the gradient."""
    spike_limit: float | None = Field(None, gt=1)
    """The run stops when a gradient is so many times the median of the last 100; never if not given."""
    micro_batch_tokens: int = Field(65536, ge=1)
    """Places a forward pass, padding included; it bounds memory and does not change the result."""
    packed: bool = False
    """Lay trajectories end to end, without padding. Worth it with an attention that skips what is masked (GPU)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in. Weights, sums and logits are float32 either way."""
    gradient_checkpointing: bool = False
    """Keep no activations inside a layer and compute them again: less memory, about a third more time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas: must hold two numbers from 0 to below 1")
        if (self.schedule == "constant") != (self.decay_updates is None):
            raise ValueError("decay_updates: belongs to schedule: linear or cosine, which need it")
        return self


class Reference(Section):
    """The policy that log π_ref and V_ref come from."""

    reset_every: int | None = Field(None, ge=1)
    """Every so many rounds the current policy becomes the reference; never if not given."""


class Evaluation(Section):
    """Sampled accuracy on the held-out problems."""

    every: int = Field(10, ge=1)
    """Rounds between two evaluations. Policy 0 and the last policy are always evaluated."""
    samples: int = Field(8, ge=1)
    """Responses a problem."""


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
    threads: int | None = Field(None, ge=1)
    """torch's CPU threads. Results are the same bit for bit only under the same number."""
    model: Model
    problems: Problems
    engine: TransformersEngine = TransformersEngine()
    rollouts: Rollouts
    verification: Verification = Verification()
    reward: Reward = Reward()
    objective: Objective
    replay: Replay
    learner: Learner
    reference: Reference = Reference()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    collapse: Collapse = Collapse()
    tracking: Tracking = Tracking()

    @property
    def scoring_temperature(self) -> float:
        """What the learner divides logits by: 1 for Q-values; GRPO's ratios are at what was sampled."""
        return self.rollouts.temperature if self.objective.kind == "grpo" else 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        rollouts, shard = self.rollouts, self.rollouts.prompts_per_shard
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
        if shard is not None and shard > rollouts.prompts:
            raise ValueError(f"rollouts.prompts_per_shard: {shard} is more than rollouts.prompts")
        if self.objective.beta is None and self.replay.sampling == "prioritised":
            raise ValueError(
                f"replay.sampling: {self.objective.kind} without a beta has no residual to prioritise by; "
                "take uniform or fresh"
            )
        if self.model.warm_start is not None and self.problems.train.arithmetic is None:
            raise ValueError("model.warm_start: demonstrations are made for arithmetic problems only")
        return self
