"""Log-sum-exp operators: bounds, limits, gradients, missing weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import morphlightning.functional as mf
from morphlightning.errors import ConfigError, DtypeError, ShapeError

PAIRS = [
    (mf.soft_dilation, mf.dilation, 1),
    (mf.soft_adjoint_dilation, mf.adjoint_dilation, 1),
    (mf.soft_erosion, mf.erosion, -1),
    (mf.soft_adjoint_erosion, mf.adjoint_erosion, -1),
]


def arguments(hard, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 4 if "adjoint" in hard.__name__ else 6, generator=generator, dtype=torch.float64)
    return x, w


@pytest.mark.parametrize(("soft", "hard", "sign"), PAIRS)
@given(st.integers(0, 1000), st.floats(0.01, 1e4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_bounds(soft, hard, sign: int, seed: int, beta: float) -> None:
    x, w = arguments(hard, seed)
    above = sign * (soft(x, w, beta) - hard(x, w))
    assert (above >= -1e-12).all()
    assert (above <= math.log(x.shape[-1]) / beta + 1e-12).all()


@pytest.mark.parametrize(("soft", "hard", "sign"), PAIRS)
def test_values_and_gradients(soft, hard, sign: int) -> None:
    x, w = arguments(hard)
    weights = w if x.shape[-1] == w.shape[1] else w.t()
    expected = sign * torch.logsumexp(2.5 * (sign * x[:, None] + weights), -1) / 2.5
    torch.testing.assert_close(soft(x, w, 2.5), expected, rtol=1e-13, atol=1e-13)
    x, w = x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: soft(a, b, 2.5), (x, w))


@pytest.mark.parametrize(("soft", "hard", "sign"), PAIRS)
def test_gradients_tend_to_the_hard_ones(soft, hard, sign: int) -> None:
    x, w = arguments(hard)
    x, w, gy = x.requires_grad_(), w.requires_grad_(), torch.randn_like(hard(x, w))
    right = torch.autograd.grad(hard(x, w), (x, w), gy)

    def distance(beta: float) -> float:
        seen = torch.autograd.grad(soft(x, w, beta), (x, w), gy)
        return max(float((a - b).abs().max()) for a, b in zip(seen, right))

    distances = [distance(beta) for beta in (1.0, 10.0, 100.0, 1e4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-10


def test_soft_opening_and_closing_tend_to_the_hard_ones() -> None:
    x, w = arguments(mf.opening)
    for soft, hard in ((mf.soft_opening, mf.opening), (mf.soft_closing, mf.closing)):
        torch.testing.assert_close(soft(x, w, 1e5), hard(x, w), rtol=0, atol=1e-4)
        assert (soft(x, w, 1.0) - hard(x, w)).abs().max() > 0.1


def test_no_overflow_and_a_tensor_for_beta() -> None:
    x, w = torch.full((1, 2), 1e4), torch.zeros(1, 2)
    assert mf.soft_dilation(x, w, torch.tensor(1e3)).item() == pytest.approx(1e4)
    assert mf.soft_dilation(-x, w, 1e3).item() == pytest.approx(-1e4)


def test_missing_weights_and_infinite_inputs_have_no_share() -> None:
    w = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf] * 3], requires_grad=True)
    inf = math.inf
    x = torch.tensor([[1, 5, -inf], [-inf] * 3, [0, inf, 0], [0, 0, inf]], requires_grad=True)
    y = mf.soft_dilation(x, w, 3.0)
    assert y[0].tolist() == [1.0, -math.inf]
    assert y[1].tolist() == [-math.inf, -math.inf]
    assert y[2, 0].isfinite()
    assert y[3].tolist() == [math.inf, -math.inf]
    gx, gw = torch.autograd.grad(y, (x, w), torch.ones_like(y))
    assert not gx.isnan().any()
    assert gx[0].tolist() == [1.0, 0.0, 0.0]
    assert not gw.isnan().any()
    assert not gw[w == -math.inf].any()
    assert not mf.soft_opening(x, w, 3.0).isnan().any()


def test_half_precision() -> None:
    x, w = torch.randn(4, 8), torch.randn(5, 8)
    for dtype in (torch.float16, torch.bfloat16):
        y = mf.soft_dilation(x.to(dtype), w.to(dtype), 2.0)
        assert y.dtype == dtype
        assert torch.equal(y, mf.soft_dilation(x.to(dtype).float(), w.to(dtype).float(), 2.0).to(dtype))


def test_wrong_inputs() -> None:
    with pytest.raises(ConfigError, match="soft_dilation: beta must be one number"):
        mf.soft_dilation(torch.ones(2), torch.ones(3, 2), torch.ones(2))
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="soft_erosion: beta must be"):
            mf.soft_erosion(torch.ones(2), torch.ones(3, 2), beta)
    with pytest.raises(ShapeError, match="soft_erosion"):
        mf.soft_erosion(torch.ones(3), torch.ones(3, 2))
    with pytest.raises(DtypeError, match="soft_dilation"):
        mf.soft_dilation(torch.ones(2, dtype=torch.int32), torch.ones(3, 2))
