"""Slope constraints: guarantees, projection in every dtype, verification, refusals."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.splines import SlopeConstraint

METRICS = ["clip", "l2"]


def nonuniform(knots, rows=None, seed=0, low=0.05):
    rng = torch.Generator().manual_seed(seed)
    t = (torch.rand(*(rows, knots) if rows else (knots,), generator=rng, dtype=torch.float64) + low).cumsum(-1)
    return t - t.mean(-1, keepdim=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("knots", [(-2.0, 2.0), nonuniform(21), nonuniform(21, 4)], ids=["uniform", "shared", "own"])
@pytest.mark.parametrize(
    "constraint",
    [
        SlopeConstraint.of("lipschitz"),
        SlopeConstraint.of("firmly_nonexpansive"),
        SlopeConstraint.of("monotone"),
        SlopeConstraint(-0.5, 2, level_ends=True),
        SlopeConstraint(0.25, 0.5, strict=True),
        SlopeConstraint(level_ends=True),
        SlopeConstraint(min=0.1),
    ],
    ids=str,
)
def test_projected_values_obey_and_stay(metric, knots, constraint):
    values = torch.randn(4, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    n = constraint.project(values, knots, metric)
    constraint.check(n, knots)
    assert constraint.admits(n, knots)
    assert not constraint.admits(values, knots)
    assert constraint.excess(n, knots) < 1e-13 < constraint.excess(values, knots)
    assert torch.allclose(constraint.project(n, knots, metric), n, atol=1e-13)
    if constraint.level_ends:
        assert torch.allclose(n[:, 0], n[:, 1])
        assert torch.allclose(n[:, -1], n[:, -2])


def test_nearest_is_nearer_than_clipped():
    constraint, values = SlopeConstraint.of("lipschitz"), torch.randn(8, 31)
    nearest, clipped = (constraint.project(values, (-1.0, 1.0), metric) for metric in ("l2", "clip"))
    assert ((nearest - values).norm(dim=1) < (clipped - values).norm(dim=1)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [20, 21])
def test_odd_splines(metric, count):
    constraint = SlopeConstraint(0, 1, odd=True, level_ends=True, strict=True)
    n = constraint.project(torch.randn(3, count), (-0.5, 0.5), metric)
    assert torch.equal(n, -n.flip(-1))
    constraint.check(n, (-0.5, 0.5))
    with pytest.raises(ConfigError, match="symmetric about 0"):
        constraint.project(torch.randn(3, count), (0.0, 1.0), metric)
    with pytest.raises(ConfigError, match="symmetric about 0"):
        constraint.project(torch.randn(3, count), torch.arange(float(count)), metric)
    with pytest.raises(ConfigError, match="not odd"):
        dataclasses.replace(constraint, strict=False).check(n + 1, (-0.5, 0.5))


def test_the_nearest_odd_spline_is_the_limit_of_alternating_projections():
    """Dykstra's algorithm on the bounds and on the odd splines converges to the projection onto both."""
    t = nonuniform(7).abs().sort()[0]
    knots = torch.cat([-t.flip(0), t])
    values = torch.randn(1, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    box = SlopeConstraint(-0.3, 0.8)
    x, p = values, torch.zeros_like(values)
    for _ in range(2000):
        y = box.project(x + p, knots, "l2")
        p, x = x + p - y, (y - y.flip(-1)) / 2
    n = SlopeConstraint(-0.3, 0.8, odd=True).project(values, knots, "l2")
    assert torch.allclose(n, x, atol=1e-9)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    scale=st.floats(-6, 12),
    width=st.floats(-6, 3),
    bound=st.floats(-3, 6),
    metric=st.sampled_from(METRICS),
    odd=st.booleans(),
)
def test_rounding_moves_slopes_by_few_units_in_the_last_place(seed, dtype, scale, width, bound, metric, odd):
    rng = torch.Generator().manual_seed(seed)
    values = (torch.randn(3, 17, generator=rng, dtype=torch.float64) * 10**scale).to(dtype)
    limit, high = 10.0**width, 10.0**bound
    constraint = SlopeConstraint(-high / 2, high, odd=odd)
    n = constraint.project(values, (-limit, limit), metric)
    assert n.dtype == dtype
    step = limit / 8
    largest = max(high, n.double().abs().max().item() / step, values.double().abs().max().item() / step)
    assert constraint.excess(n, (-limit, limit)) <= 8 * torch.finfo(dtype).eps * largest
    constraint.check(n, (-limit, limit))


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    scale=st.floats(-3, 3),
    metric=st.sampled_from(METRICS),
    level_ends=st.booleans(),
    low=st.sampled_from([-1.0, -0.3, 0.0, -math.inf]),
    own=st.booleans(),
)
def test_strict_slopes_lie_inside_or_are_refused(seed, dtype, scale, metric, level_ends, low, own):
    rng = torch.Generator().manual_seed(seed)
    values = (torch.randn(3, 17, generator=rng, dtype=torch.float64) * 10**scale).to(dtype)
    knots = nonuniform(17, 3, seed).to(torch.float32) if own else (-2.0, 1.5)
    constraint = SlopeConstraint(low, 1.0, level_ends=level_ends, strict=True)
    try:
        n = constraint.project(values, knots, metric)
    except ConfigError:
        refused = True
    else:
        refused = False
    assert not refused or dtype == torch.bfloat16 or scale > 2
    if refused:
        return
    widths = knots.double().diff(dim=-1) if own else torch.full((16,), 3.5 / 16, dtype=torch.float64)
    slopes = n.double().diff(dim=-1) / widths
    assert slopes.min() >= low
    assert slopes.max() <= 1
    assert constraint.excess(n, knots) == 0
    if level_ends:
        assert torch.equal(n[:, 0], n[:, 1])
        assert torch.equal(n[:, -1], n[:, -2])


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_reach_values_and_knots(metric):
    values = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    knots = nonuniform(9, 2).requires_grad_()
    for constraint in (SlopeConstraint(-0.4, 0.6), SlopeConstraint(min=0), SlopeConstraint(0, 1, level_ends=True)):
        assert torch.autograd.gradcheck(lambda v, t, c=constraint: c.project(v, t, metric), (values, knots))


def test_no_constraint_changes_nothing():
    values = torch.randn(2, 5)
    assert SlopeConstraint.of(None).project(values, (0.0, 1.0)) is values
    assert SlopeConstraint().admits(values, (0.0, 1.0))


def test_names_mappings_and_guarantees():
    lipschitz = SlopeConstraint.of("lipschitz")
    assert lipschitz == SlopeConstraint(-1, 1) == SlopeConstraint.of({"min": -1, "max": 1})
    assert SlopeConstraint.of(lipschitz) is lipschitz
    assert SlopeConstraint(**dataclasses.asdict(lipschitz)) == lipschitz
    assert lipschitz.lipschitz == 1
    assert not lipschitz.monotone
    assert lipschitz.weak_convexity == 1
    firm = SlopeConstraint.of("firmly_nonexpansive")
    assert firm.firmly_nonexpansive
    assert firm.monotone
    assert not firm.invertible
    assert firm.weak_convexity == 0
    assert not SlopeConstraint(0, 1.1).firmly_nonexpansive
    assert SlopeConstraint(0.1).invertible
    assert SlopeConstraint(0.1).lipschitz == math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlopeConstraint(1, 0), "min <= max"),
        (lambda: SlopeConstraint(math.nan, 0), "min <= max"),
        (lambda: SlopeConstraint(math.inf, math.inf), "min <= max"),
        (lambda: SlopeConstraint(0.1, 1, level_ends=True), "level ends"),
        (lambda: SlopeConstraint.of("convex"), "there are lipschitz"),
        (lambda: SlopeConstraint.of({"least": 1}), "the arguments are min"),
        (lambda: SlopeConstraint.of(3.0), "expected a name"),
        (lambda: SlopeConstraint(0, 1).project(torch.zeros(1, 3), (1.0, 1.0)), "above the first"),
        (lambda: SlopeConstraint(0, 1).project(torch.zeros(1, 3), (0.0, 1.0), "l1"), "clip, l2"),
        (lambda: SlopeConstraint(0.3, 0.3, strict=True).project(torch.randn(1, 9), (0.0, 1.0)), "strictly"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError, match="expected"):
        SlopeConstraint(0, 1).project(torch.zeros(3), (0.0, 1.0))
    with pytest.raises(ShapeError, match="as many knots"):
        SlopeConstraint(0, 1).project(torch.zeros(2, 3), torch.arange(4.0))


def test_a_violation_is_named():
    values = torch.zeros(3, 6)
    values[1, 4:] = 2.0
    with pytest.raises(ConfigError, match=r"spline 1, piece 3: slope 2 is not in \[0, 1\]"):
        SlopeConstraint(0, 1).check(values, torch.arange(6.0))
    values[2, 0] = torch.nan
    with pytest.raises(ConfigError, match="spline 2, piece 0: slope nan"):
        SlopeConstraint(0, 1).check(values, torch.arange(6.0))
