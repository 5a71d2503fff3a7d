"""Inverse problems: operators, and solvers that say what makes them converge."""

from morphlightning.inverse.accelerated import minimize
from morphlightning.inverse.iteration import PrintResiduals, Solution

__all__ = ["PrintResiduals", "Solution", "minimize"]
