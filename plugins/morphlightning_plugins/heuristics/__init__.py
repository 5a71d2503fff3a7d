"""Heuristics: how a message is passed on and how a batch of parameter directions becomes one step."""

from morphlightning_plugins.heuristics.messages import Adjoint, Best, Chebyshev, Shift, Target
from morphlightning_plugins.heuristics.routes import LowerOnly, Projection
from morphlightning_plugins.heuristics.updates import CountNormalized, Plain, RadiusClipped, SupNorm

__all__ = [
    "Adjoint",
    "Best",
    "Chebyshev",
    "CountNormalized",
    "LowerOnly",
    "Plain",
    "Projection",
    "RadiusClipped",
    "Shift",
    "SupNorm",
    "Target",
]
