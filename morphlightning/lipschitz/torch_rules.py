"""Lipschitz constants of torch's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import NotCertifiable
from morphlightning.interfaces import LipschitzSpec
from morphlightning.lipschitz.norms import convolution_norm, dense_norm
from morphlightning.lipschitz.spec import Measured, pointwise, register

CERTIFIED_SLACK = 2e-3
"""Of the norms of convolutions in certificates; finer than what training uses."""
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


# -------------------------------------------------------------------------------------------------------------- linear
@register(nn.Linear)
def _linear(module: nn.Linear, norm: Measured) -> LipschitzSpec:
    return dense_spec(module.weight, norm)


def dense_spec(weight: Tensor, norm: Measured) -> LipschitzSpec:
    """The bound of a matrix (out, in), computed in float64."""
    weight = weight.detach().double()
    if norm == "linf":
        return LipschitzSpec(_up(weight.abs().sum(1).max()), norm, norm, True, "largest sum of moduli of a row")
    return LipschitzSpec(float(dense_norm(weight)), norm, norm, True, "largest singular value")


@register(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(module: _Convolution, norm: Measured) -> LipschitzSpec:
    if norm == "l2" and module.padding_mode != "zeros":
        _check_padding(module)
    stride = [step if reach == 1 else 1 for step, reach in zip(module.stride, module.dilation, strict=True)]
    return convolution_spec(module.weight, norm, stride, module.groups)


def _check_padding(module: _Convolution) -> None:
    """Circular padding is bounded by the symbol too, as long as no output position comes twice."""
    if module.padding_mode != "circular":
        raise NotCertifiable(f"padding_mode={module.padding_mode!r} repeats border values, which adds to the l2 norm")
    added = [2 * p for p in module.padding] if not isinstance(module.padding, str) else [0] * len(module.kernel_size)
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(a > r for a, r in zip(added, reach, strict=True)):
        raise NotCertifiable(f"circular padding={module.padding} makes images larger, so that outputs come twice")


def convolution_spec(
    weight: Tensor, norm: Measured, stride: Sequence[int], groups: int, slack: float = CERTIFIED_SLACK
) -> LipschitzSpec:
    """The bound of a convolution (out, in / groups, *taps) with zero padding, computed in float64.

    Dilation moves frequencies and leaves the maximum of the symbol. A stride without dilation makes the kernel's phases
    channels of a convolution without stride (the polyphase form); with dilation it is passed over, which only adds.
    """
    weight = weight.detach().double()
    if norm == "linf":
        return LipschitzSpec(_up(weight.abs().flatten(1).sum(1).max()), norm, norm, False, "sum of moduli of a filter")
    bound = convolution_norm(by_phases(weight, stride), slack=slack, groups=groups)
    return LipschitzSpec(float(bound), norm, norm, False, f"largest value of its symbol, within {slack:.1%}")


def by_phases(weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Kernels (out, in, *taps) of a convolution with a stride as (out, in * phases, *taps of each phase)."""
    for axis, step in enumerate(stride, 2):
        if step > 1:
            missing = -weight.shape[axis] % step
            weight = F.pad(weight, [0, 0] * (weight.ndim - 1 - axis) + [0, missing])
            weight = weight.unflatten(axis, (-1, step)).movedim(axis + 1, 2).flatten(1, 2)
    return weight


def _up(value: Tensor) -> float:
    """A sum of many float64 numbers, rounded up."""
    return float(value) * (1 + 1e-12)


# ----------------------------------------------------------------------------------------------------------- pointwise
_POINTWISE: dict[type[nn.Module], tuple[float, bool]] = {
    nn.ReLU: (1.0, True),
    nn.ReLU6: (1.0, True),
    nn.Tanh: (1.0, True),
    nn.Sigmoid: (0.25, True),
    nn.LogSigmoid: (1.0, True),
    nn.Softsign: (1.0, True),
    nn.Softshrink: (1.0, True),
    nn.Tanhshrink: (1.0, True),
    nn.Hardtanh: (1.0, True),
    nn.Hardsigmoid: (0.16666668, False),
    nn.Hardswish: (1.5, True),
    nn.SELU: (1.75810, False),
    nn.GELU: (1.13, False),
    nn.SiLU: (1.1, False),
    nn.Mish: (1.09, False),
}
"""The largest modulus of the slope; False where it is rounded up."""


@register(*_POINTWISE)
def _pointwise(module: nn.Module, norm: Measured) -> LipschitzSpec:
    constant, exact = next(_POINTWISE[kind] for kind in type(module).__mro__ if kind in _POINTWISE)
    return pointwise(constant, "largest slope", exact)


@register(nn.LeakyReLU)
def _leaky_relu(module: nn.LeakyReLU, norm: Measured) -> LipschitzSpec:
    return pointwise(max(1.0, abs(module.negative_slope)), "largest slope")


@register(nn.PReLU)
def _prelu(module: nn.PReLU, norm: Measured) -> LipschitzSpec:
    return pointwise(max(1.0, float(module.weight.detach().double().abs().max())), "largest slope")


@register(nn.ELU)
def _elu(module: nn.ELU, norm: Measured) -> LipschitzSpec:
    return pointwise(max(1.0, abs(module.alpha)), "largest slope")


@register(nn.CELU)
def _celu(module: nn.CELU, norm: Measured) -> LipschitzSpec:
    if not module.alpha > 0:
        raise NotCertifiable(f"alpha={module.alpha} is not positive, so that slopes are not bounded")
    return pointwise(1.0, "largest slope")


@register(nn.Softplus)
def _softplus(module: nn.Softplus, norm: Measured) -> LipschitzSpec:
    if module.threshold < 20:
        raise NotCertifiable(f"it jumps at threshold={module.threshold}; up to rounding it does not from 20 on")
    return pointwise(1.0, "largest slope")


@register(nn.Softmax)
def _softmax(module: nn.Softmax, norm: Measured) -> LipschitzSpec:
    return LipschitzSpec(0.5, norm, norm, False, "twice p (1 - p), by Gershgorin's circles")


# ------------------------------------------------------------------------------------------- reshaping, dropping, norms
@register(
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
def _rearranged(module: nn.Module, norm: Measured) -> LipschitzSpec:
    return pointwise(1.0, "numbers keep their values", exact=True)


@register(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
def _dropout(module: nn.Module, norm: Measured) -> LipschitzSpec:
    _check_evaluation(module)
    return pointwise(1.0, "the identity in evaluation mode")


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(module: nn.BatchNorm1d, norm: Measured) -> LipschitzSpec:
    _check_evaluation(module)
    if module.running_var is None:
        raise NotCertifiable("it normalizes by the statistics of a batch, not by running ones")
    scale = (module.running_var.detach().double() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    return pointwise(_up(scale.abs().max()), "largest scale of a channel")


@register(nn.LayerNorm, nn.GroupNorm)
def _layer_norm(module: nn.LayerNorm | nn.GroupNorm, norm: Measured) -> LipschitzSpec:
    if norm == "linf":
        raise NotCertifiable("a bound of its outputs in linf is not known; measure inputs in l2")
    largest = 1.0 if module.weight is None else float(module.weight.detach().double().abs().max())
    return LipschitzSpec(_up(torch.tensor(largest)) / math.sqrt(module.eps), why="its slope at constant inputs")


def _check_evaluation(module: nn.Module) -> None:
    if module.training:
        raise NotCertifiable("in training mode it depends on chance or on the batch; call eval() first")


# ------------------------------------------------------------------------------------------------------------- pooling
_POOLS = ((nn.MaxPool1d, nn.AvgPool1d), (nn.MaxPool2d, nn.AvgPool2d), (nn.MaxPool3d, nn.AvgPool3d))


@register(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def _max_pool(module: Any, norm: Measured) -> LipschitzSpec:
    if module.return_indices:
        raise NotCertifiable("it returns indices besides values")
    if norm == "linf":
        return LipschitzSpec(1.0, norm, norm, True, "a maximum moves no further than what it is taken of")
    times = math.prod(_windows(*axis) for axis in _axes(module, module.dilation))
    return LipschitzSpec(math.sqrt(times), why=f"{times} windows meet in a position")


@register(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _average_pool(module: Any, norm: Measured) -> LipschitzSpec:
    if module.ceil_mode or not module.count_include_pad:
        raise NotCertifiable("ceil_mode and count_include_pad=False make averages at borders of fewer numbers")
    axes = _axes(module, 1)
    size, times = math.prod(k for k, _, _ in axes), math.prod(_windows(*axis) for axis in axes)
    share = size / (getattr(module, "divisor_override", None) or size)
    if norm == "linf":
        return LipschitzSpec(share, norm, norm, True, "an average moves no further than what it is taken of")
    why = f"windows of {size}, {times} of which meet in a position"
    return LipschitzSpec(share * math.sqrt(times / size), why=why)


@register(
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
def _adaptive_pool(module: Any, norm: Measured) -> LipschitzSpec:
    if getattr(module, "return_indices", False):
        raise NotCertifiable("it returns indices besides values")
    sizes = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,)
    if norm == "l2" and any(size != 1 for size in sizes):
        raise NotCertifiable("how its windows meet depends on the size of images, unless its output size is 1")
    return LipschitzSpec(1.0, norm, norm, norm == "linf", "a mean or maximum moves no further than its numbers")


def _axes(module: Any, dilation: int | Sequence[int]) -> list[tuple[int, int, int]]:
    """(extent, stride, dilation) of each axis."""
    rank = next(rank for rank, kinds in enumerate(_POOLS, 1) if isinstance(module, kinds))
    stride = module.kernel_size if module.stride is None else module.stride
    sizes = [(size,) * rank if isinstance(size, int) else size for size in (module.kernel_size, stride, dilation)]
    return list(zip(*sizes, strict=True))


def _windows(extent: int, stride: int, dilation: int) -> int:
    """In how many windows a position may lie: taps whose offset has the same rest modulo the stride."""
    return math.ceil(extent / (stride // math.gcd(stride, dilation)))
