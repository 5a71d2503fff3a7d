"""Images moved by displacement fields, with bilinear values between pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from morphlightning.errors import DtypeError, ShapeError
from morphlightning.guarantees.stability.fields import Deformation


def deform(images: Tensor, field: Deformation) -> Tensor:
    r"""The deformed images :math:`L_\tau X(u) = X(u - \tau(u))`.

    Between pixels X is bilinear; outside of the image it has the value of the nearest point of the border. Where
    :math:`u - \tau(u)` is a pixel the value is that pixel's, bit for bit, so displacements by integers copy. Values lie
    between the least and the largest of the image. Gradients flow to the images and, within cells, to ``tau``.

    Args:
        images: (batch, channels, height, width), floating-point.
        field: One field, or one for each image, of the images' height and width.

    Returns:
        Shape and dtype of ``images``.

    Raises:
        ShapeError: Images and fields do not fit.
        DtypeError: Images that are not floating-point.
    """
    check_fit("deform", images, field)
    return sample(images, *origins(field))


def origins(field: Deformation) -> tuple[Tensor, Tensor]:
    """The points u - tau(u) along the width and along the height, each (fields, height, width), at least in float32."""
    tau = field.tau.to(torch.promote_types(field.tau.dtype, torch.float32))
    height, width = tau.shape[2:]
    x, y = (torch.arange(n, dtype=tau.dtype, device=tau.device) for n in (width, height))
    return x - tau[:, 0], y[:, None] - tau[:, 1]


def check_fit(where: str, images: Tensor, field: Deformation) -> None:
    """Raise an error unless ``field`` can move ``images``."""
    if not images.is_floating_point():
        raise DtypeError(f"{where}: images have dtype {images.dtype}, expected a floating-point one")
    tau = field.tau
    if images.ndim != 4 or images.shape[2:] != tau.shape[2:] or len(tau) not in (1, len(images)):
        raise ShapeError(
            f"{where}: images have shape {tuple(images.shape)} and fields {tuple(tau.shape)}; expected images (batch, "
            "channels, height, width) and one field, or one for each image, of the same height and width"
        )


def sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values at points, of the nearest point of the border outside.

    Args:
        images: (batch, channels, height, width).
        x: Points along the width in pixels, (batch or 1, *shape).
        y: Points along the height, of the same shape.

    Returns:
        (batch, channels, *shape), in the dtype of ``images``.
    """
    height, width = images.shape[2:]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    real = torch.promote_types(images.dtype, torch.float32)
    right_share, lower_share = (x - left).to(real)[:, None], (y - top).to(real)[:, None]
    columns = left.long(), (left.long() + 1).clamp_max(width - 1)
    rows = top.long() * width, (top.long() + 1).clamp_max(height - 1) * width
    flat = images.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row + column).expand(len(images), *x.shape[1:]).flatten(1)[:, None]
        values = flat.gather(2, index.expand(-1, images.shape[1], -1))
        return values.view(*images.shape[:2], *x.shape[1:]).to(real)

    upper, lower = (at(row, columns[0]).lerp(at(row, columns[1]), right_share) for row in rows)
    return upper.lerp(lower, lower_share).to(images.dtype)
