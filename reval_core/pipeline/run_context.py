"""One process's hold on a run: what is read once, and what stays warm from round to round."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any

import torch

from reval_core.atomic_files import check_directory, remove_directory
from reval_core.config import Config, Reward, Rollouts, Verification
from reval_core.engines.choice import make_engine
from reval_core.engines.engine import Sampling, in_batches
from reval_core.errors import CorruptData, RevalError, RunStopped
from reval_core.learning import distributed
from reval_core.learning.beta import with_beta
from reval_core.learning.checkpoints import checkpoint_rounds, checkpoint_state, wanted_checkpoints
from reval_core.learning.draws import DrawReader
from reval_core.learning.learner import Learner
from reval_core.learning.precision import with_precision
from reval_core.model.layers import set_up
from reval_core.model.loading import load_model, reading_digest, stop_ids, tokenizer_of
from reval_core.model.lora import swapped_adapters
from reval_core.model.low_precision import round_weights
from reval_core.pipeline.environment import fix_machine
from reval_core.pipeline.integrity import clear
from reval_core.pipeline.reconstruction import Policy, replay
from reval_core.pipeline.reference_average import drop_averages, make_average
from reval_core.planning.gpu_memory import card, memory_advice, with_checkpointing
from reval_core.problems import PromptOrder
from reval_core.problems.asked import left_out_counts, run_problems
from reval_core.replay_buffer.index import Store
from reval_core.storage.run_directory import Attempt, RunDirectory
from reval_core.storage.tables import Manifest
from reval_core.verification import Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reval_core.engines.engine import Completion, Engine, Enough, Request
    from reval_core.problems.recorded import Prompts


log = logging.getLogger("reval")


class RunContext:
    """Everything that a run's stages share. Open it with `open_run_context`."""

    def __init__(self, directory: RunDirectory, config: Config, machine: dict[str, Any]) -> None:
        self.directory = directory
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.machine = machine
        self.attempt = Attempt(directory)
        self.kept: set[str] = set()
        """The stages of this round that an earlier attempt had finished. Whoever reads it empties it."""
        self.progress: Callable[[str, int, int, int], None] = lambda stage, round, done, total: None
        """Told of long work: the stage, its round, and how many of how many pieces are done."""
        self.stage_now = ("", 0)
        """The stage at work, and its round."""
        self.tokenizer = tokenizer_of(config.model)
        asked = run_problems(config, directory, self.tokenizer)
        for name, one in left_out_counts(asked.left_out).items():
            log.warning("%s: %s problems are not asked, the first of them %s", name, one["problems"], one["first"])
        self.train = asked.train
        self.held_out = asked.held_out
        """The problems of all held-out sets, one set after the other."""
        self.order = PromptOrder(self.train, config.seed)
        self.prompts = asked.prompts
        """By a problem's text, its prompt as text and as tokens: what it was when the run began."""
        if not asked.is_recorded and len(asked.prompts):
            if directory.manifest("warm_start", 0) is not None:
                log.warning(
                    "%s: is gone; prompts are taken from the shards, the others rendered", directory.prompts
                )
            asked.prompts.publish(directory.prompts, reading_digest(self.tokenizer))
        self.store = Store(directory.path, directory.database, config.replay.capacity, config.replay.max_age)
        manifests = directory.manifests()
        self.store.build(
            takewhile(directory.holds, manifests)
        )  # from the first loss on, the stages take in what stands
        self.wanted_checkpoints = wanted_checkpoints(manifests, config)
        """The rounds whose checkpoints earlier attempts have left and kept."""
        self._published = max((directory.place(one.stage, one.round) for one in manifests), default=(0, -1))
        self.draws = DrawReader(directory)
        self.engine = (
            make_engine(config.model, config.engine, machine["engine"], self.tokenizer, directory, config.seed)
            if isinstance(config.rollouts, Rollouts)
            else None
        )
        """What generates; None in a run of stored trajectories."""
        self.verifier = make_verifier(config.verification, config.reward)
        self.worked_seconds = 0.0
        """The time that stages of this process took since `other_seconds` was asked for last."""
        self._round_started = time.perf_counter()
        self._learner: Learner | None = None
        self._reference: tuple[str, PreTrainedModel] | None = None
        """The reference that was asked for last, by its identity, in memory of the CPU."""

    def record_prompts(self, prompts: Prompts) -> None:
        """Write down what problems look like to the model, beside what is known: nothing renders them again."""
        known = len(self.prompts)
        self.prompts = self.prompts.with_more(prompts)
        if len(self.prompts) > known:
            self.prompts.publish(self.directory.prompts, reading_digest(self.tokenizer))

    def learner_at(self, policy: Policy) -> Learner:
        """The learner holding the weights of `policy`.

        A learner that holds another policy, or was interrupted, is replaced: the newest checkpoint before
        `policy` is loaded and the recorded draws after it are replayed. Raises Damaged if that gives another
        policy than the one recorded.
        """
        if self._learner is None or self._learner.policy != policy.identity:
            self._learner = None  # before a second model is loaded
            self._learner = replay(self.directory, self.config, self.draws, policy, keep_before=self.engine_may_lag)
        return self._learner

    def learner_and_before(self, policy: Policy) -> Learner | None:
        """As `learner_at`, where `before` holds the policy of the round before `policy`.

        A learner that was loaded from a checkpoint of `policy` is reconstructed from an earlier one. None where
        that cannot be: of the initial policy, and where the run was pruned after that checkpoint.
        """
        saved = (round for round in checkpoint_rounds(self.directory.checkpoints) if round < policy.round)
        if max(saved, default=-1) < self.directory.pruned_at():
            return None
        if self.learner_at(policy).before is None:
            self._learner = None  # before a second model is loaded
            self._learner = replay(
                self.directory, self.config, self.draws, policy, before=policy.round - 1, keep_before=True
            )
        return self._learner

    @property
    def engine_may_lag(self) -> bool:
        """Whether the engine has weights of its own, which may be others than the learner's."""
        return self.engine is not None and self.engine.dtype is not None

    def generating(self) -> Engine:
        """The engine of a run that has one."""
        assert self.engine is not None, "a run of stored trajectories has no engine"
        return self.engine

    def generate(
        self,
        policy: Policy,
        requests: Sequence[Request],
        enough: Enough | None = None,
        batch: int | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """The place of each request and its completion by `policy`, as they end, or as `enough` cuts them off.

        An engine that does not stream is given `batch` requests at a time, or a shard's.
        """
        if not requests:
            return
        engine, settings = self.generating(), self.config.generation
        stops = stop_ids(self.config.model, self.tokenizer, settings.stop)
        sampling = Sampling(settings.temperature, settings.max_tokens, stops)
        learner = self.learner_at(policy)
        self.tick(0, len(requests))  # an engine may take a while to start
        try:
            engine.load(learner.model, policy.identity)
            yield from in_batches(engine, requests, sampling, batch or settings.batch, enough)
        finally:
            engine.rest()

    def title(self, stage: str, round: int) -> str:
        """What people call a stage at work."""
        name = stage.replace("_", " ")
        return f"{name} of round {round}" if round else name

    def tick(self, done: int, total: int) -> None:
        """Tell how far the stage at work is."""
        self.progress(*self.stage_now, done, total)

    @contextmanager
    def reference_model(self, reference: Policy) -> Iterator[PreTrainedModel]:
        """The reference, on the device while the context lasts.

        It is a second model, read from its checkpoint once and then kept in the CPU's memory until another is asked
        for; or with LoRA the learner's own with the reference's adapters in it.
        """
        directory = self.directory.checkpoint(reference.round)
        if self._reference is not None and self._reference[0] == reference.identity:
            with on_device(self._reference[1], self.device) as model:
                yield model
            return
        self._reference = None  # before a second one is loaded
        if reference.averaged:
            directory = self.directory.average(reference.round)
            make_average(self.directory, self.config, reference, self._weights_of, self.tokenizer)
        if not directory.exists():  # an earlier reference, whose scores are made again
            replayed = replay(self.directory, self.config, self.draws, reference)
            self._learner = None  # of several processes the others hold the reference now
            yield replayed.model
            return
        check_directory(directory)
        if checkpoint_state(directory)["policy"] != reference.identity:
            raise CorruptData(f"{directory}: is not the reference that this run recorded")
        if self.config.model.lora is None:
            model = load_model(directory, self.config.model)
            if self.config.learner.precision == "bfloat16":
                round_weights(model, self.config.seed, self.device)
            learner = self.config.learner
            set_up(model, learner.packed, learner.compiles_on(self.device.type))
            self._reference = reference.identity, model.cpu()
            with on_device(model, self.device):
                yield model
        else:
            assert self._learner is not None, "the reference's adapters go into the learner's model"
            with swapped_adapters(self._learner.model, directory, self.config.seed) as model:
                yield model

    @contextmanager
    def _weights_of(self, policy: Policy) -> Iterator[PreTrainedModel]:
        """A policy with its float32 weights, while the context lasts."""
        directory = self.directory.checkpoint(policy.round)
        if directory.exists():
            check_directory(directory)
            yield load_model(directory, self.config.model)
            return
        replayed = replay(self.directory, self.config, self.draws, policy)
        self._learner = None  # of several processes the others hold this policy now
        with replayed.masters() as model:
            yield model

    def take_in(self, manifest: Manifest) -> None:
        """Let the store hold what a stage has published. From the first rollouts on, β is known."""
        self.store.ingest(manifest)
        if manifest.stage == "reference_reset":
            self._reference = None
        if manifest.stage == "rollouts":
            known = with_beta(self.config, self.directory)
            if known is not self.config:
                self.config, self._learner = known, None  # whose objective had no β yet

    def memory_advice(self, stage: str) -> str:
        """The settings that a stage needs less memory with."""
        return memory_advice(self.config, stage)

    def rewind(self, stage: str, round: int) -> None:
        """Before a stage that is made again: let the store hold only what was published before it.

        Draws and resets depend on the buffer as it was. What came later is taken in again when the run passes it.
        """
        place = self.directory.place(stage, round)
        if place <= self._published:
            earlier = (
                one for one in self.directory.manifests() if self.directory.place(one.stage, one.round) < place
            )
            self.store.build(earlier)

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints that nothing needs any more, now that newer ones are on record."""
        drop_averages(self.directory)
        standing = set(checkpoint_rounds(self.directory.checkpoints))
        if len(standing) > self.config.checkpoints.keep:
            manifests = self.directory.manifests(("sampling", "checkpoint", "evaluation"))
            for round in standing - wanted_checkpoints(manifests, self.config):
                remove_directory(self.directory.checkpoint(round))

    def other_seconds(self) -> float:
        """The time since this was asked for last (or the session was opened) in which no stage worked."""
        now = time.perf_counter()
        other = now - self._round_started - self.worked_seconds
        self._round_started, self.worked_seconds = now, 0.0
        return other

    def nears_target(self, round: int) -> bool:
        """Whether the round's own rollouts come so near the accuracy that ends the run that it is measured."""
        target = self.config.evaluation.target
        if target is None:
            return False
        (row,) = self.store.query(
            "SELECT avg(correct::INTEGER) AS accuracy FROM verdicts WHERE round = $round", round=round
        ).to_pylist()
        return row["accuracy"] is not None and row["accuracy"] >= target - self.config.evaluation.near

    def stop_if_collapsed(self, round: int) -> None:
        """Raise RunStopped if the accuracy of the last rounds has collapsed, naming the last good checkpoint."""
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
        """Stop the verifier's workers and the engine, and let go of the database: each, whatever the others do."""
        with ExitStack() as stack:
            stack.callback(distributed.dismiss)
            stack.callback(self.store.close)
            if self.engine is not None:
                stack.callback(self.engine.close)
            stack.callback(self.verifier.close)
            with suppress(OSError):  # on a full disk: what filled it is the error to show
                self.attempt.touch()


@contextmanager
def on_device(model: PreTrainedModel, device: torch.device) -> Iterator[PreTrainedModel]:
    """`model` with its tensors on `device` while the context lasts; what they were before is kept and put back."""
    kept = {one: one.data for one in chain(model.parameters(), model.buffers())}
    try:
        for tensor, data in kept.items():
            tensor.data = data.to(device)
        yield model
    finally:
        for tensor, data in kept.items():
            tensor.data = data


def make_verifier(verification: Verification, reward: Reward) -> Verifier:
    """What judges responses, by these settings."""
    return Verifier(
        workers=verification.workers,
        timeout_seconds=verification.timeout_seconds,
        memory_mb=verification.memory_mb,
        mode=verification.mode,
        methods=verification.methods,
        function=reward.function,
        settings=reward.settings,
    )


@contextmanager
def open_run_context(directory: RunDirectory, config: Config) -> Iterator[RunContext]:
    """Hold the run folder and open a session on it.

    What is damaged in the folder is set aside first, so that the stages make it again.
    Raises InputError if another process holds the folder, or another config or other versions made it.
    """
    with directory.lock(), explained_disk(directory):
        config = with_precision(with_checkpointing(directory.check(config), card()))
        directory.open(config)
        machine = fix_machine(directory, config)  # other versions may not even read what is there
        clear(directory, config)
        context = RunContext(directory, config, machine)
        try:
            yield context
        finally:
            context.close()


@contextmanager
def explained_disk(directory: RunDirectory) -> Iterator[None]:
    """Turn whatever a full disk makes libraries raise into RunStopped with what to do."""
    try:
        yield
    except RevalError:
        raise
    except Exception as error:
        if not _tells_of_full_disk(error):
            raise
        raise RunStopped(
            f"{directory.path}: the disk is full ({directory.free_bytes() / 1e6:,.0f} MB free); make space and "
            "give the same command again: what is finished is kept"
        ) from error


def _tells_of_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(error) for sign in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
