"""Learnable linear splines under control of their slopes."""

from __future__ import annotations

from morphlightning.splines.activation import LinearSpline, NonuniformSpline
from morphlightning.splines.base import SplineModule
from morphlightning.splines.constraint import SlopeConstraint
from morphlightning.splines.exporting import load_table, save_table
from morphlightning.splines.fitting import Fit, fit
from morphlightning.splines.replace import replace_activations
from morphlightning.splines.starts import STARTS
from morphlightning.splines.table import SplineTable

__all__ = [
    "STARTS",
    "Fit",
    "LinearSpline",
    "NonuniformSpline",
    "SlopeConstraint",
    "SplineModule",
    "SplineTable",
    "fit",
    "load_table",
    "replace_activations",
    "save_table",
]
