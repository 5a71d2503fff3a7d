from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from morphlightning.errors import ConfigError
from morphlightning.ridge import FilterBank
from morphlightning.ridge.filters import BlockedFilters, block_side, cosine_atoms


def matrix(bank: FilterBank, size: int) -> torch.Tensor:
    """W as a matrix, column by column."""
    units = torch.eye(size * size, dtype=torch.float64).view(-1, 1, size, size)
    return bank()(units).flatten(1).T


@given(
    seed=st.integers(0, 10**6),
    zero_mean=st.sampled_from(["first", "all"]),
    padding=st.sampled_from(["valid", "full"]),
    size=st.integers(5, 9),
)
@settings(max_examples=15, deadline=None)
def test_the_norm_is_at_most_one(seed: int, zero_mean: Any, padding: Any, size: int) -> None:
    torch.manual_seed(seed)
    bank = FilterBank((1, 2, 3), 3, zero_mean, padding).double()
    assert torch.linalg.matrix_norm(matrix(bank, size), 2) <= 1


def test_the_bound_is_nearly_attained_by_a_large_image() -> None:
    torch.manual_seed(0)
    bank = FilterBank((1, 2, 3), 3).double()
    assert torch.linalg.matrix_norm(matrix(bank, 24), 2) > 0.9


def test_same_padding_is_bounded_layer_by_layer() -> None:
    torch.manual_seed(3)
    bank = FilterBank((1, 3, 4), 3, padding="same").double()
    assert bank()(torch.zeros(1, 1, 7, 5, dtype=torch.float64)).shape == (1, 4, 7, 5)
    assert torch.linalg.matrix_norm(matrix(bank, 10), 2) <= 1


@pytest.mark.parametrize("padding", ["valid", "full", "same"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_adjoint_is_one(padding: Any, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    filters = FilterBank((2, 3, 5), 5, padding=padding).double()().channels_last()
    x = torch.randn(2, 2, 12, 11, dtype=torch.float64).contiguous(memory_format=layout)
    z = torch.randn_like(filters(x))
    assert torch.allclose((filters(x) * z).sum(), (x * filters.adjoint(z)).sum(), rtol=1e-12)


@pytest.mark.parametrize("zero_mean", ["first", "all"])
def test_constant_images_are_not_seen_away_from_the_border(zero_mean: Any) -> None:
    bank = FilterBank((1, 3, 5), 3, zero_mean, "full").double()
    features = bank()(torch.ones(1, 1, 12, 12, dtype=torch.float64))
    assert features[..., 4:-4, 4:-4].abs().max() < 1e-14 < features.abs().max()


@pytest.mark.parametrize("padding", ["valid", "full"])
@pytest.mark.parametrize(
    ("channels", "size"), [((1, 5), 5), ((1, 3, 4), 7), ((2, 5), 7), ((1, 3), 11), ((1, 2, 3, 4), 5)]
)
def test_on_blocks_of_pixels_the_map_is_the_same(padding: Any, channels: tuple[int, ...], size: int) -> None:
    torch.manual_seed(0)
    filters = FilterBank(channels, size, padding=padding).double()()
    block = block_side(filters.extent)
    x = torch.randn(2, channels[0], 8 * block, 9 * block, dtype=torch.float64)
    blocked = filters.blocked(*x.shape[2:])
    assert isinstance(blocked, BlockedFilters)
    features = filters(x)
    assert torch.allclose(F.pixel_shuffle(blocked(x), block), features, atol=1e-14)
    assert torch.allclose(blocked.adjoint(blocked(x)), filters.adjoint(features), atol=1e-14)
    factor = torch.arange(1.0, channels[-1] + 1, dtype=torch.float64)
    assert torch.allclose(F.pixel_shuffle(blocked.scaled(factor)(x), block), filters.scaled(factor)(x), atol=1e-14)


def test_images_that_are_no_whole_blocks_keep_the_filters() -> None:
    filters = FilterBank((1, 4), 5)()
    assert filters.blocked(8, 9) is filters
    assert FilterBank((1, 4), 5, padding="same")().blocked(8, 8).extent == 5


def test_cosine_filters_are_orthonormal_without_the_constant() -> None:
    atoms = cosine_atoms(24, 1, 5).flatten(1)
    assert torch.allclose(atoms @ atoms.T, torch.eye(24), atol=1e-6)
    assert atoms.sum(1).abs().max() < 1e-6
    assert torch.equal(FilterBank((1, 24), 5).layers[0].weight.flatten(1), atoms)
    with pytest.raises(ConfigError, match="25 cosine filters of 5 x 5 pixels; there are 24"):
        FilterBank((1, 25), 5, init="cosine")


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
    "wrong",
    [
        {"channels": (1,)},
        {"channels": (1, 0)},
        {"kernel_size": 4},
        {"zero_mean": "last"},
        {"padding": "none"},
        {"init": "wavelets"},
        {"channels": (1, 4, 8), "init": "cosine"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FilterBank(**wrong)
