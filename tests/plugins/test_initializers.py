"""Initializers: what they promise about the weights, and that layers pass signals on from the start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from morphlightning import layers, registry
from morphlightning.errors import ConfigError, PluginParameterError
from morphlightning.interfaces import SiteSpec

DENSE, WINDOW = SiteSpec("dilation", (6, 4)), SiteSpec("dilation", (4, 1, 3, 4), (3, 4))


def fill(initializer, spec: SiteSpec, seed: int = 0) -> Tensor:
    return registry.build("initializers", initializer).fill(spec, torch.Generator().manual_seed(seed))


def test_ranges() -> None:
    many = SiteSpec("dilation", (100, 100))
    upper = fill({"name": "upper", "offset": 1.0, "spread": 0.5}, many)
    assert ((upper >= 1.0) & (upper < 1.5)).all()
    assert upper.max() - upper.min() > 0.49
    assert (fill("upper", many) >= 0).all()
    uniform = fill({"name": "uniform", "low": -3.0, "high": 2.0}, many)
    assert ((uniform >= -3) & (uniform < 2)).all()
    assert uniform.mean().item() == pytest.approx(-0.5, abs=0.1)
    assert not fill("zeros", many).any()


@pytest.mark.parametrize("name", ["upper", "uniform", "sparse", {"name": "identity", "noise": 0.1}])
def test_randomness_comes_from_the_generator_alone(name) -> None:
    state = torch.get_rng_state()
    assert torch.equal(fill(name, DENSE, 1), fill(name, DENSE, 1))
    assert not torch.equal(fill(name, DENSE, 1), fill(name, DENSE, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_upper_starts_dilations_above_their_inputs() -> None:
    x = torch.rand(20, 8)
    y = layers.Dilation(8, 5, initializer="upper")(x)
    assert (y >= x.amax(1, keepdim=True)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, (3, 2)])
def test_identity_passes_images_on(size) -> None:
    x = torch.rand(2, 3, 6, 7)
    for kind in (layers.Dilation2d, layers.Erosion2d, layers.Opening2d, layers.Closing2d):
        assert torch.equal(kind(3, kernel_size=size, initializer="identity")(x), x)
    for kind in (layers.Dilation2d, layers.Erosion2d):
        assert torch.equal(kind(3, 3, size, initializer="identity")(x), x)
        grouped = kind(4, 4, size, groups=2, initializer="identity")
        four = torch.rand(2, 4, 6, 7)
        assert torch.equal(grouped(four), four)


def test_dense_identity() -> None:
    x = torch.rand(5, 4)
    assert torch.equal(layers.Dilation(4, 4, initializer="identity")(x), x)
    assert torch.equal(layers.Erosion(4, 8, initializer="identity")(x), torch.cat([x, x], 1))
    w = fill({"name": "identity", "depth": 2.0, "noise": 0.5}, DENSE)
    diagonal = torch.zeros(6, 4, dtype=torch.bool)
    diagonal[torch.arange(6), torch.arange(6) % 4] = True
    assert not w[diagonal].any()
    assert ((w[~diagonal] >= -2) & (w[~diagonal] < -1.5)).all()


def test_flat_footprints() -> None:
    cross = fill({"name": "flat", "shape": "cross"}, SiteSpec("erosion", (1, 1, 3, 3), (3, 3)))[0, 0] == 0
    assert cross.int().tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    ball = fill({"name": "flat", "shape": "ball"}, SiteSpec("erosion", (2, 1, 5, 5), (5, 5)))[1, 0] == 0
    assert ball.int().tolist() == [[0, 1, 1, 1, 0], [1] * 5, [1] * 5, [1] * 5, [0, 1, 1, 1, 0]]
    volume = fill({"name": "flat", "shape": "cross"}, SiteSpec("erosion", (1, 1, 3, 3, 3), (3, 3, 3)))
    assert (volume == 0).sum() == 7
    assert not fill("flat", WINDOW).any()
    assert not fill({"name": "flat", "shape": "ball"}, DENSE).any()
    for shape in ("cross", "ball"):  # every footprint holds its origin
        for size in range(1, 7):
            w = fill({"name": "flat", "shape": shape}, SiteSpec("erosion", (1, 1, size), (size,)))
            assert w[0, 0, size // 2] == 0


def test_sparse_partitions_the_inputs() -> None:
    w = fill({"name": "sparse", "depth": 2.0, "noise": 0.0}, SiteSpec("dilation", (3, 7)))
    assert ((w == 0).sum(0) == 1).all()
    assert (w == 0).nonzero().tolist() == [[i, j] for i in range(3) for j in range(7) if j % 3 == i]
    assert set(w.unique().tolist()) == {-2.0, 0.0}
    few = fill({"name": "sparse", "missing": True}, SiteSpec("dilation", (5, 2)))
    assert ((few > -math.inf).sum(1) == 1).all()
    head = layers.Dilation(150, 10, initializer={"name": "sparse", "missing": True})
    assert head.mask.sum() == 150
    assert head.weight.abs().max() < 0.1
    full = fill({"name": "sparse", "noise": 0.0}, SiteSpec("dilation", (2, 3, 2), (2,)))
    assert ((full == 0).sum(0) == 1).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "upper", "spread": -1.0}, "spread must be >= 0, got -1.0"),
        ({"name": "uniform", "low": 1.0, "high": 0.0}, "low must not exceed high"),
        ({"name": "identity", "depth": -1.0}, "depth and noise must be >= 0"),
        ({"name": "sparse", "noise": math.nan}, "depth and noise must be >= 0"),
        ({"name": "flat", "shape": "star"}, "shape"),
        ({"name": "zeros", "value": 1.0}, "value"),
    ],
)
def test_bad_parameters(spec, message: str) -> None:
    with pytest.raises(PluginParameterError if "value" in spec else ConfigError, match=message):
        registry.build("initializers", spec)
