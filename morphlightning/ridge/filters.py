"""Filters of images: stacked convolutions without bias, their adjoint and their norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.lipschitz import convolution_norm

Padding = Literal["full", "same"]


@dataclass(frozen=True)
class Filters:
    """The linear map W of a bank at its present weights: kernels (out, in, k, k), applied one after the other."""

    kernels: tuple[Tensor, ...]
    padding: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """W x: images (N, in, H, W) to features."""
        for kernel, padding in zip(self.kernels, self.padding, strict=True):
            x = F.conv2d(x, kernel, padding=padding)
        return x

    def adjoint(self, z: Tensor) -> Tensor:
        """W^T z: features to images."""
        for kernel, padding in zip(reversed(self.kernels), reversed(self.padding), strict=True):
            z = F.conv_transpose2d(z, kernel, padding=padding)
        return z

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


class FilterBank(nn.Module):
    r"""W / ||W||: stacked convolutions with zero-mean kernels, without bias.

    A stack of several small kernels is a large one at a fraction of the parameters. Kernels of the layers named by
    ``zero_mean`` sum to 0 over their taps and inputs, so that W does not see the brightness of an image.

    With ``padding="full"`` nothing is cut away: W is a compression of the convolution of the infinite plane, whose
    norm bounds its own (:func:`morphlightning.lipschitz.convolution_norm`). With ``"same"`` (zeros, size kept) the
    product of the layers' norms is all that is certain; it is for filters trained that way, with ``norm`` given.

    Args:
        channels: Channels of the image and of each layer.
        kernel_size: Side of all kernels, odd.
        zero_mean: Layers whose kernels have zero mean: ``"first"`` or ``"all"``.
        padding: ``"full"`` or ``"same"``.

    Attributes:
        given_norm: The norm to divide by instead of the bound, a buffer; 0 where the bound is taken.

    Raises:
        ConfigError: A setting out of its range.

    Source: Goujon et al., arXiv 2211.12461 and 2308.10542 (stacked, zero-mean, normalized filters, padded by zeros).
    """

    given_norm: Tensor

    def __init__(
        self,
        channels: Sequence[int] = (1, 4, 8, 32),
        kernel_size: int = 5,
        zero_mean: Literal["first", "all"] = "first",
        padding: Padding = "full",
    ) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise ConfigError(f"FilterBank: channels={tuple(channels)}, expected two or more positive numbers")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"FilterBank: kernel_size={kernel_size}, expected an odd number")
        if zero_mean not in ("first", "all") or padding not in ("full", "same"):
            raise ConfigError(
                f"FilterBank: zero_mean={zero_mean!r}, padding={padding!r}; expected 'first' or 'all', 'full' or 'same'"
            )
        self.channels, self.zero_mean, self.padding = tuple(channels), zero_mean, padding
        self.layers = nn.ModuleList(nn.Conv2d(a, b, kernel_size, bias=False) for a, b in pairwise(channels))
        self.pad = kernel_size - 1 if padding == "full" else kernel_size // 2
        self.register_buffer("given_norm", torch.tensor(0.0))

    @property
    def certified(self) -> bool:
        """Whether ||W|| <= 1 is proved; not where a norm was given."""
        return float(self.given_norm) == 0

    def forward(self) -> Filters:
        """The map at the present weights; differentiable in them."""
        kernels = self.kernels()
        scale = self.norm(kernels) ** (-1 / len(kernels))  # shared, so that no layer's kernels become tiny
        return Filters(tuple(scale * kernel for kernel in kernels), (self.pad,) * len(kernels))

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
        if self.padding == "full":
            return convolution_norm(kernels)
        return torch.stack([convolution_norm([kernel]) for kernel in kernels]).prod()
