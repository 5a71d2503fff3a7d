"""What every operator asks of its arguments."""

from __future__ import annotations

from torch import Tensor

from morphlightning.errors import DtypeError, ShapeError


def check_real(where: str, **tensors: Tensor) -> None:
    """Raise DtypeError for integer, boolean or complex tensors."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DtypeError(
                f"{where}: {name} is {tensor.dtype}, expected a floating-point tensor; "
                f"for images, {name}.float() / 255 maps 8-bit values to [0, 1]"
            )


def check_dense(where: str, x: Tensor, w: Tensor, axis: int, *, batched: bool = False) -> None:
    """Raise ShapeError unless the last axis of x has the size of axis ``axis`` of the matrix w.

    Where ``batched``, w may also be a batch of matrices, one for each element of the first axis of x.
    """
    check_real(where, x=x, w=w)
    if w.ndim not in ((2, 3) if batched else (2,)) or w.numel() == 0:
        kinds = "a matrix (out, in)" + (" or a batch of them (batch, out, in)" if batched else "")
        raise ShapeError(f"{where}: w has shape {tuple(w.shape)}, expected {kinds} with entries")
    if x.ndim == 0 or x.shape[-1] != w.shape[axis - 2]:
        side = f"axis {axis + w.ndim - 2} ({('out', 'in')[axis]} = {w.shape[axis - 2]})"
        raise ShapeError(
            f"{where}: the last axis of x must have the size of w's {side}, "
            f"got x {tuple(x.shape)} and w {tuple(w.shape)}; flatten or transpose x"
        )
    if w.ndim == 3 and (x.ndim < 2 or x.shape[0] != w.shape[0]):
        raise ShapeError(
            f"{where}: a batch of {w.shape[0]} matrices needs x of shape ({w.shape[0]}, ..., {x.shape[-1]}), "
            f"got {tuple(x.shape)}"
        )
