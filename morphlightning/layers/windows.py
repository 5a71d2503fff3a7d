"""Windowed layers of any rank; the 1d, 2d and 3d classes at the end of each family differ in ``rank`` alone.

Inputs are (batch, channels, *space) or unbatched. Windows follow docs/conventions.md, "The table". Options that
describe how the window moves (stride, dilation, padding, groups, merge, border, value) are those of
:class:`morphlightning.functional.windowing.Windowing`, all others those of :class:`MorphLayer`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.functional.geodesic import _reconstruct
from morphlightning.functional.windowing import Size, Windowing, apply_window, check_fit, per_axis
from morphlightning.functional.windows import transposed
from morphlightning.layers.base import MorphLayer
from morphlightning.ops.statistics import Ghosts

_WINDOWING = tuple(field.name for field in fields(Windowing))


class WindowLayer(MorphLayer):
    """A layer with weights (out_channels, in_channels / groups, *window).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None for as many as the input has, each from its own channel.
        kernel_size: Extent of the window, one number or one an axis.
        **options: Options of the window and of :class:`MorphLayer`.
    """

    rank: ClassVar[int]

    def __init__(self, in_channels: int, out_channels: int | None, kernel_size: Size, **options: Any) -> None:
        windowing = {name: options.pop(name) for name in _WINDOWING if name in options}
        if out_channels is None:
            if "groups" in windowing:
                raise ConfigError(
                    f"{type(self).__name__}: groups={windowing['groups']} needs out_channels; "
                    "without it the layer is depthwise, one group a channel"
                )
            out_channels, windowing["groups"] = in_channels, in_channels
        how = Windowing(**windowing)
        if in_channels % how.groups or out_channels % how.groups:
            raise ConfigError(
                f"{type(self).__name__}: groups={how.groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        size = per_axis("kernel_size", kernel_size, self.rank, 1)
        self.in_channels, self.out_channels, self.kernel_size, self.windowing = in_channels, out_channels, size, how
        super().__init__((out_channels, in_channels // how.groups, *size), self.rank, how.groups, **options)

    def dilate(self, x: Tensor, weight: Tensor, ghosts: Ghosts) -> Tensor:
        """Dilation of x under the layer's policy."""
        return self._apply_window(x, weight, ghosts, 1)

    def erode(self, x: Tensor, weight: Tensor, ghosts: Ghosts) -> Tensor:
        """Erosion of x under the layer's policy."""
        return self._apply_window(x, weight, ghosts, -1)

    def open(self, x: Tensor, weight: Tensor, ghosts: Ghosts) -> Tensor:
        """Erosion, then the adjoint dilation."""
        return self.dilate(self.erode(x, weight, ghosts), *self._adjoint(weight, ghosts))

    def close(self, x: Tensor, weight: Tensor, ghosts: Ghosts) -> Tensor:
        """Dilation, then the adjoint erosion."""
        return self.erode(self.dilate(x, weight, ghosts), *self._adjoint(weight, ghosts))

    def _apply_window(self, x: Tensor, weight: Tensor, ghosts: Ghosts, sign: int) -> Tensor:
        where = type(self).__name__
        return apply_window(where, x, weight, self.rank, sign, self.windowing, self.pipeline.policy, ghosts)

    def _adjoint(self, weight: Tensor, ghosts: Ghosts) -> tuple[Tensor, Ghosts]:
        groups = self.windowing.groups
        return transposed(weight, groups), ghosts.arranged(lambda touches: transposed(touches, groups))

    def _why_no_data(self) -> str | None:
        if self.windowing.merge == "sum" and self.in_channels > self.windowing.groups:
            return "with merge='sum' outputs are sums of maxima"
        return super()._why_no_data()

    def candidates(self, x: Tensor) -> Tensor:
        """Patches (samples * positions, groups, channels of a group * window) of x (samples, channels, *space)."""
        reflected = self.op == "dilation"
        window = self.windowing.window(self.kernel_size, self.windowing.groups, reflected=reflected, dual=self.sign < 0)
        check_fit(type(self).__name__, x, self.kernel_size, window)
        patches = window.pad(self.sign * x)
        axes = tuple(range(2, 2 + self.rank))
        for axis, size, step, spacing in zip(axes, self.kernel_size, window.stride, window.spacing, strict=True):
            patches = patches.unfold(axis, spacing * (size - 1) + 1, step)[..., ::spacing]
        if reflected:
            patches = patches.flip(tuple(range(-self.rank, 0)))
        rows: Tensor = patches.movedim(1, 1 + self.rank).flatten(0, self.rank)
        return rows.reshape(len(rows), window.groups, -1)

    def wanted(self, y: Tensor) -> Tensor:
        """Outputs (samples, out, *space) as rows (samples * positions, groups, units)."""
        rows: Tensor = self.sign * y.flatten(2).movedim(1, -1).flatten(0, 1)
        return rows.view(len(rows), self.windowing.groups, -1)

    def start(self, x: Tensor) -> tuple[Tensor, Ghosts]:
        """The effective weight and the ghost leaves of this pass."""
        return self.begin(x.shape[0] if x.ndim == self.rank + 2 else 1)

    def extra_repr(self) -> str:
        """Channels, window and rules."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {super().extra_repr()}"


class _Dilation(WindowLayer):
    r"""Dilation :math:`\max_{c,z} f_c(p - z) + b_{oc}(z)` with learnable structuring functions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None (default) for depthwise.
        kernel_size: Extent of the window.
        **options: Options of the window and of :class:`MorphLayer`.
    """

    op: ClassVar[str] = "dilation"

    def __init__(
        self, in_channels: int, out_channels: int | None = None, kernel_size: Size = 3, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, *space) to (batch, out_channels, *space / stride)."""
        return self.dilate(x, *self.start(x))


class _Erosion(_Dilation):
    r"""Erosion :math:`\min_{c,z} f_c(p + z) - b_{oc}(z)` with learnable structuring functions; as the dilation."""

    op: ClassVar[str] = "erosion"

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, *space) to (batch, out_channels, *space / stride)."""
        return self.erode(x, *self.start(x))


class _Tied(WindowLayer):
    """A layer whose two stages share one window a channel, so that its algebra holds.

    Args:
        channels: Channels of input and output.
        kernel_size: Extent of the window.
        dilation: Distance between taps.
        **options: Options of :class:`MorphLayer`.
    """

    def __init__(self, channels: int, kernel_size: Size = 3, *, dilation: Size = 1, **options: Any) -> None:
        refused = [name for name in _WINDOWING if name in options]
        if refused:
            raise ConfigError(
                f"{type(self).__name__} does not take {', '.join(refused)}: both stages use one window with the "
                "neutral border, which makes it idempotent; compose Dilation and Erosion layers for anything else"
            )
        super().__init__(channels, None, kernel_size, dilation=dilation, **options)


class _Opening(_Tied):
    """Opening with a learnable structuring function a channel: anti-extensive and idempotent."""

    op: ClassVar[str] = "opening"

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return self.open(x, *self.start(x))


class _Closing(_Tied):
    """Closing with a learnable structuring function a channel: extensive and idempotent."""

    op: ClassVar[str] = "closing"

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return self.close(x, *self.start(x))


class _Gradient(_Tied):
    """Morphological gradient, dilation minus erosion by one learnable structuring function a channel."""

    op: ClassVar[str] = "gradient"

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        weight, ghosts = self.start(x)
        return self.dilate(x, weight, ghosts) - self.erode(x, weight, ghosts)


class _TopHat(_Tied):
    """Top-hat with a learnable structuring function a channel.

    Args:
        channels: Channels of input and output.
        kernel_size: Extent of the window.
        kind: ``"white"`` (x minus its opening) or ``"black"`` (closing of x minus x).
        **options: dilation, and options of :class:`MorphLayer`.
    """

    op: ClassVar[str] = "tophat"

    def __init__(self, channels: int, kernel_size: Size = 3, *, kind: str = "white", **options: Any) -> None:
        if kind not in ("white", "black"):
            raise ConfigError(f"{type(self).__name__}: kind must be 'white' or 'black', got {kind!r}")
        super().__init__(channels, kernel_size, **options)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        weight, ghosts = self.start(x)
        return x - self.open(x, weight, ghosts) if self.kind == "white" else self.close(x, weight, ghosts) - x


class _Reconstruction(_Tied):
    """Opening (or closing) by reconstruction with a learnable structuring function a channel.

    The opening erodes x, then reconstructs x from the eroded seed: what survives the erosion regains its exact shape.

    Args:
        channels: Channels of input and output.
        kernel_size: Extent of the window of the seed's erosion (or dilation).
        kind: ``"opening"`` or ``"closing"``.
        connectivity: Extent of the flat window in which the seed grows; 3 connects diagonal neighbours.
        **options: dilation, and options of :class:`MorphLayer`.
    """

    op: ClassVar[str] = "reconstruction"

    def __init__(
        self, channels: int, kernel_size: Size = 3, *, kind: str = "opening", connectivity: int = 3, **options: Any
    ) -> None:
        if kind not in ("opening", "closing"):
            raise ConfigError(f"{type(self).__name__}: kind must be 'opening' or 'closing', got {kind!r}")
        super().__init__(channels, kernel_size, **options)
        self.kind, self.connectivity = kind, connectivity

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        weight, ghosts = self.start(x)
        name = type(self).__name__
        if self.kind == "opening":
            return _reconstruct(name, self.erode(x, weight, ghosts), x, self.connectivity, self.rank, 1)
        return _reconstruct(name, self.dilate(x, weight, ghosts), x, self.connectivity, self.rank, -1)


class Dilation1d(_Dilation):
    """Dilation of signals."""

    rank: ClassVar[int] = 1


class Dilation2d(_Dilation):
    """Dilation of images."""

    rank: ClassVar[int] = 2


class Dilation3d(_Dilation):
    """Dilation of volumes."""

    rank: ClassVar[int] = 3


class Erosion1d(_Erosion):
    """Erosion of signals."""

    rank: ClassVar[int] = 1


class Erosion2d(_Erosion):
    """Erosion of images."""

    rank: ClassVar[int] = 2


class Erosion3d(_Erosion):
    """Erosion of volumes."""

    rank: ClassVar[int] = 3


class Opening1d(_Opening):
    """Opening of signals."""

    rank: ClassVar[int] = 1


class Opening2d(_Opening):
    """Opening of images."""

    rank: ClassVar[int] = 2


class Opening3d(_Opening):
    """Opening of volumes."""

    rank: ClassVar[int] = 3


class Closing1d(_Closing):
    """Closing of signals."""

    rank: ClassVar[int] = 1


class Closing2d(_Closing):
    """Closing of images."""

    rank: ClassVar[int] = 2


class Closing3d(_Closing):
    """Closing of volumes."""

    rank: ClassVar[int] = 3


class Gradient1d(_Gradient):
    """Morphological gradient of signals."""

    rank: ClassVar[int] = 1


class Gradient2d(_Gradient):
    """Morphological gradient of images."""

    rank: ClassVar[int] = 2


class Gradient3d(_Gradient):
    """Morphological gradient of volumes."""

    rank: ClassVar[int] = 3


class TopHat1d(_TopHat):
    """Top-hat of signals."""

    rank: ClassVar[int] = 1


class TopHat2d(_TopHat):
    """Top-hat of images."""

    rank: ClassVar[int] = 2


class TopHat3d(_TopHat):
    """Top-hat of volumes."""

    rank: ClassVar[int] = 3


class Reconstruction1d(_Reconstruction):
    """Opening or closing by reconstruction of signals."""

    rank: ClassVar[int] = 1


class Reconstruction2d(_Reconstruction):
    """Opening or closing by reconstruction of images."""

    rank: ClassVar[int] = 2


class Reconstruction3d(_Reconstruction):
    """Opening or closing by reconstruction of volumes."""

    rank: ClassVar[int] = 3


DILATIONS: dict[int, type[WindowLayer]] = {1: Dilation1d, 2: Dilation2d, 3: Dilation3d}
EROSIONS: dict[int, type[WindowLayer]] = {1: Erosion1d, 2: Erosion2d, 3: Erosion3d}
