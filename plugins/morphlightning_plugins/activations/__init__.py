"""Pointwise nonlinearities."""

from morphlightning_plugins.activations.linear_spline import LinearSpline
from morphlightning_plugins.activations.thresholds import ReLU, SoftThreshold

__all__ = ["LinearSpline", "ReLU", "SoftThreshold"]
