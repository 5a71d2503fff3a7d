"""From modules to proximal activations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.bregman import Clamp, ProximalActivation, ReLU, SoftShrink, Spline, Tanh, proximal
from morphlightning.errors import NotSupportedError
from morphlightning.interfaces import Proximal
from morphlightning.layers import Dilation

ACCEPTED = [
    nn.Identity(),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(0.0),
    nn.LeakyReLU(1.0),
    nn.PReLU(init=0.3),
    nn.Softshrink(0.3),
    nn.Hardtanh(-0.7, 2.0),
    nn.Hardsigmoid(),
    nn.Threshold(0.4, 0.4),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.ELU(),
    nn.ELU(0.4),
    nn.ELU(0.0),
    nn.CELU(1.7),
    nn.CELU(0.3),
    nn.Softmax(dim=-1),
    nn.Softmax(dim=1),
    nn.Softmax2d(),
]


@pytest.mark.parametrize("module", ACCEPTED, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_accepted_modules(module: nn.Module, dtype: torch.dtype) -> None:
    z = (3 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)
    expected = module.to(dtype)(z.clone()).detach()
    sigma = proximal(module)
    seen = sigma(z)
    assert seen.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(seen, expected, rtol=2 * eps, atol=2 * eps)
    assert sigma.loss(seen, z).isfinite().all()


def test_alike_to_the_bit() -> None:
    z = 3 * torch.randn(1000)
    for module in (nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Softshrink(0.3), nn.Tanh(), nn.Sigmoid()):
        assert torch.equal(proximal(module)(z), module(z))


def test_a_proximal_activation_is_returned_as_it_is() -> None:
    sigma = Tanh()
    assert proximal(sigma) is sigma


def test_a_slope_is_read_at_the_call() -> None:
    module = nn.PReLU(init=0.5)
    before = proximal(module)
    with torch.no_grad():
        module.weight.fill_(0.25)
    z = torch.tensor([-4.0])
    assert (before(z).item(), proximal(module)(z).item()) == (-2.0, -1.0)


class Softplus(nn.Softplus):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


class Doubled(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * input.relu()


class Halved(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return input.relu() / 2

    def proximal(self) -> ProximalActivation:
        return Spline(torch.tensor([0.0, 0.0, 0.5]), 1.0)


class Wrong(nn.Module):
    def proximal(self) -> str:
        return "relu"


REFUSED = [
    (nn.GELU(), "GELU cannot be used here: it is not monotone"),
    (nn.SiLU(), "SiLU .* not monotone"),
    (nn.Mish(), "Mish .* not monotone"),
    (nn.Hardswish(), "Hardswish .* not monotone"),
    (nn.LeakyReLU(-0.1), "negative slope -0.1 it is not monotone"),
    (nn.PReLU(init=-0.25), "negative slope -0.25 it is not monotone"),
    (nn.ELU(-1.0), "alpha=-1 it is not monotone"),
    (nn.SELU(), "Lipschitz constant is 1.7581, above 1; divided by that, it would be proximal"),
    (nn.ELU(1.5), "Lipschitz constant is 1.5, above 1; divided"),
    (nn.LeakyReLU(3.0), "Lipschitz constant is 3, above 1; divided"),
    (nn.PReLU(init=2.0), "Lipschitz constant is 2, above 1; divided"),
    (nn.PReLU(4), "4 slopes, expected one"),
    (nn.CELU(-2.0), "alpha is -2, expected a positive one"),
    (nn.Hardshrink(), "Hardshrink .* not continuous"),
    (nn.Threshold(0.5, 0.0), "Threshold .* not continuous"),
    (nn.Softplus(), "is proximal, but its h .* subclass of morphlightning.bregman.SmoothActivation"),
    (nn.LogSigmoid(), "is proximal, but its h"),
    (nn.Tanhshrink(), "is proximal, but its h"),
    (nn.Softsign(), "is proximal, but its h"),
    (nn.RReLU(), "random in training"),
    (nn.Softmin(dim=1), "falls where it should rise"),
    (nn.Softmax(), "dim is None, expected an axis of a sample"),
    (nn.Softmax(dim=0), "dim is 0, expected an axis of a sample"),
    (Doubled(), "overrides ReLU.forward: let a method proximal"),
    (Wrong(), r"its proximal\(\) returned str"),
    (nn.Dropout(), "Dropout cannot be used here: it is not an activation"),
    (nn.BatchNorm1d(3), "not an activation"),
    (nn.MaxPool2d(2), "not an activation"),
    (nn.MultiheadAttention(4, 2), "not an activation"),
    (nn.LogSoftmax(dim=1), "not an activation"),
    (nn.Linear(2, 2), "not an activation"),
    (Dilation(2, 2), "Dilation cannot be used here: it is not an activation"),
    (torch.relu, "not an activation"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=lambda part: type(part).__name__)
def test_refused_modules(module: object, message: str) -> None:
    with pytest.raises(NotSupportedError, match=message):
        proximal(module)


def test_what_is_said_of_steep_functions_holds() -> None:
    """The constants named are the largest slopes, and divided by them the functions are 1-Lipschitz and monotone."""
    z = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    for module, constant in ((nn.SELU(), 1.7581), (nn.ELU(1.5), 1.5), (nn.LeakyReLU(3.0), 3.0)):
        slopes = module(z).diff() / z.diff()
        assert slopes.max().item() == pytest.approx(constant, rel=2e-4)
        assert slopes.min() >= 0
    for module in (nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish()):
        assert module(z).diff().min() < 0


def test_subclasses_are_what_they_inherit_unless_they_override_it() -> None:
    assert isinstance(proximal(registry.build("activations", "relu")), ReLU)
    assert isinstance(proximal(nn.ReLU6()), Clamp)
    assert proximal(Halved())(torch.tensor([3.0])).item() == 1.5
    with pytest.raises(NotSupportedError, match=r"overrides Softplus.forward"):
        proximal(Softplus())


# -------------------------------------------------------------------------------------------------- capability
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize(("shape", "channel_dim"), [((8, 3), 1), ((2, 3, 4, 4), 1), ((2, 5, 3), -1)])
@pytest.mark.parametrize("name", ["linear_spline", "soft_threshold"])
def test_plugins(name: str, shape: tuple[int, ...], channel_dim: int, channels: int | None) -> None:
    module = registry.build("activations", name, channels=channels, channel_dim=channel_dim)
    with torch.no_grad():
        if name == "linear_spline":
            slopes = torch.rand(channels or 1, 50, generator=torch.Generator().manual_seed(0))
            module.values.copy_(nn.functional.pad(slopes.cumsum(1) * 6 / 50, (1, 0)) - 1.5)
        else:
            module.threshold.copy_(torch.linspace(0.1, 0.5, channels or 1))
    assert isinstance(module, Proximal)
    sigma = proximal(module)
    assert isinstance(sigma, Spline if name == "linear_spline" else SoftShrink)
    z = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sigma(z), module(z).detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sigma.loss(module(z).detach(), z), torch.zeros(shape[0]), rtol=0, atol=1e-3)
    before = sigma(z)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    assert torch.equal(sigma(z), before)


def test_a_spline_that_is_not_monotone_is_refused() -> None:
    with pytest.raises(NotSupportedError, match=r"slope of piece \d+ of channel 0 is -1,"):
        proximal(registry.build("activations", {"name": "linear_spline", "init": "absolute"}))
    assert not isinstance(nn.ReLU(), Proximal)
    leaky = proximal(registry.build("activations", {"name": "linear_spline", "init": "leaky_relu", "knots": 3}))
    assert leaky.h(torch.tensor([-0.01])).item() == pytest.approx(0.005, rel=1e-5)
    assert math.isfinite(leaky.h(torch.tensor([-5.0])).item())
