"""How a window meets an image: options, their checks, and the core of all windowed operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.ops.dispatch import maxplus
from morphlightning.ops.geometry import BORDERS, Border, Window
from morphlightning.ops.policy import Policy
from morphlightning.ops.statistics import NO_GHOSTS, Ghosts

Size = int | tuple[int, ...]
Padding = int | tuple[int, ...] | Literal["same", "valid"]
StructuringFunction = Tensor | int | tuple[int, ...]


class WindowOptions(TypedDict, total=False):
    """The fields of :class:`Windowing` as keyword arguments."""

    stride: Size
    dilation: Size
    padding: Padding
    groups: int
    merge: Literal["max", "sum"]
    border: Border
    value: float


class TiedOptions(TypedDict, total=False):
    """The fields of :class:`Windowing` that operators with two stages of one window take."""

    dilation: Size
    groups: int
    border: Border
    value: float


@dataclass(frozen=True)
class Windowing:
    """How a window moves over an image.

    Attributes:
        stride: Distance between output positions, one number or one an axis.
        dilation: Distance between the taps of the window (torch's name for it).
        padding: ``"same"`` (output extent ceil(input / stride)), ``"valid"``, or the number of elements added on both
            sides.
        groups: Channel groups, as in torch's convolutions, for structuring functions (out, in / groups, *window).
        merge: How the channels of a group combine: ``"max"`` (for erosions the minimum) or ``"sum"``.
        border: What lies outside: ``"neutral"`` (never wins), ``"reflect"`` (the edge is not repeated),
            ``"replicate"``, ``"circular"`` or ``"constant"``.
        value: The value outside, for ``border="constant"``.
    """

    stride: Size = 1
    dilation: Size = 1
    padding: Padding = "same"
    groups: int = 1
    merge: Literal["max", "sum"] = "max"
    border: Border = "neutral"
    value: float = 0.0

    def __post_init__(self) -> None:
        """Check what can be checked without an image."""
        if self.border not in BORDERS:
            raise ConfigError(f"border must be one of {', '.join(BORDERS)}, got {self.border!r}")
        if self.merge not in ("max", "sum"):
            raise ConfigError(f"merge must be 'max' or 'sum', got {self.merge!r}")
        if isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            raise ConfigError(f"padding must be 'same', 'valid' or integers >= 0, got {self.padding!r}")
        if self.groups < 1:
            raise ConfigError(f"groups must be >= 1, got {self.groups}")

    def window(self, size: tuple[int, ...], groups: int, *, reflected: bool, dual: bool = False) -> Window:
        """The geometry of a window of this size; that of a dilation is reflected, origin and all."""
        rank = len(size)
        spacing = per_axis("dilation", self.dilation, rank, 1)
        before = tuple(k // 2 * d for k, d in zip(size, spacing, strict=True))
        after = tuple((k - 1 - k // 2) * d for k, d in zip(size, spacing, strict=True))
        if reflected:
            before, after = after, before
        if self.padding == "valid":
            before = after = (0,) * rank
        elif self.padding != "same":
            before = after = per_axis("padding", self.padding, rank, 0)
        stride, fill = per_axis("stride", self.stride, rank, 1), -self.value if dual else self.value
        return Window(stride, spacing, before, after, groups, self.border, fill, dual)


def per_axis(name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """One integer for each axis, none below ``least``."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(sizes) != rank or any(not isinstance(n, int) or n < least for n in sizes):
        raise ConfigError(f"{name} must be one integer >= {least} or {rank} of them, got {value!r}")
    return sizes


def check_fit(where: str, x: Tensor, size: tuple[int, ...], window: Window) -> None:
    """Raise ShapeError, naming the axis, where the window or the border needs more room than x has."""
    rank = len(size)
    for axis in range(rank):
        extent, added = x.shape[axis - rank], max(window.before[axis], window.after[axis])
        reach = window.spacing[axis] * (size[axis] - 1) + 1
        room = extent + window.before[axis] + window.after[axis]
        if extent == 0 or reach > room:
            raise ShapeError(
                f"{where}: a window of extent {reach} does not fit axis {axis - rank} of x, which has {extent} "
                f"elements ({room} with padding); use a smaller window or padding='same'"
            )
        most = {"reflect": extent - 1, "circular": extent}.get(window.border, added)
        if added > most:
            raise ShapeError(
                f"{where}: border={window.border!r} can add at most {most} elements to axis {axis - rank} of x, "
                f"{added} are needed; use a smaller window or another border"
            )


def weights(where: str, b: StructuringFunction, x: Tensor, rank: int, groups: int) -> tuple[Tensor, int]:
    """The structuring function as (out, channels of a group, *window), and the number of groups."""
    channels = x.shape[-rank - 1]
    if not isinstance(b, Tensor):
        b = x.new_zeros(per_axis("window size", b, rank, 1))
    elif b.dtype == torch.bool:
        b = torch.zeros(b.shape, dtype=x.dtype, device=x.device).masked_fill_(~b, -math.inf)
    check_real(where, x=x, b=b)
    if b.numel() == 0:
        raise ShapeError(f"{where}: the structuring function is empty, shape {tuple(b.shape)}")
    if b.ndim == rank:
        return b.expand(channels, 1, *b.shape), channels
    if b.ndim == rank + 1 and b.shape[0] == channels:
        return b.unsqueeze(1), channels
    if b.ndim == rank + 2 and b.shape[1] * groups == channels and b.shape[0] % groups == 0:
        return b, groups
    raise ShapeError(
        f"{where}: b has shape {tuple(b.shape)} and x {channels} channels (axis {-rank - 1}); expected a window of "
        f"{rank} axes, ({channels}, *window) for one window a channel, or (out, {channels} / groups, *window) with "
        f"out a multiple of groups (groups={groups})"
    )


def batched(where: str, x: Tensor, rank: int) -> Tensor:
    """Give x a batch axis where it has none."""
    if x.ndim not in (rank + 1, rank + 2):
        axes = ", ".join(("depth", "height", "width")[-rank:]) if rank > 1 else "length"
        raise ShapeError(f"{where}: x has shape {tuple(x.shape)}, expected (batch, channels, {axes}) or without batch")
    return x if x.ndim == rank + 2 else x.unsqueeze(0)


def apply_window(
    where: str,
    x: Tensor,
    b: StructuringFunction,
    rank: int,
    sign: int,
    how: Windowing,
    policy: Policy,
    ghosts: Ghosts = NO_GHOSTS,
) -> Tensor:
    """Dilation (sign 1) or erosion (sign -1) by a window under a policy.

    Where there are ``ghosts``, b has the shape of weights.
    """
    images = batched(where, x, rank)
    w, groups = weights(where, b, images, rank, how.groups)
    size = tuple(w.shape[2:])
    window = how.window(size, groups, reflected=sign > 0, dual=sign < 0)
    if not isinstance(b, Tensor):
        window = replace(window, flat=True)
    check_fit(where, images, size, window)
    if sign > 0:  # a dilation reflects its window
        w, ghosts = _reflected(w), ghosts.arranged(_reflected)
    run = _compete if how.merge == "max" else _add_channels
    y = run(images, w, window, policy, ghosts)
    return y if x.ndim == rank + 2 else y.squeeze(0)


def _reflected(w: Tensor) -> Tensor:
    """The window turned around its centre."""
    return w.flip(tuple(range(2, w.ndim)))


def _compete(x: Tensor, w: Tensor, window: Window, policy: Policy, ghosts: Ghosts) -> Tensor:
    return maxplus(x, w, window, policy, ghosts)


def _add_channels(x: Tensor, w: Tensor, window: Window, policy: Policy, ghosts: Ghosts) -> Tensor:
    """Each channel as a group of its own, then the channels of each group added."""
    channels = w.shape[1]

    def one_channel_each(t: Tensor) -> Tensor:
        """(groups * out, channels, *window) as (groups * channels * out, 1, *window)."""
        one_each: Tensor = t.unflatten(0, (window.groups, -1)).transpose(1, 2).flatten(0, 2).unsqueeze(1)
        return one_each

    separate = replace(window, groups=window.groups * channels)
    y = maxplus(x, one_channel_each(w), separate, policy, ghosts.arranged(one_channel_each))
    total: Tensor = y.unflatten(1, (window.groups, channels, -1)).sum(2).flatten(1, 2)
    return total
