"""Lipschitz constants that hold: norms of linear layers, certificates of networks, and layers built to have one."""

from morphlightning.lipschitz import morphological_rules, torch_rules, window_rules  # noqa: F401 - they register themselves
from morphlightning.lipschitz.falsify import SteepestPair, falsify
from morphlightning.lipschitz.layers import GroupSort, Residual, SpectralConv2d, SpectralLinear, Sum
from morphlightning.lipschitz.network import LipschitzNetwork
from morphlightning.lipschitz.norms import convolution_norm, dense_norm, gram_norm
from morphlightning.lipschitz.spec import Certificate, certify, lipschitz_spec, pointwise, register

__all__ = [
    "Certificate",
    "GroupSort",
    "LipschitzNetwork",
    "Residual",
    "SpectralConv2d",
    "SpectralLinear",
    "SteepestPair",
    "Sum",
    "certify",
    "convolution_norm",
    "dense_norm",
    "falsify",
    "gram_norm",
    "lipschitz_spec",
    "pointwise",
    "register",
]
