"""What public codes of learned splines got wrong, each as a test of ours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from morphlightning.splines import LinearSpline, NonuniformSpline, SplineModule

MAKERS = [
    lambda **settings: LinearSpline(**{"knots": 6, "limit": 2.0} | settings),
    lambda **settings: NonuniformSpline(knots=[-2.0, -1.1, -0.3, 0.2, 1.4, 2.0], **settings),
    lambda **settings: NonuniformSpline(
        knots=6, limit=2.0, learn_knots=True, share_knots=False, learn_scale=True, **settings
    ),
]
each = pytest.mark.parametrize("make", MAKERS, ids=["uniform", "nonuniform", "learned"])


def away_from_knots(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=draw, dtype=torch.float64) * 0.06 + 0.1 * torch.randint(-30, 30, shape) + 0.02


def function_of(module: SplineModule) -> tuple[Any, tuple[Tensor, ...]]:
    names, values = zip(*module.named_parameters(), strict=True)
    call = lambda x, *v: torch.func.functional_call(module, dict(zip(names, v, strict=True)), (x,))  # noqa: E731
    return call, tuple(v.detach().clone().requires_grad_() for v in values)


def bent(make: Any, **settings: Any) -> SplineModule:
    module = make(init=lambda t: t.sin() + 0.3 * t, **settings)
    return module.double()


@each
@pytest.mark.parametrize("training", [True, False])
def test_nan_and_infinity(make: Any, training: bool) -> None:
    """NaN raised an IndexError; infinity times a level slope was NaN."""
    module = make(channels=2, init="identity", extrapolation="constant").train(training)
    x = torch.tensor([[math.nan, -math.inf], [math.inf, 0.5]])
    y = module(x)
    assert y[0, 0].isnan()
    assert y[0, 1].item() == pytest.approx(-2.0)
    assert y[1].tolist() == pytest.approx([2.0, 0.5])
    relu = make(init="relu")
    assert relu(torch.tensor([-math.inf, math.inf])).tolist() == [0.0, math.inf]


@each
def test_the_derivative_can_be_differentiated(make: Any) -> None:
    """Its backward ignored the incoming gradient, or was zero."""
    module, x = bent(make, channels=2), away_from_knots(7, 2)
    weights = torch.randn(7, 2, dtype=torch.float64)
    (module.derivative(x) * weights).sum().backward()
    (inputs := x.clone()).requires_grad_()
    twin = bent(make, channels=2)
    (slope,) = torch.autograd.grad(twin(inputs).sum(), inputs, create_graph=True)
    (slope * weights).sum().backward()
    assert module.values.grad is not None
    assert module.values.grad.abs().max() > 0.1
    torch.testing.assert_close(module.values.grad, twin.values.grad)
    torch.testing.assert_close(module.derivative(x), slope)


@each
def test_mixed_second_derivatives(make: Any) -> None:
    """Positions within pieces were kept as constants, so that these were too small by two thirds."""
    call, values = function_of(bent(make, channels=2))
    x = away_from_knots(5, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(call, (x, *values), eps=1e-7, atol=1e-4)


@each
@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_even_and_odd_numbers_of_knots(make: Any, count: int) -> None:
    """With an even number the identity was off by half a piece."""
    module = LinearSpline(knots=count, init="identity") if make is MAKERS[0] else make(init="identity")
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(module(x), x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.derivative(x), torch.ones_like(x), rtol=1e-5, atol=1e-5)


@each
@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 2, 5), (3, 2, 4, 4), (1, 2, 3, 2, 2), (0, 2, 3)])
def test_any_rank_and_memory_format(make: Any, shape: tuple[int, ...]) -> None:
    """Three axes were broadcast to the wrong one, five and float64 raised, and so did channels_last in backward."""
    module = bent(make, channels=2, channel_dim=1 if len(shape) > 1 else 0)
    with torch.no_grad():
        module.values[1] *= -2
    x, axis = torch.randn(shape, dtype=torch.float64), 1 if len(shape) > 1 else 0
    rows = module.table()(x.movedim(axis, 0).reshape(2, -1), channel_dim=0)
    torch.testing.assert_close(module(x), rows.view(x.movedim(axis, 0).shape).movedim(0, axis))
    if len(shape) == 4:
        turned = x.to(memory_format=torch.channels_last).requires_grad_()
        straight = x.clone().requires_grad_()
        module(turned).square().sum().backward()
        module(straight).square().sum().backward()
        torch.testing.assert_close(turned.grad, straight.grad)


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # speaks of memory layout, once, under vmap
@each
def test_function_transforms(make: Any) -> None:
    """Vmap raised."""
    module, x = bent(make, channels=2).eval().requires_grad_(False), away_from_knots(4, 3, 2)
    torch.testing.assert_close(torch.func.vmap(module)(x), module(x.flatten(0, 1)).view(x.shape))
    _, pushed = torch.func.jvp(module, (x[0],), (torch.ones_like(x[0]),))
    torch.testing.assert_close(pushed, module.derivative(x[0]))
    call, values = function_of(bent(make, channels=2))
    per_sample = torch.func.vmap(torch.func.grad(lambda v, x: call(x[None], v, *values[1:]).sum()), (None, 0))
    seen = per_sample(values[0].detach(), x[0])
    assert seen.shape == (3, *values[0].shape)


@each
def test_moved_modules_keep_their_constants(make: Any) -> None:
    """Ends and widths were plain attributes, which nothing moved, restored or protected from rounding."""
    module = bent(make, channels=2)
    x = torch.randn(9, 2, dtype=torch.float64)
    before = module(x)
    torch.testing.assert_close(module.float().double()(x), before, rtol=1e-6, atol=1e-6)
    fresh = make(channels=2).double()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), module(x))


def test_splines_do_not_mix() -> None:
    """Means and differences were taken across channels: what one channel does must not change another."""
    module = LinearSpline(channels=2, knots=9, constraint={"min": -0.5, "max": 0.5}, init=torch.sin)
    x = torch.randn(20, 2)
    before, variation = module(x)[:, 0].detach(), module.tv2()[0].item()
    with torch.no_grad():
        module.values[1] += 100 * torch.randn(9)
    assert torch.equal(module(x)[:, 0], before)
    assert module.tv2()[0].item() == variation


@pytest.mark.slow
@each
def test_compiled_to_machine_code(make: Any) -> None:
    """A compiler gave wrong pieces for knots that were a part of another tensor."""
    module, x = bent(make, channels=2), away_from_knots(50, 2)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x).sum(), module.values), torch.autograd.grad(module(x).sum(), module.values)
    )
