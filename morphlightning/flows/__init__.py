"""Normalizing flows of monotone splines and of certified contractions: densities with exact inverses.

A bijection maps points x (N, dim) to (z, log |det dz/dx|); :class:`Flow` makes a density of it.
"""

from morphlightning.flows.base import Bijection, Composition, Flow
from morphlightning.flows.conditioner import Conditioner
from morphlightning.flows.coupling import Coupling, coupling_flow
from morphlightning.flows.elementwise import ElementwiseSpline, Logit, Normalization
from morphlightning.flows.monotone import MonotoneSpline, Pieces
from morphlightning.flows.residual import InvertibleResidual, residual_flow
from morphlightning.flows.smooth import QuadraticSpline

__all__ = [
    "Bijection",
    "Composition",
    "Conditioner",
    "Coupling",
    "ElementwiseSpline",
    "Flow",
    "InvertibleResidual",
    "Logit",
    "MonotoneSpline",
    "Normalization",
    "Pieces",
    "QuadraticSpline",
    "coupling_flow",
    "residual_flow",
]
