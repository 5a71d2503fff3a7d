"""Pointwise nonlinearities."""

from morphlightning.splines import LinearSpline, NonuniformSpline
from morphlightning_plugins.activations.slopes import Absolute, PReLU
from morphlightning_plugins.activations.thresholds import ReLU, SoftThreshold

__all__ = ["Absolute", "LinearSpline", "NonuniformSpline", "PReLU", "ReLU", "SoftThreshold"]
