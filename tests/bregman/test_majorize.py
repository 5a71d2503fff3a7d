"""The lifted objective by majorization and minimization: it never increases, and its steps are what they claim."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning import bregman as B
from morphlightning.bregman.losses import OutputLoss
from morphlightning.bregman.majorize import LiftedBatch, MajorizeMinimize
from morphlightning.errors import ConfigError

DOUBLE = torch.float64
N = 40


class SplineModule(nn.Module):
    """A learned activation, with level pieces and one of slope 1."""

    def proximal(self) -> B.Spline:
        return B.Spline(torch.tensor([-1.0, -0.9, -0.4, 0.0, 0.0, 2 / 3, 0.9], dtype=DOUBLE), limit=2.0)

    def forward(self, z: Tensor) -> Tensor:
        return self.proximal()(z)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "softshrink": lambda: nn.Softshrink(0.2),
    "hardtanh": nn.Hardtanh,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "identity": nn.Identity,
    "spline": SplineModule,
}
SHALLOW, DEEP = (12, 8, 12), (12, 10, 8, 10, 12)
LOSSES: dict[str, Callable[[], OutputLoss]] = {
    "squared": B.SquaredError,
    "cross_entropy": B.CrossEntropy,
    "bregman": lambda: B.BregmanLoss(nn.Sigmoid()),
}


def dense(sizes: Sequence[int], make: Callable[[], nn.Module], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        modules += [nn.Linear(before, after), *([make()] if i < len(sizes) - 2 else [])]
    return nn.Sequential(*modules).double()


def conv(make: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        make(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        make(),
        nn.Conv2d(4, 1, 3, padding="same"),
    ).double()


def data(loss: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    x = torch.randn(N, 12, dtype=DOUBLE)
    y = {
        "squared": 3 * torch.randn(N, 12, dtype=DOUBLE),
        "cross_entropy": torch.randint(12, (N,)),
        "bregman": torch.rand(N, 12, dtype=DOUBLE),
    }[loss]
    return x, y


def largest_increase(method: MajorizeMinimize, x: Tensor, y: Tensor, iterations: int) -> float:
    """Of the objective from one iteration to the next, relative; negative where all decreased."""
    samples, found, method.monitored = method.start(x, y), [], True
    for _ in range(iterations):
        method.iterate(samples, x, y)
        found.append(float(method.figures["objective"]))
    assert all(value == value and value < float("inf") for value in found)
    assert found[-1] < found[0]
    return max((after - before) / before for before, after in itertools.pairwise(found))


FAST = [
    ("relu", 1.9, DEEP, "squared"),
    ("leaky_relu", 1.0, SHALLOW, "cross_entropy"),
    ("softshrink", 1.9, SHALLOW, "squared"),
    ("hardtanh", 1.9, SHALLOW, "bregman"),
    ("tanh", 1.9, SHALLOW, "squared"),
    ("sigmoid", 1.9, SHALLOW, "cross_entropy"),
    ("elu", 1.0, SHALLOW, "squared"),
    ("identity", 1.9, SHALLOW, "squared"),
    ("spline", 1.9, SHALLOW, "bregman"),
]


def check_descent(name: str, tau_x: float, sizes: Sequence[int], loss: str, mu: float) -> None:
    chain = B.Chain(dense(sizes, ACTIVATIONS[name]))
    method = MajorizeMinimize(chain, LOSSES[loss](), mu=mu, ridge=(1.0, 0.1), tau_x=tau_x)
    increase = largest_increase(method, *data(loss), iterations=500)
    print(f"largest increase: {name} tau_x={tau_x} {len(sizes)} {loss} mu={mu}: {increase:.2e}")
    assert increase <= 1e-12


@pytest.mark.parametrize(("name", "tau_x", "sizes", "loss"), FAST, ids=[case[0] for case in FAST])
def test_the_objective_never_increases(name: str, tau_x: float, sizes: Sequence[int], loss: str):
    check_descent(name, tau_x, sizes, loss, mu=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sizes", [SHALLOW, DEEP], ids=["shallow", "deep"])
@pytest.mark.parametrize("tau_x", [1.0, 1.9])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_objective_never_increases_anywhere(name: str, tau_x: float, sizes: Sequence[int], loss: str):
    check_descent(name, tau_x, sizes, loss, mu=0.3)


@pytest.mark.parametrize("seed", [0, 9, 69, 99, 125, 130, 149, 157])
def test_the_objective_never_increases_from_starts_that_are_far_away(seed: int):
    """The first weights are far from the first solutions, so that their norms change much in one iteration."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 12, (int(torch.randint(3, 6, (), generator=generator)),), generator=generator).tolist()
    n, scale = int(torch.randint(3, 60, (), generator=generator)), torch.randn(4, generator=generator)
    chain = B.Chain(dense(sizes, (nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.ELU)[seed % 4], seed))
    x = torch.randn(n, sizes[0], generator=generator, dtype=DOUBLE) * 10 ** float(scale[0])
    y = torch.randn(n, sizes[-1], generator=generator, dtype=DOUBLE) * 10 ** float(scale[1])
    mu, ridge = 10 ** float(scale[2] / 2), 10 ** float(scale[3] - 1)
    method = MajorizeMinimize(chain, B.SquaredError(), mu=mu, ridge=ridge, tau_x=1.9)
    assert largest_increase(method, x, y, iterations=40) <= 1e-12


def test_the_objective_never_increases_from_an_output_layer_of_zeros():
    network = dense((5, 4, 5), nn.ReLU)
    nn.init.zeros_(network[2].weight)
    torch.manual_seed(3)
    x, y = torch.randn(N, 5, dtype=DOUBLE), torch.randn(N, 5, dtype=DOUBLE)
    assert largest_increase(MajorizeMinimize(B.Chain(network), B.SquaredError()), x, y, iterations=60) <= 1e-12


@pytest.mark.parametrize("tau_w", [0.5, 1.9])
def test_the_objective_never_increases_for_other_steps_of_the_weights(tau_w: float):
    method = MajorizeMinimize(B.Chain(dense(DEEP, nn.Tanh)), B.SquaredError(), tau_w=tau_w, inner_x=3)
    assert largest_increase(method, *data("squared"), iterations=50) <= 1e-12


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_the_objective_never_increases_behind_softmax(loss: str):
    """Which takes mirror steps."""
    method = MajorizeMinimize(B.Chain(dense(DEEP, lambda: nn.Softmax(-1))), LOSSES[loss](), ridge=0.1, tau_x=1.9)
    assert largest_increase(method, *data(loss), iterations=60) <= 1e-12


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_the_objective_of_convolutions_never_increases(name: str):
    network = conv(ACTIVATIONS[name])
    torch.manual_seed(1)
    x = torch.randn(6, 1, 8, 8, dtype=DOUBLE)
    y = torch.randn_like(network(x))
    method = MajorizeMinimize(B.Chain(network), B.SquaredError(), mu=1.0, ridge=0.1)
    assert largest_increase(method, x, y, iterations=40) <= 1e-12


# ------------------------------------------------------------------------------------------------------------ its steps
def objective(method: MajorizeMinimize, x: Sequence[Tensor], y: Tensor) -> Tensor:
    """F(V, x), as the module's docstring has it."""
    total = torch.zeros((), dtype=DOUBLE)
    for i, layer in enumerate(method.chain.layers):
        u = layer.affine.module(layer.affine.reshaped(x[i]))
        last = i == len(method.chain) - 1
        total = total + (method.loss.value(u, y) if last else method.mu * layer.activation.loss(x[i + 1], u)).sum()
        for parameter in layer.affine.module.parameters():
            total = total + method.ridge[i] / 2 * parameter.square().sum()
    return total


def scattered(network: nn.Sequential, x: Tensor, y: Tensor, **settings: Any) -> tuple[MajorizeMinimize, LiftedBatch]:
    method = MajorizeMinimize(B.Chain(network), B.SquaredError(), **settings)
    samples = method.start(x, y)
    for i, layer in enumerate(method.chain.layers[:-1], 1):
        samples[f"x{i}"] = layer.activation(samples[f"x{i}"] + torch.randn_like(samples[f"x{i}"]))
    with torch.no_grad():
        return method, LiftedBatch(method, samples, x, y)


def test_the_figure_is_the_objective():
    (x, y), network = data("squared"), dense(DEEP, nn.Tanh)
    method, batch = scattered(network, x, y, mu=0.7, ridge=(2.0, 0.5))
    expected, method.monitored = float(objective(method, batch.x, y).detach()), True
    loss = float(0.5 * (network(x) - y).square().sum(1).mean().detach())
    method.iterate(batch._samples, x, y)
    assert float(method.figures["objective"]) == pytest.approx(expected, rel=1e-12)
    assert float(method.figures["loss"]) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("inner_x", [1, 3])
@pytest.mark.parametrize("name", ["relu", "tanh", "softshrink"])
def test_the_x_step_is_a_proximal_gradient_step(name: str, inner_x: int):
    """x <- argmin <grad f, x> + 1/(2t) ||x - x before||^2 + mu (h(x) - <x, u>), f what follows the layer."""
    (x, y), network = data("squared"), dense(DEEP, ACTIVATIONS[name])
    method, batch = scattered(network, x, y, mu=0.7, tau_x=1.6, inner_x=inner_x)
    layers, xs = method.chain.layers, list(batch.x)
    with torch.no_grad():
        batch.sweep()
    for i in reversed(range(1, len(layers))):
        curvature = 1.0 if i == len(layers) - 1 else method.mu
        with torch.no_grad():
            t = 1.6 / (curvature * float(layers[i].affine.squared_norm(xs[i])))
        for _ in range(inner_x):
            at = xs[i].clone().requires_grad_()
            value = objective(method, [*xs[:i], at, *xs[i + 1 :]], y)
            # without mu B(x, u) of the layer itself, which the step keeps as it is
            u = layers[i - 1].affine.module(xs[i - 1])
            before = method.mu * layers[i - 1].activation.loss(at, u).sum()
            (slope,) = torch.autograd.grad(value - before, at)
            d = 1 / t + method.mu
            centre = (xs[i] / t + method.mu * u - slope) / d
            xs[i] = layers[i - 1].activation.prox(centre.detach(), method.mu / d)
        torch.testing.assert_close(batch.x[i], xs[i], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_the_v_step_minimizes_a_majorizer(loss: str):
    """The quadratic c/2 ||U V^T - t||^2 + lambda/2 ||V||^2 with c the curvature: its slope at V' is 0."""
    x, y = data(loss)
    method = MajorizeMinimize(B.Chain(dense(DEEP, nn.Tanh)), LOSSES[loss](), mu=0.7, ridge=(2.0, 0.5))
    samples = method.start(x, y)
    for _ in range(3):
        before = [layer.affine.weights()[0] for layer in method.chain.layers]
        method.iterate(samples, x, y)
        inputs, y_full = [x, *(samples[f"x{i}"] for i in (1, 2, 3))], method.loss.targets(y, x)
        for i, layer in enumerate(method.chain.layers):
            a = torch.cat([inputs[i], torch.ones(N, 1, dtype=DOUBLE)], 1)
            u = a @ before[i].mT
            last = i == 3
            c = method.loss.lipschitz if last else method.mu
            slope = method.loss.gradient(u, y_full) if last else method.mu * (u.tanh() - inputs[i + 1])
            v = layer.affine.weights()[0]
            # derivative of <slope, u' - u> + c/2 ||u' - u||^2 + lambda/2 ||V'||^2
            found = (slope + c * (a @ v.mT - u)).mT @ a + method.ridge[i] * v
            assert float(found.abs().max()) < 1e-10


def test_the_output_layer_of_squared_error_is_ridge_regression():
    x, y = data("squared")
    method = MajorizeMinimize(B.Chain(dense(SHALLOW, nn.ReLU)), B.SquaredError(2.0), ridge=(1.0, 0.3))
    samples = method.start(x, y)
    method.iterate(samples, x, y)
    a = torch.cat([samples["x1"], torch.ones(N, 1, dtype=DOUBLE)], 1)
    left = torch.cat([2**0.5 * a, 0.3**0.5 * torch.eye(9, dtype=DOUBLE)])
    right = torch.cat([2**0.5 * y, torch.zeros(9, 12, dtype=DOUBLE)])
    expected = torch.linalg.lstsq(left, right).solution.mT
    torch.testing.assert_close(method.chain.layers[1].affine.weights()[0], expected, rtol=1e-10, atol=1e-11)


def test_tau_w_goes_part_of_the_way():
    x, y = data("squared")
    found = []
    for tau_w in (1.0, 0.3):
        method = MajorizeMinimize(B.Chain(dense(DEEP, nn.ReLU)), B.SquaredError(), tau_w=tau_w)
        before = [layer.affine.weights() for layer in method.chain.layers]
        method.iterate(method.start(x, y), x, y)
        found.append([layer.affine.weights() for layer in method.chain.layers])
    for old, full, part in zip(before, *found, strict=True):
        torch.testing.assert_close(part, old + 0.3 * (full - old), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_an_iteration_in_pieces_is_the_whole(kind: str):
    torch.manual_seed(1)
    x = torch.randn(12, 12, dtype=DOUBLE) if kind == "dense" else torch.randn(12, 1, 6, 6, dtype=DOUBLE)

    def make() -> nn.Sequential:
        return dense(DEEP, nn.ELU) if kind == "dense" else conv(nn.ELU)

    y = torch.randn_like(make()(x))
    whole, pieces = (MajorizeMinimize(B.Chain(make()), B.SquaredError(), inner_x=2) for _ in range(2))
    samples, parts = whole.start(x, y), [slice(0, 5), slice(5, 5), slice(5, 12)]
    shares = [pieces.start(x[part], y[part]) for part in parts]
    for k in range(8):
        whole.monitored = pieces.monitored = k % 2 == 0
        whole.iterate(samples, x, y)
        for share, part in zip(shares, parts, strict=True):
            pieces.piece(share, x[part], y[part])
        pieces.update()
        for a, b in zip(whole.chain.layers, pieces.chain.layers, strict=True):
            torch.testing.assert_close(a.affine.weights(), b.affine.weights(), rtol=1e-11, atol=1e-11)
        for name, figure in whole.figures.items():
            torch.testing.assert_close(pieces.figures[name], figure, rtol=1e-9, atol=1e-11)


def test_monitors_change_no_bit():
    found = []
    for monitored in (True, False):
        x, y = data("squared")
        method = MajorizeMinimize(B.Chain(dense(DEEP, nn.Tanh)), B.SquaredError())
        samples, method.monitored = method.start(x, y), monitored
        for _ in range(5):
            method.iterate(samples, x, y)
        found.append([*samples.values(), *(layer.affine.weights() for layer in method.chain.layers)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: value}, f"{name} must lie in") for name in ("tau_x", "tau_w") for value in (0.0, 2.0)),
        ({"inner_x": 0}, "inner_x must be"),
        ({"mu": 0.0}, "mu must be > 0"),
        ({"ridge": -1.0}, "ridge must be >= 0"),
        ({"ridge": (1.0,) * 3}, "ridge has 3 values, the network 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        MajorizeMinimize(B.Chain(dense(SHALLOW, nn.ReLU)), B.SquaredError(), **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["dense", "conv", "softmax"])
def test_cuda_computes_what_the_cpu_does(kind: str):
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        x = torch.randn(12, 1, 6, 6, dtype=DOUBLE) if kind == "conv" else torch.randn(12, 12, dtype=DOUBLE)
        sigma: Callable[[], nn.Module] = (lambda: nn.Softmax(-1)) if kind == "softmax" else nn.ELU
        network = conv(sigma) if kind == "conv" else dense(DEEP, sigma)
        y = torch.randn_like(network(x))
        network, x, y = network.to(device), x.to(device), y.to(device)
        method = MajorizeMinimize(B.Chain(network), B.SquaredError())
        samples, method.monitored = method.start(x, y), True
        for _ in range(10):
            method.iterate(samples, x, y)
        found.append(
            [*(layer.affine.weights().cpu() for layer in method.chain.layers), method.figures["objective"].cpu()]
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
