"""Lipschitz constants of torch's layers that look at windows or repeat numbers: pooling, padding, resampling.

Where the norm is l2, what counts is how often a number comes again: a map that copies every number at most t times has
the norm sqrt(t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from morphlightning.errors import NotCertifiable
from morphlightning.interfaces import LipschitzSpec
from morphlightning.lipschitz.spec import Measured, register

_POOLS = (
    (nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d),
    (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.Unfold),
    (nn.MaxPool3d, nn.AvgPool3d, nn.LPPool3d),
)
_ROUNDING = 1 + 1e-12


@register(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def _max_pool(module: Any, norm: Measured) -> LipschitzSpec:
    if module.return_indices:
        raise NotCertifiable("it returns indices besides values")
    if norm == "linf":
        return LipschitzSpec(1.0, norm, norm, True, "a maximum moves no further than what it is taken of")
    times = math.prod(_windows(*axis) for axis in _axes(module, module.dilation))
    return LipschitzSpec(math.sqrt(times), why=f"{times} windows meet in a position")


@register(nn.Unfold)
def _unfold(module: nn.Unfold, norm: Measured) -> LipschitzSpec:
    if norm == "linf":
        return LipschitzSpec(1.0, norm, norm, True, "numbers keep their values")
    times = math.prod(_windows(*axis) for axis in _axes(module, module.dilation))
    return LipschitzSpec(math.sqrt(times), why=f"{times} windows meet in a position")


@register(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _average_pool(module: Any, norm: Measured) -> LipschitzSpec:
    axes = _axes(module, 1)
    size, times = math.prod(k for k, _, _ in axes), math.prod(_windows(*axis) for axis in axes)
    divisor = getattr(module, "divisor_override", None)
    share = size / (divisor or size)
    if norm == "linf":
        return LipschitzSpec(share, norm, norm, True, "an average moves no further than what it is taken of")
    if divisor is None and (module.ceil_mode or not module.count_include_pad):
        return LipschitzSpec(
            math.sqrt(times), why=f"averages at borders are of few numbers, {times} meet in a position"
        )
    why = f"windows of {size}, {times} of which meet in a position"
    return LipschitzSpec(share * math.sqrt(times / size), why=why)


@register(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
def _power_pool(module: Any, norm: Measured) -> LipschitzSpec:
    power = float(module.norm_type)
    if (power % 2 and power != 1) or power < 1:
        raise NotCertifiable(
            f"norm_type={module.norm_type} is no norm of numbers of both signs; use 1 or an even number"
        )
    if module.ceil_mode:
        raise NotCertifiable("ceil_mode weighs numbers at borders by how few they are; use ceil_mode=False")
    axes = _axes(module, 1)
    size, times = math.prod(k for k, _, _ in axes), math.prod(_windows(*axis) for axis in axes)
    if norm == "linf":
        return LipschitzSpec(size ** (1 / power) * _ROUNDING, norm, norm, False, f"windows of {size}")
    if power == 1:
        return LipschitzSpec(math.sqrt(size * times), why=f"sums of {size}, {times} of which meet in a position")
    return LipschitzSpec(math.sqrt(times), why=f"{times} windows meet in a position")


@register(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
def _fractional_pool(module: nn.Module, norm: Measured) -> LipschitzSpec:
    raise NotCertifiable("it draws its windows by chance in each pass, in evaluation mode too; use MaxPool")


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


# ------------------------------------------------------------------------------------------------ padding, resampling
_RANKS = {"linear": 1, "bilinear": 2, "trilinear": 3}
_PADDINGS = {"reflect": "Reflection", "replicate": "Replication", "circular": "Circular"}


def _padding_layers(mode: str) -> list[type[nn.Module]]:
    return [getattr(nn, f"{_PADDINGS[mode]}Pad{rank}d") for rank in (1, 2, 3)]


def repeats(mode: str, pads: Sequence[tuple[int, int]]) -> int:
    """How often a number may come in a padded image at most, for (left, right) of each axis; whatever its size."""
    pads = [(max(left, 0), max(right, 0)) for left, right in pads]  # negative ones crop
    if mode == "replicate":
        return math.prod(1 + left + right for left, right in pads)  # of an axis of one number; else of a border
    return math.prod(1 + (left > 0) + (right > 0) for left, right in pads)  # torch pads at most once around


@register(*_padding_layers("reflect"), *_padding_layers("replicate"), *_padding_layers("circular"))
def _padding(module: Any, norm: Measured) -> LipschitzSpec:
    mode = next(mode for mode in _PADDINGS if isinstance(module, tuple(_padding_layers(mode))))
    times = repeats(mode, list(zip(module.padding[::2], module.padding[1::2], strict=True)))
    if norm == "linf":
        return LipschitzSpec(1.0, norm, norm, True, "numbers keep their values")
    return LipschitzSpec(math.sqrt(times), why=f"a number comes up to {times} times")


@register(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def _upsampling(module: nn.Upsample, norm: Measured) -> LipschitzSpec:
    if module.mode == "bicubic":
        raise NotCertifiable("bicubic weights are of both signs; use another mode")
    if norm == "linf":
        return LipschitzSpec(1.0, norm, norm, True, "a mean moves no further than what it is taken of")
    given: Any = module.scale_factor
    factors = given if isinstance(given, tuple) else (given,)
    if module.align_corners or not all(factor and float(factor).is_integer() for factor in factors):
        raise NotCertifiable(
            "how often a number comes depends on the size of images, unless scale_factor is an integer and "
            "align_corners is not set"
        )
    if len(factors) == 1 and module.mode in _RANKS:
        factors *= _RANKS[module.mode]
    elif len(factors) == 1:
        raise NotCertifiable(f"mode={module.mode!r} scales as many axes as images have; give a scale_factor for each")
    times = math.prod(int(factor) for factor in factors)
    return LipschitzSpec(math.sqrt(times), why=f"a number comes {times} times, or in as many means")
