"""Dense dilations, erosions and what they compose to: definitions, lattice algebra, missing weights, wrong inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import morphlightning.functional as mf
from morphlightning.errors import DtypeError, PluginNotFoundError, ShapeError

fast = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """x (batch, in), y (batch, out), w (out, in) of small integers; every row and column of w has a finite entry."""
    batch, out, inputs = (draw(st.integers(1, 4)) for _ in range(3))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, inputs), (batch, out), (out, inputs)
    x, y, w = (torch.randint(-4, 5, shape, generator=generator).double() for shape in shapes)
    missing = torch.rand(w.shape, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    missing[torch.arange(out), torch.arange(out) % inputs] = False
    missing[torch.arange(inputs) % out, torch.arange(inputs)] = False
    return x, y, w.masked_fill(missing, -math.inf)


@given(calls())
@fast
def test_definitions(call: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, w = (a.numpy() for a in call)
    tx, ty, tw = call
    np.testing.assert_array_equal(mf.dilation(tx, tw), (x[:, None] + w).max(-1))
    np.testing.assert_array_equal(mf.erosion(tx, tw), (x[:, None] - w).min(-1))
    np.testing.assert_array_equal(mf.adjoint_erosion(ty, tw), (y[:, :, None] - w).min(1))
    np.testing.assert_array_equal(mf.adjoint_dilation(ty, tw), (y[:, :, None] + w).max(1))


@given(calls())
@fast
def test_adjunctions(call: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, w = call
    for sample_x, sample_y in zip(x, y):
        below = bool((mf.dilation(sample_x, w) <= sample_y).all())
        assert below == bool((sample_x <= mf.adjoint_erosion(sample_y, w)).all())
        above = bool((sample_y <= mf.erosion(sample_x, w)).all())
        assert above == bool((mf.adjoint_dilation(sample_y, w) <= sample_x).all())
    # both sides true at least here: the adjoint gives the greatest x, and the least
    assert (mf.dilation(mf.adjoint_erosion(y, w), w) <= y).all()
    assert (mf.erosion(mf.adjoint_dilation(y, w), w) >= y).all()


@given(calls())
@fast
def test_duality_and_translation(call: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, w = call
    assert torch.equal(mf.erosion(x, w), -mf.dilation(-x, w))
    assert torch.equal(mf.opening(x, w), -mf.closing(-x, w))
    for operator in (mf.dilation, mf.erosion, mf.opening, mf.closing):
        assert torch.equal(operator(x + 3, w), operator(x, w) + 3)
    assert torch.equal(mf.dilation(x, w + 2), mf.dilation(x, w) + 2)
    assert torch.equal(mf.erosion(x, w + 2), mf.erosion(x, w) - 2)


@given(calls(), st.integers(0, 2**31))
@fast
def test_increasing_and_nonexpansive(call: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    x, _, w = call
    other = x + torch.randint(-3, 4, x.shape, generator=torch.Generator().manual_seed(seed))
    for operator in (mf.dilation, mf.erosion, mf.opening, mf.closing):
        assert (operator(torch.minimum(x, other), w) <= operator(x, w)).all()
        moved = (operator(x, w) - operator(other, w)).abs().amax(-1)
        assert (moved <= (x - other).abs().amax(-1)).all()


@given(calls())
@fast
def test_opening_and_closing(call: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, w = call
    opened, closed = mf.opening(x, w), mf.closing(x, w)
    assert (opened <= x).all()
    assert (x <= closed).all()
    assert torch.equal(mf.opening(opened, w), opened)
    assert torch.equal(mf.closing(closed, w), closed)


def test_dilation_commutes_with_supremum() -> None:
    x, z, w = torch.randn(5, 4), torch.randn(5, 4), torch.randn(3, 4)
    assert torch.equal(mf.dilation(torch.maximum(x, z), w), torch.maximum(mf.dilation(x, w), mf.dilation(z, w)))
    assert torch.equal(mf.erosion(torch.minimum(x, z), w), torch.minimum(mf.erosion(x, w), mf.erosion(z, w)))


def test_leading_axes() -> None:
    x, w = torch.randn(2, 3, 5, 4), torch.randn(6, 4)
    y = mf.dilation(x, w)
    assert y.shape == (2, 3, 5, 6)
    assert torch.equal(y[1, 2], mf.dilation(x[1, 2], w))
    assert torch.equal(y[1, 2, 3], mf.dilation(x[1, 2, 3], w))
    assert mf.closing(x, w).shape == x.shape


@pytest.mark.parametrize("operator", [mf.dilation, mf.erosion, mf.opening, mf.closing])
@pytest.mark.parametrize("grad", [False, True])
def test_a_row_of_missing_weights_gives_infinities_but_no_nan(operator, grad: bool) -> None:
    w = torch.tensor([[0.0, 1.0, -math.inf], [-math.inf] * 3])
    x = torch.tensor([[1.0, -math.inf, 2.0], [-math.inf] * 3, [3.0, math.inf, 0.0]], requires_grad=grad)
    y = operator(x, w)
    assert not y.isnan().any()
    if operator is mf.dilation:
        assert y.tolist() == [[1.0, -math.inf], [-math.inf, -math.inf], [math.inf, -math.inf]]
    if operator is mf.opening:  # no weight reaches the third input
        assert y[0].tolist() == [-math.inf, -math.inf, -math.inf]
        assert y[2].tolist() == [3.0, 4.0, -math.inf]
    if grad:
        y.masked_fill(y.isinf(), 0).sum().backward()
        assert not x.grad.isnan().any()


def test_nan_propagates() -> None:
    x = torch.zeros(2, 3)
    x[0, 2] = math.nan
    for operator in (mf.dilation, mf.erosion):
        y = operator(x, torch.randn(4, 3))
        assert y[0].isnan().all()
        assert not y[1].isnan().any()


def test_wrong_inputs() -> None:
    x, w = torch.randn(2, 4), torch.randn(3, 4)
    with pytest.raises(ShapeError, match=r"dilation: the last axis of x .* w's axis 1 \(in = 4\), got x \(2, 5\)"):
        mf.dilation(torch.randn(2, 5), w)
    with pytest.raises(ShapeError, match=r"adjoint_erosion: the last axis .* axis 0 \(out = 3\)"):
        mf.adjoint_erosion(x, w)
    with pytest.raises(ShapeError, match="erosion: w has shape"):
        mf.erosion(x, torch.randn(4))
    with pytest.raises(ShapeError, match="with entries"):
        mf.dilation(torch.randn(2, 0), torch.randn(3, 0))
    with pytest.raises(ShapeError, match="last axis"):
        mf.dilation(torch.tensor(1.0), w)
    with pytest.raises(DtypeError, match=r"x is torch.int64.*\.float\(\)"):
        mf.dilation(torch.ones(2, 4, dtype=torch.int64), w)
    with pytest.raises(DtypeError, match=r"w is torch\.uint8"):
        mf.opening(x, w.to(torch.uint8))
    with pytest.raises(PluginNotFoundError, match="frist"):
        mf.dilation(x, w, derivative="frist")


@pytest.mark.parametrize("operator", [mf.dilation, mf.erosion, mf.adjoint_dilation, mf.adjoint_erosion, mf.opening])
@pytest.mark.parametrize("derivative", ["first", "uniform"])
def test_a_batch_of_matrices_is_one_call_for_each(operator, derivative: str) -> None:
    side = 4 if "adjoint" in operator.__name__ else 6
    x = torch.randint(-2, 3, (3, 5, 2, side)).double().requires_grad_()
    w = torch.randint(-2, 3, (3, 4, 6)).double().requires_grad_()
    y = operator(x, w, derivative=derivative)
    apart = torch.stack([operator(a, b, derivative=derivative) for a, b in zip(x, w, strict=True)])
    assert torch.equal(y, apart)
    gy = torch.randn_like(y)
    for seen, expected in zip(torch.autograd.grad(y, (x, w), gy), torch.autograd.grad(apart, (x, w), gy), strict=True):
        torch.testing.assert_close(seen, expected)


def test_a_batch_of_matrices_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"a batch of 3 matrices needs x of shape \(3, \.\.\., 6\), got \(2, 6\)"):
        mf.dilation(torch.zeros(2, 6), torch.zeros(3, 4, 6))
