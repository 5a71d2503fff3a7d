"""Operators that keep some pixels or some frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.inverse.operators.base import MARGIN, LinearOperator, check_size, check_weight


class Inpainting(LinearOperator):
    """Pixels that are seen are kept, the others are 0.

    Args:
        mask: What is seen: bool (H, W), (C, H, W) or (1, C, H, W).

    Raises:
        ShapeError: The mask has other axes.
        ConfigError: The mask is not bool, or nothing is seen.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        check_mask(self, mask)
        if mask.dim() not in (2, 3, 4) or (mask.dim() == 4 and len(mask) != 1):
            raise ShapeError(f"Inpainting: expected a mask (H, W), (C, H, W) or (1, C, H, W), got {tuple(mask.shape)}")
        self.register_buffer("mask", mask.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The images, 0 where nothing is seen."""
        check_size(self, x, (self.mask.shape[-2], self.mask.shape[-1]))
        return x * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        """A itself."""
        return self.forward(y)

    def normal(self, x: Tensor) -> Tensor:
        """A itself."""
        return self.forward(x)

    def norm_bound(self) -> float:
        """1."""
        return 1.0

    def lower_bound(self) -> float:
        """1 where everything is seen, else 0."""
        return float(self.mask.all())

    def solve(self, z: Tensor, weight: float, tolerance: float = 0.0, max_iterations: int = 0) -> Tensor:
        """As the base: z / (mask + weight)."""
        check_weight(self, weight)
        return z / (self.mask + weight)


class FourierMask(LinearOperator):
    """Some frequencies of the unitary Fourier transform, as magnetic resonance measures them: complex, others 0.

    Since images are real, A^T A is a filter by the mean of the mask and its mirror image.

    Args:
        mask: Frequencies that are measured: bool (H, W), in the order of ``torch.fft.fft2`` (zero first).

    Raises:
        ShapeError: The mask is no matrix.
        ConfigError: The mask is not bool, or nothing is measured.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        check_mask(self, mask)
        if mask.dim() != 2:
            raise ShapeError(f"FourierMask: expected a mask (H, W), got {tuple(mask.shape)}")
        self.register_buffer("mask", mask.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The frequencies measured, complex (N, C, H, W)."""
        check_size(self, x, (self.mask.shape[0], self.mask.shape[1]))
        spectrum: Tensor = torch.fft.fft2(x, norm="ortho")
        return spectrum * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        """The real part of the inverse transform of what is measured: the zero-filled image."""
        check_size(self, y, (self.mask.shape[0], self.mask.shape[1]))
        image: Tensor = torch.fft.ifft2(y * self.mask, norm="ortho")
        return image.real

    def norm_bound(self) -> float:
        """1 where some frequency is measured with its mirror image, else sqrt(1/2)."""
        return float(self._share().max().sqrt()) * (1 + MARGIN)

    def lower_bound(self) -> float:
        """1, sqrt(1/2) or 0: the least that is measured of a frequency and its mirror image."""
        return float(self._share().min().sqrt()) * (1 - MARGIN)

    def solve(self, z: Tensor, weight: float, tolerance: float = 0.0, max_iterations: int = 0) -> Tensor:
        """As the base, in closed form."""
        check_weight(self, weight)
        image: Tensor = torch.fft.ifft2(torch.fft.fft2(z) / (self._share() + weight))
        return image.real

    def _share(self) -> Tensor:
        """How much of a frequency and its mirror image is measured: 0, 1/2 or 1, (H, W)."""
        mirrored = self.mask.flip(0, 1).roll((1, 1), (0, 1))
        return (self.mask.float() + mirrored.float()) / 2


def check_mask(operator: LinearOperator, mask: Tensor) -> None:
    """Refuse masks that are not bool or empty."""
    if mask.dtype != torch.bool or not bool(mask.any()):
        what = f"dtype {mask.dtype}" if mask.dtype != torch.bool else "no true element"
        raise ConfigError(f"{type(operator).__name__}: expected a bool mask with something measured, got {what}")
