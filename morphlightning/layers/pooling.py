"""Pooling with a learnable structuring function, and the unpooling that puts values back where they came from."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor, nn

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.windowing import Size, batched, check_fit
from morphlightning.layers.windows import WindowLayer
from morphlightning.ops.dispatch import maxplus, maxplus_with_provenance


class _MorphPool(WindowLayer):
    r"""Max-pooling with a learnable structuring function a channel: :math:`\max_z f(s p + z) + b(z)`.

    The window starts at its output position, as in torch's pooling; with b = 0 it is max-pooling.

    Args:
        channels: Channels of input and output.
        kernel_size: Extent of the window.
        stride: Distance between output positions; None for the extent of the window.
        padding: Elements added on both sides; they never win.
        return_provenance: Also return the flat position of each value inside its input channel, for the unpooling.
        **options: dilation, and options of :class:`MorphLayer`.

    Source: Groenendijk, Dorst and Gevers, arXiv 2211.14037, for learnable pooling and unpooling by provenance.
    """

    op: ClassVar[str] = "pooling"

    def __init__(
        self,
        channels: int,
        kernel_size: Size = 2,
        stride: Size | None = None,
        padding: Size = 0,
        *,
        return_provenance: bool = False,
        **options: Any,
    ) -> None:
        refused = [name for name in ("groups", "merge") if name in options]
        if refused:
            raise ConfigError(
                f"{type(self).__name__} does not take {' or '.join(refused)}: each channel is pooled by itself; "
                "use a Dilation layer with a stride to combine channels"
            )
        stride = kernel_size if stride is None else stride
        super().__init__(channels, None, kernel_size, stride=stride, padding=padding, **options)
        self.return_provenance = return_provenance

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(batch, channels, *space) to (batch, channels, *space / stride), with provenance where it is asked for."""
        weight, ghosts = self.start(x)
        images = batched(type(self).__name__, x, self.rank)
        if images.shape[1] != self.in_channels:
            raise ShapeError(
                f"{type(self).__name__}: x has {images.shape[1]} channels (axis {-self.rank - 1}), "
                f"expected {self.in_channels}"
            )
        window = self.windowing.window(self.kernel_size, self.in_channels, reflected=False)
        check_fit(type(self).__name__, images, self.kernel_size, window)
        lead = x.shape[: -self.rank]  # without a batch axis where x has none
        if not self.return_provenance:
            y = maxplus(images, weight, window, self.pipeline.policy, ghosts)
            return y.view(*lead, *y.shape[2:])
        y, cell = maxplus_with_provenance(images, weight, window, self.pipeline.policy, ghosts)
        position = cell % math.prod(x.shape[-self.rank :])
        return y.view(*lead, *y.shape[2:]), position.view(*lead, *y.shape[2:])


class _MorphUnpool(nn.Module):
    """Put pooled values back where they came from; the largest one where windows overlap.

    Args:
        fill: Value of positions that gave nothing.
    """

    rank: ClassVar[int]

    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, y: Tensor, provenance: Tensor, output_size: tuple[int, ...]) -> Tensor:
        """Spread y (..., *pooled) to (..., *output_size) by ``provenance`` (shape of y)."""
        if y.shape != provenance.shape:
            raise ShapeError(
                f"{type(self).__name__}: values {tuple(y.shape)} and provenance {tuple(provenance.shape)} must agree"
            )
        size = tuple(output_size)[-self.rank :]
        if len(size) != self.rank:
            raise ConfigError(f"{type(self).__name__}: output_size needs {self.rank} axes, got {tuple(output_size)}")
        values, index = y.flatten(-self.rank), provenance.flatten(-self.rank)
        empty = values.new_full((*values.shape[:-1], math.prod(size)), -math.inf)
        spread = empty.scatter_reduce(-1, index, values, "amax")
        return spread.masked_fill(spread == -math.inf, self.fill).view(*y.shape[: -self.rank], *size)


class MorphPool1d(_MorphPool):
    """Pooling of signals."""

    rank: ClassVar[int] = 1


class MorphPool2d(_MorphPool):
    """Pooling of images."""

    rank: ClassVar[int] = 2


class MorphPool3d(_MorphPool):
    """Pooling of volumes."""

    rank: ClassVar[int] = 3


class MorphUnpool1d(_MorphUnpool):
    """Unpooling of signals."""

    rank: ClassVar[int] = 1


class MorphUnpool2d(_MorphUnpool):
    """Unpooling of images."""

    rank: ClassVar[int] = 2


class MorphUnpool3d(_MorphUnpool):
    """Unpooling of volumes."""

    rank: ClassVar[int] = 3
