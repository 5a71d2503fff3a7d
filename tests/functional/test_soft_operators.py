"""Log-sum-exp operators: bounds, limits, gradients, missing weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import morphlightning.functional as mf
from morphlightning.errors import ConfigError, DtypeError, NotSupportedError, ShapeError
from morphlightning.ops.geometry import DENSE
from morphlightning.ops.soft import ladder

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


def log_sum_exp(x: torch.Tensor, w: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.logsumexp(beta * (x.double()[:, None] + w.double()), -1) / beta


BETAS = (0.01, 0.1, 1.0, 1 / 0.3, 10.0, 20.0, 30.0, 100.0, 300.0, 1e3, 1e4)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("fan_in", [5, 784])
def test_errors_at_any_temperature(fan_in: int, beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(16, fan_in, generator=generator), torch.randn(32, fan_in, generator=generator) / 2
    for scale in (1.0, 50.0):
        right = log_sum_exp(scale * x, scale * w, beta)
        error = (mf.soft_dilation(scale * x, scale * w, beta) - right).abs()
        assert (error / right.abs().clamp_min(max(1.0, 1 / beta))).max() < 2e-6
        if scale == 1.0 and beta >= 1:
            assert error.max() < 2e-6


def test_shifts_that_cancel() -> None:
    """Products whose S is large enough, but y far below the shifts: rounding is that of the shifts."""
    draw = torch.rand(200, 2), torch.rand(20, 2)
    x, w = (t + torch.tensor(v) for t, v in zip(draw, ([90.0, 0.0], [-90.0, 0.0]), strict=True))
    right = log_sum_exp(x, w, 0.5)
    assert (mf.soft_dilation(x, w, 0.5) - right).abs().max() < 1e-6 * right.abs().max()


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_at_any_temperature(beta: float) -> None:
    x, w, gy = torch.randn(7, 9, requires_grad=True), torch.randn(5, 9, requires_grad=True), torch.randn(7, 5)
    seen = torch.autograd.grad(mf.soft_dilation(x, w, beta), (x, w), gy)
    right = torch.autograd.grad(log_sum_exp(x, w, beta), (x, w), gy.double())
    for a, b in zip(seen, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * max(1.0, beta))


def test_each_sample_is_computed_where_it_can_be() -> None:
    """By a float32 product, by a float64 one, from scores: one sample of each kind, and one with a NaN."""
    x = torch.tensor([[0.0, 1.0, 0.5], [0.0, 30.0, 0.0], [0.0, 3000.0, 0.0], [0.0, math.nan, 0.0]])
    w = torch.tensor([[0.0, -40.0, -5.0], [0.0, -4000.0, 0.0], [-math.inf, -math.inf, 0.0]])
    beta = torch.tensor(10.0)
    *_, rung = ladder.value(x, w, beta, DENSE, "full")
    assert rung.tolist() == [ladder.FIRST, ladder.DOUBLE, ladder.DIRECT, ladder.DIRECT]
    x, w = x.requires_grad_(), w.requires_grad_()
    y = mf.soft_dilation(x, w, beta)
    assert y[3].isnan().all()
    torch.testing.assert_close(y[:3], log_sum_exp(x[:3], w, 10.0).float(), rtol=1e-6, atol=2e-6)
    seen = torch.autograd.grad(mf.soft_dilation(x[:3], w, beta).sum(), (x, w))
    right = torch.autograd.grad(log_sum_exp(x[:3], w, 10.0).sum(), (x, w))
    torch.testing.assert_close(seen, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [2.5, 40.0, 1e3])
def test_second_derivatives(beta: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.rand(n, 3, generator=generator, dtype=torch.float64) * 4 for n in (3, 2))
    if beta == 1e3:  # candidates that tie, of a product that is lost
        x, w = torch.tensor([[0.0, 1.0, 1.0005]]).double(), torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, -1e4]]).double()
    x, w = x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a, b: mf.soft_dilation(a, b, beta), (x, w), eps=1e-7, atol=1e-2)
    gx, gw = torch.autograd.grad(mf.soft_dilation(x, w, beta).square().sum(), (x, w), create_graph=True)
    rx, rw = torch.autograd.grad(log_sum_exp(x, w, beta).square().sum(), (x, w), create_graph=True)
    seen = torch.autograd.grad(gx.square().sum() + gw.square().sum(), (x, w))
    right = torch.autograd.grad(rx.square().sum() + rw.square().sum(), (x, w))
    torch.testing.assert_close(seen, right, rtol=1e-6, atol=1e-6)


def test_second_derivatives_of_samples_in_all_ways() -> None:
    x, w = torch.tensor([[0.0, 1.0, 0.5], [0.0, 30.0, 29.9], [0.0, 3000.0, 0.0]]), torch.zeros(2, 3)
    w[0, 1:], w[1, 1] = -30, -3000

    def curvature(f, x, w):
        x, w = x.requires_grad_(), w.requires_grad_()
        gx, gw = torch.autograd.grad(f(x, w, 2.0).square().sum(), (x, w), create_graph=True)
        return torch.autograd.grad((gx * gx.detach()).sum() + (gw * gw.detach()).sum(), (x, w))

    seen, right = curvature(mf.soft_dilation, x.clone(), w.clone()), curvature(log_sum_exp, x.double(), w.double())
    torch.testing.assert_close(seen, right, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("beta", [0.1, 3.0, 20.0, 1e3])
def test_bfloat16_products_err_no_more_than_derived(beta: float) -> None:
    x, w, gy = torch.randn(20, 300, requires_grad=True), torch.randn(30, 300, requires_grad=True), torch.randn(20, 30)
    y, right = mf.soft_dilation(x, w, beta, precision="bfloat16"), log_sum_exp(x, w, beta)
    error = (y - right).abs().max()
    assert error <= 3 / (255 * beta) + 2e-6 * max(1.0, float(right.detach().abs().max()))
    if beta < 10:
        assert error > 1e-4 / beta  # bfloat16 it was
    seen = torch.autograd.grad(y, (x, w), gy)
    expected = torch.autograd.grad(right, (x, w), gy.double(), retain_graph=True)
    most = torch.autograd.grad(right, (x, w), gy.double().abs())
    for a, b, scale in zip(seen, expected, most, strict=True):
        assert ((a - b).abs() <= 7 / 240 * scale + 1e-5 * max(1.0, beta)).all()


def test_precision_is_not_touched_from_outside() -> None:
    x, w = torch.randn(8, 64), torch.randn(8, 64)
    right = mf.soft_dilation(x, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mf.soft_dilation(x, w), right)
    found = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(mf.soft_dilation(x, w), right)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(found)


def test_no_samples() -> None:
    x, w = torch.empty(0, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    y = mf.soft_dilation(x, w)
    assert y.shape == (0, 2)
    gx, gw = torch.autograd.grad(y.sum(), (x, w))
    assert gx.shape == (0, 3)
    assert not gw.any()


def test_a_third_derivative_is_refused() -> None:
    x, w = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    (g,) = torch.autograd.grad(mf.soft_dilation(x, w).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotSupportedError, match="third derivative"):
        h.sum().backward()


def test_wrong_inputs() -> None:
    with pytest.raises(ConfigError, match="soft_dilation: precision must be one of full, bfloat16, got 'half'"):
        mf.soft_dilation(torch.ones(2), torch.ones(3, 2), precision="half")
    with pytest.raises(ConfigError, match="soft_dilation: beta must be one number"):
        mf.soft_dilation(torch.ones(2), torch.ones(3, 2), torch.ones(2))
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="soft_erosion: beta must be"):
            mf.soft_erosion(torch.ones(2), torch.ones(3, 2), beta)
    with pytest.raises(ShapeError, match="soft_erosion"):
        mf.soft_erosion(torch.ones(3), torch.ones(3, 2))
    with pytest.raises(DtypeError, match="soft_dilation"):
        mf.soft_dilation(torch.ones(2, dtype=torch.int32), torch.ones(3, 2))
