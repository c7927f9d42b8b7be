"""What cannot be trained is refused before any work, also by `train`, `train --dry-run` and the deployment's flow.

Each case is one fault in a run that is otherwise sound. All three refuse it in the same words, on one line, and
leave nothing behind; where the fault is in what they are given, `eval` and `import` refuse it as well.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from reval.flows import foreground, server
from reval.flows.cli import main
from reval.flows.preparation import prepare
from reval_core.errors import InputError
from reval_core.model.loading import stop_ids, tokenizer_of
from reval_core.storage.run_directory import RunDirectory
from tests.commands import Answer, command
from tests.models import save_byte_level_model

SHARED = Path(__file__).parents[3] / "shared" / "cases"

PROBLEMS = [{"problem": f"{one}+{other}=", "answer": str(one + other)} for one in range(4) for other in range(4)]
HELD_OUT = [{"problem": f"{one}-{other}=", "answer": str(one - other)} for one in range(4) for other in range(2)]

CONFIG: dict[str, Any] = {
    "rounds": 1,
    "threads": 1,
    "model": {"path": "model"},
    "problems": {"train": {"path": "train.jsonl"}, "held_out": {"path": "held_out.jsonl"}},
    "rollouts": {"prompts": 4, "samples": 2, "max_tokens": 8},
    "verification": {"methods": ["whole"], "workers": 1},
    "objective": {"kind": "reval", "beta": 0.3},
    "replay": {"capacity": 64},
    "learner": {"updates": 1, "lr": 1.0e-4},
}


@dataclass
class Place:
    """A directory with a valid config, model and problems, in which a case breaks one thing."""

    path: Path
    config: dict[str, Any]
    arguments: list[str] = field(default_factory=list)
    run_dir: str = "run"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def set(self, name: str, value: Any) -> None:
        """Set a key of the config by its dotted name."""
        *sections, last = name.split(".")
        section = self.config
        for one in sections:
            section = section.setdefault(one, {})
        section[last] = value

    def edit_json(self, name: str, **changes: Any) -> None:
        file = self.model / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def edit_weights(self, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        changed = change(load_file(self.weights))
        save_file({name: one.contiguous().clone() for name, one in changed.items()}, self.weights)

    @property
    def weights(self) -> Path:
        return self.model / "model.safetensors"

    def write_problems(self, *rows: dict[str, Any], file: str = "train.jsonl") -> None:
        text = "".join(json.dumps(row) + "\n" for row in [*PROBLEMS, *rows])
        (self.path / file).write_text(text)

    def chat(self, template: str) -> None:
        """Give the tokenizer a chat template, and use it."""
        self.edit_json("tokenizer_config.json", chat_template=template)
        (self.model / "chat_template.jinja").unlink(missing_ok=True)
        self.set("problems.prompt.chat", True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound")
    save_byte_level_model(path / "model")
    for name, rows in (("train", PROBLEMS), ("held_out", HELD_OUT)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(sound, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(foreground, "run_flow", _no_work)
    return Place(tmp_path / "work", json.loads(json.dumps(CONFIG)))


def _no_work(flow: object) -> bool:
    raise AssertionError("it was not refused: the work would have begun")


def reval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Answer:
    return command(capsys, monkeypatch)(*arguments)


# --- the fault of each case, and its message ---


def drop(part: str) -> Callable[[Place], None]:
    return lambda place: place.edit_weights(
        lambda given: {name: one for name, one in given.items() if part not in name}
    )


def prefixed(prefix: str) -> Callable[[Place], None]:
    return lambda place: place.edit_weights(lambda given: {prefix + name: one for name, one in given.items()})


def with_value(value: float, kind: torch.dtype = torch.float32) -> Callable[[Place], None]:
    def change(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given = {name: one.to(kind) for name, one in given.items()}
        given["model.layers.1.mlp.down_proj.weight"][0, 0] = value
        return given

    return lambda place: place.edit_weights(change)


def weights_are(content: Callable[[bytes], bytes]) -> Callable[[Place], None]:
    return lambda place: place.weights.write_bytes(content(place.weights.read_bytes())) and None


def setting(name: str, value: Any) -> Callable[[Place], None]:
    return lambda place: place.set(name, value)


def file(name: str, content: str | bytes) -> Callable[[Place], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda place: (place.path / name).write_bytes(raw) and None


def all_of(*changes: Callable[[Place], None]) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        for one in changes:
            one(place)

    return change


def pickled(place: Place) -> None:
    torch.save(load_file(place.weights), place.model / "pytorch_model.bin")
    place.weights.unlink()


def sharded_without_a_shard(place: Place) -> None:
    names = list(load_file(place.weights))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (place.model / "model.safetensors.index.json").write_text(json.dumps(index))
    place.weights.unlink()


def ends_with_eos(place: Place) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place.model)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(place.model)


def added_token(kind: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(place.model)
        if kind == "plain":
            tokenizer.add_tokens([f"<tool{number}>" for number in range(3)])
        else:
            tokenizer.add_special_tokens({kind: "[NEW]"})
        tokenizer.save_pretrained(place.model)

    return change


def run_dir(name: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        place.run_dir = name

    return change


def somebody_elses(place: Place) -> None:
    (place.path / "run").mkdir()
    (place.path / "run/thesis.tex").write_text("years of work")


MODELS: dict[str, tuple[Callable[[Place], None], str]] = {
    "a compiled module's keys": (prefixed("_orig_mod."), r"model\.embed_tokens\.weight.*_orig_mod\."),
    "a wrapped module's keys": (prefixed("module."), r"module\."),
    "a layer is missing": (drop("layers.1."), r"model\.layers\.1\."),
    "one parameter is missing": (drop("layers.0.mlp.up_proj"), r"model\.layers\.0\.mlp\.up_proj\.weight"),
    "the head is missing": (drop("lm_head"), r"lm_head\.weight"),
    "a reward model's head": (
        lambda place: place.edit_weights(
            lambda given: {name.replace("lm_head", "score"): one for name, one in given.items()}
        ),
        r"lm_head\.weight|score\.weight",
    ),
    "a layer too many": (
        lambda place: place.edit_json("config.json", num_hidden_layers=1),
        r"model\.layers\.1\.",
    ),
    "other sizes than the config's": (
        lambda place: place.edit_json("config.json", intermediate_size=256),
        r"128.*256|256.*128",
    ),
    "a git-lfs pointer": (
        weights_are(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9880\n"),
        r"(?i)git.?lfs",
    ),
    "half a download": (weights_are(lambda whole: whole[: len(whole) // 2]), r"model\.safetensors.*\d"),
    "an empty file": (weights_are(lambda _: b""), r"model\.safetensors.*empty"),
    "a header that lies": (weights_are(lambda whole: b"\xff" * 8 + whole[8:]), r"model\.safetensors"),
    "a page of a web site": (weights_are(lambda _: b"<!DOCTYPE html><html>404</html>"), r"model\.safetensors"),
    "weights in a pickle": (pickled, r"safetensors"),
    "a shard is missing": (sharded_without_a_shard, r"model-00001-of-00002\.safetensors"),
    "a weight is NaN": (with_value(float("nan")), r"NaN.*model\.layers\.1\.mlp\.down_proj\.weight|down_proj.*NaN"),
    "a weight is infinite": (with_value(float("inf"), torch.bfloat16), r"(?i)inf"),
    "a quantized checkpoint": (
        lambda place: place.edit_json("config.json", quantization_config={"quant_method": "awq", "bits": 4}),
        r"awq",
    ),
    "a config that is no JSON": (file("model/config.json", "{"), r"model"),
    "an unknown architecture": (
        lambda place: place.edit_json("config.json", model_type="nothing_like_it"),
        r"nothing_like_it|model\.path",
    ),
    "a pad token without a row": (added_token("pad_token"), r"\[NEW\].*\d+"),
    "an end token without a row": (added_token("eos_token"), r"\[NEW\].*\d+"),
    "added tokens without rows": (added_token("plain"), r"<tool\d>.*\d+"),
    "an end of text without a row": (
        lambda place: place.edit_json("generation_config.json", eos_token_id=[1, 9999]),
        r"9999",
    ),
    "no tokenizer": (
        lambda place: (place.model / "tokenizer.json").unlink(),
        r"tokenizer",
    ),
    "a directory that does not exist": (setting("model.path", "nowhere"), r"nowhere"),
}
"""Faults of the model: `eval` and `import` refuse them as well."""


def a_soft_cap(place: Place) -> None:
    """A Gemma with only a config: its weights are those that it would have."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    config = json.loads((place.model / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    AutoModelForCausalLM.from_config(
        Gemma2Config(**{name: config[name] for name in sizes}, num_key_value_heads=2, head_dim=8)
    ).save_pretrained(place.model)


LEARNERS: dict[str, tuple[Callable[[Place], None], str]] = {
    "packed rows under a mask of all pairs": (
        all_of(setting("learner.packed", True), setting("model.attention", "sdpa")),
        r"config\.yaml:\d+: learner\.packed: model\.attention: sdpa needs a dense mask over all pairs",
    ),
    "packed rows under a soft cap": (
        all_of(a_soft_cap, setting("learner.packed", True)),
        r"learner\.packed: Gemma2ForCausalLM caps its attention logits \(attn_logit_softcapping: 50\.0\)",
    ),
}

PROMPTS: dict[str, tuple[Callable[[Place], None], str]] = {
    "no chat template": (setting("problems.prompt.chat", True), r"chat"),
    "a template that raises": (
        all_of(
            lambda place: place.chat(
                "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
                "{% endif %}{{ m['content'] }}{% endfor %}"
            ),
            setting("problems.prompt.system", "Be brief."),
        ),
        r"no system role",
    ),
    "a template that is no Jinja": (lambda place: place.chat("{% for %}"), r"template"),
    "a template that leaves the problem out": (lambda place: place.chat("hello"), r"template|problem"),
    "a prompt that ends the text": (ends_with_eos, r"</s>"),
    "a prompt longer than the context": (
        lambda place: place.write_problems({"problem": "word " * 900, "answer": "4"}),
        r"train\.jsonl:17|17 of train",
    ),
    "a held-out prompt longer than the context": (
        lambda place: place.write_problems({"problem": "9+" * 1100, "answer": "4"}, file="held_out.jsonl"),
        r"held_out",
    ),
    "no room for a response": (setting("rollouts.max_tokens", 2048), r"2048"),
}

FILES: dict[str, tuple[Callable[[Place], None], str]] = {
    "a line that is no JSON": (file("train.jsonl", '{"problem": "1", "answer": "1"}\n{"problem"\n'), r"jsonl:2"),
    "a problem without an answer": (
        lambda place: place.write_problems({"problem": "1+1=", "answer": ""}),
        r"train\.jsonl:17: answer",
    ),
    "no problem at all": (file("train.jsonl", ""), r"train\.jsonl"),
    "no such file": (lambda place: (place.path / "held_out.jsonl").unlink(), r"held_out\.jsonl"),
    "bytes that are not text": (file("train.jsonl", b"\xff\xfe\x00\x01"), r"train\.jsonl"),
    "a Parquet file that is none": (
        all_of(file("train.parquet", b"PAR1 and no more"), setting("problems.train.path", "train.parquet")),
        r"train\.parquet",
    ),
    "problems at a URL": (setting("problems.train.path", "s3://bucket/train.jsonl"), r"s3://bucket"),
    "fewer problems than a round may need": (
        setting("rollouts.dynamic_sampling", {"waves": 9}),
        r"rollouts\.dynamic_sampling\.waves: a round may need",
    ),
    "fewer problems than prompts": (setting("rollouts.prompts", 20), r"rollouts\.prompts"),
}

DIRECTORIES: dict[str, tuple[Callable[[Place], None], str]] = {
    "somebody else's directory": (somebody_elses, r"run.*thesis\.tex|run: .*no run"),
    "a file": (file("run", "x"), r"run"),
    "a URL": (run_dir("s3://bucket/run"), r"s3://bucket/run"),
    "a place below a file": (run_dir("train.jsonl/run"), r"train\.jsonl"),
    "a place that takes no files": (run_dir("/proc/reval"), r"/proc"),
    "a line break in the name": (run_dir("my\nrun"), r"run"),
    "an evaluation's directory": (
        all_of(lambda place: (place.path / "run").mkdir(), file("run/evaluation.yaml", "model: x")),
        r"evaluation",
    ),
}

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

CONFIGS: dict[str, tuple[str, str]] = {
    "nested aliases": (BOMB, r"config\.yaml"),
    "brackets without an end": ("[" * 100_000, r"config\.yaml"),
    "a list": ("- a\n- b\n", r"config\.yaml"),
    "nothing": ("", r"config\.yaml"),
    "a tag that makes an object": ("seed: !!python/object/apply:os.system ['true']\n", r"config\.yaml"),
    "an unknown key": ("rounds: 1\nrouns: 2\n", r"config\.yaml"),
}


def _cases() -> list[Any]:
    groups = {"model": MODELS, "learner": LEARNERS, "prompt": PROMPTS, "file": FILES, "directory": DIRECTORIES}
    return [
        pytest.param(*case, id=f"{group}: {name}") for group, one in groups.items() for name, case in one.items()
    ]


@pytest.mark.parametrize(("change", "said"), _cases())
def test_training_a_dry_run_and_the_deployment_refuse_identically(place, change, said, capsys, monkeypatch):
    change(place)
    _refused_alike(place, said, capsys, monkeypatch)


@pytest.mark.parametrize(("text", "said"), CONFIGS.values(), ids=CONFIGS)
def test_an_invalid_config_is_refused_identically(place, text, said, capsys, monkeypatch):
    (place.path / "config.yaml").write_text(text)
    _refused_alike(place, said, capsys, monkeypatch)


def _refused_alike(place: Place, said: str, capsys: Any, monkeypatch: Any) -> None:
    config = place.path / "config.yaml"
    if not config.exists():
        config.write_text(yaml.safe_dump(place.config))
    before = _everything(place.path)
    given = ["config.yaml", "--run-dir", place.run_dir]
    trained = reval(capsys, monkeypatch, "train", *given)
    dry = reval(capsys, monkeypatch, "train", *given, "--dry-run")
    assert (trained.code, trained.out) == (2, "")
    assert trained.err.startswith("reval: "), trained.err
    assert trained.err.count("\n") == 1, trained.err
    assert re.search(said, trained.err), trained.err
    assert dry == trained
    from reval.flows.train import train

    with pytest.raises(InputError) as refused:
        train.fn("config.yaml", run_dir=place.run_dir)
    assert " ".join(str(refused.value).split()) == " ".join(trained.err.removeprefix("reval: ").split())
    assert _everything(place.path) == before, "something was left behind"


def _everything(path: Path) -> dict[str, bytes | None]:
    return {str(one): one.read_bytes() if one.is_file() else None for one in sorted(path.rglob("*"))}


@pytest.mark.parametrize(("change", "said"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_trained_is_neither_evaluated_nor_imported_for(
    place, change, said, capsys, monkeypatch
):
    change(place)
    (place.path / "config.yaml").write_text(yaml.safe_dump(place.config))
    rows = [{"problem": one["problem"], "response": one["answer"], "gold": one["answer"]} for one in PROBLEMS]
    (place.path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = place.config["model"]["path"]
    for arguments in (
        ("eval", model, "--benchmarks", "held_out.jsonl", "--set", "prompt.chat=false", "--samples", "1"),
        ("import", "responses.jsonl", "--config", "config.yaml", "--run-dir", "imported"),
    ):
        answer = reval(capsys, monkeypatch, *arguments)
        assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1), answer.err
        assert re.search(said, answer.err) or "nowhere" in answer.err, answer.err


def test_a_directory_that_another_process_runs_is_refused_by_a_dry_run_too(place, capsys, monkeypatch):
    (place.path / "config.yaml").write_text(yaml.safe_dump(place.config))
    (place.path / "run").mkdir()
    with RunDirectory(place.path / "run").lock():
        for more in ([], ["--dry-run"]):
            answer = reval(capsys, monkeypatch, "train", "config.yaml", "--run-dir", "run", *more)
            assert (answer.code, answer.out) == (2, "")
            assert re.fullmatch(r"reval: .*run: process \d+ on .* is running it; .*\n", answer.err), answer.err


def test_a_wrong_api_url_is_refused_by_a_dry_run_too(place, capsys, monkeypatch):
    (place.path / "config.yaml").write_text(yaml.safe_dump(place.config))
    # Prefect reads its settings once per process, and other tests may have triggered that.
    monkeypatch.setattr(server, "configured_api", lambda: "not a url")
    answer = reval(capsys, monkeypatch, "train", "config.yaml", "--run-dir", "run", "--dry-run")
    assert (answer.code, answer.out) == (2, "")
    assert re.fullmatch(r"reval: PREFECT_API_URL: .* is not a URL .*\n", answer.err), answer.err


def _makers() -> ModuleType | None:
    file = SHARED / "make_models.py"
    if not file.exists():
        return None
    spec = importlib.util.spec_from_file_location("make_models", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHARED_MODELS = {
    "origmod": r"_orig_mod\.",
    "nohead": r"lm_head\.weight",
    "lfs": r"git-lfs pointer",
    "cut": r"model\.safetensors.*bytes",
    "mismatch": r"128 × 64|256 × 64|64 × 128|64 × 256",
    "nan": r"NaN.*down_proj",
    "gptq": r"gptq",
    "addeos": r"</s>",
    "bigpad": r"\[PAD\]",
}
"""The models of make_models.py that are refused, with the message of each. The others are trained."""


@pytest.fixture(scope="module")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    makers = _makers()
    if makers is None:
        pytest.skip("the shared cases are not here")
    path = tmp_path_factory.mktemp("models")
    makers.make_base(path / "base")
    for case in makers.CASES:
        shutil.copytree(path / "base", path / case.__name__)
        case(path / case.__name__)
    return path


@pytest.mark.parametrize(("name", "said"), SHARED_MODELS.items(), ids=SHARED_MODELS)
def test_the_shared_broken_models_are_refused_identically(place, shared_models, name, said, capsys, monkeypatch):
    place.set("model.path", str(shared_models / name))
    place.set("rollouts.max_tokens", 4)
    _refused_alike(place, said, capsys, monkeypatch)


@pytest.mark.parametrize("name", ["base", "eoslist", "dated", "nosystem"])
def test_the_shared_models_that_are_only_unusual_are_not_refused(place, shared_models, name, monkeypatch):
    place.set("model.path", str(shared_models / name))
    place.set("rollouts.max_tokens", 4)
    place.set("problems.prompt.chat", name in ("dated", "nosystem"))
    (place.path / "config.yaml").write_text(yaml.safe_dump(place.config))
    settings = prepare(place.path / "config.yaml", [], place.path / "run").config
    if name == "eoslist":
        ends = stop_ids(settings.model, tokenizer_of(settings.model), ())
        assert len(ends) == 2, "generation stops at either"
    if name == "nosystem":
        with pytest.raises(InputError, match="no system role"):
            prepare(place.path / "config.yaml", ["problems.prompt.system=Be brief."], place.path / "run")


def test_the_valid_config_of_all_cases_is_not_refused(place, capsys, monkeypatch):
    (place.path / "config.yaml").write_text(yaml.safe_dump(place.config))
    monkeypatch.setattr(sys, "argv", ["reval", "train", "config.yaml", "--run-dir", "run", "--dry-run"])
    main()
    assert capsys.readouterr().err == ""
