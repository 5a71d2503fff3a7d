"""Lightning callbacks that measure and never change training."""

from morphlightning_plugins.diagnostics.gradient_density import GradientDensity

__all__ = ["GradientDensity"]
