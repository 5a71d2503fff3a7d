"""Layers made of windowed layers; the 1d, 2d and 3d classes at the end differ in ``rank`` alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from morphlightning.functional.windowing import Size, per_axis
from morphlightning.layers.windows import DILATIONS, EROSIONS, WindowLayer


class _Composite(nn.Module):
    """A layer made of windowed layers of the same rank."""

    rank: ClassVar[int]

    def part(self, family: dict[int, type[WindowLayer]], *args: Any, **options: Any) -> WindowLayer:
        """A windowed layer of this rank."""
        return family[self.rank](*args, **options)


class _DilationErosion(_Composite):
    """Dilations and erosions side by side: out_channels of each, dilations first; arguments as for the dilation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 3, **options: Any) -> None:
        super().__init__()
        self.dilation = self.part(DILATIONS, in_channels, out_channels, kernel_size, **options)
        self.erosion = self.part(EROSIONS, in_channels, out_channels, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, *space) to (batch, 2 out_channels, *space / stride)."""
        return torch.cat([self.dilation(x), self.erosion(x)], -self.rank - 1)


class _DilationErosionPerceptron(_Composite):
    r"""Convex mix :math:`\lambda_o \delta_o + (1 - \lambda_o) \varepsilon_o`; one lambda in (0, 1) a channel."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 3, **options: Any) -> None:
        super().__init__()
        self.dilation = self.part(DILATIONS, in_channels, out_channels, kernel_size, **options)
        self.erosion = self.part(EROSIONS, in_channels, out_channels, kernel_size, **options)
        self.logit = nn.Parameter(torch.zeros(out_channels))

    @property
    def mix(self) -> Tensor:
        """Lambda, shape (out_channels, 1, ...)."""
        return self.logit.sigmoid().view(-1, *(1,) * self.rank)

    def forward(self, x: Tensor) -> Tensor:
        """Mix both."""
        mix = self.mix.to(x.dtype)
        y: Tensor = mix * self.dilation(x) + (1 - mix) * self.erosion(x)
        return y


class _MinMaxPlus(_Composite):
    """Convolution, then windowed max-plus, then windowed min-plus."""

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, kernel_size: Size = 3, **options: Any
    ) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.rank - 1]
        size = per_axis("kernel_size", kernel_size, self.rank, 1)
        self.linear = convolution(in_channels, hidden_channels, size, padding="same")  # type: ignore[arg-type]
        self.dilation = self.part(DILATIONS, hidden_channels, hidden_channels, kernel_size, **options)
        self.erosion = self.part(EROSIONS, hidden_channels, out_channels, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three layers."""
        y: Tensor = self.erosion(self.dilation(self.linear(x)))
        return y


class _SupOfErosions(_Composite):
    r"""Supremum of ``terms`` erosions for each output channel; arguments as for the erosion.

    By Matheron's theorem every increasing, translation-invariant operator has this form with enough terms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size = 3, *, terms: int = 4, **options: Any
    ) -> None:
        super().__init__()
        self.terms = terms
        self.erosion = self.part(EROSIONS, in_channels, out_channels * terms, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        """The largest of the erosions of each output channel; the first of equal ones."""
        channel = -self.rank - 1
        y: Tensor = self.erosion(x).unflatten(channel, (-1, self.terms)).max(channel).values
        return y


class DilationErosion1d(_DilationErosion):
    """Dilations and erosions side by side of signals."""

    rank: ClassVar[int] = 1


class DilationErosion2d(_DilationErosion):
    """Dilations and erosions side by side of images."""

    rank: ClassVar[int] = 2


class DilationErosion3d(_DilationErosion):
    """Dilations and erosions side by side of volumes."""

    rank: ClassVar[int] = 3


class DilationErosionPerceptron1d(_DilationErosionPerceptron):
    """Convex mix of dilation and erosion of signals."""

    rank: ClassVar[int] = 1


class DilationErosionPerceptron2d(_DilationErosionPerceptron):
    """Convex mix of dilation and erosion of images."""

    rank: ClassVar[int] = 2


class DilationErosionPerceptron3d(_DilationErosionPerceptron):
    """Convex mix of dilation and erosion of volumes."""

    rank: ClassVar[int] = 3


class MinMaxPlus1d(_MinMaxPlus):
    """Convolution, max-plus, min-plus of signals."""

    rank: ClassVar[int] = 1


class MinMaxPlus2d(_MinMaxPlus):
    """Convolution, max-plus, min-plus of images."""

    rank: ClassVar[int] = 2


class MinMaxPlus3d(_MinMaxPlus):
    """Convolution, max-plus, min-plus of volumes."""

    rank: ClassVar[int] = 3


class SupOfErosions1d(_SupOfErosions):
    """Supremum of erosions of signals."""

    rank: ClassVar[int] = 1


class SupOfErosions2d(_SupOfErosions):
    """Supremum of erosions of images."""

    rank: ClassVar[int] = 2


class SupOfErosions3d(_SupOfErosions):
    """Supremum of erosions of volumes."""

    rank: ClassVar[int] = 3
