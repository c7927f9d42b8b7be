"""Every generator of the code base is left in the middle: it then holds nothing, and what it changed is as before.

A generator that yields outside of every `with` and `try`, and is no context, holds nothing but its own variables.
All others have an entry here, under the name that they are imported by: either a way to be left, or the test of
another file that leaves them.
"""

from __future__ import annotations

import ast
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.models import tiny_model
from tests.responses import request
from tests.runs import run, small_config

ROOT = Path(__file__).parents[2]
Generator = Any


class Broken(Exception):
    """What a consumer raises in the middle."""


def holds(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a generator holds something at a yield: by a `with`, by a `try`, or because it is a context."""
    found = list(_yields(function, False))
    return any(found) or bool(found and function.decorator_list)


def _yields(node: ast.AST, held: bool) -> Iterator[bool]:
    for name, value in ast.iter_fields(node):
        within = (
            held or isinstance(node, ast.With | ast.AsyncWith) or (isinstance(node, ast.Try) and name == "body")
        )
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Yield | ast.YieldFrom):
                yield within
            if isinstance(child, ast.AST) and not isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
            ):
                yield from _yields(child, within)


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{prefix}.{node.name}" if named else prefix  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from _functions(node, name)


def holding() -> set[str]:
    """The generators of the code base that hold something at a yield."""
    found = set()
    for package in ("reval_core", "flows", "tasks"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            module = module if module.startswith("reval") else f"reval.{module}"
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {name for name, function in _functions(tree, module) if holds(function)}
    return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been made up to its start."""
    path = tmp_path_factory.mktemp("runs") / "begun"
    run(path, small_config(), until=0)
    return path


LEAVERS: dict[str, Callable[..., None]] = {}


def leaves(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(function: Callable[..., None]) -> Callable[..., None]:
        LEAVERS[name] = function
        return function

    return add


@contextmanager
def breaking() -> Iterator[None]:
    """What is inside has to raise Broken."""
    try:
        yield
    except Broken:
        return
    pytest.fail("nothing was raised")


def break_in(context: AbstractContextManager[Any]) -> None:
    with breaking(), context:
        raise Broken


def context_of(path: Path) -> AbstractContextManager[Any]:
    from reval_core.pipeline.run_context import open_run_context
    from reval_core.storage.run_directory import RunDirectory

    return open_run_context(RunDirectory(path), small_config())


@leaves("reval_core.model.lora.swapped_adapters")
def _(begun: Path, tmp_path: Path) -> None:
    from safetensors import SafetensorError

    from reval_core.config import Lora
    from reval_core.model.lora import add_adapters, save_adapters, swapped_adapters

    model: Any = tiny_model()
    add_adapters(model, Lora(rank=2), seed=0)
    save_adapters(model, tmp_path)
    adapter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        adapter.add_(1.0)
    own = adapter.clone()
    break_in(swapped_adapters(model, tmp_path, seed=0))
    assert torch.equal(adapter, own)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(SafetensorError), swapped_adapters(model, tmp_path, seed=0):
        pass
    assert torch.equal(adapter, own)


@leaves("reval_core.comparison.sides.open_sides")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.comparison.sides import open_sides

    before = set(os.listdir("/proc/self/fd"))
    break_in(open_sides([begun]))
    assert set(os.listdir("/proc/self/fd")) <= before


@leaves("reval_core.engines.transformers._own_generation_settings")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.engines.transformers import _own_generation_settings

    model, own = SimpleNamespace(), GenerationConfig()
    model.generation_config = own
    break_in(_own_generation_settings(model, GenerationConfig()))
    assert model.generation_config is own


@leaves("reval_core.engines.vllm._output_to")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.engines.vllm import _output_to

    before = [os.fstat(number).st_ino for number in (1, 2)]
    break_in(_output_to(tmp_path / "log"))
    assert [os.fstat(number).st_ino for number in (1, 2)] == before


@leaves("reval_core.engines.weights.policy_tensors")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.engines.weights import policy_tensors

    suspended = policy_tensors(tiny_model(), 0, torch.float32)
    next(suspended)
    assert torch.is_grad_enabled()
    suspended.close()  # type: ignore[attr-defined]
    assert torch.is_grad_enabled()


@leaves("reval_core.evaluation.context.open_evaluation_context")
@leaves("reval_core.pipeline.stage_context.StageContext.generate")
def _(begun: Path, tmp_path: Path) -> None:
    from reval.flows.preparation import prepare_evaluation
    from reval_core.evaluation.context import open_evaluation_context

    sets = "benchmarks=[{arithmetic: {digits: 1, operators: '+', split: held_out}}]"
    asked = [sets, "precision=bfloat16", "max_tokens=4", "prompt.chat=false", "verification.workers=1"]
    prepared = prepare_evaluation(str(begun), None, asked, None, tmp_path / "evaluation")
    source, protocol, directory = prepared.source, prepared.protocol, prepared.directory
    with breaking(), open_evaluation_context(directory, source, protocol) as context:
        suspended = context.generate(context.policy, [request([1, 2], seed) for seed in range(2)])
        next(suspended)
        assert not torch.is_autocast_enabled("cpu")
        raise Broken
    with directory.lock():  # nobody else holds it
        pass


@leaves("reval_core.learning.trained_weights.Weights.whole")
@leaves("reval_core.model.low_precision.LowPrecisionCopy.replaced_by_masters")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.config import Learner as Settings
    from reval_core.config import Reval
    from reval_core.learning.learner import Learner

    model = tiny_model()
    settings = Settings(updates=1, lr=1e-3, precision="bfloat16")
    learner = Learner(model, Reval(kind="reval", beta=0.1), settings, "start")
    before = [parameter.data for parameter in model.parameters()]
    with breaking(), learner.masters():
        assert model.dtype == torch.float32
        raise Broken
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    assert model.dtype == torch.bfloat16


@leaves("reval_core.learning.trained_weights.ShardedWeights.whole")
def _(begun: Path, tmp_path: Path) -> None:
    from torch import distributed

    from reval_core.config import Learner as Settings
    from reval_core.learning.trained_weights import ShardedWeights

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        settings = Settings(updates=1, lr=1e-3, precision="float32", shard="all")
        weights = ShardedWeights(tiny_model(), settings, 0, torch.device("cpu"))
        with breaking(), weights.whole(masters=True) as model:
            assert sum(parameter.numel() for parameter in model.parameters()) > 0
            raise Broken
        assert sum(parameter.numel() for parameter in model.parameters()) == 0
    finally:
        distributed.destroy_process_group()


@leaves("reval_core.learning.learner.Learner.as_before")
@leaves("reval_core.learning.snapshot.Snapshot.swapped_in")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.config import Learner as Settings
    from reval_core.config import Reval
    from reval_core.learning.learner import Learner

    model = tiny_model()
    learner = Learner(model, Reval(kind="reval", beta=0.1), Settings(updates=1, lr=1e-3), "start")
    learner.learn([], keep_before=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    after = [parameter.clone() for parameter in model.parameters()]
    with breaking(), learner.as_before():
        assert not any(torch.equal(now, then) for now, then in zip(model.parameters(), after, strict=True))
        raise Broken
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), after, strict=True))
    assert learner.policy is None


@leaves("reval_core.model.low_precision.in_float32")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.model.low_precision import in_float32, round_weights

    model = tiny_model()
    round_weights(model, seed=0)
    break_in(in_float32(model.get_output_embeddings()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@leaves("reval_core.model.layers.checkpointed_layers")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.model.layers import checkpointed_layers

    model = tiny_model()
    before = [module.training for module in model.modules()]
    break_in(checkpointed_layers(model))
    assert [module.training for module in model.modules()] == before
    assert not model.is_gradient_checkpointing


@leaves("reval_core.model.layers.as_loaded")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.model.compiled import compile_layers
    from reval_core.model.layers import as_loaded, decoder_layers
    from reval_core.model.packed import read_packed_rows

    model = tiny_model()
    read_packed_rows(model)
    compile_layers(decoder_layers(model))
    with breaking(), as_loaded(model):
        assert model.config._attn_implementation == "sdpa"
        assert {layer._compiled_call_impl for layer in decoder_layers(model)} == {None}
        raise Broken
    assert model.config._attn_implementation == "packed|sdpa"
    assert None not in {layer._compiled_call_impl for layer in decoder_layers(model)}


@leaves("reval_core.model.scoring_check._exact_head")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.model.scoring_check import _exact_head

    model = tiny_model()
    before = model.get_output_embeddings().forward
    break_in(_exact_head(model))
    assert model.get_output_embeddings().forward == before


@leaves("reval_core.model.coverage.quiet_transformers")
def _(begun: Path, tmp_path: Path) -> None:
    from transformers.utils import logging as transformers_logging

    from reval_core.model.coverage import quiet_transformers

    before = transformers_logging.get_verbosity()
    break_in(quiet_transformers())
    assert transformers_logging.get_verbosity() == before


@leaves("reval_core.storage.entries._foreign")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.storage.entries import _foreign

    for name in "ab":
        (tmp_path / name).symlink_to(tmp_path)
    _rows_are_left(_foreign(tmp_path))


@leaves("reval_core.rows.files._csv")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.rows.files import _csv

    path = tmp_path / "problems.csv"
    path.write_text("problem,answer\n1+1,2\n1+2,3\n")
    _rows_are_left(_csv(path))


@leaves("reval_core.rows.files._table_rows")
def _(begun: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    from reval_core.rows.files import _parquet

    path = tmp_path / "problems.parquet"
    pa.parquet.write_table(pa.table({"problem": ["1+1", "1+2"], "answer": ["2", "3"]}), path)
    _rows_are_left(_parquet(path))


@leaves("reval.flows.querying.locked_views")
def _(begun: Path, tmp_path: Path) -> None:
    from reval.flows.querying import locked_views
    from reval_core.evaluation.directory import published_tables

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        break_in(locked_views(begun, published_tables(begun)))
    assert os.listdir(tmp_path) == []


def _rows_are_left(rows: Generator) -> None:
    before = set(os.listdir("/proc/self/fd"))
    next(rows)
    rows.close()
    assert set(os.listdir("/proc/self/fd")) <= before


@leaves("reval_core.learning.distributed.together")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.learning import distributed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "_out_of_step", False)
        break_in(distributed.together("learn"))
        assert distributed._out_of_step
        distributed.dismiss()  # and waits for nobody


@leaves("reval_core.report._asking")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.report import _asking
    from reval_core.storage.run_directory import RunDirectory

    directory = RunDirectory(begun)
    before = set(os.listdir("/proc/self/fd"))
    break_in(_asking(directory, directory.manifests()))
    assert set(os.listdir("/proc/self/fd")) <= before


@leaves("reval_core.storage.run_directory.RunDirectory.lock")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.storage.run_directory import RunDirectory

    break_in(RunDirectory(begun).lock())
    with RunDirectory(begun).lock():
        pass


@leaves("reval_core.pipeline.run_context.open_run_context")
@leaves("reval_core.pipeline.run_context.RunContext.model_of")
@leaves("reval_core.learning.distributed.whole")
@leaves("reval_core.learning.replica.Replica._scorer")
@leaves("reval_core.learning.replica.Replica._reference_in")
@leaves("reval_core.pipeline.run_context.RunContext._weights_of")
@leaves("reval_core.replay_buffer.index.Store._transaction")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.learning.distributed import whole
    from reval_core.pipeline.run_context import Policy

    with breaking(), context_of(begun) as context:
        policy = Policy.of(context.directory.manifest("warm_start", 0))
        suspended = context.generate(policy, [request([1, 2], seed) for seed in range(2)], batch=1)
        next(suspended)
        assert not torch.is_autocast_enabled("cpu")
        break_in(whole(context.learner_at(policy)))
        break_in(context.model_of(policy))
        break_in(context._replica._scorer(context.by_reference(policy)))
        break_in(context._weights_of(policy))
        with breaking(), context.store._transaction() as connection:
            connection.execute("CREATE TABLE left_behind (number INTEGER)")
            raise Broken
        assert "left_behind" not in str(context.store.query("SHOW TABLES").to_pylist())
        raise Broken
    with context_of(begun):  # neither the lock nor the database is held by the first
        pass


@leaves("reval_core.storage.full_disk.explained_disk")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.storage.full_disk import explained_disk
    from reval_core.storage.run_directory import RunDirectory

    break_in(explained_disk(RunDirectory(begun)))


@leaves("reval_core.learning.replica.on_device")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.learning.replica import on_device

    model = tiny_model()
    before = {name: one.data_ptr() for name, one in model.state_dict().items()}
    with breaking(), on_device(model, torch.device("cpu")):
        for one in (*model.parameters(), *model.buffers()):
            one.data = one.data.clone()  # as on a GPU
        raise Broken
    assert {name: one.data_ptr() for name, one in model.state_dict().items()} == before


@leaves("reval_core.planning.out_of_memory.explained_memory")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.planning.out_of_memory import explained_memory

    break_in(explained_memory("learning", lambda: pytest.fail("there is no lack of memory")))


@leaves("reval_core.learning.deterministic.deterministic_kernels")
def _(begun: Path, tmp_path: Path) -> None:
    from reval_core.learning.deterministic import deterministic_kernels

    with breaking(), deterministic_kernels():
        assert torch.are_deterministic_algorithms_enabled()
        raise Broken
    assert not torch.are_deterministic_algorithms_enabled()


@leaves("reval.flows.terminal.shown_warnings")
def _(begun: Path, tmp_path: Path) -> None:
    from reval.flows.terminal import shown_warnings

    before = list(logging.getLogger("reval").handlers)
    break_in(shown_warnings())
    assert logging.getLogger("reval").handlers == before


@leaves("reval.flows.reproduce._processes")
def _(begun: Path, tmp_path: Path) -> None:
    from multiprocessing import active_children

    from reval.flows.reproduce import _processes

    with breaking(), _processes(1) as executor:
        executor.submit(time.sleep, 10_000)
        raise Broken
    assert active_children() == []


@leaves("reval.flows.server._process")
@leaves("reval.flows.server._started")
@leaves("reval.flows.server.server")
@leaves("reval.flows.server.worker")
def _(begun: Path, tmp_path: Path) -> None:
    """With commands that sleep in the place of Prefect's own."""
    from reval.flows import server

    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    def command(name: str, *_: str) -> list[str]:
        return [sys.executable, "-c", "pass" if name == "--no-prompt" else "import time; time.sleep(10_000)"]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("PREFECT_API_URL", server.LOCAL_API)
        patch.setattr(server.subprocess, "Popen", start)
        patch.setattr(server, "_prefect", command)
        patch.setattr(server, "_make_work_pool", lambda name: None)
        patch.setattr(server, "answers", lambda url: bool(started))
        with breaking(), server.server(), server.worker():
            raise Broken
    assert len(started) == 3
    assert all(process.poll() is not None for process in started)


@leaves("reval.tasks.tracking.tracked")
def _(begun: Path, tmp_path: Path) -> None:
    from reval.tasks.tracking import tracked
    from reval_core.storage.run_directory import RunDirectory

    break_in(tracked(RunDirectory(begun), small_config()))
    with sqlite3.connect(begun.parent / "mlflow.db") as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]
    connection.close()


ELSEWHERE = {
    "reval_core.engines.vllm.VllmEngine.generate": (
        "tests/vllm/test_vllm.py::test_abandoned_generation_leaves_no_state"
    ),
    "reval_core.engines.vllm.VllmEngine._alive": (
        "tests/vllm/test_vllm.py::test_an_engine_whose_process_dies_raises_and_can_be_restarted"
    ),
    "reval_core.engines.vllm_endpoint.Endpoint.choices": (
        "tests/unit/engines/test_vllm_server.py::test_abandoned_generation_is_cancelled"
    ),
    "reval_core.engines.vllm_endpoint.Endpoint._request": (
        "tests/unit/engines/test_vllm_server.py::test_abandoned_generation_is_cancelled"
    ),
    "reval_core.engines.weight_source.checked": (
        "tests/unit/engines/test_weight_source.py::test_a_copy_is_deleted_after_an_error"
    ),
    "reval_core.launch.launcher_hidden": (
        "tests/unit/test_launch.py::test_the_process_group_is_hidden_and_restored_also_after_an_error"
    ),
    "reval_core.engines.vllm_server.VllmServers.generate": (
        "tests/unit/engines/test_vllm_server.py::test_an_engine_can_be_closed_during_generation"
    ),
    "reval_core.pipeline.mirroring.mirrored": (
        "tests/unit/storage/test_mirror.py::test_a_run_that_breaks_releases_its_lease_and_stops_copying"
    ),
    "reval_core.storage.mirror.held_mirror": (
        "tests/unit/storage/test_mirror.py::test_a_run_that_breaks_releases_its_lease_and_stops_copying"
    ),
    "reval_core.storage.mirror_index._records": (
        "tests/unit/storage/test_mirror.py::"
        "test_a_missing_or_changed_record_is_found_and_an_unfinished_last_one_is_ignored"
    ),
    "reval_core.storage.object_store.ObjectStore._explained": (
        "tests/unit/storage/test_mirror.py::test_a_store_that_fails_for_a_while_is_warned_of_and_tried_again"
    ),
    "reval.flows.deployed.final_errors": (
        "tests/integration/test_flow.py::test_a_flow_run_is_retried_after_an_unknown_error_only"
    ),
    "reval.flows.deployed.turn": (
        "tests/integration/test_flow.py::test_a_turn_that_is_left_by_an_error_is_free_again"
    ),
    "reval_core.verification.pool.Pool.run": (
        "tests/integration/test_abandoned_calls.py::test_a_forgotten_call_ends_when_it_is_collected"
    ),
    "reval_core.verification.verifier.Verifier.judge_each": (
        "tests/integration/test_abandoned_calls.py::test_a_consumer_that_raises_blocks_nothing"
    ),
}


# One may leave several generators, which are named by the last of them.
@pytest.mark.parametrize(
    "leave", {leave: name for name, leave in sorted(LEAVERS.items())}.items(), ids=lambda one: one[1]
)
def test_a_generator_that_is_left_in_the_middle_holds_nothing(
    leave: tuple[Callable[..., None], str], begun: Path, tmp_path: Path
) -> None:
    leave[0](begun, tmp_path)


def test_every_generator_that_holds_something_is_left_in_a_test() -> None:
    assert holding() == {*LEAVERS, *ELSEWHERE}


def test_generators_are_told_from_those_that_hold_something() -> None:
    source = """
def plain():
    try:
        found = 1
    except ValueError:
        yield 2
    for _ in range(found):
        yield 1
def guarded():
    with open("x"):
        for _ in range(3):
            yield 1
def finishing():
    try:
        yield from plain()
    finally:
        pass
@contextmanager
def context():
    yield
def none():
    with open("x"):
        return lambda: (yield)
"""
    found = {name for name, function in _functions(ast.parse(source), "m") if holds(function)}
    assert found == {"m.guarded", "m.finishing", "m.context"}


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_the_tests_of_other_files_are_there(place: str) -> None:
    path, _, name = place.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert f".{name}" in {function for function, _ in _functions(tree, "")}
