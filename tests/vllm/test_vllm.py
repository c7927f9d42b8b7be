"""The real vLLM engine on the CPU: start, generate, update weights, close."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from reval_core.config import Lora, TinyModel
from reval_core.config import VllmEngine as Settings
from reval_core.engines.engine import Sampling
from reval_core.engines.vllm import EngineDied, VllmEngine
from reval_core.errors import RunStopped
from reval_core.model.loading import make_tiny_model
from reval_core.model.lora import add_adapters
from reval_core.model.scoring import score
from reval_core.model.token_batch import collate
from tests.responses import request

pytest.importorskip("vllm")

EOS = 2
# vLLM's CPU attention supports head sizes of 32 and more.
TINY = TinyModel(layers=2, width=64, heads=2, feed_forward=128)
SETTINGS = Settings(kind="vllm", dtype="float32", kv_cache_gib=0.25)


def requests(count, first_seed=0):
    return [request([3 + (one + place) % 9 for place in range(4)], first_seed + one) for one in range(count)]


def changed(model, seed, by=0.05):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


def gap(model, wanted, found, temperature=1.0):
    """The largest difference between the engine's log-probs and the trainer's."""
    answers = [found[place] for place in range(len(wanted))]
    batch = collate([np.array(one.prompt_tokens) for one in wanted], [np.array(one.tokens) for one in answers])
    with torch.inference_mode():
        logprobs = score(model, batch, temperature).logprobs
    return max(
        float(np.abs(np.array(one.logprobs) - row[: len(one.tokens)].numpy()).max())
        for one, row in zip(answers, logprobs, strict=True)
    )


def tokens(found):
    return [found[place].tokens for place in range(len(found))]


def processes_of(parent):
    """vLLM's processes among the descendants of a process."""
    children = psutil.Process(parent).children(recursive=True)
    return [
        one
        for one in children
        if one.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in str(one.cmdline())
    ]


def gone(processes, seconds):
    psutil.wait_procs(processes, timeout=seconds)
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = VllmEngine(SETTINGS, tmp_path_factory.mktemp("engine") / "engine.log")
    yield engine
    engine.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_log_probs_equal_the_trainers(engine, temperature):
    model = make_tiny_model(TINY, 0)
    engine.load(model, "initial policy")
    found = dict(engine.generate(requests(48), Sampling(temperature, 12, (EOS,))))
    assert gap(model, requests(48), found, temperature) < 1e-4
    assert {one.finish_reason for one in found.values()} == {"stop", "length"}
    for one in found.values():
        assert (one.tokens[-1] == EOS) == (one.finish_reason == "stop")
        assert one.finish_reason == "stop" or len(one.tokens) == 12
        assert EOS not in one.tokens[:-1]


def test_weights_are_updated_without_a_restart_and_change_the_responses(engine):
    first, second = make_tiny_model(TINY, 0), changed(make_tiny_model(TINY, 0), 1)
    sampling = Sampling(1.0, 8, (EOS,))
    engine.load(first, "initial policy")
    before, running = dict(engine.generate(requests(32), sampling)), processes_of(os.getpid())
    engine.load(second, "policy 1")
    after = dict(engine.generate(requests(32), sampling))
    assert processes_of(os.getpid()) == running
    assert gap(second, requests(32), after) < 1e-4
    assert gap(first, requests(32), after) > 0.1
    engine.load(first, "initial policy again")
    assert tokens(dict(engine.generate(requests(32), sampling))) == tokens(before)


def test_adapters_are_merged_on_their_way(engine):
    model = make_tiny_model(TINY, 3)
    add_adapters(model, Lora(rank=4, alpha=8), seed=0)
    changed(model, 4)
    engine.load(model, "with adapters")
    found = dict(engine.generate(requests(16), Sampling(1.0, 8, (EOS,))))
    assert gap(model, requests(16), found) < 1e-4


def test_tied_weights_arrive(engine, tmp_path):
    from transformers import LlamaForCausalLM

    settings = make_tiny_model(TINY, 0).config
    settings.tie_word_embeddings = True
    tied = VllmEngine(SETTINGS, tmp_path / "engine.log")
    try:
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(settings).eval()
            tied.load(model, f"policy {seed}")
            found = dict(tied.generate(requests(16), Sampling(1.0, 8, (EOS,))))
            assert gap(model, requests(16), found) < 1e-4
    finally:
        tied.close()


def test_no_weights_are_left_lying_about(engine):
    engine.load(make_tiny_model(TINY, 0), "initial policy")
    assert [one.name for one in engine._directory.glob("*.safetensors*")] == []


def test_the_same_request_gives_the_same_response_and_another_seed_another(engine):
    engine.load(make_tiny_model(TINY, 0), "initial policy")
    one, again, other = (dict(engine.generate(requests(32, seed), Sampling(1.0, 8, (EOS,)))) for seed in (0, 0, 99))
    assert tokens(one) == tokens(again)
    assert tokens(one) != tokens(other)


def test_tokens_are_drawn_from_the_policy(engine):
    """3,000 first tokens against the model's distribution, each within four standard deviations."""
    model, count = make_tiny_model(TINY, 0), 3000
    engine.load(model, "initial policy")
    found = dict(engine.generate([request([5, 6, 7], seed) for seed in range(count)], Sampling(1.0, 1, (EOS,))))
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1).numpy()
    shares = np.bincount([one.tokens[0] for one in found.values()], minlength=len(expected)) / count
    assert np.all(np.abs(shares - expected) <= 4 * np.sqrt(expected * (1 - expected) / count) + 1e-9)


def test_interrupted_responses_continue_after_their_written_tokens(engine):
    model = make_tiny_model(TINY, 0)
    engine.load(model, "initial policy")
    sampling = Sampling(1.0, 40, (EOS,))
    found = dict(engine.generate(requests(64), sampling, lambda tokens: tokens >= 300))
    reasons = Counter(one.finish_reason for one in found.values())
    assert len(found) == 64
    assert reasons["partial"] > 0
    assert 300 <= sum(len(one.tokens) for one in found.values()) <= 300 + 64
    open_ = [place for place, one in found.items() if one.finish_reason == "partial"]
    rest = [replace(found[place], seed=1000 + place) for place in open_]
    ended = dict(engine.generate(rest, sampling))
    assert gap(model, rest, ended) < 1e-4
    assert {one.finish_reason for one in ended.values()} <= {"stop", "length"}
    assert all(len(one.tokens) <= 40 for one in ended.values())
    assert all(ended[n].tokens[: len(one.tokens)] == one.tokens for n, one in enumerate(rest))


def test_prompts_that_do_not_fit_into_one_step_are_processed(engine):
    model = make_tiny_model(TINY, 0)
    engine.load(model, "initial policy")
    long = [request([3 + (one * place) % 9 for place in range(200)], one) for one in range(64)]
    found = dict(engine.generate(long, Sampling(1.0, 4, (EOS,))))
    assert gap(model, long, found) < 1e-4


def test_abandoned_generation_leaves_no_state(engine):
    engine.load(make_tiny_model(TINY, 0), "initial policy")
    completions = engine.generate(requests(64), Sampling(1.0, 40, (EOS,)))
    next(completions)
    completions.close()
    model = changed(make_tiny_model(TINY, 0), 1)
    engine.load(model, "policy 1")
    found = dict(engine.generate(requests(64), Sampling(1.0, 8, (EOS,))))
    assert gap(model, requests(64), found) < 1e-4, "no keys and values of the old policy"


def test_an_engine_whose_process_dies_raises_and_can_be_restarted(engine):
    model = make_tiny_model(TINY, 0)
    engine.load(model, "initial policy")
    completions = engine.generate(requests(64), Sampling(1.0, 100, (EOS,)))
    next(completions)
    for one in processes_of(os.getpid()):
        one.send_signal(signal.SIGKILL)
    with pytest.raises(EngineDied, match="vLLM's process died"):
        list(completions)
    engine.load(model, "initial policy")
    found = dict(engine.generate(requests(8), Sampling(1.0, 8, (EOS,))))
    assert gap(model, requests(8), found) < 1e-4


def test_loading_weights_does_not_hang_when_the_engine_dies(engine):
    model = make_tiny_model(TINY, 0)
    engine.load(model, "initial policy")
    for one in processes_of(os.getpid()):
        one.send_signal(signal.SIGSTOP)
    threading.Timer(1, lambda: [one.kill() for one in processes_of(os.getpid())]).start()
    with pytest.raises(EngineDied, match="vLLM's process died"):
        engine.load(model, "policy 1")


def test_closing_leaves_no_process_and_is_idempotent(tmp_path):
    engine = VllmEngine(SETTINGS, tmp_path / "engine.log")
    before = set(processes_of(os.getpid()))
    engine.load(make_tiny_model(TINY, 0), "initial policy")
    started = [one for one in processes_of(os.getpid()) if one not in before]
    directory = engine._directory
    assert started
    engine.close()
    engine.close()
    assert gone(started, 120)
    assert not directory.exists()


def test_an_engine_that_cannot_start_reports_vllms_reason(tmp_path, capfd):
    model = make_tiny_model(TINY, 0)
    settings = SETTINGS.model_copy(update={"max_model_len": 100_000})
    before = set(processes_of(os.getpid()))
    with pytest.raises(RunStopped, match=r"the engine vllm cannot start: .*100000.*engine\.log"):
        VllmEngine(settings, tmp_path / "engine.log").load(model, "initial policy")
    assert gone([one for one in processes_of(os.getpid()) if one not in before], 120)
    assert capfd.readouterr() == ("", ""), "vLLM's output is in the log"


def test_the_engine_of_a_killed_run_ends(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from tests.vllm.test_vllm import *\n"
        "if __name__ == '__main__':\n"
        f"    engine = VllmEngine(SETTINGS, Path({str(tmp_path)!r}) / 'engine.log')\n"
        "    engine.load(make_tiny_model(TINY, 0), 'initial policy')\n"
        "    print('started', flush=True); time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout.readline() == "started\n"
    started = processes_of(parent.pid)
    assert started
    parent.kill()
    parent.wait()
    assert gone(started, 120)


def test_an_idle_engine_uses_no_cpu(engine):
    engine.load(make_tiny_model(TINY, 0), "initial policy")
    dict(engine.generate(requests(8), Sampling(1.0, 8, (EOS,))))
    time.sleep(2)
    used = [sum(one.cpu_times()[:2]) for one in processes_of(os.getpid())]
    time.sleep(2)
    busy = sum(sum(one.cpu_times()[:2]) for one in processes_of(os.getpid())) - sum(used)
    assert busy < 0.4, "of two seconds"
