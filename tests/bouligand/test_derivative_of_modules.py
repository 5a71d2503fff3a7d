"""Directions through whole networks: exact, and without a trace."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning import MorphologicalAutoencoder, MorphologicalClassifier, layers, registry
from morphlightning.bouligand import bderivative, exact_radius, loss_slope
from morphlightning.errors import ConfigError, NotSupportedError, ShapeError

T = 2.0**-14


def integers(*shape: int, seed: int, low: int = -1, high: int = 2) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def with_integers(module: nn.Module, seed: int = 5) -> nn.Module:
    """The module in float64 with small integers for parameters, so that everything is tied."""
    module.double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(integers(*parameter.shape, seed=seed + number))
    return module


def directions(module: nn.Module, seed: int = 50) -> dict[str, Tensor]:
    named = module.named_parameters()
    return {name: integers(*p.shape, seed=seed + i, low=-2, high=3) for i, (name, p) in enumerate(named)}


def moved(module: nn.Module, along: dict[str, Tensor], t: float) -> nn.Module:
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, direction in along.items():
            module.get_parameter(name).add_(direction, alpha=t)
    return module


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x + self.inner(x), x.flip(1)], 1)


def spline(**options) -> nn.Module:
    return registry.get("activations", "linear_spline")(knots=9, limit=4.0, **options)


DENSE = {
    "erosion of dilation of relu of linear": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), layers.Dilation(5, 4), layers.Erosion(4, 3)
    ),
    "linear after morphology": lambda: nn.Sequential(
        layers.Dilation(6, 8), nn.Linear(8, 8), layers.Opening(8, 4), nn.LeakyReLU(0.5), nn.Linear(8, 2)
    ),
    "residual": lambda: nn.Sequential(
        Residual(layers.Closing(6, 4)), Residual(nn.Sequential(layers.Erosion(12, 12), nn.Hardtanh())), nn.Linear(24, 3)
    ),
    "composites": lambda: nn.Sequential(
        layers.DilationErosion(6, 4), layers.SupOfErosions(8, 5, terms=3), layers.MinMaxPlus(5, 4, 3)
    ),
    "splines": lambda: nn.Sequential(layers.Dilation(6, 5), spline(channels=5), layers.Erosion(5, 4), spline()),
    "missing weights": lambda: nn.Sequential(
        layers.Dilation(6, 5, mask=torch.arange(30).view(5, 6) % 3 > 0), nn.ReLU(), layers.Erosion(5, 2)
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_deep_compositions(name: str):
    net = with_integers(DENSE[name]())
    x, h = integers(400, 6, seed=0), integers(400, 6, seed=1, low=-2, high=3)
    assert torch.equal(bderivative(net, x, h), (net(x + T * h) - net(x)) / T)
    if "spline" not in name:  # parameters of one layer at a time: products are curved
        for parameter, v in directions(net).items():
            exact = (moved(net, {parameter: v}, T)(x) - net(x)) / T
            assert torch.equal(bderivative(net, x, None, params={parameter: v}), exact), parameter
    along = directions(net)
    at = net(x)
    near, far = (moved(net, along, t)(x + t * h) for t in (T, 2 * T))
    extrapolated = 2 * (near - at) / T - (far - at) / (2 * T)
    torch.testing.assert_close(bderivative(net, x, h, params=along), extrapolated, rtol=1e-6, atol=1e-4)


def test_deep_convolutional_composition():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(inplace=True),
        layers.Erosion2d(2, 2, border="reflect"),
        Residual(nn.Sequential(layers.Opening2d(2), nn.Conv2d(2, 2, 3, padding=1))),
        nn.MaxPool2d(3, 2, 1),
        spline(channels=4),
        layers.MorphPool2d(4),
        layers.Gradient2d(4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        layers.Erosion(4, 3),
    )
    with_integers(net)
    x, h = integers(60, 1, 9, 9, seed=0, low=-3, high=4), integers(60, 1, 9, 9, seed=1, low=-2, high=3)
    exact = (net(x + T * h) - net(x)) / T
    assert exact.abs().amax() > 1
    assert (exact != 0).any(1).sum() > 10
    assert torch.equal(bderivative(net, x, h), exact)


STAGES = [
    lambda i, o: layers.Dilation(i, o),
    lambda i, o: layers.Erosion(i, o),
    lambda i, o: nn.Sequential(layers.Opening(i, o), nn.Linear(i, o)),
    lambda i, o: nn.Sequential(nn.LeakyReLU(0.5), nn.Linear(i, o), nn.Hardtanh(-2, 2)),
]


def test_random_networks():
    """Their derivative everywhere; and up to its radius, the network is its first-order model."""
    for seed in range(20):
        kinds = torch.randint(0, 4, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        sizes = itertools.pairwise([6, 5, 4, 6, 5, 3])
        net = with_integers(nn.Sequential(*(STAGES[kind](i, o) for kind, (i, o) in zip(kinds, sizes))), seed * 100)
        x, h = integers(150, 6, seed=seed), integers(150, 6, seed=seed + 1000, low=-2, high=3)
        y, slope = net(x), bderivative(net, x, h)
        assert torch.equal(slope, (net(x + T * h) - y) / T)
        radius = exact_radius(net, x, h).network
        if radius < math.inf:
            torch.testing.assert_close(net(x + radius * h), y + radius * slope, rtol=0, atol=1e-10)


def test_twenty_layers():
    stack = [layer(6, 6) for layer in (layers.Dilation, layers.Erosion) for _ in range(10)]
    net = with_integers(nn.Sequential(*stack))
    x, h = integers(500, 6, seed=0), integers(500, 6, seed=1, low=-2, high=3)
    assert torch.equal(bderivative(net, x, h), (net(x + T * h) - net(x)) / T)


@pytest.mark.parametrize("head", ["linear", "max_plus"])
@pytest.mark.parametrize("loss", ["cross_entropy", "multi_margin_loss"])
def test_whole_classifier(head: str, loss: str):
    net = MorphologicalClassifier((1, 8, 8), 4, channels=(3,), hidden=(6,), head=head, head_units=8, loss=loss)
    with_integers(net).eval()
    x, h = integers(5, 1, 8, 8, seed=0), integers(5, 1, 8, 8, seed=1, low=-2, high=3)
    assert torch.equal(bderivative(net, x, h), (net(x + T * h) - net(x)) / T)
    target, along = torch.arange(5) % 4, directions(net)
    slope = loss_slope(net, net.data_loss, x, target, h, along)
    at = net.data_loss(net(x), target)
    near, far = (net.data_loss(moved(net, along, t)(x + t * h), target) for t in (2.0**-20, 2.0**-19))
    expected = 2 * (near - at) * 2**20 - (far - at) * 2**19
    assert slope.shape == ()
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-5, atol=1e-5)


def test_whole_autoencoder():
    net = with_integers(MorphologicalAutoencoder((1, 8, 8))).eval()
    x, h = integers(3, 1, 8, 8, seed=0), integers(3, 1, 8, 8, seed=1)
    torch.testing.assert_close(bderivative(net, x, h), (net(x + T * h) - net(x)) / T, rtol=1e-9, atol=1e-9)


def test_without_ties_the_slope_is_that_of_the_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), layers.Dilation(5, 4), nn.LayerNorm(4)).double()
    x, target = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    F.mse_loss(net(x), target).backward()
    along = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    expected = sum((p.grad * along[name]).sum() for name, p in net.named_parameters())
    torch.testing.assert_close(loss_slope(net, F.mse_loss, x, target, params=along), expected)


def test_loss_with_kinks():
    net = with_integers(nn.Sequential(nn.Linear(6, 3), layers.Dilation(3, 3)))
    x, h, target = integers(50, 6, seed=0), integers(50, 6, seed=1), integers(50, 3, seed=2)
    for loss in (F.l1_loss, nn.L1Loss(reduction="sum"), lambda y, target: (y - target).abs().amax()):
        exact = (loss(net(x + T * h), target) - loss(net(x), target)) / T
        torch.testing.assert_close(loss_slope(net, loss, x, target, h), exact.detach(), rtol=0, atol=1e-10)
    with pytest.raises(NotSupportedError, match="loss_slope: median jumps"):
        loss_slope(net, lambda y, _: y.median(), x, target, h)
    with pytest.raises(ShapeError, match="expected a single number"):
        loss_slope(net, lambda y, _: y, x, target, h)


@pytest.mark.parametrize("training", [True, False])
def test_no_trace_is_left(training: bool):
    net = nn.Sequential(
        nn.Hardtanh(inplace=True),
        layers.Dilation(6, 5, heuristic="count_normalized", mask=torch.arange(30).view(5, 6) % 3 > 0),
        nn.BatchNorm1d(5),
        nn.Dropout(0.5),
        nn.ReLU(inplace=True),
    ).train(training)
    net(torch.randn(4, 6)).sum().backward()
    site = net[1].site
    x, h = torch.randn(9, 6), torch.randn(9, 6)
    kept = [
        x.clone(),
        h.clone(),
        *(t.clone() for t in net.state_dict().values()),
        *(p.grad.clone() for p in net.parameters()),
    ]
    tally, random = site.tally.grad.clone() if training else None, torch.get_rng_state()
    for along in (h, None):
        bderivative(net, x, along, params={"1.weight": torch.ones(5, 6)})
    now = [x, h, *net.state_dict().values(), *(p.grad for p in net.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert not training or torch.equal(site.tally.grad, tally)
    assert net.training == training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not x.requires_grad
    net(x).sum().backward()  # and it still trains


def test_training_mode_is_respected():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5)).double()
    x, h = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    state = torch.get_rng_state()
    slope = bderivative(net, x, h)
    ahead, behind = (_drawn(net, x + t * h, state) for t in (1e-6, -1e-6))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)
    assert (slope == 0).any()  # what this draw of dropout drops
    assert not torch.allclose(bderivative(net.eval(), x, h), slope)


def _drawn(net: nn.Module, x: Tensor, state: Tensor) -> Tensor:
    torch.set_rng_state(state)
    return net(x).detach()


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"sum": a + b, "max": torch.maximum(a, b), "of b": (2 * b,)}

    a, h = integers(4, seed=0), integers(4, seed=1)
    slopes = bderivative(Two(), (a, a), (h, None))
    assert torch.equal(slopes["sum"], h)
    assert torch.equal(slopes["max"], h.clamp_min(0))
    assert torch.equal(slopes["of b"][0], torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ConfigError, match="1 directions for 2 inputs"):
        bderivative(Two(), (a, a), h)


def test_tied_parameters_go_by_either_name():
    net = nn.Sequential(layers.Dilation(4, 4), nn.ReLU(), layers.Dilation(4, 4)).double()
    net[2].weight = net[0].weight
    x, v = integers(9, 4, seed=0), integers(4, 4, seed=1)
    by_first, by_second = (bderivative(net, x, params={f"{i}.weight": v}) for i in (0, 2))
    assert torch.equal(by_first, by_second)
    with torch.no_grad():
        at = net(x)
        net[0].weight.add_(v, alpha=2.0**-20)
        torch.testing.assert_close(by_first, (net(x) - at) * 2**20, rtol=0, atol=1e-6)


def test_integer_inputs_stay():
    net = nn.Sequential(nn.Embedding(5, 3), layers.Dilation(3, 2)).double()
    tokens, v = torch.tensor([0, 3, 3]), integers(5, 3, seed=0)
    exact = (moved(net, {"0.weight": v}, T)(tokens) - net(tokens)) / T
    torch.testing.assert_close(bderivative(net, tokens, params={"0.weight": v}), exact.detach(), rtol=0, atol=1e-9)
    with pytest.raises(ConfigError, match=r"input 0 is torch.int64 and takes no direction"):
        bderivative(net, tokens, torch.ones(3))


def test_compiled_modules_are_run_as_written():
    net = with_integers(nn.Sequential(nn.ReLU(), layers.Dilation(4, 3)))
    x, h = integers(5, 4, seed=0), integers(5, 4, seed=1)
    expected = bderivative(net, x, h)
    assert expected.any()
    assert torch.equal(bderivative(torch.compile(net, backend="eager"), x, h), expected)


def test_writes_into_parts():
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.new_zeros(len(x), 6)
            y[:, :2] = x.relu()
            y[:, 2:4].copy_(x.abs())
            y[:, 0].clamp_(max=0)
            y[:, 4:] -= x
            y += 1
            return y

    x, h = integers(40, 2, seed=0), integers(40, 2, seed=1)
    assert torch.equal(bderivative(Writes(), x, h), (Writes()(x + T * h) - Writes()(x)) / T)


def test_inside_inference_mode():
    net, x = layers.Dilation(3, 2), torch.randn(4, 3)
    with torch.inference_mode():
        slope = bderivative(net, torch.ones(4, 3) * x, torch.ones(4, 3))
    assert torch.equal(slope, torch.ones(4, 2))


def test_bad_arguments():
    net, x = nn.Sequential(layers.Dilation(3, 2)), torch.randn(4, 3)
    with pytest.raises(ConfigError, match=r"Sequential has no parameter 0\.wieght; it has 0\.weight"):
        bderivative(net, x, params={"0.wieght": torch.zeros(2, 3)})
    with pytest.raises(ShapeError, match=r"direction of 0\.weight has shape \(3, 2\), expected \(2, 3\)"):
        bderivative(net, x, params={"0.weight": torch.zeros(3, 2)})
    with pytest.raises(ShapeError, match=r"direction of input 0 has shape \(3,\)"):
        bderivative(net, x, torch.zeros(3))
    with pytest.raises(ConfigError, match="a module takes h and params"):
        bderivative(net, x, x, border="reflect")
    with pytest.raises(ConfigError, match="eps must be"):
        bderivative(net, x, x, eps=-1.0)
