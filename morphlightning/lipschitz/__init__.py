"""Lipschitz constants that hold: certified norms of linear layers."""

from morphlightning.lipschitz.norms import convolution_norm, dense_norm, gram_norm

__all__ = ["convolution_norm", "dense_norm", "gram_norm"]
