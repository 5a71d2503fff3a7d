"""The smooth activation of residual flows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from morphlightning.errors import ConfigError
from morphlightning.flows import InvertibleResidual, QuadraticSpline
from morphlightning.lipschitz import LipschitzNetwork, lipschitz_spec
from morphlightning.splines import LinearSpline


def random_spline(channels: int = 3) -> QuadraticSpline:
    spline = QuadraticSpline(channels, knots=7).double()
    with torch.no_grad():
        spline.slopes.copy_(3 * torch.randn_like(spline.slopes))
    return spline


def test_it_is_the_integral_of_a_linear_spline_with_values_in_the_unit_ball() -> None:
    spline = random_spline()
    x = torch.tensor([-9.0, -3.5, -1.2, 0.0, 0.4, 2.9, 7.0], dtype=torch.float64)
    found = spline(x[:, None].expand(-1, 3))
    knots = np.linspace(-3, 3, 7)
    for channel, slopes in enumerate(spline.slopes.detach().clamp(-1, 1).numpy()):
        for end, value in zip(x.tolist(), found[:, channel].tolist(), strict=True):
            inner = [t for t in knots if min(end, 0) < t < max(end, 0)]
            expected = quad(lambda t, s=slopes: float(np.interp(t, knots, s)), 0, end, points=inner or None)[0]
            assert value == pytest.approx(expected, abs=1e-8)


def test_it_is_1_lipschitz_and_certified() -> None:
    spline = random_spline(1)
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)[:, None]
    assert spline(x).diff(dim=0).abs().max() <= 0.012 * (1 + 1e-12)
    assert lipschitz_spec(spline).constant == 1
    network = LipschitzNetwork((2,), (8,), 2, activation=QuadraticSpline)
    assert network.lipschitz_spec().constant <= 1 + 1e-6


def test_it_starts_as_a_smooth_relu() -> None:
    y = QuadraticSpline(1)(torch.tensor([[-5.0], [-1.0], [0.0], [1.0], [5.0]]))
    assert y.flatten().tolist() == pytest.approx([-0.25, -0.25, 0.0, 0.75, 4.75])


def test_derivatives_and_the_axis_of_channels() -> None:
    spline, x = random_spline(), torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spline, x)
    assert torch.autograd.gradgradcheck(spline, x)
    moved = QuadraticSpline(3, channel_dim=1, knots=7).double()
    moved.load_state_dict(spline.state_dict())
    torch.testing.assert_close(moved(x.transpose(1, 2)), spline(x).transpose(1, 2))


@pytest.mark.parametrize("kind", ["quadratic", "linear"])
def test_why_it_is_smooth(kind: str) -> None:
    """The mean log-determinant over points that are moved: its derivative by finite differences, and by autograd.

    Points that cross a knot change the mean; a slope that is piecewise constant does not tell autograd.
    """
    branch: Any = QuadraticSpline(1, knots=7)
    if kind == "linear":
        branch = LinearSpline(1, knots=7, init="relu", constraint="lipschitz")
    residual = InvertibleResidual(1, branch, 0.9).double()
    x = torch.linspace(-2, 0.6, 20001, dtype=torch.float64)[:, None]  # more of them lie below the kink

    def mean(shift: torch.Tensor) -> torch.Tensor:
        return residual(x + shift)[1].mean()

    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(mean(shift), shift, allow_unused=True)
    with torch.no_grad():
        expected = float(mean(torch.tensor(0.05)) - mean(torch.tensor(-0.05))) / 0.1
    assert expected > 0.2
    if kind == "quadratic":
        assert float(found) == pytest.approx(expected, rel=0.01)
    else:
        assert not float(found or 0.0)


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"knots": 1}, {"limit": 0.0}, {"limit": float("inf")}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        QuadraticSpline(**({"channels": 2} | wrong))
