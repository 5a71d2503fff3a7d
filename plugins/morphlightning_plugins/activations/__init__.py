"""Pointwise nonlinearities."""

from morphlightning.splines import LinearSpline, NonuniformSpline
from morphlightning_plugins.activations.thresholds import ReLU, SoftThreshold

__all__ = ["LinearSpline", "NonuniformSpline", "ReLU", "SoftThreshold"]
