"""The round trip of dumped settings, and the reference of every key."""

import runpy
from typing import Any, get_args

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from reval_core.answers.extraction import Method
from reval_core.config import (
    Config,
)
from tests.unit.config.documents import (
    KEYS,
    ROOT,
    load,
)

rates = st.floats(1e-9, 1e9)
shares = st.floats(0, 1)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x85"))  # PyYAML reads its own \x85 as a blank
counts = st.integers(1, 10**6)
paths = st.from_regex(r"/[a-z]{1,8}/[a-z]{1,8}\.jsonl", fullmatch=True)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any settings that pass the checks, with all optional keys drawn too."""

    def section(**values: st.SearchStrategy[Any]) -> dict[str, Any]:
        return draw(st.fixed_dictionaries({}, optional=values))

    heads = draw(st.integers(1, 8))
    characters = st.lists(
        st.characters(codec="utf-8", exclude_characters="\x85"), min_size=1, max_size=20, unique=True
    ).map("".join)
    tiny = section(layers=st.integers(1, 256), feed_forward=st.integers(8, 999), characters=characters)
    tiny |= {"heads": heads, "width": 2 * heads * draw(st.integers(8, 64))}
    arithmetic = st.fixed_dictionaries(
        {"digits": st.integers(1, 3), "operators": st.sampled_from(["+", "-*"]), "split": st.just("held_out")}
    )
    problems = st.one_of(
        st.fixed_dictionaries({"path": paths, "limit": maybe(counts)}),
        st.fixed_dictionaries({"arithmetic": arithmetic}),
    )
    chat = draw(st.booleans())
    prompt = {"user": draw(texts) + "{problem}" + draw(texts), "chat": chat}
    if chat:
        prompt["system"] = draw(maybe(texts))
    objective = draw(
        st.one_of(
            st.fixed_dictionaries({"kind": st.sampled_from(["reval", "tbrm", "regression"]), "beta": rates}),
            st.fixed_dictionaries({"kind": st.just("reval"), "beta_times_length": rates}),
            st.fixed_dictionaries({"kind": st.just("grpo")}, optional={"clip_high": rates}),
        )
    )
    prompts, samples = draw(st.integers(1, 100)), draw(st.integers(2, 16))
    with_beta = objective["kind"] != "grpo"
    kinds = ["uniform", "fresh"] + ["prioritised"] * with_beta
    resets = [{}, {"reset_every": None}, {"reset_every": 3}] + [{"reset_below": 0.3}] * with_beta
    return Config.model_validate(
        {
            "seed": draw(st.integers(0, 2**63 - 1)),
            "rounds": draw(counts),
            "threads": draw(maybe(st.integers(1, 1024))),
            "model": draw(st.sampled_from([{"tiny": tiny}, {"path": "org/name", "trust_remote_code": True}])),
            "problems": {"train": draw(problems), "held_out": draw(problems), "prompt": prompt},
            "rollouts": {"prompts": prompts, "samples": samples, "max_tokens": draw(counts)}
            | section(prompts_per_shard=st.integers(1, prompts), temperature=rates),
            "verification": section(
                methods=st.lists(st.sampled_from(get_args(Method)), min_size=1), timeout_seconds=rates
            ),
            "reward": section(kind=st.sampled_from(["binary", "centred", "signed"])),
            "objective": objective,
            "replay": {"capacity": prompts * samples + draw(counts), "sampling": draw(st.sampled_from(kinds))}
            | section(importance_exponent=st.tuples(shares, shares), priority_offset=rates),
            "learner": {"updates": draw(counts), "lr": draw(rates)}
            | section(weight_decay=rates, **{"least_updates": st.just(1)} if with_beta else {}),
            "reference": draw(st.sampled_from(resets)),
            "tracking": section(uri=maybe(texts), experiment=texts),
        }
    )


@settings(max_examples=20, deadline=None, phases=[Phase.reuse, Phase.generate, Phase.shrink])
@given(config=configs())
def test_dumped_settings_load_unchanged(config: Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    assert load(tmp_path_factory.getbasetemp(), text) == config


def test_the_reference_of_settings_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_config.py"))
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == made["reference"](), "run docs/make_config.py"


def test_the_reference_has_a_row_for_every_key() -> None:
    text = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    parts = [part.partition("\n")[2].lstrip() for part in text.split("\n#")]
    for key, model, _ in KEYS:
        about = [part for part in parts if part.startswith(str(model.__doc__))]
        assert about, model
        assert all(f"\n| `{key.split('.')[-1]}`" in part for part in about), key


def test_every_key_is_documented() -> None:
    meaning = runpy.run_path(str(ROOT / "docs/make_config.py"))["meaning"]
    assert [key for key, _, field in KEYS if len(meaning(field)) < 6] == []
