"""The checks that need the whole learner or a run, on a GPU or a CPU: `python -m benchmarks.gpu_run CHECK`.

Each check prints its metrics and failures as one line of JSON. Needs the requirements of a run without Prefect and
MLflow: rounds are executed as in the flow, by the plain stages.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import memory as update
from benchmarks.gpu_model import FULL, parameters
from benchmarks.gpu_numerics import BETA, REWARD
from benchmarks.learner_cases import scores_in_updates
from benchmarks.workloads import Work, llama, texts
from reval.flows.rounds import train_rounds
from reval_core import config
from reval_core.learning.checkpoints import checkpoint_state
from reval_core.learning.learner import Learner
from reval_core.maintenance.check import check_run
from reval_core.model.loading import make_tiny_model, make_tiny_tokenizer
from reval_core.model.noise import LEAST, measure
from reval_core.model.scoring import score
from reval_core.model.token_batch import collate
from reval_core.pipeline.run_context import open_run_context
from reval_core.planning.gpu_memory import CONTEXT, stage_memory
from reval_core.planning.model_sizes import Sizes
from reval_core.storage.run_directory import RunDirectory

ROUNDS, KILLED = 3, 2
"""The rounds of a run, and the one in which it is killed."""

Found = tuple[dict[str, Any], list[str]]
"""Metrics by name, and a list of failures."""


def main() -> None:
    """Run one check."""
    parser = argparse.ArgumentParser()
    parser.add_argument("check", choices=sorted(CHECKS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--peaks", type=json.loads, default={})
    given = parser.parse_args()
    figures, failures = CHECKS[given.check](given)
    print(json.dumps({"figures": figures, "failures": failures}))


def memory(given: argparse.Namespace) -> Found:
    """An update's memory, measured and as forecast, in MB: 4 small cases, and the steps of `--peaks` (in GiB)."""
    found = {
        name: _forecast(FORECAST[name]) | {"measured": peak * 2**30}
        for name, peak in given.peaks.items()
        if name in FORECAST
    }
    for case in update.CASES if given.device == "cuda" else ():  # this process's memory is not only the update's
        gc.collect()  # memory of the previous case
        peak = update.peak(case, on_gpu=True)
        found[f"{case['precision']}{', checkpointing' if case['gradient_checkpointing'] else ''}"] = {
            "forecast": peak["estimated"],
            "measured": peak["measured"],
        }
    figures = {name: {kind: round(size / 1e6) for kind, size in sizes.items()} for name, sizes in found.items()}
    ratios = {name: sizes["forecast"] / sizes["measured"] for name, sizes in found.items()}
    least, most = RATIO
    return figures | {"forecast_over_measured": ratios}, [
        f"{name}: the forecast is {ratio:.2f} of what was measured, and should be {least} to {most}"
        for name, ratio in ratios.items()
        if not least <= ratio <= most
    ]


RATIO = (0.9, 1.5)
"""The tolerance of the forecast against the measurement."""

FORECAST: dict[str, dict[str, Any]] = {
    "1 x 16384": {"gradient_checkpointing": False},
    "1 x 16384, checkpointing": {"gradient_checkpointing": True},
}
"""The cases of benchmarks/learner_gpu.py that correspond to learner settings."""


def _forecast(learner: Mapping[str, Any]) -> dict[str, float]:
    """The estimated memory of the learning stage for the benchmark's model, without CUDA's own memory."""
    settings = update.settings({"precision": "bfloat16", "micro_batch_tokens": 16_384, **learner})
    count, heads = parameters(FULL), FULL.head_size
    shape = (
        FULL.layers,
        FULL.width,
        FULL.heads * heads,
        FULL.key_heads * heads,
        FULL.feed_forward,
        FULL.vocabulary,
    )
    sizes = Sizes(count, count, *shape, tied=True, context=None)
    (learning,) = (one for one in stage_memory(settings, sizes, 1, 0) if one.stage == "learning")
    return {"forecast": learning.total - CONTEXT}


def learner(given: argparse.Namespace) -> Found:
    """Whether draws of noise leave the weights unchanged, bit for bit, and rewards of ±1/8 do not.

    As in a run, the noise is measured on the texts. The reference scored each text alone.
    """
    found: dict[str, Any] = {}
    failures = []
    for precision in given.precisions:
        for kind, reward in (("no_reward", 0.0), ("reward", REWARD)):
            figures = _learned(precision, reward, given.device)
            found |= {f"{precision}_{kind}_{name}": value for name, value in figures.items()}
            if figures["skipped"] != (0.0 if reward else 1.0) or figures["moved"] != bool(reward):
                failures.append(f"{precision}: draws with {kind}: {figures}")
    return found, failures


def _learned(precision: str, reward: float, device: str) -> dict[str, Any]:
    """The share of updates that were skipped, whether any weight changed, and the noise that was measured."""
    length, count = (1000, 8) if device == "cuda" else (100, 4)
    vocabulary, width, layers = (4096, 256, 8) if device == "cuda" else (512, 64, 2)
    work = texts([length + 8 * number for number in range(count)], vocabulary, prompt=8)
    settings = config.Learner(updates=1, lr=1e-6, precision=precision, micro_batch_tokens=4 * (length + 64))
    made = Learner(llama(vocabulary, width, layers), config.Reval(kind="reval", beta=BETA), settings, "start")
    before = made.content()
    log_ref, value_ref = _scored_alone(made.model, work)
    written = [np.ones(len(response), dtype=bool) for response in work.responses]
    trajectories = (work.prompts, work.responses, written)
    scores = scores_in_updates(made.model, trajectories)
    noise = measure(scores, trajectories, (log_ref, value_ref), settings.micro_batch_tokens, packed=False).at_least(
        LEAST[precision]
    )
    rewards = np.array([reward, -reward] * (count // 2), dtype=np.float32)
    drawn = replace(update.draw(work, reward=rewards, log_ref=log_ref, value_ref=value_ref), noise=noise)
    updates = made.learn([drawn] * 4)
    return {
        "skipped": sum(one.skipped for one in updates) / len(updates),
        "moved": made.content() != before,
        "noise_logprob": noise.logprob,
        "noise_value": noise.value,
    }


@torch.inference_mode()
def _scored_alone(model: torch.nn.Module, work: Work) -> tuple[np.ndarray, np.ndarray]:
    """log π(τ) and V(s_1), [B] each."""
    device = next(model.parameters()).device
    alone = [
        score(model, collate([prompt], [response]).to(device))
        for prompt, response in zip(work.prompts, work.responses, strict=True)
    ]
    log_policy = np.array([float(scores.log_policy) for scores in alone], dtype=np.float32)
    return log_policy, np.array([float(scores.value) for scores in alone], dtype=np.float32)


def resume(given: argparse.Namespace) -> Found:
    """Runs of three rounds, in both precisions: one undisturbed, one killed in round 2's learning and resumed."""
    tiny = config.TinyModel()
    make_tiny_model(tiny, seed=0)  # transformers imports lazily; import once for all forks
    make_tiny_tokenizer(tiny.characters)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        first = {
            (precision, kind): _start(_run, place / precision / kind, precision, kind == "killed")
            for precision in given.precisions
            for kind in ("whole", "killed")
        }
        ended = {key: _ended(process) for key, process in first.items()}
        before = {precision: _published(place / precision / "killed") for precision in given.precisions}
        again = {
            precision: _start(_run, place / precision / "killed", precision, False)
            for precision in given.precisions
        }
        for precision, process in again.items():
            ended[precision, "resumed"] = _ended(process)
        found: dict[str, Any] = {}
        failures = []
        for precision in given.precisions:
            exits = {kind: ended[precision, kind] for kind in ("whole", "killed", "resumed")}
            wrong, figures = _compared(place / precision, before[precision], exits)
            failures += [f"{precision}: {one}" for one in wrong]
            found |= {f"{precision}_{name}": value for name, value in figures.items()}
    return found, failures


def _start(work: Callable[..., None], *arguments: Any) -> int:
    """Execute work in a fork, which has this process's imports and its own GPU context."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _run(path: Path, precision: str, killed: bool) -> None:
    """Resume a run to its end and check it; or to the first update of round 2, where it is killed."""
    os.environ["XDG_CACHE_HOME"] = str(path.parent / f"cache-{path.name}")
    settings, directory = config.Config.model_validate(run_settings(precision)), RunDirectory(path)

    def progress(stage: str, round: int, done: int, total: int) -> None:
        if killed and (stage, round, done) == ("learning", KILLED, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    with open_run_context(directory, settings) as context:
        context.progress = progress
        for _ in train_rounds(context):
            pass
    with directory.lock():
        results = list(check_run(directory, directory.check(settings)))
    problems = [problem for result in results for problem in result.problems]
    Path(f"{path}.checked").write_text(json.dumps({"problems": problems, "seen": [one.seen for one in results]}))


def run_settings(precision: str) -> dict[str, Any]:
    """A run that takes seconds: two-digit sums, a tiny model, and a checkpoint per round."""
    sums = {"digits": 1, "operators": "+"}
    return {
        "seed": 0,
        "rounds": ROUNDS,
        "threads": 1,
        "model": {
            "tiny": {"layers": 2, "width": 64, "heads": 4, "feed_forward": 128},
            "warm_start": {"steps": 20, "batch": 128, "lr": 3e-3, "right": 0.4},
        },
        "problems": {
            "train": {"arithmetic": {**sums, "split": "train"}},
            "held_out": {"arithmetic": {**sums, "split": "held_out"}},
        },
        "rollouts": {"prompts": 16, "samples": 4, "max_tokens": 4, "prompts_per_shard": 8},
        "verification": {"methods": ["whole"], "workers": 1},
        "objective": {"kind": "reval", "beta": 0.1},
        "replay": {"capacity": 160},
        "learner": {
            "updates": 3,
            "lr": 1e-3,
            "precision": precision,
            # Compiled in one precision, the default on CUDA; in the other without a minute of compilation.
            **({"compile": False} if precision == "float32" else {}),
        },
        "evaluation": {"every": 1, "samples": 1},
        "checkpoints": {"every": 1, "keep": ROUNDS + 1},
    }


def _published(path: Path) -> dict[str, Any]:
    """The files in a run's manifests, by stage and round."""
    return {f"{one.stage}/{one.round}": repr(one.files) for one in RunDirectory(path).manifests()}


def _compared(place: Path, before: Mapping[str, Any], exits: Mapping[str, int]) -> tuple[list[str], dict[str, Any]]:
    """The failures of the runs in a precision, and their metrics."""
    wanted = {"whole": 0, "killed": -signal.SIGKILL, "resumed": 0}
    wrong = [
        f"the {kind} run ended with status {status}" for kind, status in exits.items() if status != wanted[kind]
    ]
    if wrong:
        return wrong, {"exits": dict(exits)}
    after = _published(place / "killed")
    wrong += [
        f"{stage} was published before the kill and is another now"
        for stage in before
        if after.get(stage) != before[stage]
    ]
    for kind in ("whole", "killed"):
        wrong += [f"{kind}: {one}" for one in json.loads((place / f"{kind}.checked").read_text())["problems"]]
    contents = {
        kind: [
            checkpoint_state(RunDirectory(place / kind).checkpoint(round))["content"] for round in range(ROUNDS + 1)
        ]
        for kind in ("whole", "killed")
    }
    equal = [one == other for one, other in zip(*contents.values(), strict=True)]
    return wrong, {"stages_kept": len(before), "stages": len(after), "rounds_equal_to_the_bit": equal}


CHECKS: dict[str, Callable[[argparse.Namespace], Found]] = {"memory": memory, "learner": learner, "resume": resume}

if __name__ == "__main__":
    main()
