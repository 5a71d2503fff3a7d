"""InvertibleResidual flows: certified inverses and estimated log-determinants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError, NotSupportedError
from morphlightning.flows import Flow, InvertibleResidual, residual_flow

from .conftest import Rotations, points


def exact(residual: InvertibleResidual, x: torch.Tensor) -> torch.Tensor:
    _, log_det = residual.eval()(x)
    residual.train()
    return log_det


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 0.99])
def test_the_inverse_is_within_the_tolerance(c: float) -> None:
    residual = InvertibleResidual(4, Rotations(4), c, tolerance=1e-8).double()
    x = points("", 50, 4)
    z, _ = residual(x)
    unit = z.norm(dim=1).clamp_min(1)
    assert ((residual.inverse(z) - x).norm(dim=1) / unit).max() < 1e-8


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_inverse_in_float32_ends_within_rounding(scale: float) -> None:
    residual = InvertibleResidual(3, Rotations(3), 0.9)
    x = scale * points("", 50, 3, torch.float32)
    z, _ = residual(x)
    unit = z.norm(dim=1).clamp_min(1)
    assert ((residual.inverse(z) - x).norm(dim=1) / unit).max() < 1e-5
    flow = Flow(residual)
    assert ((flow.inverse(flow.transform(x)) - x).norm(dim=1) / unit).max() < 2e-6


def test_steps_are_those_of_the_certified_rate() -> None:
    calls = 0

    class Counted(Rotations):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x)

    residual = InvertibleResidual(2, Counted(2), 0.5, tolerance=1e-6).double()
    z = points("", 20, 2)
    residual.inverse(z)
    assert calls <= math.ceil(math.log(1e-6 * 0.5 / 3) / math.log(0.5)) + 1


@pytest.mark.parametrize("scale", [2.0, math.nan, math.inf])
def test_a_branch_that_does_not_keep_its_constant(scale: float) -> None:
    residual = InvertibleResidual(2, Rotations(2, scale=scale), 0.9)
    with pytest.raises(NotSupportedError, match="does not keep the Lipschitz constant"):
        residual.inverse(5 * points("", 20, 2, torch.float32))


def test_a_branch_that_lost_its_constant_is_not_inverted() -> None:
    branch = Rotations(2)
    residual = InvertibleResidual(2, branch)
    branch.constant = 1.5
    with pytest.raises(NotSupportedError, match=r"1\.5"):
        residual.inverse(torch.zeros(1, 2))


def test_branches_without_a_certificate() -> None:
    with pytest.raises(NotSupportedError, match="Linear declares no Lipschitz constant"):
        InvertibleResidual(2, nn.Linear(2, 2))
    with pytest.raises(NotSupportedError, match="declares the Lipschitz constant 2"):
        InvertibleResidual(2, Rotations(2, constant=2.0))


@pytest.mark.parametrize(
    "wrong", [{"contraction": 1.0}, {"contraction": 0.0}, {"log_det": "trace"}, {"terms": 0}, {"tolerance": 0.0}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        InvertibleResidual(2, Rotations(2), **wrong)


# -------------------------------------------------------------------------------------------------- log-determinants
def estimates(residual: InvertibleResidual, x: torch.Tensor, n: int, calls: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over n random vectors a call, and their standard errors over the calls."""
    with torch.no_grad():
        found = torch.stack([residual(x.repeat(n, 1))[1].view(n, -1).mean(0) for _ in range(calls)])
    return found.mean(0), found.std(0) / math.sqrt(calls)


@pytest.mark.parametrize("terms", [1, 3])
def test_the_series_is_off_by_its_bound_at_most(terms: int) -> None:
    residual, x = InvertibleResidual(3, Rotations(3), 0.6, "series", terms).double(), points("", 6, 3)
    mean, error = estimates(residual, x, 400, 20)
    bias = (mean - exact(residual, x)).abs()
    assert (bias < residual.truncation_bound + 5 * error).all()
    assert residual.truncation_bound == pytest.approx(3 * sum(0.6**k / (terms + 1) for k in range(terms + 1, 200)))
    assert (bias > 5 * error).any()  # the bound is needed


def test_roulette_has_no_bias() -> None:
    residual, x = InvertibleResidual(3, Rotations(3), 0.6, "roulette", 1).double(), points("", 6, 3)
    mean, error = estimates(residual, x, 50, 300)
    assert error.max() < 0.03
    assert ((mean - exact(residual, x)).abs() < 5 * error).all()


def test_many_terms_are_exact_but_for_the_random_signs() -> None:
    """In one dimension the signs cancel, so that the series itself is seen."""
    residual, x = InvertibleResidual(1, Rotations(1), 0.7, "series", 60).double(), points("", 30, 1)
    torch.testing.assert_close(residual(x)[1], exact(residual, x), atol=residual.truncation_bound, rtol=0)
    assert residual.truncation_bound < 1e-10


def test_evaluation_is_exact_where_the_jacobian_is_small() -> None:
    residual, x = InvertibleResidual(2, Rotations(2), 0.6, "roulette").double().eval(), points("", 6, 2)
    assert torch.equal(residual(x)[1], residual(x)[1])
    residual.exact_dim = 1
    assert not torch.equal(residual(x)[1], residual(x)[1])


def test_the_gradient_of_the_series_is_that_of_the_determinant() -> None:
    residual, x = InvertibleResidual(2, Rotations(2), 0.6, "series", 30).double(), points("", 5, 2)
    parameters = [p for name, p in residual.named_parameters() if name != "branch.last.bias"]  # it only moves
    estimated = torch.autograd.grad(residual(x.repeat(4000, 1))[1].mean(), parameters)
    expected = torch.autograd.grad(residual.eval()(x)[1].mean(), parameters)
    for found, wanted in zip(estimated, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=0.01, rtol=0.0)
        assert wanted.abs().max() > 0.03


def test_no_gradients_and_inference_mode() -> None:
    residual, x = InvertibleResidual(2, Rotations(2), 0.6), points("", 5, 2, torch.float32)
    expected = residual(x)
    with torch.no_grad():
        assert not residual(x)[1].requires_grad
    with torch.inference_mode():
        for found, wanted in zip(residual(x), expected, strict=True):
            torch.testing.assert_close(found, wanted)


# --------------------------------------------------------------------------------------------------- whole networks
@pytest.mark.parametrize("activation", ["linear_spline", "relu", "group_sort"])
def test_a_flow_of_certified_networks(activation: str) -> None:
    bijection = residual_flow(3, 3, (8,), activation=activation).double().eval()
    with torch.no_grad():
        for name, parameter in bijection.named_parameters():
            if "branch" in name:
                parameter.mul_(3).add_(torch.randn_like(parameter))  # no training keeps to small steps
    x = points("", 40, 3)
    z, log_det = bijection(x)
    assert (bijection.inverse(z) - x).abs().max() < 1e-4  # three steps to 1e-6, each spread by 10 at most
    for point, found in zip(x[:5], log_det, strict=False):
        jacobian = torch.autograd.functional.jacobian(lambda p: bijection(p[None])[0][0], point)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, found, rtol=0, atol=1e-9)


def test_no_step_at_all() -> None:
    with pytest.raises(ConfigError, match="layers=0"):
        residual_flow(2, 0)
