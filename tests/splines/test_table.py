"""Closed forms of linear splines, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.splines import SplineTable

DOUBLE = torch.float64
POINTS = torch.linspace(-4, 4, 401, dtype=DOUBLE)


def tables(splines: int = 3, count: int = 9, low: float = -2.0, high: float = 2.0) -> st.SearchStrategy[SplineTable]:
    """Splines with slopes in [low, high] and knots of their own."""

    def build(seed: int) -> SplineTable:
        draw = torch.Generator().manual_seed(seed)
        widths, slopes = torch.rand(2, splines, count - 1, generator=draw, dtype=DOUBLE).unbind()
        knots = torch.cat([torch.zeros(splines, 1), (0.05 + widths).cumsum(1)], 1)
        knots = knots - knots[:, -1:] * torch.rand(splines, 1, generator=draw, dtype=DOUBLE)
        slopes = low + (high - low) * slopes
        values = torch.cat([torch.zeros(splines, 1), (slopes * knots.diff(dim=1)).cumsum(1)], 1)
        return SplineTable(knots, values + torch.randn(splines, 1, generator=draw, dtype=DOUBLE))

    return st.integers(0, 10_000).map(build)


def rows(table: SplineTable, points: Tensor = POINTS) -> Tensor:
    """One row of points for each spline."""
    return points.expand(len(table), -1)


def values(table: SplineTable, x: Tensor) -> Tensor:
    return table(x, channel_dim=0)


FEW = settings(max_examples=12, deadline=None)


@FEW
@given(tables())
def test_values_are_linear_interpolation_and_straight_on(table: SplineTable) -> None:
    for k, (knots, c) in enumerate(zip(table.knots.numpy(), table.values.numpy(), strict=True)):
        mine = table(rows(table), channel_dim=0)[k].numpy()
        inside = (knots[0] <= POINTS.numpy()) & (knots[-1] >= POINTS.numpy())
        np.testing.assert_allclose(mine[inside], np.interp(POINTS.numpy()[inside], knots, c), atol=1e-12)
        below = POINTS.numpy() < knots[0]
        line = c[0] + (POINTS.numpy() - knots[0]) * (c[1] - c[0]) / (knots[1] - knots[0])
        np.testing.assert_allclose(mine[below], line[below], atol=1e-12)


@settings(max_examples=4, deadline=None)
@given(tables(splines=1), st.floats(-6, 6))
def test_potential_is_the_integral_from_zero(table: SplineTable, end: float) -> None:
    at = lambda x: float(table(torch.tensor([x], dtype=DOUBLE)))  # noqa: E731
    inner = [float(k) for k in table.knots[0] if min(0, end) < k < max(0, end)]
    expected = sum(quad(at, a, b)[0] for a, b in itertools.pairwise([0, *sorted(inner, key=abs), end]))
    assert float(table.potential(torch.tensor([end], dtype=DOUBLE))) == pytest.approx(expected, abs=1e-10)


@FEW
@given(tables(low=-0.9), st.floats(0, 1))
def test_prox_solves_its_equation(table: SplineTable, weight: float) -> None:
    v = rows(table)
    x = values(table.prox(weight), v)
    assert (x + weight * values(table, x) - v).abs().max() < 1e-12


def test_prox_takes_a_weight_for_each_spline_and_refuses_what_is_not_weakly_convex() -> None:
    shrink = SplineTable(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([[1.0, 0.0, 1.0], [2.0, 0.0, 2.0]]))
    weights = torch.tensor([0.9, 0.4])
    x = values(shrink.prox(weights), rows(shrink, torch.linspace(-3, 3, 7)))
    torch.testing.assert_close(x + weights[:, None] * values(shrink, x), rows(shrink, torch.linspace(-3, 3, 7)))
    with pytest.raises(NotSupportedError, match=r"piece 0 of spline 1, on \[-1, 0\], has slope -2"):
        shrink.prox(0.5)


@FEW
@given(tables(low=0.05), st.booleans())
def test_inverse_undoes(table: SplineTable, falling: bool) -> None:
    table = SplineTable(table.knots, -table.values) if falling else table
    x = rows(table)
    torch.testing.assert_close(values(table.inverse(), values(table, x)), x, rtol=1e-11, atol=1e-11)


def test_inverse_refuses_what_is_not_monotone() -> None:
    hat = SplineTable(torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0, 2.0]))
    with pytest.raises(NotSupportedError, match=r"strictly monotone .* piece 1 of spline 0"):
        hat.inverse()


@FEW
@given(tables(), tables(), st.floats(-2, 2))
def test_combinations_have_the_knots_of_both(one: SplineTable, other: SplineTable, b: float) -> None:
    x = rows(one)
    combined = one.combine(0.5, other, b)
    torch.testing.assert_close(values(combined, x), 0.5 * values(one, x) + b * values(other, x), rtol=0, atol=1e-11)
    same = one.combine(torch.tensor([1.0, 2.0, 3.0]), SplineTable(one.knots, other.values), b)
    assert same.knots.shape == one.knots.shape
    shared = SplineTable(one.knots[0], one.values[0])
    assert len(shared.combine(torch.arange(4.0), shared, 1.0)) == 4
    with pytest.raises(ShapeError, match="3 splines do not go with 4"):
        one.combine(torch.arange(4.0), one, 1.0)


@FEW
@given(tables(), st.floats(0.1, 10))
def test_rescaling_keeps_slopes(table: SplineTable, alpha: float) -> None:
    x, scaled = rows(table), table.rescale(alpha)
    torch.testing.assert_close(values(scaled, x), values(table, alpha * x) / alpha)
    torch.testing.assert_close(scaled.slopes, table.slopes)
    with pytest.raises(ConfigError, match="positive"):
        table.rescale(-1.0)


@FEW
@given(tables(), st.lists(st.integers(-500, 500), min_size=1, max_size=5))
def test_inserted_knots_change_nothing(table: SplineTable, more: list[int]) -> None:
    finer = table.insert(torch.tensor([*(k / 100 for k in more), float(table.knots[0, 0])], dtype=DOUBLE))
    torch.testing.assert_close(values(finer, rows(table)), values(table, rows(table)), rtol=0, atol=1e-12)
    torch.testing.assert_close(finer.tv2(), table.tv2(), rtol=0, atol=1e-6)


@FEW
@given(tables(count=12), st.floats(0, 1))
def test_pruning_keeps_tolerance_bounds_and_variation(table: SplineTable, tolerance: float) -> None:
    pruned = table.prune(tolerance)
    x = torch.cat([rows(table, 1e4 * POINTS), rows(table), table.knots, pruned.knots], 1)
    error = (values(pruned, x) - values(table, x)).abs()
    assert (error <= tolerance + 1e-13 * (1 + x.abs())).all()
    assert (pruned.tv2() <= table.tv2() + 1e-10).all()
    rounding = 1e-10
    assert (pruned.slopes <= table.slopes.amax(1, keepdim=True) + rounding).all()
    assert (pruned.slopes >= table.slopes.amin(1, keepdim=True) - rounding).all()


def test_pruning_finds_the_fewest_knots() -> None:
    """Against all subsets that keep the outer pieces."""
    draw = torch.Generator().manual_seed(0)
    knots = torch.arange(8, dtype=DOUBLE)
    kept = []
    for tolerance in (0.1, 0.3, 0.6):
        c = torch.randn(8, generator=draw, dtype=DOUBLE).cumsum(0) * 0.3
        best = 8
        for mask in range(16):
            subset = [0, 1, *(k for k in range(2, 6) if mask >> (k - 2) & 1), 6, 7]
            if np.abs(np.interp(knots, knots[subset], c[subset]) - c.numpy()).max() <= tolerance:
                best = min(best, len(subset))
        assert SplineTable(knots, c).prune(tolerance).values.shape[1] == best
        kept.append(best)
    assert min(kept) < 8


def test_pruning_a_named_function_leaves_its_kink() -> None:
    knots = torch.arange(-24, 25) / 8
    pruned = SplineTable(knots, torch.stack([knots.relu(), knots.abs(), 0 * knots])).prune(1e-6)
    assert pruned.knots.shape == (3, 3)
    assert pruned.knots.tolist() == 2 * [[-3.0, 0.0, 3.0]] + [[-3.0, 3.0, 9.0]]
    assert torch.equal(values(pruned, rows(pruned, knots)), torch.stack([knots.relu(), knots.abs(), 0 * knots]))
    with pytest.raises(ConfigError, match="tolerance must be >= 0"):
        pruned.prune(-1.0)


def test_constants_and_rows() -> None:
    table = SplineTable(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.5, 1.5]]))
    assert table.tv2().tolist() == [2.0, 0.0]
    assert table.lipschitz().tolist() == [1.0, 0.5]
    assert table.lipschitz().dtype == DOUBLE
    assert table.rows()[1] == {"spline": 0, "knot": 1.0, "value": 1.0, "slope": -1.0}
    assert len(table.rows()) == 6


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 3, 4), (0, 6, 3)])
def test_neighbouring_channels_share_a_spline(shape: tuple[int, ...]) -> None:
    table = SplineTable(torch.tensor([-1.0, 0.0, 1.0]), torch.randn(3, 3))
    x = torch.randn(shape)
    single = [SplineTable(k, c) for k, c in zip(table.knots, table.values, strict=True)]
    for method in (SplineTable.__call__, SplineTable.slope, SplineTable.potential):
        alone = torch.stack([method(single[c // 2], x.select(1, c)) for c in range(6)], 1)
        torch.testing.assert_close(method(table, x), alone)
        torch.testing.assert_close(method(table, x.movedim(1, -1), channel_dim=-1), alone.movedim(1, -1))
    with pytest.raises(ShapeError, match="multiple of 3 channels"):
        table(torch.randn(2, 4))
    with pytest.raises(ShapeError, match="multiple of 3 channels"):
        table.potential(torch.randn(2, 4))


def test_everything_is_differentiable() -> None:
    knots = torch.tensor([[-1.0, 0.1, 1.0], [-1.5, 0.2, 2.0]], dtype=DOUBLE, requires_grad=True)
    c = torch.tensor([[-1.0, 0.0, 2.0], [0.0, 1.0, 1.5]], dtype=DOUBLE, requires_grad=True)
    x = torch.tensor([[-2.0, 0.4], [3.0, -0.3]], dtype=DOUBLE, requires_grad=True)

    def forms(x: Tensor, knots: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        table = SplineTable(knots, c)
        results = (table, table.prox(0.3), table.inverse(), table.rescale(2.0), table.combine(1.0, table, 0.5))
        return (*(values(t, x) for t in results), table.potential(x, 0), table.tv2(), table.lipschitz())

    assert torch.autograd.gradcheck(forms, (x, knots, c))
    assert torch.autograd.gradgradcheck(lambda *a: SplineTable(*a[1:]).potential(a[0], 0), (x, knots, c))


@pytest.mark.parametrize(
    ("knots", "c", "error", "message"),
    [
        (torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3), ConfigError, "ascend"),
        (torch.tensor([0.0, float("nan")]), torch.zeros(2), ConfigError, "ascend"),
        (torch.tensor([0.0]), torch.zeros(1), ShapeError, "K >= 2"),
        (torch.zeros(2, 3), torch.zeros(3, 3), ShapeError, "a knot for each value"),
        (torch.arange(3.0), torch.zeros(2), ShapeError, "a knot for each value"),
    ],
)
def test_bad_tables(knots: Tensor, c: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SplineTable(knots, c)
