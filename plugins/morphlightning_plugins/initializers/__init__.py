"""Initializers of max-plus weights; -inf declares a weight missing."""

from morphlightning_plugins.initializers.gumbel_em import GumbelEM
from morphlightning_plugins.initializers.learned import Prototype, Residual
from morphlightning_plugins.initializers.structured import Flat, Identity, Sparse
from morphlightning_plugins.initializers.uniform import Normal, Uniform, Upper, Zeros

__all__ = ["Flat", "GumbelEM", "Identity", "Normal", "Prototype", "Residual", "Sparse", "Uniform", "Upper", "Zeros"]
