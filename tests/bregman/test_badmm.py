"""BADMM: each block against the problem that it claims to solve, and whole iterations against a plain one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning import bregman as B
from morphlightning.bregman import method as method_module
from morphlightning.bregman.badmm import _BLOCKS, Badmm, _Batch
from morphlightning.bregman.losses import OutputLoss
from morphlightning.errors import ConfigError, NotSupportedError

DOUBLE = torch.float64
ORDERS = ("XZWM", "ZWXM", "WXZM", "MZXW", "ZXMW", "xWM", "WxM", "MWx")
N = 24


def dense(*activations: nn.Module, sizes: tuple[int, ...] = (6, 5, 4, 3)) -> nn.Sequential:
    """Linear layers with activations between them."""
    torch.manual_seed(1)
    modules: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        modules += [nn.Linear(before, after, bias=i != 1), *activations[i : i + 1]]
    return nn.Sequential(*modules).double()


def conv(*activations: nn.Module) -> nn.Sequential:
    """Convolutions, one with groups and a stride, and a linear layer behind a Flatten."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 2, (2, 3), padding=1),
        activations[0],
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False),
        activations[1],
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()


def data(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(n, 6, generator=generator, dtype=DOUBLE),
        2 * torch.randn(n, 3, generator=generator, dtype=DOUBLE),
    )


def weights(method: B.Method) -> list[Tensor]:
    return [layer.affine.weights() for layer in method.chain.layers]


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(left, right, strict=True))


SETTINGS: dict[str, Any] = {"mu": 0.8, "rho": (1.0, 1.5, 2.0), "ridge": (3.0, 0.5, 0.1), "tau_m": 0.7}


def scattered(network: nn.Sequential, loss: OutputLoss | None = None, **settings: Any) -> tuple[Badmm, _Batch]:
    """A method and a batch whose auxiliary variables are random, inside the domains of the activations."""
    x, y = data()
    method = Badmm(B.Chain(network), loss or B.SquaredError(), **{**SETTINGS, **settings})
    samples = method.start(x, y)
    for name, value in samples.items():
        samples[name] = value + torch.randn_like(value)
    for i, layer in enumerate(method.chain.layers[:-1], 1):
        p = samples.get(f"p{i}", torch.randn_like(samples[f"x{i}"]))
        samples[f"x{i}"] = layer.activation(p)
    with torch.no_grad():
        return method, _Batch(method, samples, x, y)


def pre(method: Badmm, batch: _Batch, i: int) -> Tensor:
    """u of layer i, by the module."""
    affine = method.chain.layers[i].affine
    return affine.module(affine.reshaped(batch.x[i]))


def lagrangian(method: Badmm, x: list[Tensor], z: list[Tensor], m: list[Tensor], y: Tensor) -> Tensor:
    """The augmented Lagrangian as the module's docstring has it."""
    total = method.loss.value(z[-1], y).sum()
    for i, layer in enumerate(method.chain.layers):
        u = layer.affine.module(layer.affine.reshaped(x[i]))
        total = total + (m[i] * (z[i] - u)).sum() + method.rho[i] / 2 * (z[i] - u).square().sum()
        if i < len(z) - 1:
            total = total + method.mu * layer.activation.loss(x[i + 1], z[i]).sum()
        for parameter in layer.affine.module.parameters():
            total = total + method.ridge[i] / 2 * parameter.square().sum()
    return total


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of a scalar function."""
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


def golden(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Minimizers of convex functions of one variable each, by the golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(120):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        lower = function(left) < function(right)
        low, high = torch.where(lower, low, left), torch.where(lower, right, high)
    return (low + high) / 2


NETWORKS = {"dense": dense, "conv": conv}
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float, float]] = {
    "relu": (nn.ReLU, 0.0, 100.0),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), -100.0, 100.0),
    "softshrink": (lambda: nn.Softshrink(0.3), -100.0, 100.0),
    "hardtanh": (nn.Hardtanh, -1.0, 1.0),
    "tanh": (nn.Tanh, -1.0, 1.0),
    "sigmoid": (nn.Sigmoid, 0.0, 1.0),
    "elu": (nn.ELU, -1.0, 100.0),
    "identity": (nn.Identity, -100.0, 100.0),
}


# ---------------------------------------------------------------------------------------------------------- the Z-step
@pytest.mark.parametrize("network", NETWORKS)
def test_the_exact_z_step_minimizes_the_lagrangian(network: str):
    method, batch = scattered(NETWORKS[network](nn.ReLU(), nn.ReLU()), z_step="exact")
    with torch.no_grad():
        _BLOCKS["Z"](batch)
    for i, z in enumerate(batch.z):
        others = list(batch.z)
        found = slope(lambda v: lagrangian(method, batch.x, [*others[:i], v, *others[i + 1 :]], batch.m, batch.y), z)
        assert float(found.abs().max()) < 1e-11


@pytest.mark.parametrize("loss", [B.SquaredError(), B.SquaredError(2.0)])
def test_the_output_z_step_minimizes_the_lagrangian_where_the_loss_has_a_prox(loss: OutputLoss):
    method, batch = scattered(dense(nn.Tanh(), nn.ReLU()), loss, z_step="gradient")
    with torch.no_grad():
        batch.step_z(2)
    found = slope(lambda v: lagrangian(method, batch.x, [*batch.z[:-1], v], batch.m, batch.y), batch.z[-1])
    assert float(found.abs().max()) < 1e-11


@pytest.mark.parametrize("z_step", ["linearized", "gradient", "bregman"])
@pytest.mark.parametrize("network", NETWORKS)
def test_inexact_z_steps_minimize_their_models(network: str, z_step: Any):
    method, batch = scattered(NETWORKS[network](nn.ELU(), nn.Softshrink(0.2)), z_step=z_step, tau_z=1.3)
    before, u = [z.clone() for z in batch.z], [pre(method, batch, i).detach() for i in range(3)]
    with torch.no_grad():
        _BLOCKS["Z"](batch)
    t = 1.3 / method.mu
    for i in range(2):
        activation, x, m, rho = method.chain.layers[i].activation, batch.x[i + 1], batch.m[i], method.rho[i]
        centre = u[i] if z_step == "bregman" else before[i]
        of_h_star = method.mu * activation(centre)

        def model(v: Tensor) -> Tensor:
            """B and the multiplier, a Bregman distance of 1/(2t) ||.||^2 - mu h* from the centre, the penalty."""
            near = (v - centre).square().sum() / (2 * t)
            near = near - (method.mu * activation.h_star(v) - of_h_star * v).sum()
            value = method.mu * activation.loss(x, v).sum() + (m * v).sum() + near
            return value + rho / 2 * (v - u[i]).square().sum() if z_step == "linearized" else value

        assert float(slope(model, batch.z[i]).abs().max()) < 1e-11


def test_the_output_z_step_of_other_losses_is_linearized():
    loss = B.CrossEntropy()
    method, batch = scattered(dense(nn.ReLU(), nn.ReLU()), B.SquaredError(), tau_z=1.7)
    method.loss, batch.y = loss, torch.nn.functional.one_hot(torch.arange(N) % 3).double()
    z, u = batch.z[2].clone(), pre(method, batch, 2).detach()
    with torch.no_grad():
        batch.step_z(2)

    def model(v: Tensor) -> Tensor:
        value = (loss.gradient(z, batch.y) * v).sum() + loss.lipschitz / (2 * 1.7) * (v - z).square().sum()
        return value + (batch.m[2] * v).sum() + method.rho[2] / 2 * (v - u).square().sum()

    assert float(slope(model, batch.z[2]).abs().max()) < 1e-11


# ---------------------------------------------------------------------------------------------------------- the X-step
def coupling(method: Badmm, batch: _Batch, i: int) -> Tensor:
    """The gradient in the input of layer i of <m, z - u> + rho/2 ||z - u||^2, by autograd."""
    affine, z, m, rho = method.chain.layers[i].affine, batch.z[i], batch.m[i], method.rho[i]

    def part(x: Tensor) -> Tensor:
        r = z - affine.module(affine.reshaped(x))
        return (m * r).sum() + rho / 2 * r.square().sum()

    return slope(part, batch.x[i])


@torch.no_grad()
def inverse_step(method: Badmm, batch: _Batch, i: int) -> float:
    """1 / t of the input of layer i."""
    return method.rho[i] * float(method.chain.layers[i].affine.squared_norm(batch.x[i])) / method.tau_x


@pytest.mark.parametrize("x_step", ["prox", "mirror"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_x_steps_minimize_their_models(name: str, x_step: Any):
    """Linearized coupling, mu B, and a distance: squares from x for the prox step, B from p for the mirror step."""
    make, low, high = ACTIVATIONS[name]
    for network in NETWORKS.values():
        method, batch = scattered(network(make(), make()), x_step=x_step, tau_x=1.6)
        gradients = [coupling(method, batch, i) for i in (1, 2)]
        inverse = [inverse_step(method, batch, i) for i in (1, 2)]
        before = [batch.x[i].clone() for i in (1, 2)]
        mirrors = [batch._samples[f"p{i}"].clone() for i in (1, 2) if x_step == "mirror"]
        with torch.no_grad():
            _BLOCKS["X"](batch)
        for i in (0, 1):
            activation, z = method.chain.layers[i].activation, batch.z[i]

            def model(x: Tensor) -> Tensor:
                value = gradients[i] * x + method.mu * (activation.h(x) - x * z)
                if x_step == "mirror":
                    return value + inverse[i] * (activation.h(x) - x * mirrors[i])
                return value + inverse[i] / 2 * (x - before[i]).square()

            expected = golden(model, torch.full_like(z, low), torch.full_like(z, high))
            torch.testing.assert_close(batch.x[i + 1], expected, rtol=1e-6, atol=1e-6)
            if x_step == "mirror":
                torch.testing.assert_close(batch.x[i + 1], activation(batch._samples[f"p{i + 1}"]), rtol=0, atol=0)


def test_the_mirror_step_of_softmax_minimizes_its_model_on_the_simplex():
    method, batch = scattered(dense(nn.Softmax(-1), nn.Softmax(-1)))
    gradient, inverse = coupling(method, batch, 1), inverse_step(method, batch, 1)
    p, z, softmax = batch._samples["p1"].clone(), batch.z[0], method.chain.layers[0].activation
    with torch.no_grad():
        batch.step_x(1)

    def model(x: Tensor) -> Tensor:
        return (gradient * x).sum() + method.mu * softmax.loss(x, z).sum() + inverse * softmax.loss(x, p).sum()

    found = slope(model, batch.x[1])  # at the minimizer it is normal to the simplex
    torch.testing.assert_close(batch.x[1].sum(1), torch.ones(N, dtype=DOUBLE))
    assert float((found - found.mean(1, keepdim=True)).abs().max()) < 1e-9


@pytest.mark.parametrize("x_step", ["prox", "mirror"])
@pytest.mark.parametrize("network", NETWORKS)
def test_x_steps_lower_the_lagrangian(network: str, x_step: Any):
    """prox for every tau_x below 2; the mirror step as h is 1-strongly convex, for tau_x up to 1."""
    tau = 1.99 if x_step == "prox" else 1.0
    method, batch = scattered(NETWORKS[network](nn.ReLU(), nn.LeakyReLU(0.5)), x_step=x_step, tau_x=tau)
    if x_step == "mirror":
        for i in (1, 2):
            batch._samples[f"p{i}"].copy_(torch.randn_like(batch.x[i]))
            batch.set_x(i, method.chain.layers[i - 1].activation(batch._samples[f"p{i}"]))
    with torch.no_grad():
        for _ in range(30):
            before = lagrangian(method, batch.x, batch.z, batch.m, batch.y)
            _BLOCKS["X"](batch)
            assert lagrangian(method, batch.x, batch.z, batch.m, batch.y) <= before * (1 + 1e-13)


# ----------------------------------------------------------------------------------------------- the W-step, the M-step
def run_blocks(method: Badmm, batch: _Batch, x: Tensor, y: Tensor) -> None:
    """The W-step at the batch as it is: a method whose order begins with W."""
    method.before, method.after = "", "XZM"
    method.iterate(batch._samples, x, y)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_exact_w_step_minimizes_the_lagrangian(network: str, few: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(method_module, "PSEUDOINVERSE_UP_TO", 4 if few else 0)
    method, batch = scattered(NETWORKS[network](nn.ReLU(), nn.Tanh()))
    run_blocks(method, batch, *data())
    assert (method._pseudoinverse is not None) == (few and network == "dense")
    value = lagrangian(method, batch.x, batch.z, batch.m, batch.y)
    for found in torch.autograd.grad(value, list(method.chain.parameters())):
        assert float(found.abs().max()) < 1e-10


def test_the_exact_w_step_is_least_squares():
    method, batch = scattered(dense(nn.ReLU(), nn.Tanh()))
    x, y = data()
    run_blocks(method, batch, x, y)
    for i, layer in enumerate(method.chain.layers):
        a = torch.cat([batch.x[i], torch.ones(N, 1, dtype=DOUBLE)], 1) if layer.affine.has_bias else batch.x[i]
        rho, ridge = method.rho[i], method.ridge[i]
        left = torch.cat([math.sqrt(rho) * a, math.sqrt(ridge) * torch.eye(a.shape[1], dtype=DOUBLE)])
        right = math.sqrt(rho) * (batch.z[i] + batch.m[i] / rho)
        right = torch.cat([right, right.new_zeros(a.shape[1], right.shape[1])])
        expected = torch.linalg.lstsq(left, right).solution.mT
        torch.testing.assert_close(layer.affine.weights()[0], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_gradient_w_step(network: str):
    method, batch = scattered(NETWORKS[network](nn.ReLU(), nn.ReLU()), w_step="gradient", tau_w=1.4)
    value = lagrangian(method, batch.x, batch.z, batch.m, batch.y)
    slopes = iter(torch.autograd.grad(value, list(method.chain.parameters())))
    expected = []
    for i, layer in enumerate(method.chain.layers):
        affine = layer.affine
        groups, out, _ = affine.shape
        parts = [next(slopes).reshape(groups, out, -1) for _ in affine.module.parameters()]
        norms = torch.linalg.matrix_norm(affine.gram(batch.x[i]), 2)[:, None, None]
        expected.append(affine.weights() - 1.4 / (method.rho[i] * norms + method.ridge[i]) * torch.cat(parts, 2))
    run_blocks(method, batch, *data())
    assert distance(weights(method), expected) < 1e-12


def test_the_m_step():
    method, batch = scattered(conv(nn.ReLU(), nn.ReLU()))
    with torch.no_grad():
        expected = [batch.m[i] + 0.7 * method.rho[i] * (batch.z[i] - pre(method, batch, i)) for i in range(3)]
        _BLOCKS["M"](batch)
    assert distance(batch.m, expected) < 1e-13


# --------------------------------------------------------------------------------------------------- whole iterations
class Plain:
    """BADMM of linear layers, written down with augmented matrices; nothing is kept that could be computed anew."""

    def __init__(self, method: Badmm, x: Tensor, y: Tensor) -> None:
        self.settings, self.sigmas = method, [layer.activation for layer in method.chain.layers[:-1]]
        self.biased = [layer.affine.has_bias for layer in method.chain.layers]
        self.v = [layer.affine.weights()[0] for layer in method.chain.layers]
        self.y, self.x, self.z = method.loss.targets(y, y), [x], []
        for i in range(len(self.v)):
            self.z.append(self.u(i))
            if i < len(self.sigmas):
                self.x.append(self.sigmas[i](self.z[i]))
        self.m = [torch.zeros_like(z) for z in self.z]
        self.p = [z.clone() for z in self.z]

    def a(self, i: int) -> Tensor:
        return torch.cat([self.x[i], torch.ones(len(self.x[i]), 1, dtype=DOUBLE)], 1) if self.biased[i] else self.x[i]

    def u(self, i: int) -> Tensor:
        return self.a(i) @ self.v[i].mT

    def iterate(self, order: str) -> None:
        layers = range(len(self.v))
        for block in order:
            if block == "x":
                for i in reversed(layers):
                    self.step_z(i)
                    if i:
                        self.step_x(i)
            elif block == "X":
                for i in layers[1:]:
                    self.step_x(i)
            else:
                for i in layers:
                    {"Z": self.step_z, "W": self.step_w, "M": self.step_m}[block](i)

    def step_z(self, i: int) -> None:
        s, z, u, m, rho = self.settings, self.z[i], self.u(i), self.m[i], self.settings.rho[i]
        if i == len(self.z) - 1:
            if s.loss.is_quadratic:
                self.z[i] = (s.loss.lipschitz * self.y + rho * u - m) / (s.loss.lipschitz + rho)
            else:
                t = s.tau_z / s.loss.lipschitz
                self.z[i] = (z / t - s.loss.gradient(z, self.y) - m + rho * u) / (1 / t + rho)
            return
        t, sigma, x = s.tau_z / s.mu, self.sigmas[i], self.x[i + 1]
        if s.z_step == "linearized":
            self.z[i] = (z / t - s.mu * (sigma(z) - x) - m + rho * u) / (1 / t + rho)
        elif s.z_step == "gradient":
            self.z[i] = z - t * (s.mu * (sigma(z) - x) + m)
        elif s.z_step == "bregman":
            self.z[i] = u - t * (s.mu * (sigma(u) - x) + m)
        else:
            c = s.mu * x - m + rho * u
            self.z[i] = c.clamp(min=0) / (s.mu + rho) + c.clamp(max=0) / rho

    def step_x(self, i: int) -> None:
        s, rho, w = self.settings, self.settings.rho[i], self.v[i][:, : self.x[i].shape[1]]
        dense = nn.Linear(w.shape[1], w.shape[0]).double()
        dense.weight.data = w
        with torch.no_grad():
            norm = float(B.Chain(dense).layers[0].affine.squared_norm(self.x[i]))
        t = s.tau_x / (rho * norm)
        pulled = s.mu * self.z[i - 1] + (self.m[i] + rho * (self.z[i] - self.u(i))) @ w
        if s.mirrors[i - 1]:
            self.p[i - 1] = (self.p[i - 1] / t + pulled) / (1 / t + s.mu)
            self.x[i] = self.sigmas[i - 1](self.p[i - 1])
        else:
            d = 1 / t + s.mu
            self.x[i] = self.sigmas[i - 1].prox((self.x[i] / t + pulled) / d, s.mu / d)

    def step_w(self, i: int) -> None:
        s, rho, a = self.settings, self.settings.rho[i], self.a(i)
        target, unit = self.z[i] + self.m[i] / rho, torch.eye(a.shape[1], dtype=DOUBLE)
        if s.w_step == "exact":
            self.v[i] = torch.linalg.solve(rho * a.mT @ a + s.ridge[i] * unit, rho * a.mT @ target).mT
        else:
            curvature = rho * torch.linalg.matrix_norm(a, 2) ** 2 + s.ridge[i]
            slope = rho * (self.u(i) - target).mT @ a + s.ridge[i] * self.v[i]
            self.v[i] = self.v[i] - s.tau_w / curvature * slope

    def step_m(self, i: int) -> None:
        self.m[i] = self.m[i] + self.settings.tau_m * self.settings.rho[i] * (self.z[i] - self.u(i))


VARIANTS: dict[str, dict[str, Any]] = {
    "linearized": {},
    "gradient": {"z_step": "gradient", "ridge": 30.0},
    "bregman": {"z_step": "bregman", "ridge": 30.0},
    "exact": {"z_step": "exact"},
    "mirror": {"x_step": "mirror", "tau_x": 1.0},
    "gradient_w": {"w_step": "gradient", "tau_m": 0.0},
    "cross_entropy": {"loss": B.CrossEntropy(), "tau_z": 1.4},
    "softmax": {"activations": (nn.Softmax(-1), nn.ELU()), "tau_x": 1.0},
}


def built(variant: str, **settings: Any) -> tuple[Badmm, Tensor, Tensor]:
    """A method and its data."""
    x, y = data()
    given = {**SETTINGS, **VARIANTS[variant], **settings}
    loss = given.pop("loss", B.SquaredError())
    network = dense(*given.pop("activations", (nn.ReLU(), nn.ReLU())))
    return Badmm(B.Chain(network), loss, **given), x, (y.softmax(1) if isinstance(loss, B.CrossEntropy) else y)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", ORDERS)
def test_iterations_are_those_written_down_plainly(variant: str, order: str):
    method, x, y = built(variant, order=order)
    plain, samples = Plain(method, x, y), method.start(x, y)
    for k in range(8):
        method.monitored = k % 3 == 0
        method.iterate(samples, x, y)
        plain.iterate(order)
        assert distance([each[0] for each in weights(method)], plain.v) < 1e-11
    assert method.iteration == 8
    if order.endswith("W"):  # nothing is deferred
        found = [[samples[f"{name}{i + 1}"] for i in range(3)] for name in "zm"]
        assert distance(found[0], plain.z) < 1e-10
        assert distance(found[1], plain.m) < 1e-10
        assert distance([samples["x1"], samples["x2"]], plain.x[1:]) < 1e-10


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("order", ORDERS)
def test_an_iteration_in_pieces_is_the_whole(network: str, order: str):
    x, y = data()
    whole = Badmm(B.Chain(NETWORKS[network](nn.ReLU(), nn.ELU())), B.SquaredError(), order=order, **SETTINGS)
    pieces = Badmm(B.Chain(NETWORKS[network](nn.ReLU(), nn.ELU())), B.SquaredError(), order=order, **SETTINGS)
    samples, cuts = whole.start(x, y), [0, 5, 5, 6, 17, N]  # an empty piece among them
    parts = [slice(low, high) for low, high in itertools.pairwise(cuts)]
    shares = [pieces.start(x[part], y[part]) for part in parts]
    for k in range(8):
        whole.monitored = pieces.monitored = k % 2 == 1
        whole.iterate(samples, x, y)
        for share, part in zip(shares, parts, strict=True):
            pieces.piece(share, x[part], y[part])
        pieces.update()
        assert distance(weights(pieces), weights(whole)) < 1e-11
        assert pieces.count == whole.count == N
        for name, figure in whole.figures.items():
            torch.testing.assert_close(pieces.figures[name], figure, rtol=1e-9, atol=1e-11)
    for name, value in samples.items():
        torch.testing.assert_close(torch.cat([share[name] for share in shares]), value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", ["XZWM", "xWM"])
def test_the_pseudoinverse_changes_nothing(order: str, monkeypatch: pytest.MonkeyPatch):
    found = []
    for most in (4, 0):
        monkeypatch.setattr(method_module, "PSEUDOINVERSE_UP_TO", most)
        method, x, y = built("linearized", order=order)
        samples = method.start(x, y)
        for _ in range(8):
            method.iterate(samples, x, y)
        assert (method._pseudoinverse is None) == (most == 0)
        found.append(weights(method))
    assert distance(*found) < 1e-11


def test_targets_and_inputs_stay_as_they_are():
    for variant in VARIANTS:
        method, x, y = built(variant)
        kept, samples = (x.clone(), y.clone()), method.start(x, y)
        for _ in range(3):
            method.iterate(samples, x, y)
        assert torch.equal(x, kept[0])
        assert torch.equal(y, kept[1])


# ----------------------------------------------------------------------------------------------------------- monitors
def test_monitors_change_no_bit():
    found = []
    for monitored in (True, False):
        method = Badmm(B.Chain(conv(nn.ReLU(), nn.Tanh())), B.SquaredError(), **SETTINGS)
        x, y = data()
        samples, method.monitored = method.start(x, y), monitored
        for _ in range(5):
            method.iterate(samples, x, y)
        found.append([*weights(method), *samples.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@torch.no_grad()
def test_monitors_say_what_they_claim():
    network = dense(nn.ReLU(), nn.Tanh())
    method, (x, y) = Badmm(B.Chain(network), B.SquaredError(), **{**SETTINGS, "order": "ZXMW"}), data()
    samples = method.start(x, y)
    earlier = None
    for k in range(4):
        before = {name: value.clone() for name, value in samples.items()}
        z = [before[f"z{i}"] for i in (1, 2, 3)]
        u = [layer.affine(a) for layer, a in zip(method.chain.layers, (x, before["x1"], before["x2"]), strict=True)]
        objective = 0.5 * (z[2] - y).square().sum()
        for i, activation in enumerate([layer.activation for layer in method.chain.layers[:2]]):
            objective = objective + method.mu * activation.loss(before[f"x{i + 1}"], z[i]).sum()
        for ridge, v in zip(method.ridge, weights(method), strict=True):
            objective = objective + ridge / 2 * v.square().sum()
        loss = 0.5 * (network(x) - y).square().sum(1).mean()
        gaps = {
            f"gap/{2 * i}": (before[f"x{i + 1}"] - layer.activation(z[i])).square().sum(1).mean().sqrt()
            for i, layer in enumerate(method.chain.layers[:2])
        }
        method.monitored = True
        method.iterate(samples, x, y)
        figures = method.figures
        torch.testing.assert_close(figures["objective"], objective.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(figures["loss"], loss.detach(), rtol=1e-12, atol=1e-12)
        for name, gap in gaps.items():
            torch.testing.assert_close(figures[name], gap.detach(), rtol=1e-12, atol=1e-12)
        primal = max(float((a - b).norm() / max(a.norm(), b.norm())) for a, b in zip(z, u, strict=True))
        assert float(figures["primal_residual"]) == pytest.approx(primal, rel=1e-12)
        moves = [
            rho * float((samples[f"z{i}"] - old).norm() / max(before[f"m{i}"].norm(), rho * old.norm()))
            for i, rho, old in zip((1, 2, 3), method.rho, z, strict=True)
        ]
        assert float(figures["dual_residual"]) == pytest.approx(max(moves), rel=1e-12)
        if k:
            change = float(figures["objective"]) / earlier - 1
            assert float(figures["objective_change"]) == pytest.approx(change, rel=1e-9)
        else:
            assert "objective_change" not in figures
        earlier = float(figures["objective"])


# ----------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: value}, f"{name} must lie in") for name in ("tau_x", "tau_z", "tau_w") for value in (0.0, 2.0, -1.0)),
        *(({"tau_m": value}, "tau_m must lie in") for value in (-0.1, 2.0)),
        ({"tau_x": math.nan}, "tau_x must lie in"),
        ({"mu": 0.0}, "mu must be > 0"),
        ({"mu": -1.0}, "mu must be > 0"),
        ({"rho": 0.0}, "rho must be > 0"),
        ({"rho": (1.0, -1.0)}, "rho must be > 0"),
        ({"ridge": -1.0}, "ridge must be >= 0"),
        ({"ridge": (1.0, math.nan)}, "ridge must be >= 0"),
        ({"ridge": (1.0, 1.0, 1.0, 1.0)}, "ridge has 4 values, the network 3 affine layers"),
        ({"ridge": ()}, "ridge has 0 values"),
        ({"rho": (1.0,) * 4}, "rho has 4 values"),
        *(({"order": order}, "order must hold") for order in ("", "XZW", "XZWMM", "xXWM", "XZwM", "xWZM", "XZWXM")),
        ({"z_step": "newton"}, "z_step must be one of linearized"),
        ({"x_step": "newton"}, "x_step must be one of auto"),
        ({"w_step": "newton"}, "w_step must be one of exact"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Badmm(B.Chain(dense(nn.ReLU(), nn.ReLU())), B.SquaredError(), **settings)


def test_settings_at_the_edge_are_accepted():
    chain = B.Chain(dense(nn.ReLU(), nn.ReLU()))
    method = Badmm(chain, B.SquaredError(), tau_m=0.0, ridge=0, rho=[1.0, 2.0], mu=10.0, tau_z=1.99)
    assert method.rho == [1.0, 2.0, 2.0]
    assert method.ridge == [0.0, 0.0, 0.0]
    single = Badmm(B.Chain(nn.Linear(2, 2)), B.SquaredError(), ridge=(100.0, 1.0))  # a pair fits every network
    assert single.ridge == [100.0]


def test_variants_that_an_activation_has_not_are_refused():
    for sigma in (nn.Tanh(), nn.LeakyReLU(), nn.Identity()):
        with pytest.raises(NotSupportedError, match="exact Z-step is built for ReLU alone, the network has"):
            Badmm(B.Chain(dense(nn.ReLU(), sigma)), B.SquaredError(), z_step="exact")
    with pytest.raises(NotSupportedError, match="Softmax has no prox X-step; set x_step='mirror' or 'auto'"):
        Badmm(B.Chain(dense(nn.Softmax(-1), nn.ReLU())), B.SquaredError(), x_step="prox")
    auto = Badmm(B.Chain(dense(nn.Softmax(-1), nn.ReLU())), B.SquaredError())
    assert auto.mirrors == [True, False]


def test_monitors_of_zeros_are_finite():
    network = dense(nn.ReLU(), nn.ReLU())
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    method, (x, y) = Badmm(B.Chain(network), B.SquaredError(), tau_m=0.0), data()
    samples, method.monitored = method.start(x, y), True
    for _ in range(3):
        method.iterate(samples, x, y)
        assert all(figure.isfinite() for figure in method.figures.values())
    assert float(method.figures["dual_residual"]) < 1  # without multipliers too


def test_a_single_layer_is_ridge_regression():
    """z and m of one layer: with squared error the fixed point of the iteration is the minimizer of the loss."""
    x, y = data()
    network = nn.Sequential(nn.Linear(6, 3)).double()
    method = Badmm(B.Chain(network), B.SquaredError(), ridge=2.0)
    samples = method.start(x, y)
    for _ in range(60):
        method.iterate(samples, x, y)
    a = torch.cat([x, torch.ones(N, 1, dtype=DOUBLE)], 1)
    expected = torch.linalg.solve(a.mT @ a + 2 * torch.eye(7, dtype=DOUBLE), a.mT @ y).mT
    torch.testing.assert_close(weights(method)[0][0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("order", ["XZWM", "xWM"])
def test_cuda_computes_what_the_cpu_does(network: str, order: str):
    found = []
    for device in ("cpu", "cuda"):
        module = NETWORKS[network](nn.ReLU(), nn.Tanh()).to(device)
        method = Badmm(B.Chain(module), B.SquaredError(), order=order, **SETTINGS)
        x, y = (each.to(device) for each in data())
        samples, method.monitored = method.start(x, y), True
        for _ in range(10):
            method.iterate(samples, x, y)
        assert all(value.device.type == device for value in samples.values())
        found.append([each.cpu() for each in [*weights(method), *samples.values(), *method.figures.values()]])
    assert distance(found[1], found[0]) < 1e-10
