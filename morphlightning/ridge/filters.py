"""Filters of images: stacked convolutions without bias, their adjoint and their norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.lipschitz import convolution_norm
from morphlightning.lipschitz.norms import composed

Padding = Literal["valid", "full", "same"]
Start = Literal["random", "cosine"]
LARGEST_BLOCK = 4


@dataclass(frozen=True)
class Filters:
    """The linear map W of a bank at its present weights: kernels (out, in, k, k), applied one after the other."""

    kernels: tuple[Tensor, ...]
    padding: Padding

    def __call__(self, x: Tensor) -> Tensor:
        """W x: images (N, in, H, W) to features."""
        for kernel in self.kernels:
            x = F.conv2d(x, kernel, padding=_pad(kernel, self.padding))
        return x

    def adjoint(self, z: Tensor) -> Tensor:
        """W^T z: features to images."""
        for kernel in reversed(self.kernels):
            z = F.conv_transpose2d(z, kernel, padding=_pad(kernel, self.padding))
        return z

    @property
    def extent(self) -> int:
        """Side of the window of the image that a feature sees."""
        return 1 + sum(kernel.shape[-1] - 1 for kernel in self.kernels)

    def scaled(self, factor: Tensor) -> Filters:
        """Diag(factor) W, for factors (features,)."""
        *first, last = self.kernels
        return Filters((*first, last * factor.view(-1, 1, 1, 1)), self.padding)

    def detach(self) -> Filters:
        """The same map without a history."""
        return Filters(tuple(kernel.detach() for kernel in self.kernels), self.padding)

    def channels_last(self) -> Filters:
        """The same map, laid out as the processor's convolutions like it."""
        return Filters(tuple(k.contiguous(memory_format=torch.channels_last) for k in self.kernels), self.padding)

    def blocked(self, height: int, width: int) -> Filters | BlockedFilters:
        """The same map on blocks of pixels for images of that size, where blocks fit; else this one."""
        block = block_side(self.extent, height, width)
        if self.padding == "same" or block == 1:
            return self
        kernel = composed(self.kernels).to(self.kernels[0].dtype)
        weight = _on_blocks(kernel, block).contiguous(memory_format=torch.channels_last)
        return BlockedFilters(weight, block, weight.shape[-1] - 1 if self.padding == "full" else 0)


@dataclass(frozen=True)
class BlockedFilters:
    """The same linear map on images whose blocks of pixels are channels, which makes convolutions dense.

    With one input channel a processor's convolution is bound by memory. A block of b x b pixels as b^2 channels turns
    the k x k kernels of C features into b^2 C kernels of (k + b - 1)/b taps a side; a feature is followed by its
    neighbours in the block. Exact where b divides k - 1 and the sides of the image.

    Attributes:
        weight: (b^2 features, b^2 in, m, m).
        block: b.
        pad: Zeros around, in blocks.
    """

    weight: Tensor
    block: int
    pad: int

    @property
    def halo(self) -> int:
        """So many more rows of pixels than its own a row of features sees, in whole blocks."""
        return (self.weight.shape[-1] - 1) * self.block

    def __call__(self, x: Tensor) -> Tensor:
        """W x, features as (N, b^2 features, H'/b, W'/b)."""
        blocks = F.pixel_unshuffle(x, self.block).contiguous(memory_format=torch.channels_last)
        return F.conv2d(blocks, self.weight, padding=self.pad)

    def adjoint(self, z: Tensor) -> Tensor:
        """W^T z, images."""
        return F.pixel_shuffle(F.conv_transpose2d(z, self.weight, padding=self.pad), self.block)

    def scaled(self, factor: Tensor) -> BlockedFilters:
        """Diag(factor) W, for factors (features,) or (b^2 features,)."""
        each = factor.repeat_interleave(len(self.weight) // len(factor)).view(-1, 1, 1, 1)
        weight = (self.weight * each).contiguous(memory_format=torch.channels_last)
        return BlockedFilters(weight, self.block, self.pad)

    def detach(self) -> BlockedFilters:
        """The same map without a history."""
        return BlockedFilters(self.weight.detach(), self.block, self.pad)

    def channels_last(self) -> BlockedFilters:
        """Itself: it is laid out so."""
        return self

    def blocked(self, height: int, width: int) -> BlockedFilters:
        """Itself."""
        return self


def block_side(extent: int, *sides: int) -> int:
    """The side of the blocks on which filters are computed: the largest up to 4 that divides k - 1 and all sides."""
    return next(b for b in range(LARGEST_BLOCK, 0, -1) if not any(side % b for side in (extent - 1, *sides)))


def _on_blocks(kernel: Tensor, block: int) -> Tensor:
    """Kernels (C, in, k, k) as (C b^2, in b^2, m, m): from pixel j of block D to pixel i leads the tap b D + j - i."""
    features, channels, size = len(kernel), kernel.shape[1], kernel.shape[-1]
    count = (size + block - 1) // block
    pixel = torch.arange(block, device=kernel.device)
    tap = block * torch.arange(count, device=kernel.device) + pixel[None, :, None] - pixel[:, None, None]
    inside = ((tap >= 0) & (tap < size)).to(kernel.dtype)
    tap = tap.clamp(0, size - 1)
    rows = kernel[:, :, tap] * inside[..., None]  # (C, in, i, j, D, k)
    taps = rows[..., tap] * inside  # (C, in, i, j, D, i', j', D')
    order = taps.permute(0, 2, 5, 1, 3, 6, 4, 7)
    return order.reshape(features * block**2, channels * block**2, count, count)


def _pad(kernel: Tensor, padding: Padding) -> int:
    size = kernel.shape[-1]
    return {"valid": 0, "full": size - 1, "same": size // 2}[padding]


def cosine_atoms(count: int, channels: int, size: int) -> Tensor:
    """Kernels (count, channels, size, size): products of cosines of rising frequency without the constant, orthonormal.

    Together the size^2 - 1 atoms and the constant are a tight frame of windows (the discrete cosine transform).

    Raises:
        ConfigError: There are not so many.
    """
    if count > (size**2 - 1) * channels:
        raise ConfigError(f"FilterBank: {count} cosine filters of {size} x {size} pixels; there are {size**2 - 1}")
    at = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * at + 1) * at[:, None] / (2 * size))
    waves = waves / waves.norm(dim=1, keepdim=True)
    atoms = (waves[:, None, :, None] * waves[None, :, None, :]).flatten(0, 1)
    frequency = (at[:, None] ** 2 + at**2).flatten()
    atoms = atoms[frequency.argsort(stable=True)[1:]].to(torch.get_default_dtype())
    kernels = torch.zeros(count, channels, size, size)
    for number in range(count):
        kernels[number, number % channels] = atoms[number // channels]
    return kernels


class FilterBank(nn.Module):
    r"""W / ||W||: stacked convolutions with zero-mean kernels, without bias.

    A stack of several small kernels is a large one at a fraction of the parameters; a single layer can start as a frame
    of cosines, from which it learns much faster than from random kernels. Kernels of the layers named by ``zero_mean``
    sum to 0 over their taps and inputs, so that W does not see the brightness of an image.

    With ``padding="valid"`` features are those of windows inside the image; with ``"full"`` of all windows that meet
    it, zeros outside. Either is a part of the convolution of the infinite plane, whose norm bounds its own
    (:func:`morphlightning.lipschitz.convolution_norm`). With ``"same"`` (zeros around every layer, size kept) the
    product of the layers' norms is all that is certain; it is for filters trained that way, with ``given_norm`` set.

    Args:
        channels: Channels of the image and of each layer.
        kernel_size: Side of all kernels, odd.
        zero_mean: Layers whose kernels have zero mean: ``"first"`` or ``"all"``.
        padding: ``"valid"``, ``"full"`` or ``"same"``.
        init: ``"cosine"`` (one layer only), ``"random"``, or None: cosine for one layer with as many atoms.

    Attributes:
        extent: Side of the window of the image that a feature sees.
        given_norm: The norm to divide by instead of the bound, a buffer; 0 where the bound is taken.

    Raises:
        ConfigError: A setting out of its range.

    Source: Goujon et al., arXiv 2211.12461 and 2308.10542 (stacked, zero-mean, normalized filters, padded by zeros).
    """

    given_norm: Tensor

    def __init__(
        self,
        channels: Sequence[int] = (1, 48),
        kernel_size: int = 7,
        zero_mean: Literal["first", "all"] = "first",
        padding: Padding = "valid",
        init: Start | None = None,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise ConfigError(f"FilterBank: channels={tuple(channels)}, expected two or more positive numbers")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"FilterBank: kernel_size={kernel_size}, expected an odd number")
        for name, value, known in (
            ("zero_mean", zero_mean, ("first", "all")),
            ("padding", padding, ("valid", "full", "same")),
            ("init", init, ("cosine", "random", None)),
        ):
            if value not in known:
                raise ConfigError(f"FilterBank: {name}={value!r}, expected one of {', '.join(map(repr, known))}")
        if init == "cosine" and len(channels) != 2:
            raise ConfigError(f"FilterBank: cosine filters are one layer, got channels={tuple(channels)}")
        self.channels, self.zero_mean, self.padding = tuple(channels), zero_mean, padding
        self.layers = nn.ModuleList(nn.Conv2d(a, b, kernel_size, bias=False) for a, b in pairwise(channels))
        self.extent = 1 + len(self.layers) * (kernel_size - 1)
        self.register_buffer("given_norm", torch.tensor(0.0))
        fits = len(channels) == 2 and channels[1] <= (kernel_size**2 - 1) * channels[0]
        if init == "cosine" or (init is None and fits):
            self.layers[0].weight = nn.Parameter(cosine_atoms(channels[1], channels[0], kernel_size))

    @property
    def certified(self) -> bool:
        """Whether ||W|| <= 1 is proved; not where a norm was given."""
        return float(self.given_norm) == 0

    def forward(self) -> Filters:
        """The map at the present weights; differentiable in them."""
        kernels = self.kernels()
        scale = self.norm(kernels) ** (-1 / len(kernels))  # shared, so that no layer's kernels become tiny
        return Filters(tuple(scale * kernel for kernel in kernels), self.padding)

    def kernels(self) -> list[Tensor]:
        """The layers' kernels, before W is normalized."""
        kernels: list[Tensor] = [layer.weight for layer in self.layers]  # type: ignore[misc]
        count = 1 if self.zero_mean == "first" else len(kernels)
        return [k - k.mean((1, 2, 3), keepdim=True) if i < count else k for i, k in enumerate(kernels)]

    def norm(self, kernels: Sequence[Tensor] | None = None) -> Tensor:
        """The bound of ||W|| before normalization, or the norm that was given; a scalar."""
        if not self.certified:
            return self.given_norm
        kernels = self.kernels() if kernels is None else kernels
        if self.padding == "same":
            return torch.stack([convolution_norm(kernel) for kernel in kernels]).prod()
        return convolution_norm(kernels)
