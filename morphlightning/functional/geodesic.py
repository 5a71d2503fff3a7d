"""Geodesic reconstruction: the seed grows (or shrinks) under the mask until nothing changes.

Flat windows only: then each output value is one value of the seed or of the mask, and receives its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.functional.windowing import Size, batched, per_axis
from morphlightning.ops.geodesic import reconstruct


def _reconstruct(where: str, seed: Tensor, mask: Tensor, footprint: Tensor | Size, rank: int, sign: int) -> Tensor:
    check_real(where, seed=seed, mask=mask)
    if seed.shape != mask.shape:
        raise ShapeError(f"{where}: seed {tuple(seed.shape)} and mask {tuple(mask.shape)} must have the same shape")
    if not isinstance(footprint, Tensor):
        footprint = torch.ones(per_axis("window size", footprint, rank, 1), dtype=torch.bool, device=seed.device)
    if footprint.dtype != torch.bool or footprint.ndim != rank:
        raise ConfigError(
            f"{where}: the footprint must be a size or a boolean tensor of {rank} axes, "
            f"got {footprint.dtype} {tuple(footprint.shape)}; reconstruction takes flat windows only"
        )
    images = batched(where, seed, rank)
    one_each = (-1, 1, *images.shape[2:])
    limit = mask.to(seed.dtype).reshape(one_each)
    y = reconstruct(sign * seed.reshape(one_each), sign * limit, footprint, reflect=sign > 0)
    return (sign * y).view(seed.shape)


def reconstruction_by_dilation1d(seed: Tensor, mask: Tensor, footprint: Tensor | Size = 3) -> Tensor:
    """Reconstruction by dilation of signals; see :func:`reconstruction_by_dilation2d`."""
    return _reconstruct("reconstruction_by_dilation1d", seed, mask, footprint, 1, 1)


def reconstruction_by_erosion1d(seed: Tensor, mask: Tensor, footprint: Tensor | Size = 3) -> Tensor:
    """Reconstruction by erosion of signals: y <- max(erosion(y), mask) from y = max(seed, mask); the dual."""
    return _reconstruct("reconstruction_by_erosion1d", seed, mask, footprint, 1, -1)


def reconstruction_by_dilation2d(seed: Tensor, mask: Tensor, footprint: Tensor | Size = 3) -> Tensor:
    """Reconstruction by dilation of images: y <- min(dilation(y), mask) from y = min(seed, mask) until it is stable.

    Args:
        seed: Where growth starts, shape ``(batch, channels, height, width)`` or without batch; values above the mask
            are cut to it.
        mask: The bound, of the same shape.
        footprint: A boolean window or its size; 3 connects all eight neighbours.

    Returns:
        The reconstruction, shape and dtype of seed. Each value is one of the seed's or of the mask's, and its gradient
        goes to that one; a value that several could give comes from the source that reached it first.

    Raises:
        ShapeError: seed and mask differ in shape, or in the number of axes asked for.
        ConfigError: The footprint is not a flat window of two axes.

    Source: Vincent 1993 for the operator; provenance is derived in docs/conventions.md,
    "Reconstruction".
    """
    return _reconstruct("reconstruction_by_dilation2d", seed, mask, footprint, 2, 1)


def reconstruction_by_erosion2d(seed: Tensor, mask: Tensor, footprint: Tensor | Size = 3) -> Tensor:
    """Reconstruction by erosion of images: y <- max(erosion(y), mask) from y = max(seed, mask); the dual."""
    return _reconstruct("reconstruction_by_erosion2d", seed, mask, footprint, 2, -1)


def reconstruction_by_dilation3d(seed: Tensor, mask: Tensor, footprint: Tensor | Size = 3) -> Tensor:
    """Reconstruction by dilation of volumes; see :func:`reconstruction_by_dilation2d`."""
    return _reconstruct("reconstruction_by_dilation3d", seed, mask, footprint, 3, 1)


def reconstruction_by_erosion3d(seed: Tensor, mask: Tensor, footprint: Tensor | Size = 3) -> Tensor:
    """Reconstruction by erosion of volumes: y <- max(erosion(y), mask) from y = max(seed, mask); the dual."""
    return _reconstruct("reconstruction_by_erosion3d", seed, mask, footprint, 3, -1)
