"""Closed forms against integrals and draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from morphlightning.guarantees.information import (
    gaussian_kl,
    gumbel_kl,
    log_normal_kl,
    log_uniform_kl,
    to_bits,
    uniform_kl,
)

number = st.floats(-2, 2)
scale = st.floats(0.3, 3)


def double(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def integral(q: object, p: object, low: float, high: float) -> float:
    def integrand(z: float) -> float:
        log = q.logpdf(z)
        return math.exp(log) * (log - p.logpdf(z)) if log > -700 else 0.0

    return integrate.quad(integrand, low, high, limit=400, epsabs=1e-10)[0]


@settings(max_examples=15, deadline=None)
@given(number, scale, number, scale)
def test_gaussian_is_the_integral(m: float, s: float, m0: float, s0: float) -> None:
    expected = integral(stats.norm(m, s), stats.norm(m0, s0), m - 12 * s, m + 12 * s)
    assert gaussian_kl(*double(m, s, m0, s0)).item() == pytest.approx(expected, abs=1e-8)


@settings(max_examples=15, deadline=None)
@given(number, scale, number, scale)
def test_inf_3_gumbel_is_the_integral(m: float, b: float, m0: float, b0: float) -> None:
    """INF-3: scales may differ."""
    expected = integral(stats.gumbel_r(m, b), stats.gumbel_r(m0, b0), m - 6 * b, m + 45 * b)
    assert gumbel_kl(*double(m, b, m0, b0)).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("m", "b", "m0", "b0"), [(0.3, 0.7, -0.2, 1.1), (1.0, 0.5, 0.0, 0.5), (-1.0, 2.0, 0.4, 0.9)])
def test_inf_3_gumbel_is_the_mean_of_draws(m: float, b: float, m0: float, b0: float) -> None:
    """INF-3: Monte Carlo, within five standard errors."""
    z = stats.gumbel_r(m, b).rvs(200_000, random_state=0)
    logs = stats.gumbel_r(m, b).logpdf(z) - stats.gumbel_r(m0, b0).logpdf(z)
    assert abs(logs.mean() - gumbel_kl(*double(m, b, m0, b0)).item()) < 5 * logs.std() / math.sqrt(len(z))


def test_gumbel_of_equal_scales() -> None:
    d = torch.tensor([-3.0, -1e-4, 0.0, 1e-9, 2.0, 40.0], dtype=torch.float64)
    found = gumbel_kl(0.5 * d, 0.5, 0.0, 0.5)
    torch.testing.assert_close(found, d + torch.expm1(-d), rtol=1e-9, atol=1e-17)
    assert found[2] == 0
    assert (found >= 0).all()


def test_uniform_is_the_log_of_a_ratio_of_lengths() -> None:
    low, high = torch.tensor([-1.0, 0.5, -2.0, 0.0]), torch.tensor([-0.5, 2.0, 0.0, 2.1])
    expected = torch.tensor([4 / 0.5, 4 / 1.5, 2.0, math.inf]).log()  # the third is one-sided: it ends with the prior
    torch.testing.assert_close(uniform_kl(low, high, -2.0, 2.0), expected)


def test_log_normal_is_the_mean_of_draws() -> None:
    f, alpha, m, s = 2.3, 0.4, 0.1, 0.9
    expected = log_normal_kl(torch.tensor(math.log(f), dtype=torch.float64), alpha, m, s).item()
    assert expected == pytest.approx(0.74127, abs=1e-5)  # known from an independent computation
    z = stats.lognorm(alpha, scale=f).rvs(200_000, random_state=0)
    logs = stats.lognorm(alpha, scale=f).logpdf(z) - stats.lognorm(s, scale=math.exp(m)).logpdf(z)
    assert abs(logs.mean() - expected) < 5 * logs.std() / math.sqrt(len(z))


def test_log_uniform_is_the_limit_of_wide_log_normal_priors() -> None:
    scales = torch.tensor([0.1, 0.4, 1.0], dtype=torch.float64)
    wide = log_normal_kl(torch.zeros(3, dtype=torch.float64), scales, 0.3, 1e6)
    torch.testing.assert_close(log_uniform_kl(scales, 1.0), wide - wide[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", [gaussian_kl, gumbel_kl, log_normal_kl])
def test_gradients_and_minimum(divergence: object) -> None:
    torch.manual_seed(0)
    arguments = [torch.rand(4, dtype=torch.float64).add_(0.5).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(divergence, arguments)
    same = divergence(arguments[0], arguments[1], arguments[0], arguments[1])
    assert same.detach().abs().max() < 1e-12


def test_half_precision_is_computed_in_float32() -> None:
    found = gumbel_kl(torch.tensor([0.25], dtype=torch.bfloat16), 0.5, 0.0, 0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([0.5 + math.expm1(-0.5)]))


def test_bits() -> None:
    assert to_bits(math.log(8)) == pytest.approx(3)
    assert to_bits(torch.tensor(math.log(2))).item() == pytest.approx(1)
