"""Linear splines: against brute force, in every backend, layout and transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import morphlightning.functional as mf
from morphlightning import backends
from morphlightning.errors import ConfigError, ShapeError

BACKENDS = [name for name in ("eager", "numba") if backends.available()[name] == "available"]
FREE = torch.tensor([-1.0, -0.4, -0.35, 0.0, 0.1, 0.5, 1.2])
OWN = torch.stack([FREE, 2 * FREE - 0.3, FREE.sign() * FREE**2, -FREE.flip(0)])


def by_hand(x: Tensor, values: Tensor, knots: Tensor) -> Tensor:
    """One spline in float64, piece by piece; the outer pieces go on."""
    t, c = knots.double().numpy(), values.double().numpy()
    k = np.clip(np.searchsorted(t, x.double().numpy(), side="right") - 1, 0, len(t) - 2)
    return torch.as_tensor(c[k] + (c[k + 1] - c[k]) * (x.double().numpy() - t[k]) / (t[k + 1] - t[k]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("knots", [(-1.0, 1.2), FREE, OWN], ids=["uniform", "free", "own"])
@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 4, 5, 6), 1), ((7, 4), 1), ((2, 3, 4), -1), ((4,), 0), ((2, 4, 1500), 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(backend: str, knots, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, values = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(4, 7, dtype=dtype, requires_grad=True)
    places = (torch.linspace(*knots, 7) if isinstance(knots, tuple) else knots).expand(4, 7)
    gy = torch.randn(shape, dtype=dtype)
    with backends.use(backend):
        y = mf.linear_spline(x, values, knots, channel_dim=dim)
        gx, gv = torch.autograd.grad(y, (x, values), gy)
        shared = mf.linear_spline(x, values[0], knots if isinstance(knots, tuple) else places[0])
    expected = torch.stack(
        [by_hand(*each) for each in zip(x.detach().movedim(dim, 0), values.detach(), places, strict=True)]
    )
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(y.detach().double(), expected.movedim(0, dim), **tolerance)
    torch.testing.assert_close(
        shared.detach().double(), by_hand(x.detach(), values[0].detach(), places[0]), **tolerance
    )
    slope = mf.linear_spline_slope(x, values, knots, channel_dim=dim)
    torch.testing.assert_close(gx, gy * slope, **tolerance)
    # f is linear in its values: the gradient contracted with them is <gy, f>
    torch.testing.assert_close((gv * values).sum(), (gy * y).sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("knots", [(-1.0, 1.0), torch.tensor([-1.0, 0.2, 1.0])])
def test_not_a_number_and_infinity(backend: str, knots) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.5]).requires_grad_()
    with backends.use(backend):
        level = mf.linear_spline(x[:, None], torch.tensor([[0.0, 0.0, 0.0]]), knots)[:, 0]
        sloped = mf.linear_spline(x, torch.tensor([0.0, 1.0, 3.0]), knots)
        (gx,) = torch.autograd.grad(sloped.nan_to_num(posinf=0.0, neginf=0.0).sum(), x)
    assert level.isnan().tolist() == [True, False, False, False]
    assert level[1:].tolist() == [0.0, 0.0, 0.0]
    assert sloped[0].isnan()
    assert sloped[1:3].tolist() == [math.inf, -math.inf]
    assert gx[3] > 0


def test_at_knots_the_right_piece_counts() -> None:
    for knots in ((-1.0, 1.0), torch.tensor([-1.0, 0.0, 1.0])):
        slope = mf.linear_spline_slope(torch.tensor([-2.0, -1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 3.0]), knots)
        assert slope.tolist() == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("knots", [(-1.0, 1.0), FREE, OWN[:3]], ids=["uniform", "free", "own"])
@pytest.mark.parametrize("function", [mf.linear_spline, mf.linear_spline_slope])
def test_derivatives_of_both_orders(backend: str, knots, function) -> None:
    torch.manual_seed(0)
    x, values = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    arguments = [x.requires_grad_(), values.requires_grad_()]
    if isinstance(knots, tuple):
        check = lambda x, v: function(x, v, knots)  # noqa: E731
    else:
        check, arguments = function, [*arguments, knots.double().requires_grad_()]
    with backends.use(backend):
        assert torch.autograd.gradcheck(check, arguments)
        assert torch.autograd.gradgradcheck(check, arguments)


def test_transforms_and_layouts() -> None:
    x, values = torch.randn(3, 4, 6, 5), torch.randn(4, 9)
    y = mf.linear_spline(x, values, (-1.0, 1.0))
    for turned in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(mf.linear_spline(turned, values, (-1.0, 1.0)), y)
    compiled = torch.compile(lambda x, v: mf.linear_spline(x, v, (-1.0, 1.0)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, values), y)
    each = torch.func.vmap(lambda a: mf.linear_spline(a, values, (-1.0, 1.0), channel_dim=0))(x)
    torch.testing.assert_close(each, y)
    _, slope = torch.func.jvp(lambda x: mf.linear_spline(x, values, (-1.0, 1.0)), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, mf.linear_spline_slope(x, values, (-1.0, 1.0)))
    half = mf.linear_spline(x.bfloat16(), values, (-1.0, 1.0))
    assert torch.equal(half, mf.linear_spline(x.bfloat16().float(), values, (-1.0, 1.0)).bfloat16())
    assert mf.linear_spline(x[:0], values, (-1.0, 1.0)).shape == (0, 4, 6, 5)


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
@pytest.mark.parametrize("count", [2, 3, 33, 34, 65, 66, 129, 130])
@pytest.mark.parametrize("kind", ["uniform", "free", "own"])
@pytest.mark.parametrize("shape", [(2, 3, 1500), (5, 3, 17), (40, 3, 1), (3, 35, 2), (150, 20, 1)])
def test_tables_of_every_size(count: int, kind: str, shape: tuple[int, ...]) -> None:
    """As many entries as registers hold, one less and one more."""
    torch.manual_seed(count)
    x, values = torch.randn(shape), torch.randn(shape[1], count)
    places = torch.linspace(-1, 1, count) + torch.rand(shape[1], count) / count
    knots = {"uniform": (-1.0, 1.0), "free": places[0], "own": places}[kind]
    x[0, :, 0] = places[:, count // 2]  # on a knot
    x[0, 0, 0], x[1, 0, 0] = math.nan, math.inf
    gy, found = torch.randn(shape), []
    gy[0, 0, 0] = gy[1, 0, 0] = 0.0
    for backend in ("numba", "eager"):
        arguments = [one.clone().requires_grad_() for one in (x, values, places[0] if kind == "free" else places)]
        with backends.use(backend):
            at = knots if kind == "uniform" else arguments[2]
            y, slope = mf.linear_spline(*arguments[:2], at), mf.linear_spline_slope(*arguments[:2], at)
            many = 2 if kind == "uniform" else 3
            found.append((y, slope, *torch.autograd.grad(y, arguments[:many], gy, retain_graph=True)))
            found[-1][2][0, 0, 0] = 0.0  # of NaN
            found[-1] += torch.autograd.grad(slope, arguments[1:many], gy)
    for one, other in zip(*found, strict=True):
        scale = 1 + other.nan_to_num(posinf=0, neginf=0).abs().amax().item()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_change_nothing(backend: str) -> None:
    x, values = torch.randn(9, 20, 300, 3), torch.randn(20, 51, requires_grad=True)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with backends.use(backend):
                seen.append([])
                for form in (x, x.to(memory_format=torch.channels_last)):
                    form = form.detach().requires_grad_()
                    y = mf.linear_spline(form, values, (-1.0, 1.0))
                    seen[-1] += [y, *torch.autograd.grad(y.square().sum(), (form, values))]
    finally:
        torch.set_num_threads(before)
    if backend == "numba":
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_wrong_arguments() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"axis 1 of x \(2, 3\) must have 4 channels"):
        mf.linear_spline(x, torch.zeros(4, 5), (-1.0, 1.0))
    with pytest.raises(ShapeError, match=r"values has shape \(1,\), expected \(K,\) or \(channels, K\) with K >= 2"):
        mf.linear_spline(x, torch.zeros(1), (-1.0, 1.0))
    with pytest.raises(ShapeError, match="5 values need as many knots, got"):
        mf.linear_spline(x, torch.zeros(5), torch.zeros(4))
    with pytest.raises(ConfigError, match="the last knot must be above the first, got"):
        mf.linear_spline(x, torch.zeros(5), (1.0, -1.0))
    with pytest.raises(ConfigError, match=r"knots 1 and 2 are 0\.5 and 0\.5"):
        mf.linear_spline(x, torch.zeros(4), torch.tensor([0.0, 0.5, 0.5, 0.1]))
    with pytest.raises(ConfigError, match="knots 0 and 1 of channel 2 are 0 and nan"):
        mf.linear_spline(x, torch.zeros(3, 2), torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, math.nan]]))
    with pytest.raises(ShapeError, match=r"need as many knots, \(5,\) or \(3, 5\), got \(2, 5\)"):
        mf.linear_spline(x, torch.zeros(3, 5), torch.zeros(2, 5))
