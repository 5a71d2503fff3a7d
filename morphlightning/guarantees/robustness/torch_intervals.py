r"""Intervals of torch's layers, and of ours that are neither morphological nor signed.

Linear maps take centre c and radius r of a box to :math:`Wc + b` and :math:`|W| r`, computed in float64. A forward
pass whose sums have n terms errs, in whatever order they are added, by at most :math:`n u\,(|W| |x| + |b|)` to first
order in the unit roundoff u of its dtype (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); twice
that is added to the radius. It does not hold for products in TF32, nor for convolutions by Winograd's or Fourier
transforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import NotCertifiable
from morphlightning.guarantees.robustness.boxes import Box, largest, outward, widened
from morphlightning.guarantees.robustness.intervals import check_evaluation, propagate, register_interval
from morphlightning.lipschitz.layers import GroupSort, Residual, SpectralConv2d, SpectralLinear
from morphlightning.splines.activation import LinearSpline, NonuniformSpline

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A map of inputs, weight and bias."""


# -------------------------------------------------------------------------------------------------------------- linear
@register_interval(nn.Linear)
def _linear(module: nn.Linear, box: Box) -> Box:
    return _affine(F.linear, module.weight, module.bias, box)


@register_interval(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(module: _Convolution, box: Box) -> Box:
    return _affine(module._conv_forward, module.weight, module.bias, box)


@register_interval(SpectralLinear)
def _spectral_linear(module: SpectralLinear, box: Box) -> Box:
    return _affine(F.linear, module.effective_weight, module.bias, box)


@register_interval(SpectralConv2d)
def _spectral_convolution(module: SpectralConv2d, box: Box) -> Box:
    how = {"stride": module.stride, "padding": module.padding, "groups": module.groups}
    return _affine(partial(F.conv2d, **how), module.effective_weight, module.bias, box)


def _affine(apply: Linear, weight: Tensor, bias: Tensor | None, box: Box) -> Box:
    dtype, terms = box.lower.dtype, weight[0].numel() + 2
    weight, lower, upper = weight.double(), box.lower.double(), box.upper.double()
    bias = None if bias is None else bias.double()
    middle = apply((lower + upper) / 2, weight, bias)
    radius = apply((upper - lower) / 2, weight.abs(), None)
    moduli = apply(torch.maximum(lower.abs(), upper.abs()), weight.abs(), None if bias is None else bias.abs())
    radius = radius + terms * torch.finfo(dtype).eps * moduli
    return widened(*outward(middle - radius, middle + radius, dtype))


@register_interval(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(module: nn.BatchNorm1d, box: Box) -> Box:
    check_evaluation(module)
    if module.running_mean is None or module.running_var is None:
        raise NotCertifiable("it normalizes by the statistics of a batch, not by running ones")
    mean, scale = module.running_mean.double(), (module.running_var.double() + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.double()
    shift = -mean * scale if module.bias is None else module.bias.double() - mean * scale
    shape = (-1, *(1,) * (box.lower.ndim - 2))
    ends = [x.double() * scale.view(shape) + shift.view(shape) for x in box]
    moduli = torch.maximum(box.lower.abs(), box.upper.abs()).double() * scale.abs().view(shape)
    slack = 8 * torch.finfo(box.lower.dtype).eps * (moduli + (shift.abs() + (mean * scale).abs()).view(shape))
    lower, upper = torch.minimum(*ends) - slack, torch.maximum(*ends) + slack
    return widened(*outward(lower, upper, box.lower.dtype))


@register_interval(Residual)
def _residual(module: Residual, box: Box) -> Box:
    branch = propagate(module.branch, box)
    ends = [torch.lerp(y.double(), x.double(), module.keep) for x, y in zip(box, branch, strict=True)]
    slack = 4 * torch.finfo(box.lower.dtype).eps * largest(*box, *branch).double()
    return widened(*outward(ends[0] - slack, ends[1] + slack, box.lower.dtype))


# ---------------------------------------------------------------------------------------------------------- increasing
@register_interval(
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, GroupSort,
)  # fmt: skip
def _selecting(module: nn.Module, box: Box) -> Box:
    """Increasing, and each output is an input or a constant: nothing is rounded."""
    if getattr(module, "return_indices", False):
        raise NotCertifiable("it returns indices besides values")
    lower, upper = module(box.both()).chunk(2)
    return Box(lower, upper)


@register_interval(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
def _dropout(module: nn.Module, box: Box) -> Box:
    check_evaluation(module)
    return box


@register_interval(
    nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Softshrink, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.PReLU
)
def _increasing_activation(module: nn.Module, box: Box) -> Box:
    """Ends and a few units in the last place, which is what torch's elementary functions are off by."""
    slopes = [float(getattr(module, name, 1.0)) for name in ("negative_slope", "alpha")]
    if isinstance(module, nn.PReLU):
        slopes.append(float(module.weight.min()))
    if min(slopes) < 0 or (isinstance(module, nn.CELU) and slopes[1] == 0):
        raise NotCertifiable("with a negative slope it is not increasing")
    lower, upper = module(box.both()).chunk(2)
    slack = 8 * torch.finfo(lower.dtype).eps * torch.maximum(lower.abs(), upper.abs()).double()
    return widened(lower, upper, slack)


@register_interval(
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d
)
def _average(module: Any, box: Box) -> Box:
    """Averages of a window, or of at most as many numbers as a sample has."""
    if (getattr(module, "divisor_override", None) or 1) < 0:
        raise NotCertifiable("with a negative divisor it is not increasing")
    lower, upper = module(box.both()).chunk(2)
    size = getattr(module, "kernel_size", None)
    terms = box.lower[0].numel() if size is None else size**3 if isinstance(size, int) else math.prod(size)
    most = (largest(lower, upper) + largest(*box)).double()
    return widened(lower, upper, (terms + 2) * torch.finfo(lower.dtype).eps * most)


# ------------------------------------------------------------------------------------------------------------- splines
@register_interval(LinearSpline, NonuniformSpline)
def _spline(module: Any, box: Box) -> Box:
    """Exact: a spline is least and largest at an end of an interval, or at a knot inside."""
    table = module.table().double()
    lower, upper = module(box.lower).double(), module(box.upper).double()
    least, most = torch.minimum(lower, upper), torch.maximum(lower, upper)
    shape = (-1, *(1,) * (box.lower.ndim - 1 - module.channel_dim % box.lower.ndim)) if len(table) > 1 else (1,)
    each = (module.channels or 1) // len(table)
    for knot, value in zip(table.knots.unbind(1), table.values.unbind(1), strict=True):
        at, height = (t.repeat_interleave(each).view(shape) if len(table) > 1 else t for t in (knot, value))
        inside = (box.lower <= at) & (at <= box.upper)
        least = torch.where(inside, torch.minimum(least, height), least)
        most = torch.where(inside, torch.maximum(most, height), most)
    reach = (largest(*box).double() + table.knots.abs().max()) * table.slopes.abs().max() + table.values.abs().max()
    slack = 16 * torch.finfo(torch.promote_types(box.lower.dtype, torch.float32)).eps * reach
    return widened(*outward(least - slack, most + slack, box.lower.dtype))
