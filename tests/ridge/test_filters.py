from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphlightning.errors import ConfigError
from morphlightning.ridge import FilterBank


def matrix(bank: FilterBank, size: int) -> torch.Tensor:
    """W as a matrix, column by column."""
    units = torch.eye(size * size, dtype=torch.float64).view(-1, 1, size, size)
    return bank()(units).flatten(1).T


@given(seed=st.integers(0, 10**6), zero_mean=st.sampled_from(["first", "all"]), size=st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_full_padding_has_norm_at_most_one_and_keeps_nothing_back(seed: int, zero_mean: Any, size: int) -> None:
    torch.manual_seed(seed)
    bank = FilterBank((1, 2, 3), 3, zero_mean).double()
    assert torch.linalg.matrix_norm(matrix(bank, size), 2) <= 1


def test_the_bound_is_nearly_attained_by_a_large_image() -> None:
    torch.manual_seed(0)
    bank = FilterBank((1, 2, 3), 3).double()
    assert torch.linalg.matrix_norm(matrix(bank, 24), 2) > 0.93


def test_same_padding_is_bounded_layer_by_layer() -> None:
    torch.manual_seed(3)
    bank = FilterBank((1, 3, 4), 3, padding="same").double()
    assert bank()(torch.zeros(1, 1, 7, 5, dtype=torch.float64)).shape == (1, 4, 7, 5)
    assert torch.linalg.matrix_norm(matrix(bank, 10), 2) <= 1


@pytest.mark.parametrize("padding", ["full", "same"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_adjoint_is_one(padding: Any, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    filters = FilterBank((2, 3, 5), 5, padding=padding).double()().channels_last()
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64).contiguous(memory_format=layout)
    z = torch.randn_like(filters(x))
    assert torch.allclose((filters(x) * z).sum(), (x * filters.adjoint(z)).sum(), rtol=1e-12)


@pytest.mark.parametrize("zero_mean", ["first", "all"])
def test_constant_images_are_not_seen_away_from_the_border(zero_mean: Any) -> None:
    bank = FilterBank((1, 3, 5), 3, zero_mean).double()
    features = bank()(torch.ones(1, 1, 12, 12, dtype=torch.float64))
    assert features[..., 4:-4, 4:-4].abs().max() < 1e-14 < features.abs().max()


def test_a_given_norm_is_taken_and_saved() -> None:
    bank = FilterBank((1, 4), 3, padding="same")
    assert bank.certified
    bank.given_norm.fill_(2.0)
    assert not bank.certified
    assert torch.allclose(bank().kernels[0], bank.kernels()[0] / 2)
    other = FilterBank((1, 4), 3, padding="same")
    other.load_state_dict(bank.state_dict())
    assert float(other.norm()) == 2.0


def test_gradients_pass_through_the_normalization() -> None:
    torch.manual_seed(0)
    bank = FilterBank((1, 2, 3), 3).double()
    weights = [layer.weight for layer in bank.layers]
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)

    def output(*weights: torch.Tensor) -> torch.Tensor:
        state = {f"layers.{i}.weight": weight for i, weight in enumerate(weights)}
        filters = torch.func.functional_call(bank, state, ())
        return filters(x)

    assert torch.autograd.gradcheck(output, weights, fast_mode=True)


@pytest.mark.parametrize(
    "wrong", [{"channels": (1,)}, {"channels": (1, 0)}, {"kernel_size": 4}, {"zero_mean": "last"}, {"padding": "none"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FilterBank(**wrong)
