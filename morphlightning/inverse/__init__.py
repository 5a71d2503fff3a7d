"""Inverse problems: operators, and solvers that say what makes them converge."""

from morphlightning.inverse import operators
from morphlightning.inverse.accelerated import minimize
from morphlightning.inverse.denoisers import Averaged, GradientStep, NonexpansiveDenoiser, averagedness
from morphlightning.inverse.iteration import PrintResiduals, Solution
from morphlightning.inverse.plug_and_play import PnPADMM, PnPForwardBackward
from morphlightning.inverse.solver import Solver
from morphlightning.inverse.total_variation import TotalVariation, total_variation
from morphlightning.inverse.unrolled import UnrolledProximalGradient
from morphlightning.inverse.variational import SmoothRegularizer, Variational

__all__ = [
    "Averaged",
    "GradientStep",
    "NonexpansiveDenoiser",
    "PnPADMM",
    "PnPForwardBackward",
    "PrintResiduals",
    "SmoothRegularizer",
    "Solution",
    "Solver",
    "TotalVariation",
    "UnrolledProximalGradient",
    "Variational",
    "averagedness",
    "minimize",
    "operators",
    "total_variation",
]
