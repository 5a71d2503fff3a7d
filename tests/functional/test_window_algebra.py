"""Lattice algebra of windowed operators, for windows of any shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import morphlightning.functional as mf
from morphlightning.functional.windows import transposed

fast = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    """x (1, in, *space), b (out, in / groups, *window) with missing entries, groups and dilation; of small integers."""
    groups, per_group, outs = (draw(st.integers(1, 2)) for _ in range(3))
    window = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    space = (draw(st.integers(3, 6)), draw(st.integers(3, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randint(-4, 5, (1, groups * per_group, *space), generator=generator).double()
    b = torch.randint(-4, 5, (groups * outs, per_group, *window), generator=generator).double()
    missing = torch.rand(b.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5]))
    return x, b.masked_fill(missing, -math.inf), groups, draw(st.integers(1, 2))


@given(calls(), st.integers(0, 2**31))
@fast
def test_dilation_and_erosion_are_adjoint(call, seed: int) -> None:
    x, b, groups, spacing = call
    how = {"groups": groups, "dilation": spacing}
    generator = torch.Generator().manual_seed(seed)
    back = transposed(b, groups)
    y = mf.dilation2d(x, b, **how).clamp_min(-6) + torch.randint(-1, 2, (), generator=generator)
    y = y + torch.randint(0, 2, y.shape, generator=generator)
    assert bool((mf.dilation2d(x, b, **how) <= y).all()) == bool((x <= mf.erosion2d(y, back, **how)).all())
    greatest = mf.erosion2d(y, back, **how)
    assert (mf.dilation2d(greatest, b, **how) <= y).all()


@given(calls())
@fast
def test_openings_and_closings(call) -> None:
    x, b, groups, spacing = call
    how = {"groups": groups, "dilation": spacing}
    opened, closed = mf.opening2d(x, b, **how), mf.closing2d(x, b, **how)
    assert (opened <= x).all()
    assert (closed >= x).all()
    assert torch.equal(mf.opening2d(opened, b, **how), opened)
    assert torch.equal(mf.closing2d(closed, b, **how), closed)


@given(calls())
@fast
def test_openings_and_closings_on_a_torus(call) -> None:
    x, b, groups, _ = call
    how = {"groups": groups, "border": "circular"}
    least = torch.where(b.flatten(1).amax(1) == -math.inf, 0.0, -math.inf)  # every output needs a weight
    b = torch.maximum(b, least.view(-1, 1, 1, 1))
    opened, closed = mf.opening2d(x, b, **how), mf.closing2d(x, b, **how)
    assert (opened <= x).all()
    assert (closed >= x).all()
    assert torch.equal(mf.opening2d(opened, b, **how), opened)
    assert torch.equal(mf.closing2d(closed, b, **how), closed)


@given(calls())
@fast
def test_duality_reflects_the_window(call) -> None:
    x, b, groups, spacing = call
    odd = b[..., : (b.shape[-2] - 1) | 1, : (b.shape[-1] - 1) | 1]  # an even window has no centred reflection
    reflected = odd.flip(-1, -2)
    how = {"groups": groups, "dilation": spacing}
    assert torch.equal(mf.erosion2d(x, reflected, **how), -mf.dilation2d(-x, odd, **how))
    assert torch.equal(mf.opening2d(x, reflected, **how), -mf.closing2d(-x, odd, **how))


@given(calls(), st.integers(0, 2**31))
@fast
def test_increasing_nonexpansive_and_equivariant(call, seed: int) -> None:
    x, b, groups, spacing = call
    b = b.masked_fill(b == -math.inf, -5)
    how = {"groups": groups, "dilation": spacing}
    other = x + torch.randint(-3, 4, x.shape, generator=torch.Generator().manual_seed(seed))
    for operator in (mf.dilation2d, mf.erosion2d, mf.opening2d, mf.closing2d):
        y = operator(x, b, **how)
        assert (operator(torch.minimum(x, other), b, **how) <= y).all()
        assert (y - operator(other, b, **how)).abs().max() <= (x - other).abs().max()
        assert torch.equal(operator(x + 2, b, **how), y + 2)


def test_shift_equivariance_inside_the_image() -> None:
    x, b = torch.randn(1, 1, 20, 20), torch.randn(3, 2)
    moved = mf.opening2d(x.roll((2, 3), (-2, -1)), b)
    assert torch.equal(moved[..., 8:-8, 8:-8], mf.opening2d(x, b).roll((2, 3), (-2, -1))[..., 8:-8, 8:-8])


def test_gradient_and_tophats_of_flat_windows_are_not_negative() -> None:
    x = torch.randn(2, 3, 8, 8)
    for operator in (mf.gradient2d, mf.white_tophat2d, mf.black_tophat2d):
        assert (operator(x, (3, 3)) >= 0).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_footprint_without_its_origin_gives_no_nan(rank: int) -> None:
    """Where all of the window lies outside the image an erosion is +inf, and the dilation after it must not care."""
    footprint = torch.zeros((3,) * rank, dtype=torch.bool)
    footprint.view(-1)[0] = True
    x = torch.randn(1, 1, *(5,) * rank, requires_grad=True)
    for name in ("opening", "closing", "white_tophat", "gradient"):
        y = getattr(mf, f"{name}{rank}d")(x, footprint)
        assert not y.isnan().any()
    eroded = getattr(mf, f"erosion{rank}d")(x, footprint)
    assert eroded.flatten()[0] == math.inf
    opened = getattr(mf, f"opening{rank}d")(x, footprint)
    assert (opened <= x).all()
    gx = torch.autograd.grad(opened.masked_fill(opened.isinf(), 0).sum(), x)[0]
    assert gx.isfinite().all()


def test_infinite_pixels() -> None:
    x = torch.zeros(1, 1, 5)
    x[..., 2] = math.inf
    b = torch.tensor([0.0, 1.0, -math.inf])
    assert mf.dilation1d(x, b).flatten().tolist() == [1.0, math.inf, math.inf, 1.0, 1.0]
    assert mf.erosion1d(x, b).flatten().tolist() == [-1.0, -1.0, 0.0, -1.0, -1.0]
    assert mf.dilation1d(-x, b).isfinite().all()
