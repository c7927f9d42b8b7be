"""`reval eval`: evaluate a policy in the foreground and print the metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reval.flows.foreground import leave_undelivered, prefect_api, run_flow
from reval.flows.preparation import prepare_evaluation
from reval.flows.terminal import print_json, print_pairs, print_table, say, short
from reval_core.atomic_files import read_json
from reval_core.config.packaged import PACKAGED
from reval_core.config.places import check_local
from reval_core.errors import InputError, RunStopped

PRESETS = PACKAGED / "evaluation"


def evaluate_here(
    model: str,
    protocol: Path | None,
    overrides: Sequence[str],
    round: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate in this process and print the table of metrics."""
    source, settings, directory = prepare_evaluation(model, protocol, overrides, round, out)

    def flow() -> None:
        from reval.flows.evaluate import evaluate

        evaluate(model, str(protocol) if protocol else None, list(overrides), round, str(directory.path))

    delivered = run_flow(flow)
    results = read_json(directory.results) if directory.results.exists() else {}
    expected = (source.identity, settings.model_dump(mode="json"))
    if (results.get("policy"), results.get("protocol")) != expected:
        raise RunStopped("the Prefect server stopped responding; restart it and run the same command again")
    if as_json:
        print_json({**results, "out": str(directory.path)})
    else:
        _show(results, directory.path)
    if not delivered:
        leave_undelivered()


def show_evaluation_plan(
    model: str,
    protocol: Path | None,
    overrides: Sequence[str],
    round: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the resolved protocol and the problems that it would evaluate."""
    import yaml

    from reval.flows.plan import PlannedProblems, print_settings
    from reval_core.engines.choice import choose
    from reval_core.evaluation.context import check_evaluation

    source, settings, directory = prepare_evaluation(model, protocol, overrides, round, out)
    prefect_api()
    engine = choose(source.model, settings.engine)
    found = check_evaluation(directory, source, settings)
    sets = {name: len(problems) for name, problems in found.sets.items()}
    planned = PlannedProblems(
        found.sets, found.left_out, found.prompts, source.model, settings.verification, settings.reward
    )
    plan = {
        "model": source.source,
        "round": source.round,
        "policy": source.identity,
        "engine": {"kind": engine.kind, "reason": engine.reason},
        "out": str(directory.path),
        "benchmarks": sets,
        "responses": sum(sets.values()) * settings.samples,
        "left_out": planned.left_out,
        "prompt": planned.preview.to_json(),
    }
    resolved = settings.model_dump(mode="json")
    if as_json:
        print_json({**plan, "protocol": resolved})
        return
    planned.show()
    print_settings(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    plan_lines = {
        "policy": f"{source.name}, {source.identity[:12]}",
        "engine": f"{engine.kind} ({engine.reason})",
        "problems": ", ".join(f"{name} {count:,}" for name, count in sets.items()),
        "responses": f"{plan['responses']:,} of at most {settings.max_tokens:,} tokens",
        "output directory": short(directory.path),
    }
    print_pairs("What the evaluation would do", plan_lines)


def protocol_file(name: str) -> Path:
    """The file that `--preset` names: one of the packaged configs/evaluation/, or any YAML file by its path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise InputError(f"--preset {name}: unknown; available are {', '.join(known)}, or give your own YAML file")
    return PRESETS / f"{name}.yaml"


def benchmarks_override(text: str) -> str:
    """`gsm8k:50,own.jsonl` as an override of `benchmarks`: registered sets and files, optionally limited."""
    sets = []
    for part in text.split(","):
        name, _, limit = part.strip().partition(":")
        if not name or (limit and not limit.isdecimal()):
            raise InputError(f"--benchmarks {text}: {part!r} must look like gsm8k, gsm8k:50 or problems.jsonl:50")
        place = f"path: {json.dumps(name)}" if Path(name).suffix else f"set: {name}"
        sets.append(f"{{{place}, limit: {limit}}}" if limit else f"{{{place}}}")
    return f"benchmarks=[{', '.join(sets)}]"


def use_data(directory: Path) -> None:
    """Look for registered sets in this directory first."""
    check_local(directory, "--data")
    if not directory.is_dir():
        raise InputError(f"--data {directory}: is not a directory")
    os.environ["REVAL_DATA"] = os.pathsep.join(filter(None, [str(directory), os.environ.get("REVAL_DATA")]))


def _show(results: dict[str, Any], directory: Path) -> None:
    from reval_core.evaluation.results import results_rows

    names, rows = results_rows(results)
    say()
    print_table(names, rows)
    say(f"All metrics: {short(directory)}/results.json, results.md. Every response:")
    say(f"  reval sql {short(directory)} \\")
    say('    "SELECT problem_set, verdict, count(*) FROM evaluations')
    say(f"     WHERE policy LIKE '{results['policy'][:12]}%' GROUP BY ALL\"")
