"""Pooling with a learnable structuring function, and unpooling by provenance."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from morphlightning import layers
from morphlightning.errors import ConfigError, ShapeError

SPACE = (8, 6, 4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("size", "stride", "padding"), [(2, None, 0), (3, 2, 1)])
def test_flat_pooling_is_max_pooling(rank: int, size: int, stride: int | None, padding: int) -> None:
    x = torch.randint(0, 4, (2, 3, *SPACE[:rank])).float().requires_grad_()
    pool = getattr(layers, f"MorphPool{rank}d")(3, size, stride, padding, initializer="zeros", return_provenance=True)
    y, provenance = pool(x)
    expected, indices = getattr(F, f"max_pool{rank}d")(x, size, stride, padding, return_indices=True)
    assert torch.equal(y, expected)
    assert torch.equal(provenance, indices)
    gy = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, gy)[0], torch.autograd.grad(expected, x, gy)[0])
    pool.return_provenance = False
    assert torch.equal(pool(x), y)
    assert torch.equal(pool(x[1]), y[1])


def test_the_structuring_function_is_learned() -> None:
    pool = layers.MorphPool2d(3, 2)
    x = torch.randn(4, 3, 6, 6)
    expected = (x.unfold(2, 2, 2).unfold(3, 2, 2) + pool.weight.view(3, 1, 1, 2, 2)).flatten(4).amax(-1)
    assert torch.equal(pool(x), expected)
    pool(x).sum().backward()
    assert pool.weight.grad.sum() == 4 * 3 * 9


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_puts_values_back(rank: int) -> None:
    x = torch.randn(2, 3, *SPACE[:rank])
    pool = getattr(layers, f"MorphPool{rank}d")(3, 2, initializer="zeros", return_provenance=True)
    unpool = getattr(layers, f"MorphUnpool{rank}d")()
    y, provenance = pool(x)
    back = unpool(y, provenance, x.shape[2:])
    assert torch.equal(back[back != 0], x[back != 0])
    assert (back != 0).sum() == y.numel()
    assert torch.equal(pool(back.masked_fill(back == 0, -math.inf))[0], y)
    torch.testing.assert_close(back, getattr(F, f"max_unpool{rank}d")(y, provenance, 2))


def test_overlapping_windows_keep_the_largest_value() -> None:
    x = torch.tensor([[[0.0, 3.0, 1.0]]])
    pool = layers.MorphPool1d(1, 2, 1, initializer="zeros", return_provenance=True)
    with torch.no_grad():
        pool.weight.copy_(torch.tensor([[[0.0, 0.5]]]))
    y, provenance = pool(x)
    assert y.tolist() == [[[3.5, 3.0]]]
    assert provenance.tolist() == [[[1, 1]]]
    assert layers.MorphUnpool1d(fill=-1.0)(y, provenance, (3,)).tolist() == [[[-1.0, 3.5, -1.0]]]


def test_gradients_pass_through_both() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    pool = layers.MorphPool2d(2, 2, return_provenance=True).double()
    unpool = layers.MorphUnpool2d()
    assert torch.autograd.gradcheck(lambda x: unpool(*pool(x), (4, 4)), x)


def test_wrong_inputs() -> None:
    pool, unpool = layers.MorphPool2d(3, 2, return_provenance=True), layers.MorphUnpool2d()
    with pytest.raises(ShapeError, match=r"MorphPool2d: x has 2 channels \(axis -3\), expected 3"):
        pool(torch.randn(1, 2, 4, 4))
    with pytest.raises(ShapeError, match="does not fit axis -1"):
        pool(torch.randn(1, 3, 4, 1))
    y, provenance = pool(torch.randn(1, 3, 4, 4))
    with pytest.raises(ShapeError, match="must agree"):
        unpool(y, provenance[:, :1], (4, 4))
    with pytest.raises(ConfigError, match="output_size needs 2 axes"):
        unpool(y, provenance, (4,))


def test_a_constant_border_holds_the_value_that_is_given() -> None:
    pool = layers.MorphPool2d(1, 2, stride=2, padding=1, border="constant", value=5.0, initializer="zeros")
    x = torch.randn(1, 1, 4, 4)
    assert torch.equal(pool(x), F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=5.0), 2))
