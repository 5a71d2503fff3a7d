"""Lipschitz constants that hold: norms of linear layers, certificates of networks."""

from morphlightning.lipschitz import morphological_rules, torch_rules  # noqa: F401 - they register themselves
from morphlightning.lipschitz.norms import convolution_norm, dense_norm, gram_norm
from morphlightning.lipschitz.spec import Certificate, certify, lipschitz_spec, pointwise, register

__all__ = [
    "Certificate",
    "certify",
    "convolution_norm",
    "dense_norm",
    "gram_norm",
    "lipschitz_spec",
    "pointwise",
    "register",
]
