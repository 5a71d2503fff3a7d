"""Ridge regularizers: learned one-dimensional potentials of filtered images, convex or weakly convex, and denoising."""

from morphlightning.ridge.denoising import equilibrium, gradient_steps, solve
from morphlightning.ridge.filters import FilterBank, Filters
from morphlightning.ridge.regularizer import FoldedRidge, Ridge, RidgeRegularizer
from morphlightning.ridge.scaling import NoiseScaling

__all__ = [
    "FilterBank",
    "Filters",
    "FoldedRidge",
    "NoiseScaling",
    "Ridge",
    "RidgeRegularizer",
    "equilibrium",
    "gradient_steps",
    "solve",
]
