"""Sums over samples that least squares needs: packed to be added up and reduced at once, and solved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from morphlightning.errors import NonFiniteError

JITTER = 10.0
"""Added to the diagonal, times its mean and the dtype's epsilon: rounding must not make a matrix indefinite."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in the precision of their operands: neither autocast nor TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def solving_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which sums are taken and equations solved: float32, or float64 for parameters in float64."""
    return torch.promote_types(dtype, torch.float32)


def pack(parts: Sequence[Tensor]) -> Tensor:
    """One vector of all parts."""
    return torch.cat([part.flatten() for part in parts])


def unpack(packed: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The parts of a vector."""
    sizes = [shape.numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(packed.split(sizes), shapes, strict=True)]


@lru_cache(maxsize=16)  # asked for in every iteration, and as large as the matrix
def _upper(size: int, device: torch.device) -> Tensor:
    return torch.triu_indices(size, size, device=device)


def triangle(gram: Tensor) -> Tensor:
    """The upper triangle of symmetric matrices (groups, d, d), (groups, d (d + 1) / 2)."""
    rows, columns = _upper(gram.shape[-1], gram.device)
    return gram[:, rows, columns]


def from_triangle(packed: Tensor) -> Tensor:
    """The symmetric matrices of their upper triangles."""
    size = int(((8 * packed.shape[-1] + 1) ** 0.5 - 1) / 2)
    rows, columns = _upper(size, packed.device)
    gram = packed.new_empty(len(packed), size, size)
    gram[:, rows, columns] = packed
    gram[:, columns, rows] = packed
    return gram


def factor(gram: Tensor, ridge: float, where: str) -> Tensor:
    """The Cholesky factor of gram + ridge I, which counts bias and weights alike.

    Raises:
        NonFiniteError: The sums are not finite, or the matrix is singular to working precision.
    """
    regular = gram.clone()
    diagonal = regular.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(ridge + JITTER * torch.finfo(gram.dtype).eps * diagonal.mean(-1, keepdim=True))
    lower, info = torch.linalg.cholesky_ex(regular)
    if info.any() or not lower.isfinite().all():
        check_finite(gram, where)
        raise NonFiniteError(
            f"the least-squares problem of layer {where} has no solution: its Gram matrix plus ridge={ridge:g} is "
            "singular to working precision. Raise ridge, or train in float64. The weights are those before this step"
        )
    return lower  # type: ignore[no-any-return]


def check_finite(gram: Tensor, where: str) -> None:
    """Raise NonFiniteError where a Gram matrix is not finite."""
    if not gram.isfinite().all():
        raise NonFiniteError(
            f"the Gram matrix of the inputs of layer {where} is not finite. Look for NaN or inf in the inputs, or "
            "train in float64. The weights are those before this step"
        )


def largest_eigenvalue(gram: Tensor, where: str) -> Tensor:
    """Of symmetric matrices (groups, d, d), (groups,).

    Raises:
        NonFiniteError: The sums are not finite, or so far apart that no eigenvalue is found.
    """
    check_finite(gram, where)
    try:
        values: Tensor = torch.linalg.eigvalsh(gram)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NonFiniteError(
            f"no eigenvalue of the Gram matrix of the inputs of layer {where} was found: its entries lie too far "
            "apart, as where training diverges. Lower the step sizes. The weights are those before this step"
        ) from error
    return values[:, -1]
