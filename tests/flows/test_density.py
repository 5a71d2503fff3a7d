"""What a flow says is a density: it integrates to one, samples follow it, and it reaches a known target."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal

from morphlightning.flows import Composition, Conditioner, Coupling, Flow, MonotoneSpline, Normalization, coupling_flow

from .conftest import make


@pytest.mark.parametrize("name", ["quadratic", "affine", "residual", "coupling_flow", "linear"])
def test_the_density_integrates_to_one(name: str) -> None:
    flow = Flow(make(name, 2, size=0.2))
    side = torch.linspace(-12, 12, 401, dtype=torch.float64)
    with torch.no_grad():
        total = flow.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert total == pytest.approx(1, abs=1e-2 if name == "linear" else 2e-4)  # it jumps at knots


def test_without_bijections_to_speak_of_it_is_gaussian() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    found = Flow(Normalization(3).double())(x)
    torch.testing.assert_close(found.detach(), torch.from_numpy(multivariate_normal(torch.zeros(3)).logpdf(x)))


def test_samples_follow_the_density() -> None:
    """The probability of boxes, by counting and by integration."""
    flow = Flow(make("coupling_flow", 2, size=0.2))
    x = flow.sample(40_000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float64
    side = torch.arange(-11.95, 12, 0.1, dtype=torch.float64)  # middles of cells whose edges the corners are
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        weights = flow.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    for corner in ([0.0, 0.0], [-1.0, 0.5], [0.5, -1.0]):
        expected = weights[(grid < torch.tensor(corner)).all(1)].sum()
        assert (x < torch.tensor(corner)).all(1).double().mean() == pytest.approx(float(expected), abs=0.015)


def test_samples_are_those_of_the_generator() -> None:
    flow = Flow(coupling_flow(3, 2))
    first, second = (flow.sample(4, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    state = torch.get_rng_state()
    flow.sample(4, torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["affine", "quadratic"])
def test_a_gaussian_target_is_reached(kind: Any) -> None:
    """A correlated Gaussian is what one affine coupling with a linear conditioner makes of a standard one."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.5]], dtype=torch.float64)
    x = torch.randn(2000, 2, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T + 3
    spline = MonotoneSpline(kind, bins=2)
    bijection = Composition(
        Normalization(2), Coupling(2, [0], Conditioner(1, spline.count, ()), spline), Normalization(2)
    )
    flow = Flow(bijection.double())
    bijection.initialize(x)
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -flow(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    fit = 0.5 * torch.logdet(torch.cov(x.T, correction=0)) + 1 + math.log(2 * math.pi)
    reached = closure().item()
    assert reached < float(fit) + 1e-4
    assert reached > float(fit) - (1e-4 if kind == "affine" else 0.02)
