"""Linear operators y = A x with their exact adjoints, bounds of their norms, and (A^T A + w I)^-1."""

from morphlightning.inverse.operators.base import FromFunctions, Identity, LinearOperator, estimate_norm, of
from morphlightning.inverse.operators.blur import CircularBlur, SuperResolution, ValidBlur
from morphlightning.inverse.operators.masks import FourierMask, Inpainting
from morphlightning.inverse.operators.tomography import ParallelBeam

__all__ = [
    "CircularBlur",
    "FourierMask",
    "FromFunctions",
    "Identity",
    "Inpainting",
    "LinearOperator",
    "ParallelBeam",
    "SuperResolution",
    "ValidBlur",
    "estimate_norm",
    "of",
]
