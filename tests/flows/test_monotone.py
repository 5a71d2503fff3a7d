"""Monotone splines of free numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.flows import MonotoneSpline
from morphlightning.flows.monotone import KINDS

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_zero_is_the_identity(kind: Any) -> None:
    spline = MonotoneSpline(kind, slopes=(0.3, 50.0))
    x = torch.linspace(-9, 9, 101, dtype=torch.float64)
    y, log_slope = spline(torch.zeros(101, spline.count, dtype=torch.float64))(x)
    torch.testing.assert_close(y, x)
    assert log_slope.abs().max() < 1e-12


@kinds
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.1, 4), st.floats(0, 40))
def test_slopes_stay_between_their_bounds_and_the_inverse_is_one(
    kind: Any, seed: int, bins: int, bound: float, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    spline = MonotoneSpline(kind, bins, bound, (0.1, 8.0))
    free = size * torch.randn(60, spline.count, generator=generator, dtype=torch.float64)
    x = 2 * bound * torch.randn(60, generator=generator, dtype=torch.float64)
    pieces = spline(free)
    y, log_slope = pieces(x)
    assert log_slope.exp().min() >= 0.1 * (1 - 1e-12)
    assert log_slope.exp().max() <= 8.0 * (1 + 1e-12)
    assert (pieces.inverse(y) - x).abs().max() < 1e-10 * (1 + y.abs().max())


def test_a_linear_one_interpolates() -> None:
    spline = MonotoneSpline("linear", 6, 2.0)
    pieces = spline(torch.randn(spline.count, dtype=torch.float64))
    x = torch.linspace(-4, 4, 200, dtype=torch.float64)
    rows = type(pieces)(*(part.expand(200, -1) for part in pieces))
    inside = x.abs() <= 2
    expected = torch.from_numpy(np.interp(x, pieces.knots, pieces.values))
    torch.testing.assert_close(rows(x)[0][inside], expected[inside])


def test_a_quadratic_one_is_the_integral_of_a_linear_spline() -> None:
    spline = MonotoneSpline("quadratic", 6, 2.0)
    pieces = spline(torch.randn(spline.count, dtype=torch.float64))
    slopes = torch.cat([pieces.left, pieces.right[-1:]])

    def slope(x: float) -> float:
        return float(np.interp(x, pieces.knots, slopes))  # constant outside

    def value(x: float) -> float:
        return float(type(pieces)(*(part[None] for part in pieces))(torch.tensor([x], dtype=torch.float64))[0])

    for low, high in ((-5, -2.5), (-3, -1), (-1, 0.7), (0, 2), (1, 6)):
        breaks = [float(t) for t in pieces.knots if low < t < high]
        area = quad(slope, low, high, points=breaks or None, epsabs=1e-11)[0]
        assert value(high) - value(low) == pytest.approx(area, abs=1e-9)


@kinds
def test_ends_go_on_as_straight_lines(kind: Any) -> None:
    spline = MonotoneSpline(kind, 4, 1.0)
    free = torch.randn(2, spline.count, dtype=torch.float64).repeat_interleave(3, 0)
    y, log_slope = spline(free)(torch.tensor([1.0, 2.0, 3.0, -1.0, -2.0, -3.0], dtype=torch.float64))
    torch.testing.assert_close(y[2::3] - y[1::3], y[1::3] - y[::3])
    torch.testing.assert_close((y[2::3] - y[1::3]).abs(), log_slope[2::3].exp())


@kinds
def test_second_derivatives(kind: Any) -> None:
    spline = MonotoneSpline(kind, 3, 2.0)
    free = torch.randn(5, spline.count, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, free: spline(free)(x), (x, free))
    assert torch.autograd.gradgradcheck(lambda x, free: spline(free)(x), (x, free))


def test_an_extreme_piece_in_float32() -> None:
    """A square root of a difference would lose everything where a steep end meets a flat one."""
    spline = MonotoneSpline("quadratic", 1, 1.0, (1e-3, 1e3))
    free = torch.tensor([0.0, 50.0, -50.0])
    x = torch.linspace(-1, 0.999, 300)
    pieces = spline(free.expand(300, -1))
    y, log_slope = pieces(x)
    assert ((pieces.inverse(y) - x).abs() * log_slope.exp()).max() < 1e-6 * y.abs().max()


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "cubic"}, {"bins": 0}, {"bound": 0.0}, {"bound": float("inf")}, {"slopes": (0.0, 2.0)}]
    + [{"slopes": pair} for pair in ((1.0, 2.0), (0.5, 1.0), (-1.0, 2.0), (0.5, float("inf")), (2.0, 0.5))],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MonotoneSpline(**wrong)


def test_free_numbers_of_another_size() -> None:
    with pytest.raises(ShapeError, match="34"):
        MonotoneSpline()(torch.zeros(3, 33))
