"""Learnable linear splines under control of their slopes."""

from __future__ import annotations

from morphlightning.splines.activation import LinearSpline, NonuniformSpline
from morphlightning.splines.base import SplineModule
from morphlightning.splines.constraint import SlopeConstraint
from morphlightning.splines.replace import replace_activations
from morphlightning.splines.starts import STARTS
from morphlightning.splines.table import SplineTable

__all__ = [
    "STARTS",
    "LinearSpline",
    "NonuniformSpline",
    "SlopeConstraint",
    "SplineModule",
    "SplineTable",
    "replace_activations",
]
