"""One process's hold on a run: what is read once, and what stays warm from round to round."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reval_core import processes
from reval_core.adapters import swapped_adapters
from reval_core.checkpoints import checkpoint_rounds, checkpoint_state, load_learner
from reval_core.config import Config, Rollouts
from reval_core.draws import DrawReader
from reval_core.errors import Damaged, InputError, RunStopped
from reval_core.facts import Manifest
from reval_core.files import publish_json, read_json
from reval_core.learner import Drawn, Learner, Tick, Update
from reval_core.models import load_model, tokenizer_of
from reval_core.problems import PromptOrder, load_problems, prompt_text, prompt_tokens
from reval_core.run_folder import Attempt, RunFolder
from reval_core.store import Store
from reval_core.verification import Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from reval_core.engines.base import Completion, Engine, Request, Sampling


@dataclass(frozen=True)
class Policy:
    """A policy by name: the one after `round` rounds. `identity` is its digest (see `reval_core.learner`)."""

    round: int
    identity: str

    @classmethod
    def of(cls, manifest: Manifest) -> Policy:
        """The policy that a warm start or a learning stage left."""
        return cls(manifest.round, manifest.info["policy"])


class Session:
    """Everything that a run's stages share. Open it with `open_session`."""

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder = folder
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.machine = _fix_machine(folder, config)
        self.attempt = Attempt(folder)
        self.kept: set[str] = set()
        """The stages of this round that an earlier attempt had finished. Whoever reads it empties it."""
        self.progress: Callable[[str, int, int, int], None] = lambda stage, round, done, total: None
        """Told of long work: the stage, its round, and how many of how many pieces are done."""
        self.stage_now = ("", 0)
        """The stage at work, and its round."""
        self.train = load_problems(config.problems.train, config.seed) if config.problems.train else []
        self.held_out = load_problems(config.problems.held_out, config.seed) if config.problems.held_out else []
        self.order = PromptOrder(self.train, config.seed)
        self.tokenizer = tokenizer_of(config.model)
        self.store = Store(folder.path, folder.database, config.replay.capacity)
        self.store.build(folder.manifests())
        self.draws = DrawReader(folder)
        self.engine = _engine(self.tokenizer) if isinstance(config.rollouts, Rollouts) else None
        """What generates; None in a run of stored trajectories."""
        self.verifier = Verifier(
            workers=config.verification.workers,
            timeout_seconds=config.verification.timeout_seconds,
            memory_mb=config.verification.memory_mb,
            methods=config.verification.methods,
        )
        self.worked_seconds = 0.0
        """The time that stages of this process took since `other_seconds` was asked for last."""
        self._round_started = time.perf_counter()
        self._learner: Learner | None = None

    def prompt(self, problem: str) -> tuple[str, list[int]]:
        """A problem's prompt as text and as tokens."""
        text = prompt_text(problem, self.config.problems.prompt, self.tokenizer)
        return text, prompt_tokens(text, self.config.problems.prompt, self.tokenizer)

    def learner_at(self, policy: Policy) -> Learner:
        """The learner holding the weights of `policy`, which the engine then generates with.

        A learner that holds another policy, or was interrupted, is replaced: the newest checkpoint before
        `policy` is loaded and the recorded draws after it are replayed. Raises Damaged if that gives another
        policy than the one recorded.
        """
        if self._learner is None or self._learner.policy != policy.identity:
            self._learner = None  # before a second model is loaded
            self._learner = self._rebuild(policy)
        if self.engine is not None:
            self.engine.load(self._learner.model)
        return self._learner

    def generating(self) -> Engine:
        """The engine of a run that has one."""
        assert self.engine is not None, "a run of stored trajectories has no engine"
        return self.engine

    def generate(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, by `policy`, in the precision that it learns in."""
        with self.learner_at(policy).autocast():
            return self.generating().generate(requests, sampling)

    def tick(self, done: int, total: int) -> None:
        """Tell how far the stage at work is."""
        self.progress(*self.stage_now, done, total)

    @contextmanager
    def reference_model(self, reference: Policy) -> Iterator[PreTrainedModel]:
        """The reference, from its checkpoint, while the context lasts.

        It is a second model, or with LoRA the learner's own with the reference's adapters in it.
        """
        folder = self.folder.checkpoint(reference.round)
        if checkpoint_state(folder)["policy"] != reference.identity:
            raise Damaged(f"{folder}: is not the reference that this run recorded")
        if self.config.model.lora is None:
            yield load_model(folder, self.config.model).to(self.device)
        else:
            assert self._learner is not None, "the reference's adapters go into the learner's model"
            with swapped_adapters(self._learner.model, folder) as model:
                yield model

    def learn(self, learner: Learner, draws: list[Drawn], tick: Tick = lambda done, total: None) -> list[Update]:
        """Let the learner learn, in all processes of the run."""
        processes.tell("learn", draws)
        with processes.together():
            return learner.learn(draws, tick)

    def other_seconds(self) -> float:
        """The time since this was asked for last (or the session was opened) in which no stage worked."""
        now = time.perf_counter()
        other = now - self._round_started - self.worked_seconds
        self._round_started, self.worked_seconds = now, 0.0
        return other

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
        saved = [number for number in checkpoint_rounds(self.folder.checkpoints) if number < max(good)]
        raise RunStopped(
            f"the accuracy of the last {limits.rounds} rounds was below {floor:.3f}, "
            f"{limits.below:.0%} of the best round's; the last good checkpoint is "
            f"{self.folder.checkpoint(max(saved))}; try a lower learner.lr or a higher objective.beta"
        )

    def close(self) -> None:
        """Stop the verifier's workers and the engine, and let go of the database."""
        self.verifier.close()
        if self.engine is not None:
            self.engine.close()
        self.store.close()
        self.attempt.touch()
        processes.dismiss()

    def _rebuild(self, policy: Policy) -> Learner:
        saved = [number for number in checkpoint_rounds(self.folder.checkpoints) if number <= policy.round]
        if not saved:
            raise Damaged(f"{self.folder.checkpoints}: no checkpoint to rebuild round {policy.round} from")
        folder = self.folder.checkpoint(max(saved))
        processes.tell("restore", folder, self.machine["threads"])
        with processes.together():
            learner = load_learner(folder, self.folder.base, self.config)
        for number in range(max(saved) + 1, policy.round + 1):
            self.learn(learner, self.draws.read(number))
        if learner.policy != policy.identity:
            raise Damaged(
                f"{folder}: replaying the draws after it gives another policy than round {policy.round} recorded; "
                "the versions or the number of threads differ, or a file was changed"
            )
        return learner


@contextmanager
def open_session(folder: RunFolder, config: Config) -> Iterator[Session]:
    """Hold the run folder and open a session on it.

    Raises InputError if another process holds the folder or another config made it.
    """
    with folder.lock():
        folder.open(config)
        session = Session(folder, config)
        try:
            yield session
        finally:
            session.close()


def _fix_machine(folder: RunFolder, config: Config) -> dict[str, Any]:
    """Record what results depend on beside the config, and go on with the same number of threads."""
    import transformers

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if folder.machine.exists():
        machine = read_json(folder.machine)
        if machine["processes"] != processes.count():
            raise InputError(
                f"{folder.path}: this run learns in {machine['processes']} processes, and now there are "
                f"{processes.count()}; go on with accelerate launch --num_processes {machine['processes']}"
            )
        torch.set_num_threads(machine["threads"])
        return machine
    machine = {
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
    publish_json(folder.machine, machine)
    return machine


def _engine(tokenizer: PreTrainedTokenizerBase) -> Engine:
    from reval_core.engines.transformers import TransformersEngine

    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise InputError("model.path: the tokenizer needs an eos_token and a pad_token")
    return TransformersEngine(tokenizer.eos_token_id, tokenizer.pad_token_id)
