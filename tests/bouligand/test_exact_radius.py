"""How far the first-order model is exact: never violated inside, and tight."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphlightning.functional as mf
from morphlightning import layers, registry
from morphlightning.bouligand import bderivative, exact_radius
from morphlightning.errors import ConfigError, NotSupportedError


def reals(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, seed: int, low: int = -2, high: int = 3) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def check(operator, x: Tensor, w, h: Tensor, v: Tensor | None, least: int, **options) -> None:
    """The model holds at 0.3 and 1 times the radius of every row, and fails beyond, row by row."""
    radius = exact_radius(x, w, h, v, operator=operator, **options)
    y, slope = operator(x, w, **options), bderivative(x, w, h, v, operator=operator, **options)
    assert radius.shape == y.shape
    assert (radius > 0).all()
    finite = radius.isfinite()
    assert finite.sum() >= least

    def error(t: float) -> Tensor:
        return (operator(x + t * h, w if v is None else w + t * v, **options) - y - t * slope).abs()

    for row in finite.flatten().nonzero()[:, 0].tolist():
        t = radius.flatten()[row].item()
        assert error(0.3 * t).flatten()[row] < 1e-9
        assert error(t).flatten()[row] < 1e-9
        assert error(1.01 * t).flatten()[row] > 1e-9
    for t in (1.0, 100.0):
        assert error(t)[~finite].lt(1e-9).all()


@pytest.mark.parametrize("operator", [mf.dilation, mf.erosion])
@pytest.mark.parametrize("draw", [reals, integers])
def test_thousands_of_dense_rows(operator, draw):
    x, h, w, v = draw(4000, 5, seed=0), draw(4000, 5, seed=1), draw(4000, 3, 5, seed=2), draw(4000, 3, 5, seed=3)
    w = w.masked_fill(reals(*w.shape, seed=9) > 1.2, -math.inf)
    w[..., 0] = w[..., 0].clamp_min(-9)
    radius = exact_radius(x, w, h, v, operator=operator)
    y, slope = operator(x, w), bderivative(x, w, h, v, operator=operator)
    finite = radius.isfinite()
    assert 5000 < finite.sum() < 11_000
    step = radius.where(finite, 10.0)

    def error(times: float) -> Tensor:
        """Of each row at its own step."""
        t = times * step.flatten()[:, None]
        rows = x.repeat_interleave(3, 0), w.flatten(0, 1)[:, None]
        along = h.repeat_interleave(3, 0), v.flatten(0, 1)[:, None]
        at = operator(rows[0] + t * along[0], rows[1] + t[:, None] * along[1])
        return (at.view(y.shape) - y - times * step * slope).abs()

    for times in (0.1, 0.7, 1.0):
        assert error(times).amax() < 1e-9
    assert (error(1.001)[finite] > 0).all()


@pytest.mark.parametrize("draw", [reals, integers])
@pytest.mark.parametrize("operator", [mf.opening, mf.closing, mf.adjoint_erosion])
def test_operators_of_several_stages(operator, draw):
    x, h, w, v = draw(6, 4, seed=0), draw(6, 4, seed=1), draw(4, 4, seed=2), draw(4, 4, seed=3)
    check(operator, x, w, h, v, least=10)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        (mf.dilation2d, {"border": "reflect"}),
        (mf.dilation2d, {"border": "constant", "value": 0.5, "stride": (1, 2)}),
        (mf.erosion2d, {"merge": "sum", "padding": 1}),
        (mf.opening2d, {}),
        (mf.gradient2d, {}),
        (mf.white_tophat2d, {}),
    ],
)
def test_windows(operator, options):
    x, h, b, v = reals(1, 2, 4, 3, seed=0), reals(1, 2, 4, 3, seed=1), reals(3, 3, seed=2), reals(3, 3, seed=3)
    if options.get("merge"):
        b, v = reals(2, 2, 3, 3, seed=2), reals(2, 2, 3, 3, seed=3)
    check(operator, x, b, h, v, least=8, **options)


@pytest.mark.parametrize("operator", [mf.reconstruction_by_dilation1d, mf.reconstruction_by_erosion2d])
def test_reconstruction(operator):
    shape = (2, 1, 8) if operator.__name__.endswith("1d") else (2, 1, 3, 3)
    for draw in (reals, integers):
        seed, mask, h, g = (draw(*shape, seed=s) for s in range(4))
        check(operator, seed, mask, h, g, least=3)


def test_splines():
    x, h, values = reals(6, 3, 2, seed=0), reals(6, 3, 2, seed=1), reals(3, 9, seed=2)
    free = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64) ** 3
    for knots in ((-2.0, 2.0), free, torch.stack([free, free / 2, 1 + free])):
        check(mf.linear_spline, x, values, h, None, least=30, knots=knots)
    still = exact_radius(x, values, None, values, operator=mf.linear_spline, knots=(-2.0, 2.0))
    assert still.isinf().all()  # values alone move: affine
    with pytest.raises(NotSupportedError, match="spline is curved where two"):
        exact_radius(x, values, h, values, operator=mf.linear_spline, knots=(-2.0, 2.0))


def test_rounding_makes_no_knots():
    """51 values of relu on a grid: slopes differ in their last digit, the line bends at 0 alone."""
    layer = registry.get("activations", "linear_spline")()
    assert layer.values.diff().unique().numel() > 2
    radius = exact_radius(layer, torch.tensor([[-1.0, 1.0, 2.0]]), torch.tensor([[4.0, -2.0, 1.0]])).rows[""]
    torch.testing.assert_close(radius.flatten(), torch.tensor([0.25, 0.5, math.inf]))


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x):
        return self.function(*x)


INDEX = torch.randint(0, 6, (3, 4, 6), generator=torch.Generator().manual_seed(3))
FUNCTIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "hardsigmoid": lambda x: F.hardsigmoid(4 * x),
    "softshrink": F.softshrink,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 0.25),
    "clamp crossed": lambda x: x.clamp(1.0, -1.0),
    "clamp by tensors": lambda x: x.clamp(-x.flip(0), x.flip(1)),
    "threshold": lambda x: F.threshold(x, 0.5, 0.5),
    "maximum": lambda x: torch.maximum(x, -2 * x.flip(0)),
    "minimum": lambda x: torch.minimum(x, x.flip(1)),
    "amax": lambda x: x.amax((0, 2)),
    "min": lambda x: x.min(1).values,
    "max_pool1d": lambda x: F.max_pool1d(x, 3, 2, 1),
    "max_pool2d": nn.MaxPool2d(2, ceil_mode=True),
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d((3, 4)),
    "scatter_reduce": lambda x: x.scatter_reduce(2, INDEX, -x, "amax"),
    "scatter_reduce without self": lambda x: x.scatter_reduce(2, INDEX, -x, "amin", include_self=False),
    "prelu": nn.PReLU().double(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("draw", [reals, integers])
def test_functions_of_torch(name: str, draw):
    """Row by row: the function bends at its radius and nowhere before."""
    net, x, h = Call(FUNCTIONS[name]), draw(3, 4, 6, seed=0), draw(3, 4, 6, seed=1)
    y, slope = net(x), bderivative(net, x, h)
    (rows,) = exact_radius(net, x, h).rows.values()
    rows = rows.view(-1, *y.shape).amin(0)
    assert (rows > 0).all()
    for row in rows.isfinite().flatten().nonzero()[:, 0].tolist():
        t = rows.flatten()[row].item()

        def error(t: float, row: int = row) -> float:
            return float((net(x + t * h) - y - t * slope).flatten()[row].detach().abs())

        assert error(0.5 * t) < 1e-12
        assert error(t) < 1e-12
        if name != "clamp by tensors":  # two stages, of which the second may hide the first
            assert error(1.001 * t) > 1e-9
    far = 1e3
    assert (net(x + far * h) - y - far * slope).abs()[rows.isinf()].lt(1e-8).all()


def test_networks():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        layers.Dilation2d(3, 2),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(8, 5),
        layers.Opening(5, 4),
        nn.LeakyReLU(),
    )
    net.double().eval()
    for seed in range(5):
        x, h = reals(1, 1, 6, 6, seed=seed), reals(1, 1, 6, 6, seed=seed + 100)
        for params in (None, {"3.weight": reals(2, 3, 3, 3, seed=seed)}):
            found = exact_radius(net, x, h, params=params)
            assert set(found.layers) == {"2", "3", "4", "8", "9"}
            assert found.rows["3"].shape == (1, 2, 4, 4)
            assert found.rows["8"].shape == (9,)  # 4 of the erosion, 5 of the dilation
            assert all(found.layers[name] == rows.amin() for name, rows in found.rows.items())
            assert found.network == min(found.layers.values()) > 0
            y, slope = net(x), bderivative(net, x, h, params=params)
            at = torch.func.functional_call(
                net,
                {n: net.get_parameter(n) + found.network * v for n, v in (params or {}).items()},
                x + found.network * h,
            )
            torch.testing.assert_close(at, y + found.network * slope, rtol=0, atol=1e-12)


def test_layers_are_tight():
    """Just past the radius of a layer, the layer itself has left its model."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), layers.Dilation(5, 4), layers.Erosion(4, 3)).double()
    for seed in range(10):
        x, h = reals(4, 6, seed=seed), reals(4, 6, seed=seed + 100)
        layer_radii = exact_radius(net, x, h).layers
        for depth, layer in enumerate(net):
            if str(depth) not in layer_radii:
                continue
            before, along = net[:depth](x), bderivative(net[:depth], x, h)
            t = layer_radii[str(depth)]
            assert exact_radius(layer, before, along).network == t
            model = layer(before) + 1.001 * t * bderivative(layer, before, along)
            assert t == math.inf or (layer(before + 1.001 * t * along) - model).abs().amax() > 0


def test_what_does_not_bend():
    net = nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.AvgPool1d(3)).double()
    found = exact_radius(net, reals(2, 4, seed=0), reals(2, 4, seed=1))
    assert (found.rows, found.layers, found.network) == ({}, {}, math.inf)
    x, w = reals(3, 4, seed=0), reals(2, 4, seed=1)
    assert exact_radius(x, w, None).isinf().all()
    assert exact_radius(x, w, torch.ones_like(x)).isinf().all()  # all rise together
    lost = exact_radius(x, torch.full((2, 4), -math.inf, dtype=torch.float64), x)
    assert lost.isinf().all()


def test_eps_leaves_near_ties_out():
    x, w, h = torch.tensor([[0.0, -0.25, -1.0]]), torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 4.0]])
    assert exact_radius(x, w, h).item() == 0.125
    assert exact_radius(x, w, h, eps=0.5).item() == 0.5  # from slope 2, by the last one
    assert exact_radius(Call(F.relu), torch.tensor([-0.25]), torch.tensor([1.0])).network == 0.25
    assert exact_radius(Call(F.relu), torch.tensor([-0.25]), torch.tensor([1.0]), eps=0.5).network == math.inf


@pytest.mark.parametrize(
    ("culprit", "match"),
    [
        (nn.Tanh(), r"tanh is curved along this direction: it has no exact radius, inside module '1' \(Tanh\)"),
        (nn.Softmax(1), r"softmax is curved .* inside module '1' \(Softmax\)"),
        (nn.ELU(), r"expm1 is curved .*, in elu, inside module '1' \(ELU\)"),
        (nn.Hardswish(), r"in hardswish, inside module '1' \(Hardswish\)"),
        (layers.SoftDilation(4, 4), r"log_sum_exp_plus is curved.* inside module '1' \(SoftDilation\)"),
        (nn.BatchNorm1d(4), r"batch_norm is curved .* inside module '1' \(BatchNorm1d\)"),
        (nn.LayerNorm(4), r"layer_norm is curved .* inside module '1' \(LayerNorm\)"),
        (Call(lambda x: x * x.abs()), r"mul is curved .* inside module '1' \(Call\)"),
        (Call(lambda x: 1 / x), r"reciprocal is curved .* inside module '1' \(Call\)"),
        (Call(lambda x: x @ x.T), r"matmul is curved .* inside module '1' \(Call\)"),
        (Call(lambda x: torch.einsum("ij,kj->ik", x, x)), r"einsum is curved .* inside module '1' \(Call\)"),
        (Call(lambda x: x.norm()), r"norm of order 2.* is curved.* inside module '1' \(Call\)"),
        (Call(torch.round), r"round jumps .* inside module '1' \(Call\)"),
    ],
)
def test_what_is_curved_is_refused_by_name(culprit: nn.Module, match: str):
    net = nn.Sequential(layers.Dilation(4, 4), culprit).double()
    x = reals(3, 4, seed=0)
    with pytest.raises(NotSupportedError, match=f"exact_radius: .*{match}"):
        exact_radius(net, x, x)


def test_a_product_of_two_that_move_is_curved():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double()
    x, v, bias = reals(5, 4, seed=0), reals(3, 4, seed=1), reals(3, seed=2)
    with pytest.raises(NotSupportedError, match=r"linear is curved .* inside module '0' \(Linear\)"):
        exact_radius(net, x, x, params={"0.weight": v})
    for h, params in ((x, {"0.bias": bias}), (None, {"0.weight": v, "0.bias": bias}), (x, None)):
        assert 0 < exact_radius(net, x, h, params=params).network < math.inf
    assert exact_radius(Call(lambda x: torch.ones_like(bias).mul_(x[0, :3]).relu()), x, -x).network == 1.0
    with pytest.raises(NotSupportedError, match="mul is curved"):
        exact_radius(Call(lambda x: x.clone().mul_(x)), x, x)
    layer = nn.PReLU().double()
    with pytest.raises(NotSupportedError, match="prelu is curved where input and weight move"):
        exact_radius(layer, x, x, params={"weight": torch.ones(1)})


def test_bad_arguments():
    x, w = torch.zeros(2, 3), torch.zeros(4, 3)
    with pytest.raises(ConfigError, match="exact_radius: eps must be"):
        exact_radius(x, w, x, eps=-1.0)
    with pytest.raises(ConfigError, match="exact_radius: a module takes"):
        exact_radius(nn.ReLU(), x, x, v=x)
