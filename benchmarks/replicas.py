"""Two vLLM servers of one thread each against one: `replica_speedup`, the ratio of their tokens per second.

    python benchmarks/replicas.py           prints both speeds and the ratio
    python benchmarks/replicas.py --json    prints them as JSON

Runs in the environment of `make venv-vllm`, and needs two processor cores that nothing else uses. The servers of
both engines run at the same time and generate in turns; of each the fastest turn counts. About three minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import run

if TYPE_CHECKING:
    from reval_core.engines.replicas import VllmReplicas

TURNS = 3
RESPONSES, TOKENS = 256, 48


def measure() -> float:
    """The speed of two servers over that of one, from a process with vLLM."""
    own = find_spec("vllm") is not None
    python = Path(sys.executable) if own else ROOT / ".venv-vllm/bin/python"
    if not python.exists():
        raise SystemExit("vLLM is not installed; make venv-vllm installs it")
    return float(run(str(python), "benchmarks/replicas.py", "--json")["replica_speedup"])


def speeds() -> dict[str, float]:
    """Tokens per second of one and of two servers, and their ratio."""
    from reval_core.config import TinyModel, VllmEngine
    from reval_core.engines.placement import places
    from reval_core.engines.replicas import VllmReplicas
    from reval_core.model.loading import make_tiny_model

    settings = VllmEngine(kind="vllm", dtype="float32", kv_cache_gib=0.5, max_num_seqs=RESPONSES, replicas=2)
    both = [place for place in places(settings) if len(place.devices) == 1]
    if len(both) != 2:
        raise SystemExit("needs two processor cores: taskset --cpu-list 0,1 python benchmarks/replicas.py")
    model = make_tiny_model(TinyModel(layers=6, width=512, heads=8, feed_forward=2048), 0)
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = [
            stack.enter_context(closing(VllmReplicas(settings, used, logs / str(len(used)))))
            for used in (both[:1], both)
        ]
        for engine in engines:
            engine.load(model, "measured")
            tokens_per_second(engine, 0)  # warms it up
        turns = [[tokens_per_second(engine, turn) for engine in engines] for turn in range(1, 1 + TURNS)]
    one, two = (max(speeds) for speeds in zip(*turns, strict=True))
    return {"one_server": one, "two_servers": two, "replica_speedup": two / one}


def tokens_per_second(engine: VllmReplicas, turn: int) -> float:
    """The speed of an engine with requests of this turn."""
    from reval_core.engines.engine import Sampling
    from reval_core.engines.response import Response

    requests = [
        Response(
            *("measured", "", None, "any", "measured"),
            prompt_tokens=[3 + (one + place) % 9 for place in range(16)],
            seed=1000 * turn + one,
        )
        for one in range(RESPONSES)
    ]
    started = time.perf_counter()
    found = list(engine.generate(requests, Sampling(1.0, TOKENS, (2,))))
    seconds = time.perf_counter() - started
    assert len(found) == RESPONSES
    return sum(len(response.tokens) for _, response in found) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    found = speeds()
    print(json.dumps(found) if as_json else "\n".join(f"{name:16} {value:.2f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
