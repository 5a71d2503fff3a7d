"""What public implementations of linear splines get wrong, one test for each; the names say what must hold here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import morphlightning.functional as mf
from morphlightning import backends

BACKENDS = [name for name in ("eager", "numba") if backends.available()[name] == "available"]
COUNT = 6
UNIFORM = (-1.0, 1.0)
FREE = torch.tensor([-1.0, -0.7, -0.1, 0.0, 0.4, 1.0])
KNOTS = {"uniform": UNIFORM, "free": FREE, "own": torch.stack([FREE, FREE / 2, FREE + 0.05])}
every_kind = pytest.mark.parametrize("kind", KNOTS)


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest):
    with backends.use(request.param):
        yield request.param


def data(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x of three channels, and values."""
    torch.manual_seed(0)
    return 0.8 * torch.randn(shape, dtype=dtype), torch.randn(3, COUNT, dtype=dtype)


def knots_of(kind: str, dtype: torch.dtype = torch.float32):
    knots = KNOTS[kind]
    return knots.to(dtype) if isinstance(knots, Tensor) else knots


def wise(x: Tensor, values: Tensor, knots, dim: int) -> Tensor:
    """Channel by channel, as a plain list of numbers."""
    rows = x.movedim(dim, 0)
    each = [knots[c] if isinstance(knots, Tensor) and knots.ndim == 2 else knots for c in range(len(rows))]
    turned = [mf.linear_spline(row.reshape(-1), v, t) for row, v, t in zip(rows, values, each, strict=True)]
    return torch.stack(turned).view(rows.shape).movedim(0, dim)


# --------------------------------------------------------------------------------------------- numbers of any kind
@every_kind
@pytest.mark.parametrize("length", [1, 5, 40])
def test_nan_gives_nan_and_touches_nothing_else(kind: str, length: int):
    x, values = data(4, 3, length)
    holes = torch.rand(x.shape) < 0.2
    x, clean = x.masked_fill(holes, math.nan).requires_grad_(), x.masked_fill(holes, 0.0).requires_grad_()
    values.requires_grad_()
    for function in (mf.linear_spline, mf.linear_spline_slope):
        y, expected = (function(one, values, knots_of(kind)) for one in (x, clean))
        assert torch.equal(y.isnan(), holes)
        torch.testing.assert_close(y[~holes], expected[~holes])
        gx, gv = torch.autograd.grad(y[~holes].sum(), (x, values))
        torch.testing.assert_close(gx[~holes], torch.autograd.grad(expected[~holes].sum(), clean)[0][~holes])
        assert gv[:, 2:].isfinite().all()  # NaN lies in the first piece


@every_kind
@pytest.mark.parametrize("length", [1, 40])
def test_infinity_on_level_ends_gives_the_end_value(kind: str, length: int):
    _, values = data(1)
    values[:, 0], values[:, -1] = values[:, 1], values[:, -2]
    values.requires_grad_()
    for sign, end in ((1, -1), (-1, 0)):
        x = torch.full((2, 3, length), sign * math.inf, requires_grad=True)
        y = mf.linear_spline(x, values, knots_of(kind))
        assert torch.equal(y, values[:, end].view(1, 3, 1).expand_as(y))
        gx, gv = torch.autograd.grad(y.sum(), (x, values))
        assert torch.equal(gx, torch.zeros_like(x))
        assert gv.isfinite().all()
        assert torch.equal(mf.linear_spline_slope(x, values, knots_of(kind)), torch.zeros_like(x))
    sloped = mf.linear_spline(torch.tensor([math.inf, -math.inf]), torch.tensor([0.0, 1.0, 3.0]), UNIFORM)
    assert sloped.tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("count", [2, 4, 6, 34, 102, 300])
def test_the_identity_is_the_identity_for_even_numbers_of_knots(count: int):
    x = torch.linspace(-2, 2, 999)
    for knots in (UNIFORM, torch.linspace(-1, 1, count)):
        values = torch.linspace(-1, 1, count)
        torch.testing.assert_close(mf.linear_spline(x, values, knots), x, rtol=1e-4, atol=2e-6)
        slope = mf.linear_spline_slope(x, values, knots)
        torch.testing.assert_close(slope, torch.ones_like(x), rtol=0, atol=count * 1e-6)


# ------------------------------------------------------------------------------------------------------ gradients
@every_kind
@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize("function", [mf.linear_spline, mf.linear_spline_slope])
def test_first_and_mixed_second_derivatives_are_exact(kind: str, length: int, function):
    x, values = data(2, 3, length, dtype=torch.float64)
    knots = knots_of(kind, torch.float64)
    arguments = [one.requires_grad_() for one in (x, values, *([knots] if isinstance(knots, Tensor) else []))]

    def call(*given: Tensor) -> Tensor:
        return function(*given[:2], given[2] if len(given) > 2 else knots)

    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


@every_kind
def test_the_slope_has_a_backward_that_weighs_by_what_comes_back(kind: str):
    x, values = data(5, 3, 30, dtype=torch.float64)
    values.requires_grad_()
    gy = torch.randn_like(x)
    slope = mf.linear_spline_slope(x.requires_grad_(), values, knots_of(kind, torch.float64))
    gx, gv = torch.autograd.grad(slope, (x, values), gy)
    assert torch.equal(gx, torch.zeros_like(x))
    # the slope is linear in the values
    torch.testing.assert_close((gv * values).sum(), (gy * slope).sum())


def test_knots_of_all_channels_get_the_sum_of_what_each_channel_sends():
    x, values = data(4, 3, 50, dtype=torch.float64)
    shared, own = FREE.double().requires_grad_(), FREE.double().repeat(3, 1).requires_grad_()
    for function in (mf.linear_spline, mf.linear_spline_slope):
        grads = [torch.autograd.grad(function(x, values, t).square().sum(), t)[0] for t in (shared, own)]
        torch.testing.assert_close(grads[0], grads[1].sum(0))


# ------------------------------------------------------------------------------------------------------ any layout
SHAPES = [((3,), 0), ((4, 3), 1), ((3, 4), 0), ((2, 3, 5), 1), ((2, 5, 3), -1), ((2, 3, 4, 5), 1), ((2, 3, 2, 3, 4), 1),
          ((2, 17, 3, 2), 2), ((0, 3, 4), 1), ((2, 3, 0), 1), ((40, 3, 2), 1)]  # fmt: skip


@every_kind
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_every_rank_and_channel_axis(kind: str, shape: tuple[int, ...], dim: int):
    x, values = data(*shape)
    knots = knots_of(kind)
    torch.testing.assert_close(
        mf.linear_spline(x, values, knots, channel_dim=dim), wise(x, values, knots, dim), rtol=0, atol=0
    )


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@every_kind
@pytest.mark.parametrize("channels", [3, 33])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_forward_and_backward(kind: str, channels: int, layout: str):
    torch.manual_seed(0)
    x, values, knots = torch.randn(3, channels, 7, 9), torch.randn(channels, COUNT), knots_of(kind)
    if kind == "own":
        knots = knots.repeat(channels // 3, 1)
    turned, gy = LAYOUTS[layout](x), torch.randn_like(x)
    plain = turned.contiguous()
    results = []
    for one, g in ((turned, LAYOUTS[layout](gy)), (plain, LAYOUTS[layout](gy).contiguous())):
        arguments = one.detach().requires_grad_(), values.detach().requires_grad_()
        y, slope = mf.linear_spline(*arguments, knots), mf.linear_spline_slope(one, values, knots)
        results.append((y, slope, *torch.autograd.grad(y, arguments, g)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if layout in ("channels_last", "transposed", "reversed"):
        assert all(found.stride() == turned.stride() for found in results[0][:3])


def test_channels_last_is_read_as_it_lies(monkeypatch: pytest.MonkeyPatch):
    x, values = data(2, 3, 8, 8)
    x = x.contiguous(memory_format=torch.channels_last)
    seen = []

    def spy(rows: Tensor, *_: object) -> Tensor:
        seen.append(rows.data_ptr())
        return rows

    monkeypatch.setattr("morphlightning.functional.splines.splines.spline", spy)
    assert mf.linear_spline(x, values, UNIFORM).is_contiguous(memory_format=torch.channels_last)
    assert seen == [x.data_ptr()]


@every_kind
@pytest.mark.parametrize("layout", ["channels_last", "strided", "plain"])
@pytest.mark.parametrize("function", [mf.linear_spline, mf.linear_spline_slope])
def test_written_to_given_memory_and_in_place(kind: str, layout: str, function):
    x, values = data(2, 3, 9, 9)
    x = LAYOUTS.get(layout, Tensor.clone)(x)
    expected = function(x, values, knots_of(kind))
    for out in (torch.empty_like(x), torch.empty(2, 3, 9, 9), x):
        assert function(x, values, knots_of(kind), out=out) is out
        assert torch.equal(out, expected)


# --------------------------------------------------------------------------------------------- dtypes and transforms
@every_kind
def test_float64_is_computed_in_float64(kind: str):
    x, values = data(3, 3, 20, dtype=torch.float64)
    y = mf.linear_spline(x, values, knots_of(kind, torch.float64))
    assert y.dtype == torch.float64
    single = mf.linear_spline(x.float(), values.float(), knots_of(kind))
    assert 0 < (y - single).abs().max() < 1e-4


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(kind: str, dtype: torch.dtype):
    x, values = data(3, 3, 20)
    y = mf.linear_spline(x.to(dtype), values, knots_of(kind))
    assert y.dtype == dtype
    assert torch.equal(y, mf.linear_spline(x.to(dtype).float(), values, knots_of(kind)).to(dtype))


@every_kind
@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # its rule for vmap copies
def test_function_transforms(kind: str):
    x, values = data(4, 3, 5, dtype=torch.float64)
    knots, tangent = knots_of(kind, torch.float64), torch.randn(4, 3, 5, dtype=torch.float64)

    def call(x: Tensor, values: Tensor = values) -> Tensor:
        return mf.linear_spline(x, values, knots, channel_dim=-2)

    y, slope = call(x), mf.linear_spline_slope(x, values, knots)
    torch.testing.assert_close(torch.func.vmap(call)(x), y)
    both = torch.func.vmap(call, in_dims=(1, 0))(x[:, None].expand(-1, 2, -1, -1), values.expand(2, -1, -1))
    torch.testing.assert_close(both, y.expand(2, -1, -1, -1))
    torch.testing.assert_close(torch.func.jvp(call, (x,), (tangent,)), (y, slope * tangent))
    torch.testing.assert_close(torch.func.grad(lambda x: call(x).sum())(x), slope)
    with torch.autograd.forward_ad.dual_level():
        dual = call(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope * tangent)
    moved = torch.func.jvp(lambda v: call(x, v), (values,), (torch.ones_like(values),))[1]
    torch.testing.assert_close(moved, torch.ones_like(x))  # weights of hats sum to 1


@every_kind
@pytest.mark.slow
def test_compiled_in_one_piece(kind: str):
    torch.compiler.reset()
    x, values = data(4, 3, 5)
    for form in (x, x[..., None].contiguous(memory_format=torch.channels_last)):
        for function in (mf.linear_spline, mf.linear_spline_slope):
            compiled = torch.compile(
                lambda x, v, f=function: f(x, v, knots_of(kind)), fullgraph=True, backend="aot_eager"
            )
            torch.testing.assert_close(compiled(form, values), function(form, values, knots_of(kind)))


@every_kind
def test_on_the_meta_device(kind: str):
    x, values = data(4, 3, 5)
    knots = knots_of(kind)
    on_meta = mf.linear_spline(
        x.to("meta"), values.to("meta"), knots.to("meta") if isinstance(knots, Tensor) else knots
    )
    assert on_meta.shape == x.shape
    assert on_meta.device.type == "meta"
