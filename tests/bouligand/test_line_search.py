"""Line search against dense grids and against breakpoints found by force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphlightning.functional as mf
from morphlightning import layers
from morphlightning.bouligand import line_search
from morphlightning.errors import ConfigError, DataError, NotSupportedError, ShapeError


def reals(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, seed: int) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


def losses(net: nn.Module, x: Tensor, target: Tensor, h: Tensor | None, params, steps: Tensor) -> Tensor:
    """The loss of the network below at every step, written out, all steps as one batch."""
    t, params = steps.double()[:, None, None], params or {}

    def along(name: str) -> Tensor:
        return net.get_parameter(name).detach().double() + t * params.get(name, torch.zeros((), dtype=torch.float64))

    rectified = F.relu(F.linear(x + t * (torch.zeros_like(x) if h is None else h), net[0].weight, net[0].bias))
    y = mf.erosion(mf.dilation(rectified, along("2.weight")), along("3.weight"))
    return (y - target).square().mean((1, 2)).detach()


def network(seed: int, draw) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), layers.Dilation(5, 4), layers.Erosion(4, 2)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(draw(*p.shape, seed=seed * 10 + i))
    return net


@pytest.mark.parametrize("draw", [reals, integers])
@pytest.mark.parametrize("seed", range(3))
def test_global_minimum_by_grid(draw, seed: int):
    net = network(seed, draw)
    x, target, h = draw(6, 4, seed=seed), 2 * draw(6, 2, seed=seed + 50), draw(6, 4, seed=seed + 80)
    params = {"2.weight": draw(4, 5, seed=seed + 20), "3.weight": draw(2, 4, seed=seed + 30)}
    for along in ((h, None), (None, params), (h, params)):
        found = line_search(net, x, target, *along, max_step=3.0)
        on_grid = losses(net, x, target, *along, torch.linspace(0, 3, 5001, dtype=torch.float64))
        assert found.complete
        assert found.loss <= on_grid.amin() + 1e-9
        assert on_grid.amin() - found.loss < 0.02  # nor below what a grid comes close to
        (at_step,) = losses(net, x, target, *along, torch.tensor([found.step], dtype=torch.float64)).tolist()
        assert at_step == pytest.approx(found.loss, abs=1e-8)
        assert found.start == pytest.approx(on_grid[0].item())
        assert 0 <= found.step <= 3


def test_breakpoints_by_force():
    """One dilation: it bends where two lines of the upper envelope of x_j + w_ij + t d_ij cross."""
    layer = layers.Dilation(5, 3).double()
    x, target, h = reals(4, 5, seed=0), reals(4, 3, seed=1), reals(4, 5, seed=2)
    scores, slopes = (x[:, None] + layer.weight).detach(), h[:, None].expand(4, 3, 5)
    expected = {0.0, 5.0}
    for i in range(5):
        for j in range(i):
            t = (scores[..., i] - scores[..., j]) / (slopes[..., j] - slopes[..., i])
            top = (scores + t[..., None] * slopes).amax(-1)
            on_top = (scores[..., i] + t * slopes[..., i] > top - 1e-12) & (t > 0) & (t < 5)
            expected |= set(t[on_top].tolist())
    found = line_search(layer, x, target, h, max_step=5.0)
    torch.testing.assert_close(torch.tensor(found.breakpoints), torch.tensor(sorted(expected)[1:-1]))

    def loss(t: float) -> float:
        return (layer(x + t * h) - target).square().mean().item()

    best = math.inf
    for low, high in itertools.pairwise(sorted(expected)):  # a parabola on each piece, from three of its points
        a, b, c = loss(low), loss((low + high) / 2), loss(high)
        curvature = 2 * (a - 2 * b + c)
        at = min(max((3 * a - 4 * b + c) / (2 * curvature), 0.0), 1.0) if curvature > 1e-12 else 0.0
        best = min(best, a + (4 * b - 3 * a - c) * at + curvature * at * at, c)
    assert found.loss == pytest.approx(best, abs=1e-10)


def test_single_precision_networks_are_searched_in_double():
    net = network(0, reals).float()
    found = line_search(net, reals(6, 4, seed=0).float(), reals(6, 2, seed=1).float(), reals(6, 4, seed=2).float())
    assert found.complete
    assert found.loss <= found.start
    assert net[0].weight.dtype == torch.float32


def test_infinite_largest_step():
    layer = layers.Dilation(2, 1).double()
    x, h = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    target = layer(x).detach() + 123.0
    found = line_search(layer, x, target, h, max_step=math.inf)
    assert found.complete
    assert found.step == pytest.approx(123.0)
    assert found.loss == pytest.approx(0.0, abs=1e-20)
    backwards = line_search(layer, x, target, -h, max_step=math.inf)
    assert (backwards.step, backwards.loss) == (0.0, backwards.start)


def test_nothing_that_moves():
    layer = layers.Dilation(2, 1).double()
    x = torch.zeros(3, 2, dtype=torch.float64)
    found = line_search(layer, x, torch.ones(3, 1))
    assert (found.step, found.breakpoints, found.complete) == (0.0, (), True)


def test_few_pieces_are_said_to_be_incomplete():
    net = network(0, reals)
    x, target, h = reals(6, 4, seed=0), reals(6, 2, seed=1), reals(6, 4, seed=2)
    all_of_them = line_search(net, x, target, h, max_step=3.0)
    some = line_search(net, x, target, h, max_step=3.0, max_pieces=3)
    assert not some.complete
    assert some.breakpoints == all_of_them.breakpoints[:2]
    exactly = line_search(net, x, target, h, max_step=3.0, max_pieces=len(all_of_them.breakpoints) + 1)
    assert exactly == all_of_them


def test_bad_arguments():
    layer = nn.Sequential(layers.Dilation(3, 2), nn.ReLU()).double()
    x, target = reals(4, 3, seed=0), reals(4, 2, seed=1)
    for name in ("max_step", "max_pieces", "tolerance"):
        with pytest.raises(ConfigError, match=f"{name} must be > 0"):
            line_search(layer, x, target, x, **{name: 0})
        with pytest.raises(ConfigError, match=f"{name} must be > 0"):
            line_search(layer, x, target, x, **{name: math.nan})
    with pytest.raises(ShapeError, match=r"target has shape \(2,\), the output \(4, 2\)"):
        line_search(layer, x, target[0], x)
    with pytest.raises(DataError, match=r"the error at step 0\.0 is inf"):
        line_search(layer, x, target.fill_(math.inf), x)
    with pytest.raises(NotSupportedError, match=r"line_search: .*sigmoid is curved .*'1' \(Sigmoid\)"):
        line_search(nn.Sequential(layers.Dilation(3, 2), nn.Sigmoid()), x, reals(4, 2, seed=1), x)
