"""Second-order total variation of linear splines and its proximal map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, minimize

from morphlightning import backends
from morphlightning.errors import ConfigError
from morphlightning.splines import SlopeConstraint
from morphlightning.splines.tv2 import active_knots, prox_tv2, tv2


def problem(seed, rows=3, knots=12):
    rng = torch.Generator().manual_seed(seed)
    t = (torch.rand(rows, knots, dtype=torch.float64, generator=rng) + 0.1).cumsum(1)
    c = torch.randn(rows, knots, dtype=torch.float64, generator=rng)
    return c, t - t.mean(1, keepdim=True)


def bends(t):
    """The matrix of changes of slope."""
    return (torch.eye(len(t), dtype=t.dtype).diff(dim=0) / t.diff()[:, None]).diff(dim=0)


def test_tv2_is_the_sum_of_changes_of_slope():
    c, t = problem(0)
    expected = torch.stack([(bends(row) @ v).abs().sum() for row, v in zip(t, c, strict=True)])
    assert torch.allclose(tv2(c, t), expected)
    assert torch.allclose(tv2(c, t[0])[0], expected[0])
    assert torch.allclose(tv2(c, (-1.0, 2.0)), tv2(c, torch.linspace(-1, 2, 12)))
    assert torch.autograd.gradcheck(tv2, (c.requires_grad_(), t.requires_grad_()))


def test_active_knots_are_those_of_notable_kinks():
    t = torch.linspace(-1, 1, 21)
    values = torch.stack([t.clamp_min(0), t.abs() + 1e-4 * torch.rand(21), t])
    active = active_knots(values, t)
    assert active[:2].nonzero().tolist() == [[0, 9], [1, 9]]


def test_splines_do_not_mix():
    """Differences across splines are nobody's kinks."""
    c, t = problem(1)
    other = c.clone()
    other[1] += 100
    assert torch.allclose(tv2(other, t), tv2(c, t))
    assert torch.equal(prox_tv2(other, t, 0.2)[[0, 2]], prox_tv2(c, t, 0.2)[[0, 2]])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weight", [0.01, 0.1, 1.0])
def test_prox_solves_its_quadratic_program(seed, weight):
    """n = c - D'u with the bounded least squares |u| <= w, solved independently."""
    c, t = problem(seed, rows=1, knots=25)
    d = bends(t[0]).numpy()
    found = lsq_linear(d.T, c[0].numpy(), (-weight, weight), method="bvls", tol=1e-15, max_iter=10_000)
    assert np.abs(prox_tv2(c, t, weight)[0].numpy() - (c[0].numpy() - d.T @ found.x)).max() < 1e-10


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    knots=st.integers(2, 60),
    weight=st.floats(-6, 3).map(lambda power: 10**power),
    kind=st.sampled_from(["noise", "few kinks", "single"]),
)
def test_prox_meets_the_optimality_conditions(seed, knots, weight, kind):
    c, t = problem(seed, 4, knots)
    if kind == "few kinks":
        c = t.clamp_min(0) + 0.5 * t.clamp_max(-0.3)
    elif kind == "single":
        c = c.float().double()
    n = prox_tv2(c, t, weight)
    h = t.diff(dim=1)
    u = (h * (c - n).cumsum(1)[:, :-1]).cumsum(1)  # the dual variables, then 0
    size = 1e-10 * (weight + h.sum(1, keepdim=True) * c.abs().amax(1, keepdim=True))
    assert (u[:, -1:].abs() <= size).all()
    assert (u.abs() <= weight + size).all()
    kink = (n.diff(dim=1) / h).diff(dim=1)
    gap = (kink.abs() * weight - kink * u[:, :-1]).sum(1)
    assert (gap <= 1e-10 * (weight * tv2(c, t) + (c**2).sum(1))).all()


def test_prox_is_firmly_nonexpansive_and_keeps_straight_lines():
    c, t = problem(5, rows=20)
    other, _ = problem(6, rows=20)
    n, m = prox_tv2(c, t, 0.3), prox_tv2(other, t, 0.3)
    assert (((n - m) ** 2).sum(1) <= ((n - m) * (c - other)).sum(1) + 1e-12).all()
    assert torch.allclose(prox_tv2(2 * t + 1, t, 5.0), 2 * t + 1)
    assert torch.allclose(prox_tv2(c, t, 0.0), c)
    assert (tv2(prox_tv2(c, t, 1e6), t) < 1e-10).all()  # the straight line of least squares


def test_weights_of_their_own_and_dtypes():
    c, t = problem(7)
    weights = torch.tensor([0.0, 0.1, 1.0])
    each = torch.cat([prox_tv2(c[k : k + 1], t[k], float(w)) for k, w in enumerate(weights)])
    assert torch.allclose(prox_tv2(c, t, weights), each, atol=1e-7)
    for dtype in (torch.float32, torch.bfloat16):
        assert prox_tv2(c.to(dtype), (-1.0, 1.0), 0.1).dtype == dtype
    with pytest.raises(ConfigError, match="weight"):
        prox_tv2(c, t, -1.0)


def test_interpreted_and_compiled_are_the_same():
    c, t = problem(8, knots=40)
    with backends.use("eager"):
        plain = prox_tv2(c, t, 0.3)
    assert torch.allclose(plain, prox_tv2(c, t, 0.3), atol=1e-13)


def test_cycling_exchanges_end_in_the_descent():
    """Splines of 201 noisy values: exchanging all wrong kinks at once does not end for some of them."""
    c, t = problem(9, rows=64, knots=201)
    n = prox_tv2(c, t, 1.0)
    u = (t.diff(dim=1) * (c - n).cumsum(1)[:, :-1]).cumsum(1)
    assert u.abs().max() <= 1 + 1e-9


def test_nan_stays_in_its_spline():
    c, t = problem(10)
    c[1, 3] = torch.nan
    n = prox_tv2(c, t, 0.1)
    assert n[1].isnan().any()
    assert n[[0, 2]].isfinite().all()


@pytest.mark.parametrize("constraint", [SlopeConstraint(0, 1), SlopeConstraint(-0.5, 0.5, level_ends=True)], ids=str)
def test_prox_within_a_constraint(constraint):
    c, t = problem(11, rows=1, knots=8)
    weight, d = 0.05, bends(t[0]).numpy()
    n = prox_tv2(c, t, weight, constraint, tolerance=1e-7)
    constraint.check(n, t)
    # the same as a smooth problem, |kink| <= z
    start = np.concatenate([n[0].numpy() + 0.01, np.ones(6)])
    target, width = c[0].numpy(), t[0].diff().numpy()
    lower, upper = np.full(7, constraint.min), np.full(7, constraint.max)
    if constraint.level_ends:
        lower[[0, -1]] = upper[[0, -1]] = 0
    conditions = [
        {"type": "ineq", "fun": lambda x: x[8:] - d @ x[:8]},
        {"type": "ineq", "fun": lambda x: x[8:] + d @ x[:8]},
        {"type": "ineq", "fun": lambda x: np.diff(x[:8]) - lower * width},
        {"type": "ineq", "fun": lambda x: upper * width - np.diff(x[:8])},
    ]
    found = minimize(
        lambda x: 0.5 * ((x[:8] - target) ** 2).sum() + weight * x[8:].sum(),
        start,
        method="SLSQP",
        constraints=conditions,
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found.success
    assert np.abs(found.x[:8] - n[0].numpy()).max() < 1e-5
