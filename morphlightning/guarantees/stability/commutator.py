"""How far flat dilations and erosions are from commuting with deformations."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.guarantees.stability.fields import Deformation, gradient_sup
from morphlightning.guarantees.stability.warp import check_fit, origins, sample


class CommutatorBound(NamedTuple):
    r"""Bounds of :math:`\delta_r L_\tau X` by dilations of X itself, at each pixel.

    Attributes:
        lower: :math:`L_\tau \delta_{r(1-\kappa)} X`.
        middle: :math:`L_\tau \delta_r X`, what it would be if both commuted.
        upper: :math:`L_\tau \delta_{r(1+\kappa)} X`.
        gradient: :math:`\kappa = \sup|\nabla\tau|` in the sup norm, one for each field.
    """

    lower: Tensor
    middle: Tensor
    upper: Tensor
    gradient: Tensor


def commutator_bound(images: Tensor, radius: int, field: Deformation) -> CommutatorBound:
    r"""Bound the flat dilation of deformed images by deformed dilations.

    .. math:: L_\tau \delta_{r(1-\kappa)} X \le \delta_r L_\tau X \le L_\tau \delta_{r(1+\kappa)} X.

    Here :math:`\delta_r X(u) = \max \{X(v) : |v - u|_\infty \le r\}` over all points of the square, where X is bilinear
    between pixels and constant beyond the border, as :func:`deform` takes it; the maxima are found exactly, on the grid
    lines of the square and at its edges. So :math:`\delta_r L_\tau X` differs from :math:`L_\tau \delta_r X` by no more
    than the dilations by :math:`r(1 \pm \kappa)` differ from that by r, which is at most
    :math:`r \kappa\, \mathrm{Lip}(X)`; with equality for :math:`X(u) = a u` and :math:`\tau(u) = -\kappa u`.

    A layer takes maxima over pixels alone. For the window of :math:`2r + 1` pixels, ``upper`` bounds the layer's output
    at every pixel; ``lower`` bounds it up to :math:`(1 + \kappa)\mathrm{Lip}(X) / 2` at pixels that are r or more away
    from the border. Erosions are the dual case: negate ``images``, and the bounds.

    Args:
        images: (batch, channels, height, width), floating-point.
        radius: r in pixels, an integer >= 0.
        field: One field, or one for each image.

    Raises:
        ConfigError: A negative radius, or a field whose gradient in the sup norm is 1 or more (in the Euclidean norm
            it is less than 1, or there would be no such field).
        ShapeError: Images and fields do not fit.
        DtypeError: Images that are not floating-point.

    Source: derived in docs/guarantees.md.
    """
    check_fit("commutator_bound", images, field)
    if radius < 0:
        raise ConfigError(f"commutator_bound: radius={radius}, expected pixels >= 0")
    gradient = gradient_sup(field.tau, "linf")
    if (gradient >= 1).any():
        raise ConfigError(
            f"commutator_bound: sup|grad tau| is {float(gradient.max()):.4g} in the sup norm, expected less than 1; "
            "scale the field down"
        )
    x, y = origins(field)
    reach = radius * gradient.to(x.dtype)[:, None, None]
    lower, middle, upper = (_square_maximum(images, x, y, radius + part * reach, 2 * radius) for part in (-1, 0, 1))
    return CommutatorBound(lower, middle, upper, gradient)


def _square_maximum(images: Tensor, x: Tensor, y: Tensor, radius: Tensor, reach: int) -> Tensor:
    """The maximum of bilinear images over squares around points.

    On the part of a square in one cell the image is affine along each axis, so its maximum there is at a corner: where
    grid lines and edges of the square cross.
    """
    along_width, along_height = _lines(x, radius, reach), _lines(y, radius, reach)
    largest = images.new_full((len(images), images.shape[1], *x.shape[1:]), -math.inf)
    for column in along_width:
        for row in along_height:
            largest = torch.maximum(largest, sample(images, column, row))
    return largest


def _lines(center: Tensor, radius: Tensor, reach: int) -> list[Tensor]:
    """Both edges of each interval and the integers inside, of which a radius below reach has at most 2 reach + 1."""
    low, high = center - radius, center + radius
    first = low.ceil()
    return [low, high, *(torch.minimum(first + step, high) for step in range(2 * reach + 1))]
