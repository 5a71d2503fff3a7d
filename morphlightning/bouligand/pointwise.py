"""Rules of torch's functions of single values, and of what is composed of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from morphlightning.bouligand.kinks import Kink, broken_line, compete, piece_of, reach
from morphlightning.bouligand.mode import REFUSED, Directional, composition, rule

Line = tuple[list[float], list[float]]
"""Knots and slopes of a broken line."""
_vector_norm: Callable[..., Tensor] = torch.linalg.vector_norm
_matrix_norm: Callable[..., Tensor] = torch.linalg.matrix_norm

_JUMPS_AND_KINKS = """
sort msort median nanmedian kthvalue topk mode quantile nanquantile cummax cummin aminmax
sign sgn round floor ceil trunc fix frac fmod remainder floor_divide floordiv mod heaviside hardshrink copysign
rrelu rrelu_with_noise fractional_max_pool2d fractional_max_pool3d index_reduce segment_reduce renorm
multilabel_margin_loss cosine_embedding_loss triplet_margin_loss cdist pdist linalg_matrix_norm grid_sampler
rnn_relu rnn_relu_cell fake_quantize_per_tensor_affine fake_quantize_per_channel_affine nextafter histc
"""
REFUSED |= set(_JUMPS_AND_KINKS.split())


def _line(*names: str) -> Callable[[Callable[..., Line]], None]:
    """Declare a function of one value as a broken line."""

    def declare(line: Callable[..., Line]) -> None:
        def apply(mode: Directional, y: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Kink:
            x, h = mode.pair(input)
            knots, slopes = (torch.tensor(part, dtype=x.dtype, device=x.device) for part in line(*args, **kwargs))
            return broken_line(x, h, knots, slopes, mode.eps, mode.radius)

        rule(*names)(apply)

    return declare


@_line("relu")
def _relu() -> Line:
    return [0.0], [0.0, 1.0]


@_line("relu6")
def _relu6() -> Line:
    return [0.0, 6.0], [0.0, 1.0, 0.0]


@_line("leaky_relu")
def _leaky_relu(negative_slope: float = 0.01) -> Line:
    return [0.0], [negative_slope, 1.0]


@_line("abs", "absolute")
def _abs() -> Line:
    return [0.0], [-1.0, 1.0]


@_line("hardtanh")
def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Line:
    return [min_val, max_val], [0.0, 1.0, 0.0]


@_line("hardsigmoid")
def _hardsigmoid() -> Line:
    return [-3.0, 3.0], [0.0, 1 / 6, 0.0]


@_line("softshrink")
def _softshrink(lambd: float = 0.5) -> Line:
    return [-lambd, lambd], [1.0, 0.0, 1.0]


@rule("threshold")
def _threshold(mode: Directional, y: Tensor, input: Tensor, threshold: float, value: float) -> Kink:
    if value != threshold:
        raise mode.refusal(f"threshold jumps from {value} to {threshold}")
    x, h = mode.pair(input)
    knots, slopes = x.new_tensor([threshold]), x.new_tensor([0.0, 1.0])
    return broken_line(x, h, knots, slopes, mode.eps, mode.radius)


@rule("clamp", "clip")
def _clamp(mode: Directional, y: Tensor, input: Tensor, min: Any = None, max: Any = None) -> Kink:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return mode.through(_between, input, min, max)
    x, h = mode.pair(input)
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    knots = x.new_tensor([low, high] if low <= high else [-math.inf, -math.inf])
    return broken_line(x, h, knots, x.new_tensor([0.0, 1.0, 0.0]), mode.eps, mode.radius)


def _between(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@rule("clamp_min")
def _clamp_min(mode: Directional, y: Tensor, input: Tensor, min: Any) -> Kink:
    return _clamp(mode, y, input, min)


@rule("clamp_max")
def _clamp_max(mode: Directional, y: Tensor, input: Tensor, max: Any) -> Kink:
    return _clamp(mode, y, input, None, max)


@rule("prelu")
def _prelu(mode: Directional, y: Tensor, input: Tensor, weight: Tensor) -> Kink:
    (x, h), (w, v) = mode.pair(input), mode.pair(weight)
    if mode.radius and h.any() and v.any():
        raise mode.refusal("prelu is curved where input and weight move: it has no exact radius")
    shape = (1, -1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    w, v = (part.to(x.dtype).view(shape) if part.numel() > 1 else part.to(x.dtype) for part in (w, v))
    knot = x.new_zeros(1)
    right = piece_of(x, h >= 0, knot, mode.eps)
    slope = torch.where(right > 0, h, w * h + v * x.clamp_max(0))
    return Kink(slope, reach(x, h, right, knot, (w != 1)[..., None]) if mode.radius else None)


@rule("maximum", "fmax")
def _maximum(mode: Directional, y: Tensor, input: Tensor, other: Tensor) -> Kink:
    (x, h), (z, g) = mode.pair(input), mode.pair(other)
    return compete(lambda: [(_two(x, z, y), _two(h, g, y))], mode.eps, mode.radius)


@rule("minimum", "fmin")
def _minimum(mode: Directional, y: Tensor, input: Tensor, other: Tensor) -> Kink:
    (x, h), (z, g) = mode.pair(input), mode.pair(other)
    kink = compete(lambda: [(_two(-x, -z, y), _two(-h, -g, y))], mode.eps, mode.radius)
    return kink._replace(slope=-kink.slope)


def _two(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Side by side; NaN never wins, as in fmax, and where it does the value says so."""
    both = torch.stack([a.to(like).expand_as(like), b.to(like).expand_as(like)], -1)
    return both.masked_fill(both.isnan(), -math.inf)


@composition("elu")
def _elu(input: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return scale * (torch.relu(input) + alpha * torch.expm1(-input_scale * torch.relu(-input)))


@composition("selu")
def _selu(input: Tensor) -> Tensor:
    return _elu(input, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@composition("hardswish")
def _hardswish(input: Tensor) -> Tensor:
    return input * (input + 3).clamp(0, 6) / 6


def _reduced(loss: Tensor, reduction: int) -> Tensor:
    """By torch's number of a reduction: none, mean, sum."""
    return (loss, loss.mean(), loss.sum())[reduction] if reduction else loss


@composition("l1_loss")
def _l1_loss(input: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    return _reduced((input - target).abs(), reduction)


@composition("hinge_embedding_loss")
def _hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = 1) -> Tensor:
    loss = torch.where(target == -1, torch.relu(margin - input), torch.zeros_like(input))
    return _reduced(loss + torch.where(target == 1, input, torch.zeros_like(input)), reduction)


@composition("margin_ranking_loss")
def _margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 1
) -> Tensor:
    return _reduced(torch.relu(margin - target * (input1 - input2)), reduction)


@composition("multi_margin_loss")
def _multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    rows, of = input.reshape(-1, input.shape[-1]), target.reshape(-1, 1)
    loss = torch.relu(margin - rows.gather(1, of) + rows) ** p
    loss = loss if weight is None else loss * weight[of]
    others = torch.ones_like(loss).scatter(1, of, 0.0)
    per_sample = (loss * others).sum(1) / input.shape[-1]
    return _reduced(per_sample.view(target.shape), reduction)


@rule("linalg_vector_norm")
def _norm_of_vectors(
    mode: Directional, y: Tensor, x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, **options: Any
) -> Kink:
    if ord in (1, math.inf, -math.inf):
        return mode.through(_norm_by_abs, x, ord, dim, keepdim)
    if ord < 1:
        raise mode.refusal(f"the norm of order {ord} has no derivative at 0")
    if mode.radius:
        raise mode.refusal(f"the norm of order {ord} is curved: it has no exact radius")
    smooth = mode.pair(_vector_norm(x, ord, dim, keepdim, **options))[1]
    return Kink(torch.where(y == 0, _vector_norm(mode.pair(x)[1], ord, dim, keepdim), smooth), None)


def _norm_by_abs(x: Tensor, ord: float, dim: Any, keepdim: bool) -> Tensor:
    axes = tuple(range(x.ndim)) if dim is None else dim
    size = torch.abs(x)
    if ord == 1:
        return torch.sum(size, axes, keepdim)
    return torch.amax(size, axes, keepdim) if ord > 0 else torch.amin(size, axes, keepdim)


@composition("linalg_norm")
def _norm_of_either(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **options: Any) -> Tensor:
    if ord is not None and (A.ndim > 1 if dim is None else not isinstance(dim, int)):
        return _matrix_norm(A, ord, (-2, -1) if dim is None else dim, keepdim, **options)
    return _vector_norm(A, 2 if ord is None else ord, dim, keepdim, **options)


@composition("dist")
def _dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    return _vector_norm(input - other, p)


@composition("pairwise_distance")
def _pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    return _vector_norm(x1 - x2 + eps, p, -1, keepdim)
