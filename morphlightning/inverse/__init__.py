"""Inverse problems: operators, and solvers that say what makes them converge."""

from morphlightning.inverse.accelerated import Solution, minimize

__all__ = ["Solution", "minimize"]
