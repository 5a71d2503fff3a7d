"""One-sided derivatives of our operators, at ties, against exact difference quotients."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

import morphlightning.functional as mf
from morphlightning.bouligand import active_set, bderivative
from morphlightning.errors import ConfigError, NotSupportedError, ShapeError

T = 2.0**-12
"""Integers plus integer multiples of T are exact in float64, and T is below every radius of the cases here."""
BORDERS = ["neutral", "reflect", "replicate", "circular", "constant"]


def integers(*shape: int, seed: int, low: int = -1, high: int = 2) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def quotient(operator, x, w, h, v, **options) -> Tensor:
    moved = operator(x if h is None else x + T * h, w if v is None else w + T * v, **options)
    return (moved - operator(x, w, **options)) / T


def missing(w: Tensor, seed: int = 9) -> Tensor:
    """A third of the entries is missing; every row and column keeps one."""
    gone = torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    gone.diagonal(dim1=-2, dim2=-1).fill_(False)
    gone[..., 0, :] = gone[..., 0] = False
    return w.masked_fill(gone, -math.inf)


@pytest.mark.parametrize("operator", [mf.dilation, mf.erosion, mf.adjoint_dilation, mf.adjoint_erosion])
@pytest.mark.parametrize("moves", ["x", "w", "both"])
def test_dense(operator, moves: str):
    cases, inputs = 3000, 5 if "adjoint" in operator.__name__ else 6
    x, h = integers(cases, inputs, seed=0), integers(cases, inputs, seed=1, low=-3, high=4)
    w, v = missing(integers(cases, 5, 6, seed=2)), integers(cases, 5, 6, seed=3, low=-3, high=4)
    h, v = h if moves != "w" else None, v if moves != "x" else None
    assert torch.equal(bderivative(x, w, h, v, operator=operator), quotient(operator, x, w, h, v))


@pytest.mark.parametrize("operator", [mf.opening, mf.closing])
def test_tied_weights_of_two_stages(operator):
    x, h = integers(3000, 6, seed=0), integers(3000, 6, seed=1, low=-3, high=4)
    w, v = missing(integers(3000, 5, 6, seed=2)), integers(3000, 5, 6, seed=3, low=-3, high=4)
    assert torch.equal(bderivative(x, w, h, v, operator=operator), quotient(operator, x, w, h, v))


def test_forward_mode_of_torch_is_wrong_where_maxima_tie():
    """The reason for this package: amax takes the mean of the tied slopes, max(dim) the first."""
    x, h = integers(2000, 1, 6, seed=0), integers(2000, 1, 6, seed=1, low=-3, high=4)
    w = integers(5, 6, seed=2)
    _, by_torch = torch.func.jvp(lambda x: (x + w).amax(-1), (x,), (h,))
    exact = (((x + T * h) + w).amax(-1) - (x + w).amax(-1)) / T
    _, by_first = torch.func.jvp(lambda x: (x + w).max(-1).values, (x,), (h,))
    for slope, share in ((by_torch, 0.3), (by_first, 0.2)):
        wrong = (slope - exact).abs()
        assert wrong.amax() > 2
        assert (wrong > 0.1).double().mean() > share
    assert torch.equal(bderivative(x[:, 0], w, h[:, 0]), exact)
    assert active_set(x[:, 0], w).sum(-1).double().mean() > 1.5


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("operator", [mf.dilation2d, mf.erosion2d])
def test_windows_and_borders(operator, border: str):
    x, h = integers(3, 4, 6, 5, seed=0), integers(3, 4, 6, 5, seed=1, low=-3, high=4)
    b, v = integers(6, 2, 3, 2, seed=2), integers(6, 2, 3, 2, seed=3, low=-3, high=4)
    b[:, :, 0, 1] = -math.inf
    for options in ({}, {"stride": 2}, {"dilation": (1, 2)}, {"padding": 1}, {"padding": "valid"}, {"merge": "sum"}):
        options = {"groups": 2, "border": border, **options}
        exact = quotient(operator, x, b, h, v, **options)
        assert torch.equal(bderivative(x, b, h, v, operator=operator, **options), exact), options


def test_a_constant_border_that_wins_does_not_move():
    x = torch.zeros(1, 1, 3)
    slope = bderivative(x, 3, torch.full_like(x, -1.0), operator=mf.dilation1d, border="constant", value=0.0)
    assert slope.flatten().tolist() == [0.0, -1.0, 0.0]


def _of_rank(rank: int) -> list:
    stems = ["dilation", "erosion", "opening", "closing", "gradient", "white_tophat", "black_tophat"]
    return [getattr(mf, f"{stem}{rank}d") for stem in stems]


@pytest.mark.parametrize("operator", [f for rank in (1, 2, 3) for f in _of_rank(rank)], ids=lambda f: f.__name__)
@pytest.mark.parametrize("window", ["size", "footprint", "shared", "per channel"])
def test_every_windowed_operator(operator, window: str):
    rank = int(operator.__name__[-2])
    space, size = (5, 4, 3)[:rank], (3, 2, 2)[:rank]
    origin = sum(k // 2 * math.prod(size[axis + 1 :]) for axis, k in enumerate(size))
    x, h = integers(20, 2, *space, seed=0), integers(20, 2, *space, seed=1, low=-3, high=4)
    b = {
        "size": size,
        "footprint": integers(*size, seed=4, low=0).bool() | (torch.arange(math.prod(size)).view(size) == origin),
        "shared": integers(*size, seed=2),
        "per channel": integers(2, *size, seed=2),
    }[window]
    v = integers(*b.shape, seed=3, low=-3, high=4) if window in ("shared", "per channel") else None
    assert torch.equal(bderivative(x, b, h, v, operator=operator), quotient(operator, x, b, h, v))
    assert torch.equal(bderivative(x[0], b, h[0], v, operator=operator), quotient(operator, x[0], b, h[0], v))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["dilation", "erosion"])
@pytest.mark.parametrize("values", [2, 6])
def test_reconstruction(kind: str, rank: int, values: int):
    operator = getattr(mf, f"reconstruction_by_{kind}{rank}d")
    space = (40, 9, 4)[rank - 1]
    shape = (30, 2, *(space,) * rank)
    seed, mask = integers(*shape, seed=0, low=0, high=values), integers(*shape, seed=1, low=0, high=values)
    h, g = integers(*shape, seed=2, low=-3, high=4), integers(*shape, seed=3, low=-3, high=4)
    asymmetric = torch.ones((3,) * rank, dtype=torch.bool)
    asymmetric.view(-1)[-1] = False
    for footprint in (3, asymmetric):
        exact = quotient(operator, seed, mask, h, g, footprint=footprint)
        assert torch.equal(bderivative(seed, mask, h, g, operator=operator, footprint=footprint), exact)


def test_directions_travel_over_plateaus_longer_than_values_do():
    """Values are stable at once, while the direction still has to reach the other end."""
    seed, mask, h = torch.zeros(1, 1, 50), torch.zeros(1, 1, 50), torch.zeros(1, 1, 50)
    h[..., 0] = 1.0
    slope = bderivative(seed, mask, h, torch.ones_like(mask), operator=mf.reconstruction_by_dilation1d)
    assert (slope == 1).all()


@pytest.mark.parametrize("operator", [mf.soft_dilation, mf.soft_erosion, mf.soft_opening, mf.soft_adjoint_erosion])
@pytest.mark.parametrize("beta", [0.7, 200.0])
def test_soft_operators(operator, beta: float):
    generator = torch.Generator().manual_seed(0)
    size = 4 if "adjoint" in operator.__name__ else 5
    x, h = (torch.randn(7, size, generator=generator, dtype=torch.float64) for _ in range(2))
    w, v = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    w[1, 2] = -math.inf
    step = 1e-6 / beta
    central = (operator(x + step * h, w + step * v, beta) - operator(x - step * h, w - step * v, beta)) / (2 * step)
    torch.testing.assert_close(bderivative(x, w, h, v, operator=operator, beta=beta), central, rtol=1e-5, atol=1e-5)


def test_soft_windows():
    generator = torch.Generator().manual_seed(0)
    x, h = (torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    b, v = (torch.randn(3, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for border in ("neutral", "reflect", "constant"):
        options = {"beta": 2.0, "border": border, "stride": 2}
        ahead, behind = (mf.soft_dilation2d(x + s * h, b + s * v, **options) for s in (1e-6, -1e-6))
        slope = bderivative(x, b, h, v, operator=mf.soft_dilation2d, **options)
        torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)


def extrapolated(operator, x, w, h, v, **options) -> Tensor:
    """The difference quotient without its first-order error, for functions that are curved between kinks."""
    at = operator(x, w, **options)
    near, far = (operator(x + t * h, w + t * v, **options) for t in (T, 2 * T))
    return 2 * (near - at) / T - (far - at) / (2 * T)


@pytest.mark.parametrize("channels", [None, 3])
def test_splines_at_their_knots(channels: int | None):
    count, shape = 9, (50, 3, 4)
    x, h = integers(*shape, seed=0, low=-6, high=7), integers(*shape, seed=1, low=-3, high=4)
    size = (count,) if channels is None else (channels, count)
    values, v = integers(*size, seed=2, low=-3, high=4), integers(*size, seed=3, low=-3, high=4)
    free = torch.arange(-4.0, 5.0, dtype=torch.float64)
    own = free + torch.arange(-1.0, 2.0, dtype=torch.float64)[:, None]
    for knots in ((-4.0, 4.0), free, *([own] if channels else [])):
        for directions in ((h, None), (None, v)):
            exact = quotient(mf.linear_spline, x, values, *directions, knots=knots)
            assert torch.equal(bderivative(x, values, *directions, operator=mf.linear_spline, knots=knots), exact)
        both = bderivative(x, values, h, v, operator=mf.linear_spline, knots=knots)
        near = extrapolated(mf.linear_spline, x, values, h, v, knots=knots)
        torch.testing.assert_close(both, near, rtol=0, atol=1e-10)


def test_knots_that_move():
    """What counts at a knot is which of the two is ahead."""
    x, h = integers(50, 3, 4, seed=0, low=-6, high=7), integers(50, 3, 4, seed=1, low=-3, high=4)
    knots, shift = torch.arange(-4.0, 5.0, dtype=torch.float64), integers(3, 9, seed=5, low=-3, high=4)
    values = integers(3, 9, seed=2, low=-3, high=4)

    def spline(x: Tensor, knots: Tensor) -> Tensor:
        return mf.linear_spline(x, values, knots)

    for places, shifts in ((knots, shift[0]), (knots.expand(3, -1) + shift / 32, shift)):
        slope = bderivative(x, places, h, shifts, operator=spline)
        torch.testing.assert_close(slope, extrapolated(spline, x, places, h, shifts), rtol=0, atol=1e-4)


def test_rows_without_candidates_stay():
    w = torch.full((2, 3), -math.inf, dtype=torch.float64)
    w[1, 0] = 0.0
    x, h, v = integers(4, 3, seed=0), integers(4, 3, seed=1), integers(2, 3, seed=2)
    for operator in (mf.dilation, mf.erosion):
        slope = bderivative(x, w, h, v, operator=operator)
        assert (slope[:, 0] == 0).all()
        assert torch.equal(slope[:, 1], h[:, 0] + (v[1, 0] if operator is mf.dilation else -v[1, 0]))
    assert not active_set(x, w)[:, 0].any()
    assert bderivative(torch.full((1, 3), -math.inf), w.float(), torch.ones(1, 3)).tolist() == [[0.0, 0.0]]


def test_nan_stays_nan():
    x, w = torch.tensor([[math.nan, 1.0]]), torch.zeros(1, 2)
    assert bderivative(x, w, torch.ones(1, 2)).isnan().all()


def test_half_precision_and_defaults():
    x, w = integers(4, 6, seed=0).bfloat16(), integers(3, 6, seed=1).bfloat16()
    h = integers(4, 6, seed=2).bfloat16()
    slope = bderivative(x, w, h)
    assert slope.dtype == torch.bfloat16
    assert torch.equal(slope.double(), bderivative(x.double(), w.double(), h.double()))
    assert torch.equal(bderivative(x, w, None), torch.zeros(4, 3, dtype=torch.bfloat16))


def test_eps_widens_the_active_sets():
    x, w, h = torch.tensor([[0.0, -0.25, -1.0]]), torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 9.0]])
    assert [bderivative(x, w, h, eps=eps).item() for eps in (0.0, 0.25, 1.0)] == [0.0, 2.0, 9.0]
    assert [active_set(x, w, eps).sum().item() for eps in (0.0, 0.25, 1.0)] == [1, 2, 3]
    assert active_set(x[:, None], w).shape == (1, 1, 1, 3)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    from morphlightning.ops import eager

    x, w, h = integers(40, 30, seed=0), integers(20, 30, seed=1), integers(40, 30, seed=2, low=-3, high=4)
    whole = bderivative(x, w, h)
    monkeypatch.setattr(eager, "BUDGET", eager.CPU_SHARE * 20 * 30 * 3)
    assert torch.equal(bderivative(x, w, h), whole)


def test_bad_arguments():
    x, w, h = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, 3)
    for eps in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="eps must be"):
            active_set(x, w, eps)
        with pytest.raises(ConfigError, match="eps must be"):
            bderivative(x, w, h, eps=eps)
    with pytest.raises(ShapeError, match=r"direction of x has shape \(3,\), expected \(2, 3\)"):
        bderivative(x, w, h[0])
    with pytest.raises(ShapeError, match=r"direction of w has shape \(2, 3\)"):
        bderivative(x, w, h, h)
    image = torch.zeros(1, 1, 3, 3)
    with pytest.raises(ConfigError, match=r"w is int and takes no direction"):
        bderivative(image, 3, image, torch.zeros(3), operator=mf.dilation2d)
    footprint = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"w is torch.bool and takes no direction"):
        bderivative(image, footprint, image, torch.zeros(3, 3), operator=mf.dilation2d)
    with pytest.raises(ConfigError, match="params belong to a module"):
        bderivative(x, w, h, params={"weight": w})
    with pytest.raises(NotSupportedError, match="along beta"):
        bderivative(
            x, torch.tensor(1.0), None, torch.tensor(1.0), operator=lambda x, beta: mf.soft_dilation(x, w, beta)
        )


def test_every_functional_operator_is_tested_here():
    source = inspect.getsource(inspect.getmodule(test_bad_arguments))
    tested = {f.__name__ for rank in (1, 2, 3) for f in _of_rank(rank)}
    tested |= {f"reconstruction_by_{kind}{rank}d" for kind in ("dilation", "erosion") for rank in (1, 2, 3)}
    rest = {name for name in mf.__all__ if name not in tested and f"mf.{name}" not in source}
    # the same code under other signs and ranks, and the slope, which jumps
    assert rest == {
        "linear_spline_slope",
        "soft_adjoint_dilation",
        "soft_closing",
        "soft_dilation1d",
        "soft_dilation3d",
        "soft_erosion1d",
        "soft_erosion2d",
        "soft_erosion3d",
        "softened",  # a context
    }
