"""Laws of the derivative: homogeneity, chain rule, duality, non-expansion, order."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import morphlightning.functional as mf
from morphlightning import layers
from morphlightning.bouligand import active_set, bderivative

fast = settings(max_examples=25, deadline=None, derandomize=True)
OPERATORS = [mf.dilation, mf.erosion, mf.opening, mf.closing]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """x, w, h, v and another direction, of small integers; every row and column of w has a finite entry."""
    batch, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, h, other = (torch.randint(-2, 3, (batch, size), generator=generator).double() for _ in range(3))
    w, v = (torch.randint(-2, 3, (size, size), generator=generator).double() for _ in range(2))
    gone = torch.rand(w.shape, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    return x, w.masked_fill(gone & ~torch.eye(size, dtype=torch.bool), -math.inf), h, v, other


@given(cases(), st.sampled_from(OPERATORS), st.sampled_from([0.0, 0.5, 3.0]))
@fast
def test_positively_homogeneous(case: tuple[Tensor, ...], operator, scale: float) -> None:
    x, w, h, v, _ = case
    slope = bderivative(x, w, h, v, operator=operator)
    assert torch.equal(bderivative(x, w, scale * h, scale * v, operator=operator), scale * slope)


@given(cases())
@fast
def test_a_flat_dilation_of_the_active_set(case: tuple[Tensor, ...]) -> None:
    x, w, h, v, other = case
    slope = bderivative(x, w, h, v)
    by_definition = (h[:, None] + v).masked_fill(~active_set(x, w), -math.inf).amax(-1)
    assert torch.equal(slope, by_definition)
    # sublinear, so it is linear only without ties
    assert (bderivative(x, w, h + other) <= bderivative(x, w, h) + bderivative(x, w, other)).all()


@given(cases(), st.sampled_from(OPERATORS), st.sampled_from(OPERATORS))
@fast
def test_chain_rule(case: tuple[Tensor, ...], outer, inner) -> None:
    x, w, h, v, _ = case

    def composed(x: Tensor, w: Tensor) -> Tensor:
        return outer(inner(x, w), w)

    between = bderivative(x, w, h, v, operator=inner)
    step_by_step = bderivative(inner(x, w), w, between, v, operator=outer)
    assert torch.equal(bderivative(x, w, h, v, operator=composed), step_by_step)


@given(cases())
@fast
def test_duality(case: tuple[Tensor, ...]) -> None:
    x, w, h, v, _ = case
    assert torch.equal(bderivative(x, w, h, v, operator=mf.erosion), -bderivative(-x, w, -h, v))
    opened, closed = (bderivative(s * x, w, s * h, v, operator=f) for s, f in ((1, mf.opening), (-1, mf.closing)))
    assert torch.equal(opened, -closed)


@given(cases(), st.sampled_from(OPERATORS))
@fast
def test_non_expansive_and_increasing(case: tuple[Tensor, ...], operator) -> None:
    x, w, h, _, other = case
    slope = bderivative(x, w, h, operator=operator)
    assert (slope.abs().amax(-1) <= h.abs().amax(-1)).all()
    assert (slope <= bderivative(x, w, torch.maximum(h, other), operator=operator)).all()
    apart = (slope - bderivative(x, w, other, operator=operator)).abs().amax(-1)
    assert (apart <= (h - other).abs().amax(-1)).all()


@given(cases(), st.integers(-3, 3))
@fast
def test_adding_a_constant_adds_it(case: tuple[Tensor, ...], constant: int) -> None:
    x, w, h, v, _ = case
    for operator in OPERATORS:
        slope = bderivative(x, w, h, v, operator=operator)
        assert torch.equal(bderivative(x, w, h + constant, v, operator=operator), slope + constant)


@given(st.integers(0, 2**31))
@fast
def test_opening_and_top_hat_share_the_direction(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, h = (torch.randint(-2, 3, (1, 2, 5, 4), generator=generator).double() for _ in range(2))
    opened, hat = (bderivative(x, (3, 2), h, operator=operator) for operator in (mf.opening2d, mf.white_tophat2d))
    assert torch.equal(opened + hat, h)


@given(st.integers(0, 2**31))
@fast
def test_modules_and_functions_agree(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, h = (torch.randint(-1, 2, (6, 4), generator=generator).double() for _ in range(2))
    weights = [torch.randint(-1, 2, (4, 4), generator=generator).double() for _ in range(2)]
    net = nn.Sequential(layers.Dilation(4, 4), layers.Erosion(4, 4)).double()
    with torch.no_grad():
        for layer, w in zip(net, weights):
            layer.weight.copy_(w)
    between = bderivative(x, weights[0], h)
    expected = bderivative(mf.dilation(x, weights[0]), weights[1], between, operator=mf.erosion)
    assert torch.equal(bderivative(net, x, h), expected)
