"""Exact directional calculus of networks with kinks: derivatives, radii and line search along a direction.

Derived in docs/bouligand.md.
"""

from morphlightning.bouligand.calls import OperatorCall, operator_calls
from morphlightning.bouligand.derivative import active_set, bderivative, loss_slope
from morphlightning.bouligand.radius import ModuleRadius, exact_radius
from morphlightning.bouligand.search import LineSearch, line_search

__all__ = [
    "LineSearch",
    "ModuleRadius",
    "OperatorCall",
    "active_set",
    "bderivative",
    "exact_radius",
    "line_search",
    "loss_slope",
    "operator_calls",
]
