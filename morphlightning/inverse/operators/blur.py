"""Blurring with and without what lies beyond the border, and sampling what is blurred."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.inverse.operators.base import MARGIN, LinearOperator, check_size, check_weight


class CircularBlur(LinearOperator):
    """Convolution with a kernel, images continued periodically; by fast Fourier transform.

    Norm, lower bound and ``solve`` are exact: those of the kernel's Fourier transform at the frequencies of the image.

    Args:
        kernel: (kh, kw), odd; its middle stays in place.
        size: (H, W) of the images, at least the kernel's.

    Raises:
        ShapeError: The kernel is not a matrix of odd sizes, or the images are smaller.
    """

    transfer: Tensor

    def __init__(self, kernel: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        check_kernel(kernel)
        self.size = (int(size[0]), int(size[1]))
        if self.size[0] < kernel.shape[0] or self.size[1] < kernel.shape[1]:
            raise ShapeError(f"CircularBlur: images {self.size} are smaller than the kernel {tuple(kernel.shape)}")
        placed = functional.pad(kernel, (0, self.size[1] - kernel.shape[1], 0, self.size[0] - kernel.shape[0]))
        placed = placed.roll((-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
        # real, so that .double() and .to() find it
        self.register_buffer("transfer", torch.view_as_real(torch.fft.rfft2(placed)))

    def response(self) -> Tensor:
        """The kernel's Fourier transform, complex (H, W // 2 + 1)."""
        return torch.view_as_complex(self.transfer)

    def forward(self, x: Tensor) -> Tensor:
        """The blurred images, of x's shape."""
        return self._filter(x, self.response())

    def adjoint(self, y: Tensor) -> Tensor:
        """Correlation with the kernel."""
        return self._filter(y, self.response().conj())

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x, by one filter."""
        return self._filter(x, self.response().abs().square())

    def norm_bound(self) -> float:
        """The largest modulus of the response."""
        return float(self.response().abs().max()) * (1 + MARGIN)

    def lower_bound(self) -> float:
        """The smallest modulus of the response."""
        return max(0.0, float(self.response().abs().min()) - MARGIN * self.norm_bound())

    def solve(self, z: Tensor, weight: float, tolerance: float = 0.0, max_iterations: int = 0) -> Tensor:
        """As the base, in closed form."""
        check_weight(self, weight)
        return self._filter(z, 1 / (self.response().abs().square() + weight))

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        check_size(self, x, self.size)
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * response, s=self.size)
        return filtered


class ValidBlur(LinearOperator):
    """Convolution with a kernel, only where it lies inside the image: nothing is assumed beyond the border.

    (N, C, H, W) becomes (N, C, H - kh + 1, W - kw + 1). ||A|| <= sum |kernel|.

    Args:
        kernel: (kh, kw), odd.

    Raises:
        ShapeError: The kernel is not a matrix of odd sizes.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        check_kernel(kernel)
        self.register_buffer("kernel", kernel.flip(0, 1)[None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """The blurred images."""
        if x.dim() != 4 or x.shape[-2] < self.kernel.shape[-2] or x.shape[-1] < self.kernel.shape[-1]:
            raise ShapeError(f"ValidBlur: expected (N, C, H, W), the kernel's size or more, got {tuple(x.shape)}")
        blurred = functional.conv2d(x.flatten(0, 1)[:, None], self.kernel)
        return blurred.view(*x.shape[:2], *blurred.shape[-2:])

    def adjoint(self, y: Tensor) -> Tensor:
        """Correlation with the kernel, all zero beyond the border of y."""
        spread = functional.conv_transpose2d(y.flatten(0, 1)[:, None], self.kernel)
        return spread.view(*y.shape[:2], *spread.shape[-2:])

    def norm_bound(self) -> float:
        """The sum of the kernel's moduli (Young's inequality)."""
        return float(self.kernel.abs().sum()) * (1 + MARGIN)


class SuperResolution(LinearOperator):
    """Circular blur, then every ``factor``-th pixel of both axes.

    A A^T is a circular convolution of the small images, with the mean over aliases of the squared response, so norm and
    ``solve`` are exact: (A^T A + w I)^-1 z = (z - A^T (A A^T + w I)^-1 A z) / w.

    Args:
        kernel: (kh, kw), odd.
        size: (H, W) of the large images.
        factor: Of size reduction, at least 2; divides H and W.

    Raises:
        ConfigError: The factor is less than 2.
        ShapeError: H or W is no multiple of the factor, or see :class:`CircularBlur`.

    Source: derived here; the same identity is in Zhao et al. 2016, "Fast single image super-resolution".
    """

    def __init__(self, kernel: Tensor, size: tuple[int, int], factor: int = 2) -> None:
        super().__init__()
        if factor < 2:
            raise ConfigError(f"SuperResolution: the factor must be at least 2, got {factor}")
        if size[0] % factor or size[1] % factor:
            even = tuple(n - n % factor for n in size)
            raise ShapeError(f"SuperResolution: {tuple(size)} is no multiple of {factor}; crop the images to {even}")
        self.blur, self.factor = CircularBlur(kernel, size), factor

    def forward(self, x: Tensor) -> Tensor:
        """The small images (N, C, H / factor, W / factor)."""
        return self.blur.forward(x)[..., :: self.factor, :: self.factor].contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        """Zeros between the pixels, then correlation with the kernel."""
        large = y.new_zeros(*y.shape[:-2], *self.blur.size)
        large[..., :: self.factor, :: self.factor] = y
        return self.blur.adjoint(large)

    def norm_bound(self) -> float:
        """The root of the largest value of the response of A A^T."""
        return float(self._small().max().sqrt()) * (1 + MARGIN)

    def solve(self, z: Tensor, weight: float, tolerance: float = 0.0, max_iterations: int = 0) -> Tensor:
        """As the base, in closed form."""
        check_weight(self, weight)
        small: Tensor = torch.fft.ifft2(torch.fft.fft2(self(z)) / (self._small() + weight))
        return (z - self.adjoint(small.real)) / weight

    def _small(self) -> Tensor:
        """The response of A A^T, (H / factor, W / factor): that of the sampled autocorrelation of the kernel."""
        autocorrelation = torch.fft.irfft2(self.blur.response().abs().square(), s=self.blur.size)
        response: Tensor = torch.fft.fft2(autocorrelation[:: self.factor, :: self.factor])
        return response.real.clamp_min(0)


def check_kernel(kernel: Tensor) -> None:
    """Refuse kernels without a middle."""
    if kernel.dim() != 2 or not all(n % 2 for n in kernel.shape) or not kernel.is_floating_point():
        raise ShapeError(
            f"blur: expected a real kernel (kh, kw) of odd sizes, got {kernel.dtype} {tuple(kernel.shape)}"
        )
