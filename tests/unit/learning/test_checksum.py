"""The checksum of weights depends on every bit and every index, and not on how the sum is sliced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.learning import checksum
from reval_core.learning.checksum import weights_checksum
from tests.models import drawn, tiny_model
from tests.unit.learning.test_learner import learner


def weights(count: int = 1000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 999), bit=st.integers(0, 31))
def test_any_one_bit_changes_it(place: int, bit: int) -> None:
    changed = weights()
    changed.view(torch.int32)[place] ^= torch.tensor(-(2**31) if bit == 31 else 1 << bit, dtype=torch.int32)
    assert weights_checksum({"a": changed}) != weights_checksum({"a": weights()})


@settings(max_examples=200, deadline=None)
@given(pair=st.lists(st.integers(0, 999), min_size=2, max_size=2, unique=True))
def test_swapping_two_elements_changes_it(pair: list[int]) -> None:
    changed = weights()
    changed[pair] = changed[pair[::-1]]
    assert weights_checksum({"a": changed}) != weights_checksum({"a": weights()})


@pytest.mark.parametrize(
    "other",
    [
        {"b": weights()},
        {"a": weights().view(10, 100)},
        {"a": weights().bfloat16()},
        {"a": weights(), "b": torch.zeros(0)},
        {"a": -weights()},
    ],
)
def test_names_shapes_and_types_change_it(other: dict[str, torch.Tensor]) -> None:
    assert weights_checksum(other) != weights_checksum({"a": weights()})


def test_order_of_names_layout_and_slice_size_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    square = weights(900).view(30, 30)
    expected = weights_checksum({"a": square, "b": weights()})
    assert weights_checksum({"b": weights(), "a": square.t().contiguous().t()}) == expected
    monkeypatch.setattr(checksum, "_SLICE", {"cpu": 7})
    assert weights_checksum({"a": square, "b": weights()}) == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_checksum_of_a_learner_covers_its_float32_weights_and_does_not_change_them(precision: str) -> None:
    one = learner(precision=precision)
    before = one.checksum()
    assert before == weights_checksum(dict(tiny_model().named_parameters())) == one.checksum()
    one.learn([drawn(tiny_model())])
    assert one.checksum() != before
