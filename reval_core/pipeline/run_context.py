"""The per-process state of a run that its stages share: what is loaded once and kept across rounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from reval_core.atomic_files import check_directory, remove_directory
from reval_core.config import Config, Objective, Rollouts
from reval_core.engines.choice import make_engine
from reval_core.engines.engine import Sampling
from reval_core.errors import CorruptData, RunStopped
from reval_core.learning import distributed
from reval_core.learning.checkpoints import checkpoint_rounds, checkpoint_state, retained_checkpoints
from reval_core.learning.distributed import scored, whole
from reval_core.learning.draws import DrawReader
from reval_core.learning.learner import Learner
from reval_core.learning.replica import POLICY, Replica, on_device
from reval_core.learning.resolution import resolved, with_beta
from reval_core.learning.shared_scoring import Groups, Scored, Scoring, Texts
from reval_core.model.loading import load_model, reading_digest, stop_ids, tokenizer_of
from reval_core.model.token_batch import micro_batch_limit, micro_batches
from reval_core.pipeline.environment import fix_machine
from reval_core.pipeline.integrity import clear
from reval_core.pipeline.mirroring import mirrored
from reval_core.pipeline.reconstruction import Policy, reconstruct
from reval_core.pipeline.reference_average import drop_averages, make_average
from reval_core.pipeline.stage_context import StageContext, warn_of_left_out
from reval_core.planning.gpu_memory import memory_advice
from reval_core.problems import PromptOrder, load_run_sets
from reval_core.problems.selection import RunProblems, modified, run_problems
from reval_core.replay_buffer.index import Store
from reval_core.storage.full_disk import explained_disk
from reval_core.storage.run_directory import Attempt, RunDirectory
from reval_core.storage.tables import Manifest
from reval_core.verification import Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reval_core.problems.recorded import Prompts
    from reval_core.storage.mirror import Mirror


log = logging.getLogger("reval")


class RunContext(StageContext):
    """The per-process state that the stages of a run share. Opened by `open_run_context`."""

    def __init__(
        self,
        directory: RunDirectory,
        config: Config,
        machine: dict[str, Any],
        problems: RunProblems | None = None,
    ) -> None:
        self.config = config
        """The config, resolved except for β (see `objective`)."""
        self.machine = machine
        self.attempt = Attempt(directory)
        if problems is None or problems.record != modified(directory.prompts):
            sets = load_run_sets(config.problems, config.seed)
            problems = run_problems(config, directory, tokenizer_of(config.model), sets)
        tokenizer = problems.tokenizer
        warn_of_left_out(problems.left_out)
        self.train = problems.train
        self.held_out = problems.held_out
        """The problems of all held-out sets, concatenated."""
        self.order = PromptOrder(self.train, config.seed)
        if not problems.is_recorded and len(problems.prompts):
            if directory.manifest("warm_start", 0) is not None:
                log.warning(
                    "%s: is missing; prompts are restored from the shards, others are rendered", directory.prompts
                )
            problems.prompts.publish(directory.prompts, reading_digest(tokenizer))
        self.store = Store(directory.path, directory.database, config.replay.capacity, config.replay.max_age)
        manifests = directory.manifests()
        self.store.build(
            takewhile(directory.holds, manifests)
        )  # after the first missing file, the stages ingest what exists
        self.retained_checkpoints = retained_checkpoints(manifests, config)
        """The rounds whose checkpoints earlier attempts have saved and kept."""
        self._published = max((directory.place(one.stage, one.round) for one in manifests), default=(0, -1))
        self.draws = DrawReader(directory)
        engine = (
            make_engine(config.model, config.engine, machine["engine"], tokenizer, directory, config.seed)
            if isinstance(config.rollouts, Rollouts)
            else None
        )
        verifier = Verifier.of(config.verification, config.reward)
        super().__init__(directory, tokenizer, problems.prompts, engine, verifier)
        self.mirror: Mirror | None = None
        """The mirror of the run, if it has one."""
        self._round_started = time.perf_counter()
        self._replica = Replica(directory.path, config)

    @cached_property
    def objective(self) -> Objective:
        """The objective with its β. Where β follows from the first responses, they must have been published."""
        objective = with_beta(self.config, self.directory).objective
        assert objective.beta is not None or not objective.has_residual, "β is read before the first responses"
        return objective

    def record_prompts(self, prompts: Prompts) -> None:
        """Record the prompts of further problems, so that they are not rendered again."""
        known = len(self.prompts)
        self.prompts = self.prompts.with_more(prompts)
        if len(self.prompts) > known:
            self.prompts.publish(self.directory.prompts, reading_digest(self.tokenizer))

    def learner_at(self, policy: Policy) -> Learner:
        """The learner with the weights of `policy`.

        A learner that holds another policy, or was interrupted, is replaced: the newest checkpoint before `policy`
        is loaded, and the updates after it are recomputed from the recorded draws.

        Raises:
            CorruptData: If the reconstruction gives a different policy than the one recorded.
        """
        replica = self._replica
        if replica.learner is None or replica.learner.policy != policy.identity:
            replica.learner = None  # before a second model is loaded
            replica.learner = reconstruct(
                self.directory, self.config, self.draws, policy, keep_before=self.engine_may_lag
            )
        return replica.learner

    def learner_and_before(self, policy: Policy) -> Learner | None:
        """As `learner_at`, with the policy of the previous round in the learner's `before`.

        A learner that was loaded from a checkpoint of `policy` is reconstructed from an earlier one. None if that
        is impossible: for the initial policy, and if the run was pruned after that checkpoint.
        """
        saved = (round for round in checkpoint_rounds(self.directory.checkpoints) if round < policy.round)
        if max(saved, default=-1) < self.directory.pruned_at():
            return None
        if self.learner_at(policy).before is None:
            self._replica.learner = None  # before a second model is loaded
            self._replica.learner = reconstruct(
                self.directory, self.config, self.draws, policy, before=policy.round - 1, keep_before=True
            )
        return self._replica.learner

    @property
    def engine_may_lag(self) -> bool:
        """Whether the engine has its own copy of the weights, which may lag behind the learner's."""
        return self.engine is not None and self.engine.dtype is not None

    @contextmanager
    def model_of(self, policy: Policy) -> Iterator[PreTrainedModel]:
        """The learner's whole model with the weights of `policy`, on the device if the engine computes with it."""
        with ExitStack() as stack:
            model = stack.enter_context(whole(self.learner_at(policy)))
            if not self.engine_may_lag:
                stack.enter_context(on_device(model, self.device))
            yield model

    def decoding(self) -> tuple[Sampling, int]:
        """The decoding parameters of rollouts, and the number of requests of a shard."""
        settings = self.config.generation
        stops = stop_ids(self.config.model, self.tokenizer, settings.stop)
        return Sampling(settings.temperature, settings.max_tokens, stops), settings.batch

    def by_policy(self, policy: Policy) -> str:
        """Name `policy` as the model that `scores` uses next."""
        self.learner_at(policy)
        return POLICY

    def by_reference(self, reference: Policy) -> str:
        """Name `reference` as the model that `scores` uses next.

        It is a second model, loaded from its checkpoint once and kept until another reference is requested. With
        LoRA it is the learner's own model with the reference's adapters.
        """
        directory = self.directory.checkpoint(reference.round)
        if reference.averaged:
            directory = self.directory.average(reference.round)
            make_average(self.directory, self.config, reference, self._weights_of, self.tokenizer)
        if not directory.exists():  # an earlier reference, whose scores are recomputed
            return self.by_policy(reference)
        if checkpoint_state(directory)["policy"] != reference.identity:
            raise CorruptData(f"{directory}: is not the reference that this run recorded")
        return str(directory.relative_to(self.directory.path))

    def scores(
        self,
        by: str,
        texts: Texts,
        *,
        temperature: float | None = None,
        groups: Groups | None = None,
        entropy: bool = False,
        as_in_updates: bool = False,
        packed: bool | None = None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Scored]:
        """Score trajectories in all processes of the run, in micro-batches of similar length.

        Args:
            by: The model: see `by_policy`, `by_reference` and `replica.BEFORE`.
            texts: The trajectories.
            temperature: By default that at which trajectories are scored.
            groups: The rows of each micro-batch, if not of similar length.
            entropy: Whether entropies are computed.
            as_in_updates: Whether the forward pass is that of updates, with gradients enabled.
            packed: Whether batches are packed; by default as the learner packs them.
            tick: Called with the trajectories done and their total.
        """
        learner = self.config.learner
        if groups is None:
            lengths = [len(prompt) + len(response) for prompt, response in zip(*texts[:2], strict=True)]
            limit = micro_batch_limit(self.device, learner.micro_batch_tokens)
            groups = list(micro_batches(lengths, limit, learner.packed))
        scoring = Scoring(
            temperature=self.config.scoring_temperature if temperature is None else temperature,
            packed=learner.packed if packed is None else packed,
            entropy=entropy,
            as_in_updates=as_in_updates,
        )
        return scored(self._replica, by, texts, groups, scoring, tick)

    @contextmanager
    def _weights_of(self, policy: Policy) -> Iterator[PreTrainedModel]:
        """Context manager for a policy with its float32 weights."""
        directory = self.directory.checkpoint(policy.round)
        if directory.exists():
            check_directory(directory)
            yield load_model(directory, self.config.model)
            return
        with whole(self.learner_at(policy), masters=True) as model:
            yield model

    def memory_advice(self, stage: str) -> str:
        """The settings with which a stage needs less memory."""
        return memory_advice(self.config, stage)

    def begin(self, stage: str, round: int) -> None:
        """Note that a stage starts. The store is restricted to what was published before it.

        Draws and resets depend on the buffer as it was. Later files are ingested again when the run reaches them.

        Raises:
            RunStopped: Another host has taken this run over.
        """
        super().begin(stage, round)
        if self.mirror is not None:
            self.mirror.check()
        place = self.directory.place(stage, round)
        if place <= self._published:
            earlier = (
                one for one in self.directory.manifests() if self.directory.place(one.stage, one.round) < place
            )
            self.store.build(earlier)

    def tick(self, done: int, total: int) -> None:
        """Report the progress of the running stage. Raises RunStopped if another host has taken this run over."""
        super().tick(done, total)
        if self.mirror is not None:
            self.mirror.check()

    def keep(self, manifest: Manifest) -> None:
        """Reuse what an earlier attempt at a stage has published, and ingest it into the store."""
        super().keep(manifest)
        self._ingest(manifest)

    def publish(self, manifest: Manifest) -> None:
        """Publish the manifest of a stage, and ingest its tables into the store. The mirror then copies them."""
        super().publish(manifest)
        self._ingest(manifest)
        if self.mirror is not None:
            self.mirror.wake()

    def _ingest(self, manifest: Manifest) -> None:
        self.store.ingest(manifest)
        if manifest.stage == "reference_reset":
            self._replica.forget_reference()
        learner = self._replica.learner
        if manifest.stage == "rollouts" and learner is not None and learner.objective != self.objective:
            self._replica.learner = None  # it was loaded to generate the first responses, from which β follows

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints that are no longer needed, once newer ones are recorded."""
        drop_averages(self.directory)
        saved = set(checkpoint_rounds(self.directory.checkpoints))
        if len(saved) > self.config.checkpoints.keep:
            manifests = self.directory.manifests(("sampling", "checkpoint", "evaluation"))
            for round in saved - retained_checkpoints(manifests, self.config):
                remove_directory(self.directory.checkpoint(round))

    def mirror_metrics(self) -> dict[str, float]:
        """How far the mirror is behind the run; empty if the run has none."""
        if self.mirror is None:
            return {}
        return {"mirror_files_behind": self.mirror.lag.files, "mirror_seconds_behind": self.mirror.lag.seconds}

    def other_seconds(self) -> float:
        """The seconds since the last call (or since the context was opened) in which no stage was running."""
        now = time.perf_counter()
        other = now - self._round_started - self.worked_seconds
        self._round_started, self.worked_seconds = now, 0.0
        return other

    def nears_target(self, round: int) -> bool:
        """Whether the accuracy of the round's rollouts is close enough to the target to run an evaluation."""
        target = self.config.evaluation.target
        if target is None:
            return False
        (row,) = self.store.query(
            "SELECT avg(correct::INTEGER) AS accuracy FROM verdicts WHERE round = $round", round=round
        ).to_pylist()
        return row["accuracy"] is not None and row["accuracy"] >= target - self.config.evaluation.near

    def stop_if_collapsed(self, round: int) -> None:
        """Raise RunStopped, naming the last good checkpoint, if the accuracy of the last rounds has collapsed."""
        limits = self.config.collapse
        found = self.store.query(
            "SELECT round, accuracy FROM rounds WHERE round <= $round ORDER BY round", round=round
        ).to_pydict()
        floor = limits.below * max(found["accuracy"])
        good = [number for number, accuracy in zip(*found.values(), strict=True) if accuracy >= floor]
        if round - max(good) < limits.rounds:
            return
        saved = [number for number in checkpoint_rounds(self.directory.checkpoints) if number < max(good)]
        raise RunStopped(
            f"the accuracy of the last {limits.rounds} rounds was below {floor:.3f}, "
            f"{limits.below:.0%} of the best round's; the last good checkpoint is "
            f"{self.directory.checkpoint(max(saved))}; try a lower learner.lr or a higher objective.beta"
        )

    def close(self) -> None:
        """Stop the verifier's workers and the engine, and close the database, each even if another fails."""
        with ExitStack() as stack:
            stack.callback(distributed.dismiss)
            stack.callback(self.store.close)
            stack.callback(super().close)
            with suppress(OSError):  # on a full disk: the original error is the one to report
                self.attempt.touch()


@contextmanager
def open_run_context(
    directory: RunDirectory, config: Config, problems: RunProblems | None = None
) -> Iterator[RunContext]:
    """Lock a run directory and open its context, with the run's problems as they were checked before.

    They are loaded again if there are none, or if another process has recorded prompts since. Corrupt files are
    quarantined first, so that the stages regenerate them.

    Raises:
        InputError: If another process holds the lock, the directory was made with another config or other
            versions, or the mirror belongs to another run or another host.
        RunStopped: At the end, if some files could not be copied to the mirror.
    """
    with directory.lock(), explained_disk(directory):
        config = resolved(directory.check(config))
        directory.open(config)
        machine = fix_machine(directory, config)  # other versions may not even be able to read the files
        clear(directory, config)
        with (
            mirrored(directory, config.storage) as mirror,
            closing(RunContext(directory, config, machine, problems)) as context,
        ):
            context.mirror = mirror
            yield context
