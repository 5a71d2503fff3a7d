"""Identities of proximal activations in float64, against torch's own functions and numeric minimization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from morphlightning import bregman as B
from morphlightning.errors import ConfigError, NotSupportedError, ShapeError


def monotone(*, channels: int | None = None, seed: int = 0, ends: float | None = None, knots: int = 9) -> Tensor:
    """Values of random splines on [-2, 2] with slopes in [0, 1], level and slope-1 pieces among them."""
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.rand(channels or 1, knots - 1, generator=generator, dtype=torch.float64)
    slopes[:, 2], slopes[:, 3], slopes[:, 5] = 0.0, 0.0, 1.0
    if ends is not None:
        slopes[:, 0] = slopes[:, -1] = ends
    values = torch.nn.functional.pad(slopes.cumsum(1) * 4 / (knots - 1), (1, 0)) - 0.8
    return values if channels else values[0]


def interpolated(values: Tensor) -> Callable[[Tensor], Tensor]:
    """A spline on [-2, 2] by numpy, extrapolated by hand."""

    def apply(z: Tensor) -> Tensor:
        c, knots = values.numpy(), np.linspace(-2, 2, len(values))
        ends = np.array([c[1] - c[0], c[-1] - c[-2]]) / (knots[1] - knots[0])
        beyond = ends[0] * np.minimum(z.numpy() + 2, 0) + ends[1] * np.maximum(z.numpy() - 2, 0)
        return torch.from_numpy(np.interp(z.numpy(), knots, c) + beyond)

    return apply


class Case(NamedTuple):
    sigma: B.ProximalActivation
    torch: Callable[[Tensor], Tensor]
    domain: tuple[float, float] = (-math.inf, math.inf)


SLOPED, LEVEL = monotone(), monotone(seed=1, ends=0.0)
CASES = {
    "identity": Case(B.Identity(), lambda z: z),
    "relu": Case(B.ReLU(), F.relu, (0, math.inf)),
    "leaky_relu": Case(B.LeakyReLU(0.1), lambda z: F.leaky_relu(z, 0.1)),
    "leaky_relu_1": Case(B.LeakyReLU(1.0), lambda z: z),
    "soft_shrink": Case(B.SoftShrink(0.4), lambda z: F.softshrink(z, 0.4)),
    "clamp": Case(B.Clamp(-0.5, 1.3), lambda z: F.hardtanh(z, -0.5, 1.3), (-0.5, 1.3)),
    "clamp_above_0": Case(B.Clamp(0.3, 0.9), lambda z: F.hardtanh(z, 0.3, 0.9), (0.3, 0.9)),
    "tanh": Case(B.Tanh(), torch.tanh, (-1, 1)),
    "sigmoid": Case(B.Sigmoid(), torch.sigmoid, (0, 1)),
    "elu": Case(B.ELU(), F.elu, (-1, math.inf)),
    "elu_0.3": Case(B.ELU(0.3), lambda z: F.elu(z, 0.3), (-0.3, math.inf)),
    "celu_2": Case(B.CELU(2.0), lambda z: F.celu(z, 2.0), (-2, math.inf)),
    "celu_0.4": Case(B.CELU(0.4), lambda z: F.celu(z, 0.4), (-0.4, math.inf)),
    "spline": Case(B.Spline(SLOPED, 2.0), interpolated(SLOPED)),
    "level_spline": Case(B.Spline(LEVEL, 2.0), interpolated(LEVEL), (LEVEL[0].item(), LEVEL[-1].item())),
}
SMOOTH = [name for name, case in CASES.items() if not case.sigma.closed_form]
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
smooth = pytest.mark.parametrize("case", [CASES[name] for name in SMOOTH], ids=SMOOTH)
reals = st.floats(-1e3, 1e3)
weights = st.floats(1e-3, 1.0)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, scale: float = 2.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(case: Case) -> tuple[Tensor, Tensor]:
    """Points x of the range of sigma, and z that have nothing to do with them."""
    return case.torch(random(50, 7, seed=1)), random(50, 7, seed=2)


# ------------------------------------------------------------------------------------------------- identities
@each
def test_sigma_is_that_of_torch(case: Case) -> None:
    z = torch.cat([random(400), column(0.0, 2.0, -2.0, 30.0, -30.0)])
    torch.testing.assert_close(case.sigma(z), case.torch(z), rtol=1e-14, atol=1e-14)


@each
def test_sigma_is_the_derivative_of_h_star(case: Case) -> None:
    z = random(50, 7).requires_grad_()
    (slope,) = torch.autograd.grad(case.sigma.h_star(z).sum(), z)
    torch.testing.assert_close(slope, case.torch(z.detach()), rtol=1e-12, atol=1e-12)


@each
def test_gradient_is_that_of_the_loss(case: Case) -> None:
    x, z = pair(case)
    (gradient,) = torch.autograd.grad(case.sigma.loss(x, z.requires_grad_()).sum(), z)
    torch.testing.assert_close(case.sigma.gradient(x, z.detach()), gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, case.torch(z.detach()) - x, rtol=1e-12, atol=1e-12)


@each
def test_loss_is_the_sum_of_h_h_star_and_a_product(case: Case) -> None:
    x, z = pair(case)
    expected = (case.sigma.h(x) + case.sigma.h_star(z) - x * z).sum(1)
    torch.testing.assert_close(case.sigma.loss(x, z), expected, rtol=1e-12, atol=1e-12)


@each
def test_loss_vanishes_at_the_activation(case: Case) -> None:
    z = random(50, 7)
    torch.testing.assert_close(case.sigma.loss(case.torch(z), z), torch.zeros(50).double(), rtol=0, atol=1e-12)


@each
def test_fenchel_equality(case: Case) -> None:
    z = random(300)
    x = case.torch(z)
    torch.testing.assert_close(case.sigma.h(x) + case.sigma.h_star(z), x * z, rtol=1e-12, atol=1e-12)


@each
def test_loss_is_above_half_the_squared_distance(case: Case) -> None:
    x, z = (part.reshape(-1, 1) for part in pair(case))
    assert (case.sigma.loss(x, z) - (x - case.torch(z)).square().sum(1) / 2).min() > -1e-12


@each
def test_h_is_the_supremum_over_z(case: Case) -> None:
    for x in case.torch(random(12, seed=3)):
        found = minimize_scalar(
            lambda z: (case.sigma.h_star(column(z)) - x * z).item(),
            bounds=(-30, 30),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert case.sigma.h(x[None]).item() == pytest.approx(-found.fun, abs=1e-9)


@each
def test_h_at_and_beyond_the_border(case: Case) -> None:
    low, high = case.domain
    border = column(*(bound for bound in case.domain if math.isfinite(bound)))
    inside = case.sigma.h(border)
    assert inside.isfinite().all()
    inner = border.clamp(low + 1e-9, high - 1e-9)
    torch.testing.assert_close(inside, case.sigma.h(inner), rtol=0, atol=1e-6)
    outside = column(*(bound + shift for bound, shift in ((low, -1e-9), (high, 1e-9)) if math.isfinite(bound)))
    assert case.sigma.h(outside).isposinf().all()
    assert case.sigma.loss(outside, torch.zeros_like(outside)).isposinf().all()


@each
def test_nan_stays_nan(case: Case) -> None:
    nan = column(math.nan)
    for value in (case.sigma(nan), case.sigma.prox(nan, 0.5), case.sigma.h(nan), case.sigma.h_star(nan)):
        assert value.isnan().all()


# ------------------------------------------------------------------------------------------------------- prox
@each
@pytest.mark.parametrize("t", [0.03, 0.5, 0.95, 1.0])
def test_prox_minimizes(case: Case, t: float) -> None:
    v = torch.cat([random(12, seed=4), column(0.0)])
    low, high = max(case.domain[0], -20.0), min(case.domain[1], 20.0)

    def objective(u: float, v: float) -> float:
        return 0.5 * (u - v) ** 2 + t * (case.sigma.h(column(u)).item() - 0.5 * u * u)

    for at, found in zip(v.tolist(), case.sigma.prox(v, t).tolist(), strict=True):
        best = minimize_scalar(objective, args=(at,), bounds=(low, high), method="bounded", options={"xatol": 1e-10})
        assert found == pytest.approx(best.x, abs=2e-6)
        assert objective(found, at) <= best.fun + 1e-12


@each
@pytest.mark.parametrize("t", [0.03, 0.5, 0.95])
def test_prox_is_a_fixed_point_of_sigma(case: Case, t: float) -> None:
    v = random(500, seed=5)
    u = case.sigma.prox(v, t)
    torch.testing.assert_close(case.torch(u + (v - u) / t), u, rtol=0, atol=1e-14 / t)


@each
def test_prox_of_weight_1_is_sigma(case: Case) -> None:
    v = random(500, seed=6, scale=5.0)
    torch.testing.assert_close(case.sigma.prox(v, 1.0), case.torch(v), rtol=1e-13, atol=1e-14)


@smooth
@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.3, 0.999])
@pytest.mark.parametrize(
    "v", [-1e6, -1000.3, -2.6, -1.0, -1e-3, -1e-12, 0.0, 1e-300, 0.5, 0.999999, 1.000001, 7.0, 1e6]
)
def test_newton_at_extremes(case: Case, v: float, t: float) -> None:
    reach = (abs(v) + 2) / t

    def equation(p: float) -> float:
        return t * p + (1 - t) * case.torch(column(p)).item() - v

    root = brentq(equation, -reach, reach, xtol=1e-300, rtol=8.9e-16, maxiter=1000)
    found = case.sigma.prox(column(v), t).item()
    assert found == pytest.approx(case.torch(column(root)).item(), rel=1e-14, abs=1e-14)


@smooth
def test_newton_takes_few_steps(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    slope = type(case.sigma).slope
    monkeypatch.setattr(type(case.sigma), "slope", lambda self, value: calls.append(1) or slope(self, value))
    monkeypatch.delattr(B.SmoothActivation, "_bisection")
    v = torch.cat([random(2000, scale=10.0 ** (k - 2), seed=k) for k in range(9)])
    for dtype in (torch.float64, torch.float32):
        for t, most in ((0.5, 8), (0.05, 10), (1e-3, 14)):
            calls.clear()
            case.sigma.prox(v.to(dtype), t)
            assert len(calls) <= most


class Stairs(B.SmoothActivation):
    """Ramps of slope 1 between level pieces: Newton's method alone runs to and fro between them."""

    def __call__(self, z: Tensor) -> Tensor:
        stair = (z / 4).floor()
        return stair + (z - 4 * stair).clamp(max=1)

    def slope(self, value: Tensor) -> Tensor:
        return (value != value.floor()).to(value)

    def h(self, x: Tensor) -> Tensor:
        raise AssertionError

    h_star = h


def test_bisection_takes_over_where_newton_would_cycle() -> None:
    sigma, t = Stairs(), 1e-3
    v = torch.linspace(-1, 6, 701, dtype=torch.float64)
    assert sigma._newton(v, t)[1].sum() > 100

    def root(v: float) -> float:
        return brentq(lambda p: t * p + (1 - t) * sigma(column(p)).item() - v, -1e4, 1e4, xtol=1e-13)

    roots = column(*(root(at) for at in v.tolist()))
    torch.testing.assert_close(sigma.prox(v, t), sigma(roots), rtol=0, atol=1e-12)


class Misled(B.Tanh):
    """Gives a wrong slope."""

    def slope(self, value: Tensor) -> Tensor:
        return torch.where(value > 0, 0.0, 100.0).to(value)


@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.5])
def test_bisection_alone_finds_the_root(t: float) -> None:
    v = torch.cat([random(200, scale=10.0 ** (k - 3)) for k in range(10)])
    torch.testing.assert_close(Misled().prox(v, t), B.Tanh().prox(v, t), rtol=1e-14, atol=1e-14)


@each
@given(a=reals, b=reals, t=weights)
def test_sigma_and_prox_are_firmly_nonexpansive_and_monotone(case: Case, a: float, b: float, t: float) -> None:
    v = column(a, b)
    for moved in (case.sigma(v), case.sigma.prox(v, t)):
        step, change = (v[1] - v[0]).item(), (moved[1] - moved[0]).item()
        assert change * step >= change * change - 1e-10
        assert change * step >= 0


# ----------------------------------------------------------------------------------------------------- dtypes
@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(case: Case, dtype: torch.dtype) -> None:
    z = random(40, 5).to(dtype)
    exact = z.double()
    rounding = 4 * torch.finfo(dtype).eps
    x = case.sigma(z)
    for seen, expected in (
        (x, case.torch(exact)),
        (case.sigma.prox(z, 0.2), case.sigma.prox(exact, 0.2)),
        (case.sigma.gradient(x, z + 1), case.sigma(exact + 1) - case.torch(exact)),
    ):
        assert seen.dtype == dtype
        torch.testing.assert_close(seen.double(), expected, rtol=rounding, atol=4 * rounding)
    for value in (case.sigma.h(x), case.sigma.h_star(z), case.sigma.loss(x, z)):
        assert value.dtype == torch.float32
        assert value.isfinite().all()
    assert (case.sigma.loss(x, z) + rounding * (x * z).float().abs().sum(1)).min() >= 0


@each
def test_nothing_carries_a_graph(case: Case) -> None:
    values = torch.nn.Parameter(monotone(channels=3))
    assert not any(
        part.requires_grad
        for sigma in (case.sigma, B.Spline(values, 2.0), B.SoftShrink(values[:, 0].abs()))
        for part in vars(sigma).values()
        if isinstance(part, Tensor)
    )


# --------------------------------------------------------------------------------------------------- channels
@pytest.mark.parametrize(("shape", "channel_dim"), [((6, 3), 1), ((2, 3, 4, 5), 1), ((2, 4, 3), -1)])
def test_channels(shape: tuple[int, ...], channel_dim: int) -> None:
    values, thresholds = monotone(channels=3, seed=2), column(0.0, 0.3, 1.0)
    z, v = random(*shape), random(*shape, seed=1)
    pairs = (
        (B.Spline(values, 2.0, channel_dim), [B.Spline(row, 2.0) for row in values]),
        (B.SoftShrink(thresholds, channel_dim), [B.SoftShrink(float(one)) for one in thresholds]),
    )
    for whole, parts in pairs:
        x = whole(v)
        assert whole.loss(x, z).shape == (shape[0],)
        for channel, part in enumerate(parts):
            at = (Ellipsis, channel) if channel_dim == -1 else (slice(None), channel)
            torch.testing.assert_close(whole(z)[at], part(z[at]))
            torch.testing.assert_close(whole.prox(v, 0.3)[at], part.prox(v[at], 0.3))
            torch.testing.assert_close(whole.h(x)[at], part.h(x[at]))
            torch.testing.assert_close(whole.h_star(z)[at], part.h_star(z[at]))
        total = sum(
            part.loss(x.movedim(channel_dim, 1)[:, c], z.movedim(channel_dim, 1)[:, c]) for c, part in enumerate(parts)
        )
        torch.testing.assert_close(whole.loss(x, z), total)


@pytest.mark.parametrize("sigma", [B.Spline(monotone(channels=3), 2.0), B.SoftShrink(column(0.1, 0.2, 0.3))])
def test_other_channels_are_refused(sigma: B.ProximalActivation) -> None:
    for shape in ((4, 2), (3,)):
        for function in (sigma, sigma.h, sigma.h_star, lambda z: sigma.prox(z, 0.5)):
            with pytest.raises(ShapeError, match="must have 3 channels"):
                function(random(*shape))


# ---------------------------------------------------------------------------------------------------- splines
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ends", [None, 0.0, 1.0])
def test_random_splines(seed: int, ends: float | None) -> None:
    values = monotone(seed=seed, ends=ends, knots=7 + seed)
    spline, sigma = B.Spline(values, 2.0), interpolated(values)
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    x = sigma(random(20, seed=seed))
    sup = (x[:, None] * grid - spline.h_star(grid)).amax(1)
    torch.testing.assert_close(spline.h(x), sup, rtol=0, atol=1e-7)
    area = torch.cumulative_trapezoid(sigma(grid), grid)
    torch.testing.assert_close(spline.h_star(grid)[1:] - spline.h_star(grid[:1]), area, rtol=0, atol=1e-8)
    for t in (0.01, 0.4, 0.9):
        v = t * grid[::1000] + (1 - t) * sigma(grid[::1000])
        torch.testing.assert_close(spline.prox(v, t), sigma(grid[::1000]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_splines_with_given_knots(shared: bool) -> None:
    """Knots in the middle of straight pieces change nothing."""
    knots = torch.linspace(-2, 2, 5, dtype=torch.float64)
    values = torch.stack([knots.relu(), 0.5 * knots, knots - knots.clamp(-1, 1)])
    uniform = B.Spline(values, 2.0)
    uneven = torch.cat([knots[:3], column(0.7), knots[3:]])
    more = torch.stack([uneven.relu(), 0.5 * uneven, uneven - uneven.clamp(-1, 1)])
    given = B.Spline(more, uneven if shared else uneven.expand(3, -1).clone())
    z, v = 3 * random(40, 3), random(40, 3, seed=1)
    for of in (lambda s: s(z), lambda s: s.h(s(v)), lambda s: s.h_star(z), lambda s: s.prox(z, 0.3)):
        torch.testing.assert_close(of(given), of(uniform), rtol=1e-12, atol=1e-12)
    with pytest.raises(ConfigError, match="ascend"):
        B.Spline(more, uneven.flip(0))


def test_splines_that_are_other_activations() -> None:
    z = random(200)
    x = z.abs()
    knots = torch.linspace(-2, 2, 5, dtype=torch.float64)
    for spline, other in ((B.Spline(knots.relu(), 2.0), B.ReLU()), (B.Spline(knots, 2.0), B.Identity())):
        for seen, expected in ((spline.h(x), other.h(x)), (spline.h_star(z), other.h_star(z))):
            torch.testing.assert_close(seen, expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(spline.prox(z, 0.4), other.prox(z, 0.4), rtol=1e-13, atol=1e-13)


def test_a_spline_whose_only_value_is_a_constant() -> None:
    spline = B.Spline(torch.full((4,), 0.7, dtype=torch.float64), 1.0)
    z = random(20)
    assert torch.equal(spline.prox(z, 0.3), torch.full_like(z, 0.7))
    assert spline.h(column(0.7, 0.6)).tolist() == [pytest.approx(0.0, abs=1e-15), math.inf]
    torch.testing.assert_close(spline.h_star(z), 0.7 * z)


def test_rounding_of_a_spline_is_forgiven_and_more_is_not() -> None:
    values = monotone(channels=4, seed=3, ends=0.0, knots=101).float() + 100
    values[1, 40:] += 1.0 - 2.0**-24
    with pytest.raises(NotSupportedError, match=r"piece 39 of channel 1 is 2\d\..*sort the values"):
        B.Spline(values, 2.0)
    level = torch.full((50,), 3.0)
    level[20] -= 2e-7
    spline = B.Spline(level, 2.0)
    assert spline.loss(spline(random(9, 4).float()), random(9, 4).float()).isfinite().all()
    assert spline.slopes.min() == 0
    level[20] -= 1e-3
    with pytest.raises(NotSupportedError, match=r"slope of piece 19 of channel 0 is -0\.01"):
        B.Spline(level, 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_low_precision_stay_in_the_domain(dtype: torch.dtype) -> None:
    """Interpolated values may miss the bound of a level end piece by the rounding of the values beside it."""
    for seed in range(20):
        rise = torch.rand(3, generator=torch.Generator().manual_seed(seed)).cumsum(0)
        spline = B.Spline(torch.stack([-rise[2], -rise[1], *torch.full((2,), 1e-4)]), 3.0)
        for t in (0.3, 0.77, 1.0):
            knot = (t * spline.knots + (1 - t) * spline.values)[0, 2].float()
            near = (knot + 6e-8 * torch.arange(-200, 5)).to(dtype)
            for x in (spline(near), spline.prox(near, t)):
                assert spline.h(x).isfinite().all()


# ---------------------------------------------------------------------------------------------------- softmax
def test_softmax() -> None:
    sigma, z, other = B.Softmax(-1), random(30, 6), random(30, 6, seed=1)
    x = torch.softmax(other, -1)
    torch.testing.assert_close(sigma(z), torch.softmax(z, -1))
    (slope,) = torch.autograd.grad(sigma.h_star(z.requires_grad_()).sum(), z)
    torch.testing.assert_close(slope, torch.softmax(z, -1).detach(), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(sigma.loss(x, z).sum(), z)
    z = z.detach()
    torch.testing.assert_close(gradient, sigma.gradient(x, z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma.loss(sigma(z), z), torch.zeros(30).double(), rtol=0, atol=1e-12)
    divergence = F.kl_div(torch.log_softmax(z, -1), x, reduction="none").sum(-1)
    torch.testing.assert_close(sigma.loss(x, z), divergence, rtol=1e-12, atol=1e-12)
    assert (sigma.loss(x, z) - (x - sigma(z)).square().sum(-1) / 2).min() > -1e-12


def test_softmax_on_an_axis_of_images() -> None:
    sigma, z = B.Softmax(1), random(4, 3, 5, 2)
    x = torch.softmax(random(4, 3, 5, 2, seed=1), 1)
    divergence = F.kl_div(torch.log_softmax(z, 1), x, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(sigma.loss(x, z), divergence)


def test_softmax_has_the_simplex_as_its_domain() -> None:
    x = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.6, 0.5], [1.5, -0.5]])
    expected = torch.tensor([0.0, -math.log(2), math.inf, math.inf])
    torch.testing.assert_close(B.Softmax().h(x), expected)
    for dtype in (torch.float32, torch.bfloat16):
        z = random(50, 1000).to(dtype)
        assert B.Softmax().loss(B.Softmax()(z), z).isfinite().all()


def test_softmax_has_no_prox() -> None:
    assert B.Softmax.mirror_only
    assert not any(case.sigma.mirror_only for case in CASES.values())
    with pytest.raises(NotSupportedError, match="mirror step"):
        B.Softmax().prox(random(2, 3), 0.5)
    with pytest.raises(ConfigError, match="axis of the samples"):
        B.Softmax(0)
    with pytest.raises(ShapeError, match="that of the samples"):
        B.Softmax(-2).loss(random(2, 3), random(2, 3))


# ----------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: B.Clamp(1, 1), ConfigError, "low must be below high"),
        (lambda: B.LeakyReLU(0.0), ConfigError, r"slope 0 is ReLU"),
        (lambda: B.LeakyReLU(1.1), ConfigError, r"slope must lie in \(0, 1\], got 1.1"),
        (lambda: B.SoftShrink(-0.1), ConfigError, "finite and >= 0"),
        (lambda: B.SoftShrink(column(0.1, math.nan)), ConfigError, "finite and >= 0"),
        (lambda: B.SoftShrink(random(2, 2)), ShapeError, "threshold has shape"),
        (lambda: B.ELU(1.5), ConfigError, r"alpha must lie in \(0, 1\], got 1.5"),
        (lambda: B.ELU(0.0), ConfigError, "alpha must lie"),
        (lambda: B.CELU(-1.0), ConfigError, "alpha must be positive"),
        (lambda: B.Spline(column(1.0), 2.0), ShapeError, "values has shape"),
        (lambda: B.Spline(random(1, 2, 3), 2.0), ShapeError, "values has shape"),
        (lambda: B.Spline(random(0, 3), 2.0), ShapeError, "values has shape"),
        (lambda: B.Spline(column(0.0, 1.0), 0.0), ConfigError, "limit must be positive"),
        (lambda: B.Spline(column(0.0, math.inf), 1.0), ConfigError, "values must be finite"),
        (lambda: B.Spline(column(0.0, 4.2), 2.0), NotSupportedError, r"is 1.05, but .* divide them"),
    ],
)
def test_bad_parameters(build: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("name", ["leaky_relu", "soft_shrink", "tanh", "spline"])
def test_a_weight_must_be_positive(name: str) -> None:
    for t in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="must be positive"):
            CASES[name].sigma.prox(column(1.0), t)
