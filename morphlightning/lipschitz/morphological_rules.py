"""Lipschitz constants of morphological layers, in the sup norm.

An increasing map that commutes with adding constants moves no output further than its inputs: with e = max |x - y|,
x <= y + e gives f(x) <= f(y) + e. Dilations, erosions, what is composed of them, log-sum-exp and pooling are such maps.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from morphlightning import layers
from morphlightning.errors import NotCertifiable
from morphlightning.interfaces import LipschitzSpec
from morphlightning.layers.families import RANKS, family
from morphlightning.layers.windows import WindowLayer
from morphlightning.lipschitz.spec import Measured, lipschitz_spec, pointwise, register


def _increasing_spec(constant: float, why: str = "increasing, and it commutes with adding constants") -> LipschitzSpec:
    return LipschitzSpec(constant, "linf", "linf", constant == 1, why)


@register(
    *family("Dilation", "Erosion", "Opening", "Closing", "SupOfErosions", "DilationErosion"),
    *family("DilationErosionPerceptron", "SoftDilation", "SoftErosion"),
    *family("Reconstruction", "MorphPool", ranks=RANKS),
)
def _increasing(module: Any, norm: Measured) -> LipschitzSpec:
    if getattr(module, "return_provenance", False):
        raise NotCertifiable("it returns provenance besides values")
    added = _added(module)
    return _increasing_spec(added) if added == 1 else _increasing_spec(added, f"sums of {added} such channels")


@register(*family("SignedDilation", "SignedErosion", "SoftSignedDilation", "SoftSignedErosion", ranks=("",)))
def _signed(module: nn.Module, norm: Measured) -> LipschitzSpec:
    return LipschitzSpec(1.0, "linf", "linf", True, "a maximum or minimum of maps that move each by one input")


@register(layers.Shift)
def _shift(module: nn.Module, norm: Measured) -> LipschitzSpec:
    return pointwise(1.0, "a shift")


@register(layers.MeanShift)
def _mean_shift(module: nn.Module, norm: Measured) -> LipschitzSpec:
    if module.training:
        raise NotCertifiable("in training mode it subtracts the mean of the batch; call .eval()")
    return pointwise(1.0, "a shift")


@register(*family("Gradient", "TopHat", ranks=RANKS))
def _difference(module: nn.Module, norm: Measured) -> LipschitzSpec:
    return _increasing_spec(2.0, "a difference of two increasing maps that commute with adding constants")


@register(*family("MinMaxPlus"))
def _min_max_plus(module: Any, norm: Measured) -> LipschitzSpec:
    linear = lipschitz_spec(module.linear, norm)
    factor = _added(module.dilation) * _added(module.erosion)
    return LipschitzSpec(linear.constant * factor, norm, "linf", False, "that of its linear layer")


def _added(module: nn.Module) -> int:
    """How many channels a windowed layer, or those of a composite, adds up for an output."""
    windowed = [part for part in module.modules() if isinstance(part, WindowLayer) and part.windowing.merge == "sum"]
    return max((part.in_channels // part.windowing.groups for part in windowed), default=1)
