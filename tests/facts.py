"""A small run made by hand: two rounds, two prompts, two samples, every table with rows. No model, no training."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from reval_core.atomic_files import publish_json
from reval_core.config import Config
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS, Manifest, TableFile, publish_table
from tests.conftest import SMALL

PROBLEMS = {"easy": ("2+2=", "4"), "hard": ("7+8=", "15")}
BETA = 0.1


def hand_made_run(directory: RunDirectory, response: str = "13", with_delta: bool = True) -> None:
    """Publish a whole run. `response` is the likeliest wrong one; GRPO leaves no Δ."""
    for _ in publish_stages(directory, response, with_delta):
        pass


def publish_stages(directory: RunDirectory, response: str = "13", with_delta: bool = True) -> Iterator[Manifest]:
    """Publish a run stage by stage, as a trainer does; gives each manifest once it is there."""
    directory.open(Config.model_validate(SMALL | {"rounds": 2, "reference": {"reset_every": 1}}))
    publish_json(directory.attempts / "0001.json", {"started_at": 1000.0, "last_seen_at": 1090.0, "pid": 1})
    stage = _Publisher(directory)
    yield stage("warm_start", 0, policy="p0", content="c0")
    yield stage("evaluation", 0, evaluations=_evaluations(0, right=1), accuracy=0.25)
    for round in (1, 2):
        answers = _answers(round, response)
        yield stage("rollouts", round, trajectories=_trajectories(round, answers), engine="transformers")
        yield stage("verification", round, verdicts=_verdicts(round, answers))
        yield stage("consistency", round, scores=_scores(round, answers, with_delta))
        draws = _draws(round)
        yield stage("sampling", round, draws=draws)
        updates = [{"round": round, "update": update, "trajectories": 4, "tokens": 8} for update in (1, 2)]
        residuals = [
            {
                "round": round,
                "update": draw["update"],
                "trajectory_id": draw["trajectory_id"],
                "delta": -9.5,
                "writer_log_ratio": -0.25 * draw["staleness"],
            }
            for draw in draws
        ]
        yield stage("learning", round, updates=updates, residuals=residuals, policy=f"p{round}", updates_done=2)
        if round == 2:
            yield stage("evaluation", 2, evaluations=_evaluations(2, right=3), accuracy=0.75)
        yield stage("checkpoint", round, policy=f"p{round}", content=f"c{round}")
        if round == 1:
            yield stage("reference_reset", 1, scores=_rescores(answers, with_delta), reference="p1")
        yield stage("recording", round, rounds=[_round(round, with_delta)], other_seconds=0.5)


class _Publisher:
    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def __call__(self, stage: str, round: int, **given: Any) -> Manifest:
        """Publish a stage: what is named after a table is rows of it, the rest is the manifest's info."""
        rows = {name: value for name, value in given.items() if name in SCHEMAS}
        info = {name: value for name, value in given.items() if name not in SCHEMAS}
        files = tuple(self._file(stage, round, table, values) for table, values in rows.items())
        manifest = Manifest(
            stage, round, f"{stage} {round}", files, seconds=1.5, ended_at=1000.0 + round, info=info
        )
        self._directory.publish(manifest)
        return manifest

    def _file(self, stage: str, round: int, table: str, rows: list[dict[str, Any]]) -> TableFile:
        path = self._directory.facts(round, "rescores" if stage == "reference_reset" else table)
        if table == "trajectories":
            path = self._directory.shard(round, 0)
        return publish_table(self._directory.path, path, table, pa.Table.from_pylist(rows, SCHEMAS[table]))


def _answers(round: int, response: str) -> list[tuple[int, str, int, str, str]]:
    """(id, prompt id, sample, response, verdict) of a round's trajectories."""
    first = round * IDS_PER_ROUND
    return [
        (first, "easy", 0, "4", "correct"),
        (first + 1, "easy", 1, response, "wrong"),
        (first + 2, "hard", 0, "1" * 300, "truncated" if round == 1 else "wrong"),
        (first + 3, "hard", 1, r"\binom{9}{4}", "timeout"),
    ]


def _trajectories(round: int, answers: list[tuple[int, str, int, str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "trajectory_id": id,
            "round": round,
            "shard": 0,
            "row": row,
            "prompt_id": prompt,
            "sample": sample,
            "problem": PROBLEMS[prompt][0],
            "gold": PROBLEMS[prompt][1],
            "problem_set": "1-digit sums",
            "gold_mode": "all",
            "prompt": PROBLEMS[prompt][0],
            "response": response,
            "prompt_length": 4,
            "response_length": len(response) + 1,
            "finish_reason": "length" if verdict == "truncated" else "stop",
            "policy": f"p{round - 1}",
            "engine": "transformers",
            "temperature": 1.0,
            "response_tokens": [*(ord(letter) for letter in response), 0],
        }
        for row, (id, prompt, sample, response, verdict) in enumerate(answers)
    ]


def _verdicts(round: int, answers: list[tuple[int, str, int, str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "trajectory_id": id,
            "round": round,
            "verdict": verdict,
            "extracted": None if verdict == "truncated" else response,
            "correct": verdict == "correct",
            "reward": None if verdict == "timeout" else float(verdict == "correct"),
            "milliseconds": 2000.0 if verdict == "timeout" else 0.0,
        }
        for id, _, _, response, verdict in answers
    ]


def _scores(round: int, answers: list[tuple[int, str, int, str, str]], with_delta: bool) -> list[dict[str, Any]]:
    return [
        {
            "trajectory_id": id,
            "round": round,
            "reference": f"p{round - 1}",
            "policy": f"p{round - 1}",
            "log_policy": -0.5 * len(response),
            "value_term": 0.25,
            "log_ratio": 0.25,
            "entropy": 0.5,
            **_delta(response, verdict, with_delta),
        }
        for id, _, _, response, verdict in answers
    ]


def _delta(response: str, verdict: str, with_delta: bool) -> dict[str, Any]:
    if not with_delta or verdict == "timeout":
        return {}
    scaled = (verdict == "correct") / BETA
    steps = [0.5, *[0.0] * (len(response) - 1), -scaled]
    return {"scaled_reward": scaled, "delta": 0.5 - scaled, "step_deltas": steps}


def _rescores(answers: list[tuple[int, str, int, str, str]], with_delta: bool) -> list[dict[str, Any]]:
    return [{**row, "reference": "p1", "policy": "p1"} for row in _scores(1, answers, with_delta)]


def _draws(round: int) -> list[dict[str, Any]]:
    fresh = [(1, "fresh", round, place) for place in range(3)]
    old = [(2, "buffer", 1, place) for place in range(3)]
    return [
        {
            "round": round,
            "update": update,
            "position": place,
            "trajectory_id": source_round * IDS_PER_ROUND + place,
            "source": source,
            "probability": 1.0,
            "weight": 1.0,
            "staleness": round - source_round,
            "trajectory_round": source_round,
        }
        for update, source, source_round, place in fresh + old
    ]


def _evaluations(round: int, right: int) -> list[dict[str, Any]]:
    """Two problems, two answers each, the first `right` of them correct."""
    asked = [(problem, sample) for problem in ("easy", "hard") for sample in (0, 1)]
    return [
        {"round": round, "policy": f"p{round}", "prompt_id": problem, "sample": sample, "correct": place < right}
        for place, (problem, sample) in enumerate(asked)
    ]


def _round(round: int, with_delta: bool) -> dict[str, Any]:
    seconds = {name: 1.0 for name in SCHEMAS["rounds"].names if name.endswith("_seconds")}
    return {
        "round": round,
        "ended_at": datetime.datetime(2026, 1, round, tzinfo=datetime.UTC),
        "trajectories": 4,
        "accuracy": 0.25,
        "delta_abs": 3.5 if with_delta else None,
        "kl": 0.25,
        "log_ratio": 0.25,
        "kl_k3": 0.125,
        "grad_norm": 10.0**round,
        **{
            f"off_policy_q{name}": float(value)
            for value, name in enumerate(("05", "25", "50", "75", "95"), start=-2)
        },
        "off_policy_ess": 0.5,
        **seconds,
    }
