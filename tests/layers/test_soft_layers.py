"""Soft windowed layers and the options that all soft layers share."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import morphlightning.functional as mf
from morphlightning import layers
from morphlightning.errors import ConfigError

SPACE = {1: (9,), 2: (6, 7), 3: (4, 5, 4)}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", ["dilation", "erosion"])
def test_windowed_layers(name: str, rank: int) -> None:
    kind = getattr(layers, f"Soft{name.title()}{rank}d")
    soft, hard = getattr(mf, f"soft_{name}{rank}d"), getattr(mf, f"{name}{rank}d")
    x = torch.randn(2, 4, *SPACE[rank])
    layer = kind(4, 6, 3, beta=2.0, groups=2, stride=2, border="reflect")
    options = {"groups": 2, "stride": 2, "border": "reflect"}
    assert torch.equal(layer(x), soft(x, layer.weight, 2.0, **options))
    layer.set_beta(1e5)
    torch.testing.assert_close(layer(x), hard(x, layer.weight, **options), rtol=0, atol=1e-3)
    again = kind(4, 6, 3, **options)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert kind(4)(x[0]).shape == x.shape[1:]


def test_masks_and_gradients() -> None:
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 0] = False
    layer = layers.SoftDilation2d(2, kernel_size=3, beta=3.0, mask=mask)
    x = torch.randn(2, 2, 6, 7, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, mf.soft_dilation2d(x, layer.effective_weight, 3.0, groups=2))
    y.sum().backward()
    assert not layer.weight.grad[~layer.mask].any()
    torch.testing.assert_close(layer.weight.grad.sum(), torch.tensor(float(y.numel())))
    assert not x.grad.isnan().any()


@pytest.mark.parametrize("make", [layers.SoftErosion, layers.SoftErosion2d])
def test_precision(make) -> None:
    layer = make(5, 4, precision="bfloat16", beta=2.0)
    x = torch.randn(3, 5) if make is layers.SoftErosion else torch.randn(3, 5, 6, 6)
    full = copy.deepcopy(layer)
    full.precision = "full"
    error = (layer(x) - full(x)).abs().max()
    assert 0 < error <= 3 / (255 * 2.0) + 1e-5


def test_wrong_options() -> None:
    for options, message in (
        ({"derivative": "first"}, "SoftDilation2d does not take derivative"),
        ({"merge": "sum"}, "SoftDilation2d does not take merge='sum'"),
        ({"precision": "half"}, "SoftDilation2d: precision must be one of full, bfloat16"),
        ({"beta": 0.0}, "SoftDilation2d: beta must be a number > 0"),
        ({"groups": 2}, "groups=2 needs out_channels"),
    ):
        with pytest.raises(ConfigError, match=message):
            layers.SoftDilation2d(4, **options)


@pytest.mark.parametrize("kind", [layers.SoftDilation, layers.SoftErosion, layers.SoftSignedDilation])
def test_at_infinite_beta_a_layer_is_the_hard_one_and_a_checkpoint_keeps_it(kind) -> None:
    x = torch.randn(5, 6, requires_grad=True)
    layer, other = (kind(6, 3, initializer={"name": "uniform"}, beta=2.0) for _ in range(2))
    layer.set_beta(math.inf)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), layer.harden()(x))
    assert torch.equal(layer(x), other(x))
    layer(x).sum().backward()
    assert int(layer.weight.grad.count_nonzero()) <= 5 * 3
    layer.set_beta(2.0)
    assert not torch.equal(layer(x), other(x))


def test_at_infinite_beta_a_window_is_the_hard_one() -> None:
    x = torch.randn(2, 4, 8, 8)
    layer = layers.SoftErosion2d(4, 6, 3, beta=math.inf, groups=2, stride=2, border="reflect")
    assert torch.equal(layer(x), layer.harden()(x))
