"""Both projections of spline values onto slope bounds."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from sklearn.isotonic import IsotonicRegression

from morphlightning import backends
from morphlightning.splines.projection import clip_steps, nearest_steps


def problem(seed, rows=4, knots=9, infinite=False):
    rng = torch.Generator().manual_seed(seed)
    c = torch.randn(rows, knots, dtype=torch.float64, generator=rng) * 2
    low = -torch.rand(rows, knots - 1, dtype=torch.float64, generator=rng)
    high = low + 1.5 * torch.rand(rows, knots - 1, dtype=torch.float64, generator=rng)
    if infinite:
        draw = torch.rand(rows, knots - 1, generator=rng)
        low, high = low.masked_fill(draw < 0.3, -torch.inf), high.masked_fill(draw > 0.7, torch.inf)
        high = torch.where((draw > 0.45) & (draw < 0.55), low, high)  # equal bounds
    return c, low, high


def by_active_sets(c, low, high):
    """The nearest chain, by trying every choice of pieces at their lower bound, at their upper bound, or free."""
    best, nearest = np.inf, None
    knots = len(c)
    for sides in itertools.product((-1, 0, 1), repeat=knots - 1):
        steps = np.where(np.array(sides) < 0, low, np.where(np.array(sides) > 0, high, 0.0))
        if not np.isfinite(steps).all():
            continue
        offset = np.concatenate([[0.0], np.cumsum(steps)])
        block = np.concatenate([[0], np.cumsum(np.array(sides) == 0)])
        mean = np.array([np.mean((c - offset)[block == b]) for b in range(block[-1] + 1)])
        n = mean[block] + offset
        if (np.diff(n) >= low - 1e-12).all() and (np.diff(n) <= high + 1e-12).all():
            cost = ((n - c) ** 2).sum()
            if cost < best:
                best, nearest = cost, n
    return nearest


@pytest.mark.parametrize("seed", range(12))
def test_nearest_is_the_best_of_all_active_sets(seed):
    c, low, high = problem(seed, rows=2, knots=6, infinite=True)
    n = nearest_steps(c, low, high)
    for row in range(2):
        expected = by_active_sets(c[row].numpy(), low[row].numpy(), high[row].numpy())
        assert np.abs(n[row].numpy() - expected).max() < 1e-10


@pytest.mark.parametrize("seed", range(6))
def test_nearest_agrees_with_a_quadratic_program(seed):
    knots = 31
    c, low, high = problem(100 + seed, rows=1, knots=knots)
    # n = mean + centred cumulative steps: bounds on the steps alone
    sums = np.tril(np.ones((knots, knots - 1)), -1)
    a = np.hstack([np.ones((knots, 1)), sums])
    lower, upper = (np.concatenate([[b], row[0].numpy()]) for b, row in ((-np.inf, low), (np.inf, high)))
    found = lsq_linear(a, c[0].numpy(), (lower, upper), method="bvls", tol=1e-14, max_iter=10_000)
    assert np.abs(nearest_steps(c, low, high)[0].numpy() - a @ found.x).max() < 1e-8


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 40), st.booleans())
def test_nearest_is_a_metric_projection(seed, knots, infinite):
    c, low, high = problem(seed, 3, knots, infinite)
    other = c + torch.randn(c.shape, dtype=c.dtype, generator=torch.Generator().manual_seed(seed + 1))
    n, m = nearest_steps(c, low, high), nearest_steps(other, low, high)
    steps = n.diff(dim=-1)
    assert (steps >= low - 1e-13).all()
    assert (steps <= high + 1e-13).all()
    assert (nearest_steps(n, low, high) - n).abs().max() < 1e-12
    assert ((n - m).norm(dim=1) <= (c - other).norm(dim=1) + 1e-12).all()
    # m is feasible: c - n makes no acute angle with m - n
    assert (((c - n) * (m - n)).sum(1) <= 1e-10).all()


def test_monotone_is_isotonic_regression():
    c, low, _ = problem(3, rows=5, knots=60)
    n = nearest_steps(c, torch.zeros_like(low), torch.full_like(low, torch.inf))
    for row, found in zip(c.numpy(), n.numpy(), strict=True):
        assert np.abs(IsotonicRegression().fit_transform(np.arange(60), row) - found).max() < 1e-12


def test_interpreted_and_compiled_are_the_same():
    c, low, high = problem(5, rows=3, knots=30, infinite=True)
    with backends.use("eager"):
        plain = nearest_steps(c, low, high)
    assert torch.equal(plain, nearest_steps(c, low, high))


def test_nan_stays_in_its_spline():
    c, low, high = problem(6)
    c[1, 4] = torch.nan
    for project in (clip_steps, nearest_steps):
        n = project(c, low, high)
        assert n[1].isnan().any()
        assert n[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("project", [clip_steps, nearest_steps])
def test_derivatives_of_values_and_bounds(project):
    c, low, high = problem(7, rows=2, knots=7)
    inputs = [part.requires_grad_() for part in (c, low, high)]
    assert torch.autograd.gradcheck(project, inputs)
    assert torch.autograd.gradgradcheck(project, inputs)


def test_jacobian_of_the_nearest_is_an_orthogonal_projection():
    c, low, high = problem(8, rows=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: nearest_steps(v, low, high)[0], c)[:, 0]
    assert torch.allclose(jacobian, jacobian.T)
    assert torch.allclose(jacobian @ jacobian, jacobian)
    assert 0 < torch.linalg.matrix_rank(jacobian) < 9


def test_clipping_keeps_feasible_values_and_every_mean():
    c, low, high = problem(9)
    n = clip_steps(c, low, high)
    assert torch.allclose(n.mean(1), c.mean(1))
    assert torch.allclose(clip_steps(n, low, high), n)
    constant = torch.full((1, 9), 5.0, dtype=torch.float64)  # a public code adds the new mean and gives 0
    assert torch.equal(clip_steps(constant, low[:1] * 0 - 1, high[:1] * 0 + 1), constant)


@pytest.mark.parametrize("project", [clip_steps, nearest_steps])
def test_splines_do_not_mix(project):
    c, low, high = problem(10)
    changed = c.clone()
    changed[2] += 10
    assert torch.equal(project(changed, low, high)[[0, 1, 3]], project(c, low, high)[[0, 1, 3]])


def test_hard_sizes_are_quick():
    c, low, high = problem(11, rows=64, knots=101)
    zeros = torch.zeros_like(c[:, 1:])
    nearest_steps(c, low, high)
    for bounds in ((low, high), (zeros, zeros), (zeros, zeros + torch.inf), (zeros + 1e6, zeros + 1e6)):
        start = time.perf_counter()
        nearest_steps(c, *bounds)
        assert time.perf_counter() - start < 0.1
