"""Soft windowed operators against log-sum-exp over unfolded windows, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import morphlightning.functional as mf
from morphlightning.errors import ConfigError, DtypeError, ShapeError
from morphlightning.functional.windowing import Windowing
from morphlightning.ops.geometry import Window
from morphlightning.ops.soft import ladder

SPACE = {1: (11,), 2: (7, 8), 3: (5, 6, 4)}
SIZES = {1: (4,), 2: (3, 2), 3: (2, 3, 2)}
OPTIONS = (
    {},
    {"groups": 2},
    {"stride": 2, "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "groups": 2},
    {"border": "reflect"},
    {"border": "replicate", "stride": 2},
    {"border": "circular"},
    {"border": "constant", "value": 0.7},
)


def operators(rank: int, sign: int):
    name = "dilation" if sign > 0 else "erosion"
    return getattr(mf, f"soft_{name}{rank}d"), getattr(mf, f"{name}{rank}d")


def arguments(rank: int, groups: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, *SPACE[rank], generator=generator, dtype=torch.float64)
    b = torch.randn(6, 4 // groups, *SIZES[rank], generator=generator, dtype=torch.float64)
    return x.to(dtype), b.to(dtype)


def unfolded(x: Tensor, b: Tensor, beta: float, sign: int, **options) -> Tensor:
    """The definition: all scores of all windows at once."""
    how, rank = Windowing(**options), b.ndim - 2
    window = how.window(tuple(b.shape[2:]), how.groups, reflected=sign > 0, dual=sign < 0)
    x, b = window.pad(sign * x), b.flip(tuple(range(2, b.ndim))) if sign > 0 else b
    for axis, (size, space, stride) in enumerate(zip(b.shape[2:], window.spacing, window.stride, strict=True), 2):
        x = x.unfold(axis, space * (size - 1) + 1, stride)[..., ::space]
    extents = x.shape[2 : 2 + rank]
    x = x.reshape(len(x), how.groups, 1, x.shape[1] // how.groups, math.prod(extents), -1)
    scores = x + b.reshape(how.groups, -1, b.shape[1], 1, math.prod(b.shape[2:]))
    y = torch.logsumexp(beta * scores.transpose(3, 4).flatten(4), -1) / beta
    return sign * y.reshape(len(y), -1, *extents)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("rank", "sign"), [(rank, sign) for rank in (1, 2, 3) for sign in (1, -1)])
def test_values_gradients_and_bounds(rank: int, sign: int, options: dict) -> None:
    soft, hard = operators(rank, sign)
    x, b = (t.requires_grad_() for t in arguments(rank, options.get("groups", 1)))
    for beta in (0.3, 2.5, 1e3):
        y, right = soft(x, b, beta, **options), unfolded(x, b, beta, sign, **options)
        torch.testing.assert_close(y, right, rtol=1e-12, atol=1e-12)
        gy = torch.randn_like(y)
        seen, expected = (torch.autograd.grad(v, (x, b), gy) for v in (y, right))
        torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-10)
        above = sign * (y - hard(x, b, **options))
        assert above.min() >= -1e-12
        assert above.max() <= math.log(b[0].numel()) / beta + 1e-12


@pytest.mark.parametrize("beta", [0.01, 0.3, 3.0, 20.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize(("rank", "sign"), [(1, 1), (2, -1), (3, 1)])
def test_errors_at_any_temperature(rank: int, sign: int, scale: float, beta: float) -> None:
    x, b = (scale * t for t in arguments(rank, dtype=torch.float32))
    right = unfolded(x.double(), b.double(), beta, sign)
    error = (operators(rank, sign)[0](x, b, beta) - right).abs().max()
    assert error < 2e-6 * max(1.0, 1 / beta, float(right.abs().max()))


def test_each_image_is_computed_where_it_can_be() -> None:
    _, b = arguments(2, dtype=torch.float32)
    x = torch.rand(4, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    x[1, :, 3:] *= 100  # beside rows that stay below 1
    x[2, :, 3:] *= 3000
    x[3, 0, 0, 0] = math.inf
    beta, inside = torch.tensor(2.0), Window((1, 1), (1, 1), (0, 0), (0, 0))
    *_, rung = ladder.value(x, b, beta, inside, "full")
    assert rung.tolist() == [ladder.FIRST, ladder.DOUBLE, ladder.DIRECT, ladder.DIRECT]
    x, b = x.requires_grad_(), b.requires_grad_()
    y = mf.soft_dilation2d(x, b, beta)
    assert y[3].isinf().any()
    assert not y.isnan().any()
    xd, bd = x[:3].double(), b.double()
    torch.testing.assert_close(y[:3], unfolded(xd, bd, 2.0, 1).float(), rtol=1e-6, atol=1e-6)
    seen = torch.autograd.grad(y[:3].sum(), (x, b))
    expected = torch.autograd.grad(unfolded(xd, bd, 2.0, 1).sum(), (x, b))
    torch.testing.assert_close(seen, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("beta", [2.0, 60.0, 1e3])
def test_second_derivatives(beta: float) -> None:
    x, b = arguments(2, 2)
    x, b = (x[:1, :, :3, :3] * 3).clone().requires_grad_(), (b[:2] * 3).clone().requires_grad_()

    def curvature(run):
        gx, gb = torch.autograd.grad(run().square().sum(), (x, b), create_graph=True)
        return torch.autograd.grad((gx * gx.detach()).sum() + (gb * gb.detach()).sum(), (x, b))

    seen = curvature(lambda: mf.soft_dilation2d(x, b, beta, groups=2))
    torch.testing.assert_close(seen, curvature(lambda: unfolded(x, b, beta, 1, groups=2)), rtol=1e-8, atol=1e-8)
    if beta == 2.0:
        assert torch.autograd.gradgradcheck(lambda a, c: mf.soft_erosion2d(a, c, beta, groups=2), (x, b), atol=1e-4)


@pytest.mark.parametrize("beta", [2.0, 1e3])
def test_missing_weights_and_infinite_inputs(beta: float) -> None:
    x, b = arguments(2, dtype=torch.float32)
    b[0, :, 0] = -math.inf
    b[1] = -math.inf
    x[0, :, :2] = -math.inf
    x, b = x.requires_grad_(), b.requires_grad_()
    y = mf.soft_dilation2d(x, b, beta)
    assert (y[:, 1] == -math.inf).all()
    right = unfolded(x.double(), b.double(), beta, 1).float()
    torch.testing.assert_close(y, right, rtol=1e-6, atol=2e-6)
    for g in torch.autograd.grad(y[y > -math.inf].sum(), (x, b)):
        assert not g.isnan().any()
    (gb,) = torch.autograd.grad(mf.soft_dilation2d(x, b, beta).sum(), b)
    assert not gb.isnan().any()
    assert not gb[b == -math.inf].any()


def test_forms_of_the_structuring_function() -> None:
    x, _ = arguments(2)
    footprint = torch.tensor([[True, False, True], [True, True, False]])
    flat = torch.zeros(2, 3, dtype=torch.float64).masked_fill(~footprint, -math.inf)
    for one, other in ((3, torch.zeros(3, 3)), ((2, 3), torch.zeros(2, 3)), (footprint, flat)):
        for soft in (mf.soft_dilation2d, mf.soft_erosion2d):
            full = other.double().expand(4, 1, *other.shape)
            expected = soft(x, full, 2.0, groups=4)
            assert torch.equal(soft(x, one, 2.0), expected)
            assert torch.equal(soft(x, full[:, 0], 2.0), expected)
            torch.testing.assert_close(soft(x[0], other.double(), 2.0), expected[0])
    log_of_mean = (F.avg_pool2d(x.exp(), 3, 1, 1) * 9).log()
    torch.testing.assert_close(mf.soft_dilation2d(x, 3), log_of_mean)


def test_half_precision_and_bfloat16_products() -> None:
    x, b = arguments(2, dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        y = mf.soft_dilation2d(x.to(dtype), b.to(dtype), 2.0, border="constant", value=0.1)
        assert y.dtype == dtype
        wide = mf.soft_dilation2d(x.to(dtype).float(), b.to(dtype).float(), 2.0, border="constant", value=0.1)
        assert torch.equal(y, wide.to(dtype))
    for beta in (0.3, 3.0):
        right = mf.soft_erosion2d(x.double(), b.double(), beta)
        error = (mf.soft_erosion2d(x, b, beta, precision="bfloat16") - right).abs().max()
        assert 1e-4 / beta < error <= 3 / (255 * beta) + 2e-6 * max(1.0, float(right.abs().max()))


def test_wrong_inputs() -> None:
    x = torch.ones(1, 4, 5, 5)
    with pytest.raises(ConfigError, match="soft_dilation2d does not take merge='sum'"):
        mf.soft_dilation2d(x, 3, merge="sum")
    with pytest.raises(ConfigError, match="soft_erosion2d: beta must be"):
        mf.soft_erosion2d(x, 3, 0.0)
    with pytest.raises(ConfigError, match="soft_erosion2d: precision must be"):
        mf.soft_erosion2d(x, 3, precision="float16")
    with pytest.raises(ShapeError, match="soft_dilation2d: b has shape"):
        mf.soft_dilation2d(x, torch.ones(3, 3, 3))
    with pytest.raises(ShapeError, match="soft_dilation1d: x has shape"):
        mf.soft_dilation1d(x, 3)
    with pytest.raises(ShapeError, match="soft_dilation2d: a window of extent 7"):
        mf.soft_dilation2d(x, 7, padding="valid")
    with pytest.raises(DtypeError, match="soft_dilation2d"):
        mf.soft_dilation2d(x.int(), torch.ones(3, 3))
