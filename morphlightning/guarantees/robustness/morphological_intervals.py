r"""Intervals of morphological layers.

An increasing layer takes the ends of a box to the ends of the least box that holds its outputs. A signed dilation
:math:`D(x) = \max_j \max(x_j + a_j, b_j - x_j)` is an increasing function of :math:`(x, -x)`, so that the two products
that bound it above and below are of (u, -l) and (l, -u). The lower one is not attained, since x and -x move together;
but a maximum of functions of one number each is least where each is, and
:math:`\min_{l \le z \le u} \max(z + a, b - z) = \max(l + a, b - u, \frac{a + b}2)`, so that

.. math:: \min_{l \le z \le u} D(z) = \max\bigl(\max_j \max(l_j + a_j, b_j - u_j),\ \max_j \tfrac{a_j + b_j}2\bigr):

the product again, and a constant of the layer. Derived here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import NotCertifiable
from morphlightning.functional import dilation, erosion, soft_dilation, soft_erosion
from morphlightning.guarantees.robustness.boxes import Box, largest, widened
from morphlightning.guarantees.robustness.intervals import check_evaluation, propagate, register_interval
from morphlightning.layers.base import MorphLayer
from morphlightning.layers.families import RANKS, family
from morphlightning.layers.windows import WindowLayer
from morphlightning.ops.eager import compute_dtype

SOFT_ERROR = 64
"""Units in the last place of twice the error of soft operators, 2e-6 in float32 (docs/conventions.md)."""


# -------------------------------------------------------------------------------------------------------------- signed
@register_interval(layers.SignedDilation)
def _signed_dilation(module: layers.SignedDilation, box: Box) -> Box:
    ends = dilation(_ends(box), module.effective_weight)
    lower = torch.maximum(ends[0], _half_sums(module).amax(1).to(ends.dtype))
    return widened(lower, ends[1])


@register_interval(layers.SignedErosion)
def _signed_erosion(module: layers.SignedErosion, box: Box) -> Box:
    ends = erosion(_ends(box), module.effective_weight)
    upper = torch.minimum(ends[1], -_half_sums(module).amax(1).to(ends.dtype))
    return widened(ends[0], upper)


@register_interval(layers.SoftSignedDilation, layers.SoftSignedErosion)
def _soft_signed(module: Any, box: Box) -> Box:
    """As the hard ones, with a log-sum-exp of constants; a bound that is not attained."""
    if module.beta.isinf():
        return propagate(module.harden(), box)
    soft = soft_dilation if module.sign > 0 else soft_erosion
    lower, upper = soft(_ends(box), module.effective_weight, module.beta, precision=module.precision)
    constant = (torch.logsumexp(module.beta * _half_sums(module), 1) + math.log(2)) / module.beta
    if module.sign > 0:
        lower = torch.maximum(lower, constant.to(lower.dtype))
    else:
        upper = torch.minimum(upper, -constant.to(upper.dtype))
    return widened(lower, upper, _soft_slack(module, lower, upper))


def _ends(box: Box) -> Tensor:
    """The ends of (x, -x), one above the other."""
    return torch.stack([torch.cat([box.lower, -box.upper], -1), torch.cat([box.upper, -box.lower], -1)])


def _half_sums(module: Any) -> Tensor:
    """(a + b) / 2; a float halves without rounding."""
    sums: Tensor = module.a + module.b
    return sums / 2


# ---------------------------------------------------------------------------------------------------------- increasing
@register_interval(
    *family("Dilation", "Erosion", "SupOfErosions", "DilationErosion"),
    *family("MorphPool", ranks=RANKS),
)
def _one_addition(module: nn.Module, box: Box) -> Box:
    """Increasing, and each output is one rounded sum, unless channels are added."""
    lower, upper = _at_ends(module, box)
    added = added_channels(module)
    return widened(lower, upper, _slack(module, box, 2 * added * added) if added > 1 else None)


@register_interval(*family("Opening", "Closing", "DilationErosionPerceptron"), *family("Reconstruction", ranks=RANKS))
def _several_roundings(module: nn.Module, box: Box) -> Box:
    lower, upper = _at_ends(module, box)
    return widened(lower, upper, _slack(module, box, 8 * added_channels(module) ** 2))


@register_interval(*family("SoftDilation", "SoftErosion"))
def _soft(module: Any, box: Box) -> Box:
    if module.beta.isinf():
        return propagate(module.harden(), box)
    lower, upper = _at_ends(module, box)
    return widened(lower, upper, _soft_slack(module, lower, upper))


@register_interval(*family("MinMaxPlus"))
def _min_max_plus(module: Any, box: Box) -> Box:
    return propagate(nn.Sequential(module.linear, module.dilation, module.erosion), box)


@register_interval(layers.Shift)
def _shift(module: layers.Shift, box: Box) -> Box:
    return widened(module(box.lower), module(box.upper))


@register_interval(layers.MeanShift)
def _mean_shift(module: layers.MeanShift, box: Box) -> Box:
    check_evaluation(module)
    return widened(module(box.lower), module(box.upper))


def _at_ends(module: nn.Module, box: Box) -> tuple[Tensor, Tensor]:
    if getattr(module, "return_provenance", False):
        raise NotCertifiable("it returns provenance besides values")
    lower, upper = module(box.both()).chunk(2)
    return lower, upper


def added_channels(module: nn.Module) -> int:
    """How many channels a windowed layer, or those of a composite, adds up for an output."""
    windowed = [part for part in module.modules() if isinstance(part, WindowLayer) and part.windowing.merge == "sum"]
    return max((part.in_channels // part.windowing.groups for part in windowed), default=1)


# --------------------------------------------------------------------------------------------------------------- slack
def _slack(module: nn.Module, box: Box, roundings: int) -> Tensor:
    """Units in the last place of the largest number on the way: of inputs plus that of weights."""
    weights = [part.effective_weight for part in module.modules() if isinstance(part, MorphLayer)]
    most = largest(*box).double() + sum(largest(weight).double() for weight in weights)
    return roundings * torch.finfo(box.lower.dtype).eps * most


def _soft_slack(module: Any, *outputs: Tensor) -> Tensor:
    """Twice the error that soft operators state, for the outputs at both ends."""
    beta = module.beta.double()
    most = largest(*outputs).double().clamp_min(1).maximum(1 / beta)
    slack = SOFT_ERROR * torch.finfo(compute_dtype(outputs[0], module.weight)).eps * most
    return slack + 6 / (255 * beta) if module.precision == "bfloat16" else slack
