"""Parallel-beam tomography as a sparse matrix: a reference with an exact adjoint and a certified norm."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.inverse.operators.base import MARGIN, LinearOperator, check_size


class ParallelBeam(LinearOperator):
    r"""Strip integrals of images: how much of each pixel lies in each strip, summed.

    Detector d at angle t sees the strip of width 1 (a pixel) of points with x cos t + y sin t in
    [d - D/2, d + 1 - D/2], x to the right and y upwards from the middle of the image. (N, C, H, W) becomes
    (N, C, angles, detectors).

    ||A|| is bounded by the Collatz-Wielandt quotient: A^T A has no negative entries, so
    ||A||^2 <= max_i (A^T A q)_i / q_i for every q > 0; q is taken from power steps.

    Args:
        size: (H, W) of the images.
        angles: In radians, (angles,); or their number, spread evenly over [0, pi).
        detectors: How many; by default they cover the image's diagonal.

    Raises:
        ConfigError: No angles or no detectors.

    Derived here.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    transposed_rows: Tensor
    transposed_columns: Tensor
    transposed_values: Tensor

    def __init__(self, size: tuple[int, int], angles: int | Tensor, detectors: int | None = None) -> None:
        super().__init__()
        self.size = (int(size[0]), int(size[1]))
        at = torch.arange(angles) * (math.pi / angles) if isinstance(angles, int) else angles
        self.detectors = math.ceil(math.hypot(*self.size)) if detectors is None else detectors
        if at.dim() != 1 or not len(at) or self.detectors < 1:
            raise ConfigError(f"ParallelBeam: expected angles (n,) and detectors, got {angles} and {detectors}")
        self.angles = len(at)
        matrix = _strips(self.size, at.double(), self.detectors)
        self._norm = _norm_bound(matrix)
        self._hold("", matrix)
        self._hold("transposed_", matrix.t())

    def forward(self, x: Tensor) -> Tensor:
        """The sinograms (N, C, angles, detectors)."""
        check_size(self, x, self.size)
        product = _multiply(x.flatten(0, 1).flatten(1).T, *self._matrix(x.dtype), *self._transposed(x.dtype))
        return product.T.reshape(*x.shape[:2], self.angles, self.detectors)

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection, without a filter."""
        if y.dim() != 4 or tuple(y.shape[-2:]) != (self.angles, self.detectors):
            raise ShapeError(
                f"ParallelBeam: expected sinograms (N, C, {self.angles}, {self.detectors}), got {tuple(y.shape)}"
            )
        product = _multiply(y.flatten(0, 1).flatten(1).T, *self._transposed(y.dtype), *self._matrix(y.dtype))
        return product.T.reshape(*y.shape[:2], *self.size)

    def norm_bound(self) -> float:
        """The bound."""
        return self._norm

    def _hold(self, name: str, matrix: Tensor) -> None:
        for part, held in zip(("rows", "columns", "values"), _compressed(matrix), strict=True):
            held = held.float() if part == "values" else held
            self.register_buffer(name + part, held, persistent=False)  # not saved: the arguments tell them

    def _matrix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return self.rows, self.columns, self.values.to(dtype)

    def _transposed(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return self.transposed_rows, self.transposed_columns, self.transposed_values.to(dtype)


class _Product(torch.autograd.Function):
    """M x for a sparse M whose transpose is at hand, so that the backward need not scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        rows, columns, values, transposed_rows = parts[:4]
        return _sparse(rows, columns, values, len(transposed_rows) - 1) @ x.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        return _multiply(gradient, *parts[3:], *parts[:3]), *[None] * 6


def _multiply(x: Tensor, *parts: Tensor) -> Tensor:
    product: Tensor = _Product.apply(x, *parts)  # type: ignore[no-untyped-call]
    return product


def _strips(size: tuple[int, int], angles: Tensor, detectors: int) -> Tensor:
    """The matrix (angles * detectors, H * W), float64: areas of pixels in strips."""
    height, width = size
    y, x = torch.meshgrid(
        (height - 1) / 2 - torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    pixels = torch.arange(height * width)
    rows, columns, values = [], [], []
    for number, angle in enumerate(angles):
        cos, sin = angle.cos(), angle.sin()
        middle = (x * cos + y * sin).flatten() + detectors / 2
        first = (middle - (cos.abs() + sin.abs()) / 2).floor()
        for offset in range(3):  # a pixel's shadow is at most sqrt(2) wide
            strip = first + offset
            area = _shadow(strip + 1 - middle, cos.abs(), sin.abs()) - _shadow(strip - middle, cos.abs(), sin.abs())
            seen = (area > 0) & (strip >= 0) & (strip < detectors)
            rows.append(strip[seen].long() + number * detectors)
            columns.append(pixels[seen])
            values.append(area[seen])
    indices = torch.stack([torch.cat(rows), torch.cat(columns)])
    shape = (len(angles) * detectors, height * width)
    return torch.sparse_coo_tensor(indices, torch.cat(values), shape, check_invariants=False)


def _shadow(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """How much of a unit square lies left of t, seen along its strips: the integral of a trapezoid."""
    high, low = torch.maximum(cos, sin), torch.minimum(cos, sin)
    from_end = ((high + low) / 2 - t.abs()).clamp_min(0)
    ramp = from_end.square() / (2 * high * low.clamp_min(1e-12))
    left = torch.where(t.abs() > (high - low) / 2, ramp, 0.5 - t.abs() / high)
    return torch.where(t < 0, left, 1 - left)


def _compressed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row starts, columns and values."""
    matrix = matrix.coalesce()
    rows, columns = matrix.indices()
    starts = torch.cat([rows.new_zeros(1), rows.bincount(minlength=matrix.shape[0]).cumsum(0)])
    return starts.int(), columns.int(), matrix.values()


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(rows, columns, values, (len(rows) - 1, width), check_invariants=False)


def _norm_bound(matrix: Tensor, steps: int = 30) -> float:
    forward = _sparse(*_compressed(matrix), matrix.shape[1])
    backward = _sparse(*_compressed(matrix.t()), matrix.shape[0])
    q = torch.ones(matrix.shape[1], dtype=matrix.dtype)
    for _ in range(steps):
        image = backward @ (forward @ q)
        bound = float((image / q).max())
        q = (image / image.max()).clamp_min(1e-12)
    return math.sqrt(bound) * (1 + MARGIN)
