"""The cases of benchmarks/rollouts.py, each in its own process: `python benchmarks/rollouts_cases.py CASE SIZE`.

Prints one JSON object. Uses the shortest time, which other work on a shared machine disturbed least.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from reval_core import stages
from reval_core.config import Config
from reval_core.engines.engine import Sampling
from reval_core.engines.response import Response
from reval_core.engines.vllm import VllmEngine
from reval_core.pipeline.run_context import Policy, RunContext, open_run_context
from reval_core.storage.run_directory import RunDirectory

PAIRS = 3

CAPACITY = {"kv_cache_gib": 1, "max_num_seqs": 512}

SMOLLM2 = ROOT / "models/smollm2-135m-instruct"

SIZES: dict[str, dict[str, Any]] = {
    "1M": {"tiny": {"layers": 5, "width": 128, "heads": 4, "feed_forward": 512}},
    "6M": {"tiny": {"layers": 6, "width": 256, "heads": 4, "feed_forward": 1024}},
    "25M": {"tiny": {"layers": 6, "width": 512, "heads": 8, "feed_forward": 2048}},
    "135M": {"path": str(SMOLLM2)},
}
"""Llamas by number of parameters; the largest is SmolLM2-135M-Instruct, with its vocabulary of 49,152."""


def config(size: str, engine: dict[str, Any]) -> Config:
    """A run that only generates: 64 prompts of 8 responses up to 48 tokens; a sixteenth of that for the largest."""
    real = size == "135M"
    prompts, tokens = (8, 24) if real else (64, 48)
    shard = None if engine["kind"] == "transformers" else 8  # for transformers a shard is a batch
    problems = {"arithmetic": {"digits": 2, "operators": "+"}}
    return Config.model_validate(
        {
            "rounds": 100,
            "model": SIZES[size],
            "problems": {"train": problems, "held_out": problems, "prompt": {"chat": real}},
            "engine": engine,
            "rollouts": {"prompts": prompts, "samples": 8, "max_tokens": tokens, "prompts_per_shard": shard},
            "objective": {"kind": "reval", "beta": 0.1},
            "replay": {"capacity": 10_000},
            "learner": {"updates": 1, "lr": 1e-4},
        }
    )


@contextmanager
def generating(size: str, engine: dict[str, Any]) -> Iterator[tuple[RunContext, Policy]]:
    """A run context at the start of its first rollouts, in a temporary directory."""
    with (
        tempfile.TemporaryDirectory() as directory,
        open_run_context(RunDirectory(Path(directory) / "run"), config(size, engine)) as context,
    ):
        yield context, Policy.of(stages.warm_start(context, 0))


def stage(context: RunContext, round: int, policy: Policy) -> tuple[float, int]:
    """The seconds of a whole rollouts stage, and its published tokens."""
    started = time.perf_counter()
    manifest = stages.rollouts(context, round, policy)
    seconds = time.perf_counter() - started
    (row,) = context.store.query(
        "SELECT sum(response_length)::BIGINT AS tokens FROM trajectories WHERE round = $round", round=round
    ).to_pylist()
    assert manifest.files
    return seconds, int(row["tokens"])


def requests_of(context: RunContext, round: int) -> tuple[list[Response], Sampling]:
    """The engine requests of a round's stage."""
    from reval_core.model.loading import stop_ids
    from reval_core.stages.rollouts import _new_groups, _Problems

    generation = context.config.generation
    groups = _new_groups(context, round, _Problems(context, round).first_wave())
    requests = [one for group in groups for one in group]
    stops = stop_ids(context.config.model, context.tokenizer, generation.stop)
    return requests, Sampling(generation.temperature, generation.max_tokens, stops)


def bare(engine: VllmEngine, requests: list[Response], sampling: Sampling) -> tuple[float, int]:
    """The seconds of `vllm.LLM.generate` alone with these requests, on the same engine, and its tokens."""
    from reval_core.engines.vllm import _parameters

    llm = engine._llm
    llm.reset_prefix_cache()
    prompts = [{"prompt_token_ids": list(request.prompt_tokens)} for request in requests]
    parameters = [_parameters(request, sampling, streamed=False) for request in requests]
    started = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - started
    return seconds, sum(len(output.outputs[0].token_ids) for output in outputs)


def vllm(size: str, dtype: str) -> dict[str, float]:
    """The rollouts stage compared with plain `LLM.generate`, and the time from learning to the first token."""
    with generating(size, {"kind": "vllm", "dtype": dtype} | CAPACITY) as (context, policy):
        engine = context.engine
        assert isinstance(engine, VllmEngine)
        stage(context, 1, policy)  # starts the engine and warms it up
        staged, bares = [], []
        for round in range(2, 2 + PAIRS):
            wanted = requests_of(context, round)
            bares.append(bare(engine, *wanted))
            staged.append(stage(context, round, policy))
        if [tokens for _, tokens in staged] != [tokens for _, tokens in bares]:
            raise SystemExit("the two did not generate the same")
        model = context.learner_at(policy).model
        sync = min(first_token(context, engine, model, f"again {number}") for number in range(PAIRS))
        started = time.perf_counter()
        engine.close()
        first_token(context, engine, model, "restarted")
        restart = time.perf_counter() - started
        ours, theirs = (max(tokens / seconds for seconds, tokens in pairs) for pairs in (staged, bares))
        return {
            "stage_tokens_per_second": ours,
            "bare_tokens_per_second": theirs,
            "vs_bare": ours / theirs,
            "sync_seconds": sync,
            "restart_seconds": restart,
        }


def first_token(context: RunContext, engine: VllmEngine, model: Any, policy: str) -> float:
    """The seconds until the engine has new weights and generates a first token."""
    requests, sampling = requests_of(context, 90)
    started = time.perf_counter()
    engine.load(model, policy)
    list(engine.generate(requests[:1], replace(sampling, max_tokens=1)))
    return time.perf_counter() - started


def speed(size: str, engine: dict[str, Any]) -> dict[str, float]:
    """The rollouts stage with any engine, on the same requests."""
    with generating(size, engine) as (context, policy):
        stage(context, 1, policy)
        done = [stage(context, round, policy) for round in range(2, 2 + PAIRS)]
        return {"stage_tokens_per_second": max(tokens / seconds for seconds, tokens in done)}


def main() -> None:
    case, size, *dtype = sys.argv[1:]
    if case == "vllm":
        found = vllm(size, *dtype)
    elif case == "speed":
        found = speed(size, {"kind": "vllm", "dtype": dtype[0]} | CAPACITY)
    else:
        found = speed(size, {"kind": "transformers"})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
