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
from morphlightning.lipschitz.window_rules import repeats

CERTIFIED_SLACK = 2e-3
"""Of the norms of convolutions in certificates; finer than what training uses."""
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Running = nn.BatchNorm1d | nn.InstanceNorm1d | nn.SyncBatchNorm
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


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
    stride = [step if reach == 1 else 1 for step, reach in zip(module.stride, module.dilation, strict=True)]
    spec = convolution_spec(module.weight, norm, stride, module.groups)
    if norm == "linf" or module.padding_mode == "zeros":
        return spec
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    pads = list(zip(module.padding, module.padding, strict=True)) if not isinstance(module.padding, str) else None
    if pads is None:
        pads = [(r // 2, r - r // 2) if module.padding == "same" else (0, 0) for r in reach]
    if module.padding_mode == "circular" and all(sum(pad) <= r for pad, r in zip(pads, reach, strict=True)):
        return spec  # a convolution on a torus, no output comes twice: bounded by the same symbol
    times = repeats(module.padding_mode, pads)
    why = f"{spec.why}, of images whose padding holds up to {times} times what is padded"
    return spec._replace(constant=spec.constant * _up(torch.tensor(times).double().sqrt()), why=why)


@register(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _transposed_convolution(module: _Transposed, norm: Measured) -> LipschitzSpec:
    if norm == "l2":  # the adjoint of a convolution
        stride = [step if reach == 1 else 1 for step, reach in zip(module.stride, module.dilation, strict=True)]
        return convolution_spec(module.weight, norm, stride, module.groups)
    moduli = module.weight.detach().double().abs().unflatten(0, (module.groups, -1)).sum(1)
    for axis, (step, reach) in enumerate(zip(module.stride, module.dilation, strict=True), 2):
        # an output meets the taps whose offsets have the same rest modulo the stride
        rest = torch.arange(moduli.shape[axis], device=moduli.device) * reach % step
        shape = (*moduli.shape[:axis], step, *moduli.shape[axis + 1 :])
        moduli = moduli.new_zeros(shape).index_add_(axis, rest, moduli)
    return LipschitzSpec(_up(moduli.max()), norm, norm, False, "sum of the moduli that meet in an output")


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


@register(nn.RReLU)
def _rrelu(module: nn.RReLU, norm: Measured) -> LipschitzSpec:
    _check_evaluation(module)
    return pointwise(max(1.0, abs(module.lower + module.upper) / 2), "largest slope")


@register(nn.Softmax, nn.Softmin, nn.Softmax2d)
def _softmax(module: nn.Module, norm: Measured) -> LipschitzSpec:
    return LipschitzSpec(0.5, norm, norm, False, "twice p (1 - p), by Gershgorin's circles")


@register(nn.LogSoftmax)
def _log_softmax(module: nn.LogSoftmax, norm: Measured) -> LipschitzSpec:
    if norm == "l2":
        raise NotCertifiable(
            "its bound in l2 grows with the number of classes, which it does not know; certify the logits before it "
            "(classes are ranked alike), or measure in linf"
        )
    return LipschitzSpec(2.0, norm, norm, False, "a number, less a mean of numbers")


# ------------------------------------------------------------------------------------------- reshaping, dropping, norms
@register(
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip
def _rearranged(module: nn.Module, norm: Measured) -> LipschitzSpec:
    return pointwise(1.0, "numbers keep their values", exact=True)


@register(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
def _dropout(module: nn.Module, norm: Measured) -> LipschitzSpec:
    _check_evaluation(module)
    return pointwise(1.0, "the identity in evaluation mode")


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def _batch_norm(module: _Running, norm: Measured) -> LipschitzSpec:
    _check_evaluation(module)
    if module.running_var is None:
        raise NotCertifiable("it normalizes by the statistics of a batch; give it track_running_stats=True")
    return _scale(module, module.running_var)


@register(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm(module: nn.InstanceNorm1d, norm: Measured) -> LipschitzSpec:
    if module.running_var is not None:
        _check_evaluation(module)
        return _scale(module, module.running_var)
    return _own_norm(module, norm, module.eps)


def _scale(module: _Running, variance: Tensor) -> LipschitzSpec:
    """Of a normalization by running statistics."""
    scale = (variance.detach().double() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    return pointwise(_up(scale.abs().max()), "largest scale of a channel")


@register(nn.LayerNorm, nn.GroupNorm)
def _layer_norm(module: nn.LayerNorm | nn.GroupNorm, norm: Measured) -> LipschitzSpec:
    return _own_norm(module, norm, module.eps)


@register(nn.RMSNorm)
def _rms_norm(module: nn.RMSNorm, norm: Measured) -> LipschitzSpec:
    return _own_norm(module, norm, torch.finfo(torch.float64).eps if module.eps is None else module.eps)


def _own_norm(module: Any, norm: Measured, eps: float) -> LipschitzSpec:
    """Of a normalization by the statistics of the sample itself, which is steepest where these vanish."""
    remedy = "use BatchNorm or MeanShift, which are certified by their running statistics in evaluation mode"
    if norm == "linf":
        raise NotCertifiable(
            "it divides by the sample's own spread, and a bound of its outputs in linf is not known; measure inputs in "
            f"l2, or {remedy}"
        )
    if not eps > 0:
        raise NotCertifiable(f"its slope is not bounded without eps, which is {eps}; {remedy}")
    largest = 1.0 if module.weight is None else float(module.weight.detach().double().abs().max())
    return LipschitzSpec(_up(torch.tensor(largest)) / math.sqrt(eps), why="its slope where the spread of a sample is 0")


def _check_evaluation(module: nn.Module) -> None:
    if module.training:
        raise NotCertifiable("in training mode it depends on chance or on the batch; call eval() first")
