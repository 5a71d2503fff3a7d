"""One-sided derivatives of torch's functions at their kinks, in every spelling."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.bouligand import bderivative
from morphlightning.errors import NotSupportedError

T = 2.0**-12


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x):
        return self.function(*x)


def integers(*shape: int, seed: int, low: int = -3, high: int = 4) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def quotient(function, x: Tensor, h: Tensor, t: float = T) -> Tensor:
    return (function(x + t * h) - function(x.clone())) / t


def in_place(function):
    def apply(x: Tensor) -> Tensor:
        y = x.clone()
        function(y)
        return y

    return apply


OTHER = integers(2, 3, 8, 8, seed=7)
LINES = {
    "F.relu": F.relu,
    "F.relu in place": in_place(lambda x: F.relu(x, inplace=True)),
    "torch.relu": torch.relu,
    "torch.relu_": in_place(torch.relu_),
    "Tensor.relu": Tensor.relu,
    "Tensor.relu_": in_place(Tensor.relu_),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": in_place(nn.ReLU(inplace=True)),
    "relu_ of a view": in_place(lambda x: x[:, 1].relu_()),
    "F.relu6": F.relu6,
    "nn.ReLU6": nn.ReLU6(),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.25),
    "F.leaky_relu_": in_place(lambda x: F.leaky_relu_(x, 0.25)),
    "nn.LeakyReLU": nn.LeakyReLU(0.5),
    "F.hardtanh": lambda x: F.hardtanh(x, -2, 1),
    "F.hardtanh_": in_place(F.hardtanh_),
    "nn.Hardtanh": nn.Hardtanh(),
    "F.threshold": lambda x: F.threshold(x, 1.0, 1.0),
    "F.softshrink": lambda x: F.softshrink(x, 1.0),
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp_": in_place(lambda x: x.clamp_(min=-1)),
    "clamp_min": lambda x: torch.clamp_min(x, 1),
    "clamp_max": lambda x: x.clamp_max(1),
    "clamp_max_": in_place(lambda x: x.clamp_max_(1)),
    "clip": lambda x: torch.clip(x, max=0.0),
    "clip_": in_place(lambda x: x.clip_(0, 1)),
    "clamp crossed": lambda x: x.clamp(2, -1),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-1.0), torch.tensor(2.0)),
    "clamp between itself": lambda x: torch.clamp(OTHER, -x, x),
    "abs": torch.abs,
    "abs_": in_place(torch.abs_),
    "builtin abs": abs,
    "absolute": Tensor.absolute,
    "maximum": lambda x: torch.maximum(x, OTHER),
    "max of two": lambda x: torch.max(x, OTHER),
    "max with itself": lambda x: x.max(-x),
    "max by name": lambda x: torch.max(input=x, other=OTHER),
    "maximum with less": lambda x: torch.maximum(x, OTHER[0, 0, 0]),
    "minimum": lambda x: torch.minimum(OTHER, x),
    "min of two": lambda x: torch.min(x, OTHER),
    "fmax": lambda x: torch.fmax(x, OTHER),
    "fmin": lambda x: torch.fmin(x, OTHER),
    "max of all": torch.max,
    "Tensor.min of all": Tensor.min,
    "max along": lambda x: x.max(1).values,
    "max along, kept": lambda x: torch.max(x, -1, True)[0],
    "max by names": lambda x: torch.max(x, dim=2, keepdim=True).values,
    "min along": lambda x: x.min(dim=2)[0],
    "amax": lambda x: x.amax((1, 3)),
    "amax kept": lambda x: torch.amax(x, dim=(0, -1), keepdim=True),
    "amax of all": torch.amax,
    "amin": lambda x: torch.amin(x, 2),
    "F.max_pool1d": lambda x: F.max_pool1d(x[:, 0], 3, 2, 1),
    "F.max_pool2d": lambda x: F.max_pool2d(x, 3, stride=1),
    "F.max_pool2d with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "F.max_pool1d with indices": lambda x: F.max_pool1d(x[:, 0], 2, return_indices=True)[0],
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
    "nn.MaxPool2d": nn.MaxPool2d((3, 2), (2, 3), (1, 0)),
    "nn.MaxPool2d dilated, ceil": nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True),
    "nn.MaxPool2d ceil": nn.MaxPool2d(3, ceil_mode=True),
    "nn.MaxPool2d unbatched": lambda x: nn.MaxPool2d(2)(x[0]),
    "nn.MaxPool3d": lambda x: nn.MaxPool3d(2, 1)(x),
    "nn.MaxPool3d with indices": lambda x: F.max_pool3d(x[None], 2, return_indices=True)[0],
    "nn.AdaptiveMaxPool1d": lambda x: nn.AdaptiveMaxPool1d(3)(x[0]),
    "nn.AdaptiveMaxPool2d": nn.AdaptiveMaxPool2d((3, None)),
    "F.adaptive_max_pool2d with indices": lambda x: F.adaptive_max_pool2d(x, (5, 3), return_indices=True)[0],
    "nn.AdaptiveMaxPool3d": nn.AdaptiveMaxPool3d((2, 3, 4)),
    "nn.AdaptiveMaxPool3d batched": lambda x: nn.AdaptiveMaxPool3d(2)(x[None]),
    "scatter_reduce amax": lambda x: OTHER.scatter_reduce(3, _index(), x, "amax"),
    "scatter_reduce amin": lambda x: torch.scatter_reduce(x, 3, _index(), OTHER, "amin"),
    "scatter_reduce without self": lambda x: x.scatter_reduce(3, _index(), x + 1, "amax", include_self=False),
    "scatter_reduce of less": lambda x: x.scatter_reduce(3, _index()[:, :2, 1:], OTHER, "amin"),
    "scatter_reduce_": in_place(lambda x: x.scatter_reduce_(3, _index(), OTHER, "amax")),
    "scatter_reduce sum": lambda x: x.scatter_reduce(3, _index(), x, "sum"),
    "F.l1_loss": lambda x: F.l1_loss(x, OTHER),
    "nn.L1Loss": lambda x: nn.L1Loss(reduction="sum")(x, OTHER),
    "F.l1_loss of each": lambda x: F.l1_loss(OTHER, x, reduction="none"),
    "F.hinge_embedding_loss": lambda x: F.hinge_embedding_loss(x, _signs(x), margin=2.0, reduction="sum"),
    "F.margin_ranking_loss": lambda x: F.margin_ranking_loss(x, OTHER, _signs(x), 1.0),
    "F.multi_margin_loss": lambda x: F.multi_margin_loss(x[:, 0, 0], torch.tensor([3, 0])),
    "F.multi_margin_loss weighted": lambda x: F.multi_margin_loss(
        x[:, 0, 0], torch.tensor([3, 0]), weight=torch.arange(8.0).double(), margin=2.0, reduction="none"
    ),
    "norm of order 1": lambda x: x.norm(1, dim=1),
    "norm of order inf": lambda x: torch.linalg.vector_norm(x, math.inf, dim=(1, 2), keepdim=True),
    "norm of order -inf": lambda x: torch.linalg.norm(x[0, 0, 0], -math.inf),
    "F.pairwise_distance": lambda x: F.pairwise_distance(x, OTHER, p=1, eps=0.0),
    "torch.dist": lambda x: torch.dist(x, OTHER, 1),
    "F.softsign": lambda x: F.softsign(x) * 0 + x.abs(),
    "composition": lambda x: F.max_pool2d(F.relu(x.abs() - 1), 2).amax(1) - F.relu6(x.amin((2, 3)))[:, :1, None],
}
"""Piecewise affine: exact difference quotients."""


def _index() -> Tensor:
    return torch.randint(0, 8, OTHER.shape, generator=torch.Generator().manual_seed(3))


def _signs(x: Tensor) -> Tensor:
    return torch.where(integers(*x.shape, seed=4) > 0, 1.0, -1.0).to(x)


@pytest.mark.parametrize("name", LINES)
def test_broken_lines(name: str):
    x, h = integers(2, 3, 8, 8, seed=0), integers(2, 3, 8, 8, seed=1)
    before = x.clone()
    exact = quotient(LINES[name], x, h)
    slope = bderivative(Call(LINES[name]), x, h)
    assert torch.equal(x, before)
    torch.testing.assert_close(slope, exact, rtol=0, atol=1e-10)


CURVED = {
    "F.elu": lambda x: F.elu(x, 0.5),
    "nn.ELU in place": in_place(nn.ELU(2.0, inplace=True)),
    "F.selu": F.selu,
    "F.celu": lambda x: F.celu(x, 0.5),
    "F.hardswish": F.hardswish,
    "F.hardsigmoid": F.hardsigmoid,
    "F.softsign": F.softsign,
    "F.tanhshrink": F.tanhshrink,
    "F.huber_loss": lambda x: F.huber_loss(x, OTHER, delta=1.0),
    "multi margin of order 2": lambda x: F.multi_margin_loss(x[:, 0, 0], torch.tensor([3, 0]), p=2),
    "norm at 0": lambda x: F.relu(x.abs() - 1).norm(dim=1),
    "F.normalize": lambda x: F.normalize(x + 10, dim=1),
    "product of kinks": lambda x: x.relu() * x.abs() + x * x.amax(1, keepdim=True),
    "max of curved": lambda x: torch.maximum(torch.sin(x), x * x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x.relu()),
}


@pytest.mark.parametrize("name", CURVED)
def test_curved_functions_with_kinks(name: str):
    x, h = integers(2, 3, 8, 8, seed=0), integers(2, 3, 8, 8, seed=1)
    near, far = quotient(CURVED[name], x, h, 2.0**-18), quotient(CURVED[name], x, h, 2.0**-17)
    torch.testing.assert_close(bderivative(Call(CURVED[name]), x, h), 2 * near - far, rtol=1e-7, atol=1e-7)


def test_prelu():
    x, h = integers(5, 3, 4, seed=0), integers(5, 3, 4, seed=1)
    for weights in (1, 3):
        layer = nn.PReLU(weights, 0.25).double()
        assert torch.equal(bderivative(layer, x, h), quotient(layer, x, h))
        v = integers(weights, seed=2)
        slope = bderivative(layer, x, h, params={"weight": v})
        moved = F.prelu(x + 2.0**-20 * h, layer.weight + 2.0**-20 * v)
        torch.testing.assert_close(slope, (moved - layer(x)) * 2**20, rtol=0, atol=1e-4)


def test_dtype_and_values_are_those_of_the_function():
    x = integers(4, 3, seed=0).float()
    assert bderivative(Call(F.hardswish), x, x).dtype == torch.float32
    indices = bderivative(Call(lambda x: x.max(1)), x, x).indices
    assert torch.equal(indices, x.max(1).indices)


def test_not_a_number():
    x, other, h = torch.tensor([math.nan, 1.0]), torch.tensor([2.0, math.nan]), torch.tensor([5.0, 7.0])
    assert bderivative(Call(lambda x: torch.fmax(x, other)), x, h).tolist() == [0.0, 7.0]
    assert bderivative(Call(lambda x: torch.fmin(other, x)), x, h).tolist() == [0.0, 7.0]
    for function in (lambda x: torch.maximum(x, other), F.relu, lambda x: x.amax() + x):
        assert bderivative(Call(function), x, h)[0].isnan()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sort", lambda x: x.sort().values),
        ("median", lambda x: x.median(1).values),
        ("topk", lambda x: x.topk(2).values),
        ("kthvalue", lambda x: torch.kthvalue(x, 2).values),
        ("cummax", lambda x: torch.cummax(x, 1).values),
        ("sign", torch.sign),
        ("round", torch.round),
        ("round", torch.special.round),
        ("floor", lambda x: x.floor()),
        ("floor_divide", lambda x: x // 2),
        ("remainder", lambda x: x % 2),
        ("div", lambda x: torch.div(x, 2, rounding_mode="floor")),
        ("hardshrink", F.hardshrink),
        ("threshold", lambda x: F.threshold(x, 1.0, 0.0)),
        ("linalg_matrix_norm", lambda x: torch.linalg.norm(x, 2)),
        ("order 0.5", lambda x: torch.linalg.vector_norm(x, 0.5)),
        ("triplet_margin_loss", lambda x: F.triplet_margin_loss(x, x + 1, x - 1)),
        ("rrelu", lambda x: F.rrelu(x, training=True)),
        ("amax with out=", lambda x: torch.amax(x, 1, out=torch.empty(4, dtype=x.dtype))),
    ],
)
def test_what_has_no_rule_is_refused_by_name(name: str, function):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.culprit = nn.ReLU(), Call(function)

        def forward(self, x: Tensor) -> Tensor:
            return self.culprit(self.stem(x)).sum()

    x = integers(4, 5, seed=0)
    with pytest.raises(NotSupportedError, match=rf"bderivative: .*{name}.* inside module 'culprit' \(Call\)"):
        bderivative(Outer(), x, x)
    assert bderivative(Outer(), x, None) == 0  # nothing moves


def test_what_torch_cannot_differentiate_is_refused():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gy):
            return 2 * gy

    x, net = integers(4, 5, seed=0), nn.Sequential(nn.ReLU(), Call(Doubled.apply))
    with pytest.raises(NotSupportedError, match=r"bderivative: .*jvp.* inside module '1' \(Call\)"):
        bderivative(net, x, x)


def test_a_module_that_recovers_from_an_error_is_named_right():
    class Recovers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails = Call(lambda x: 1 / 0)

        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(ZeroDivisionError):
                self.fails(x)
            return x

    x, net = integers(4, 5, seed=0), nn.Sequential(Recovers(), Call(torch.round))
    with pytest.raises(NotSupportedError, match=r"inside module '1' \(Call\)"):
        bderivative(net, x, x)
