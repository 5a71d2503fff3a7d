"""Boxes of inputs and outputs, with ends that rounding never moves inwards."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, DataError
from morphlightning.guarantees.robustness.margins import margin

Clip = tuple[float, float] | None
"""Lowest and highest value that data can have, or None where they have no bounds."""


class Box(NamedTuple):
    """All z with lower <= z <= upper, number by number; both of one shape, (batch, ...)."""

    lower: Tensor
    upper: Tensor

    def both(self) -> Tensor:
        """Both ends, one batch after the other."""
        return torch.cat(self)

    def margins(self, labels: Tensor) -> Tensor:
        """The least margin in a box of outputs (batch, classes), in float64: the label's lower end, others' upper."""
        label = labels[:, None]
        return margin(self.upper.double().scatter(1, label, self.lower.double().gather(1, label)), labels)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (batch, classes) with -inf for the label."""
    return logits.scatter(1, labels[:, None], -math.inf)


def check_eps(eps: float | Tensor, clip: Clip) -> None:
    """Raise ConfigError unless eps, or all of it, is a radius in the units of the data.

    Args:
        eps: Of the ball in the sup norm.
        clip: The range of the data; a radius above its width is taken for one in other units.
    """
    width = math.inf if clip is None else clip[1] - clip[0]
    if not width > 0:
        raise ConfigError(f"clip must be the lowest and the highest value of the data, got {clip}")
    least, most = (float(eps.min()), float(eps.max())) if isinstance(eps, Tensor) else (eps, eps)
    if 0 < least <= most <= width and most < math.inf:
        return
    wrong, hint = most if least > 0 else least, ""
    if width < wrong <= 255:
        hint = f"; if {wrong:g} grey levels of 255 were meant, that is eps={wrong * width / 255:.4g}"
    raise ConfigError(
        f"eps={wrong:g} is no radius in the units of the data, which lie in {clip}: expected 0 < eps <= {width:g}{hint}"
    )


def box_around(x: Tensor, eps: float | Tensor, clip: Clip = (0.0, 1.0)) -> Box:
    """The ball of radius eps in the sup norm around each sample, cut to the range of the data.

    Args:
        x: Samples (batch, ...), floating-point.
        eps: Radius, in the units of x, or one for each sample.
        clip: Range of the data, or None.

    Returns:
        Ends in the dtype of x, rounded outwards: they hold what x +- eps is in that dtype, with eps rounded to it.

    Raises:
        ConfigError: eps is not in (0, width of clip].
        DataError: x has values outside ``clip``, or is no floating-point tensor.
    """
    check_eps(eps, clip)
    check_range(x, clip)
    if isinstance(eps, Tensor):
        eps = eps.double().view(-1, *(1,) * (x.ndim - 1))
    exact, wide = x.double(), eps * (1 + torch.finfo(x.dtype).eps)
    lower, upper = _down(exact - wide), _up(exact + wide)
    if clip is not None:
        lower, upper = lower.clamp_min(clip[0]), upper.clamp_max(clip[1])
    return outward(lower, upper, x.dtype)


def check_range(x: Tensor, clip: Clip) -> None:
    """Raise DataError unless x is floating-point and within the range of the data."""
    if not x.is_floating_point():
        raise DataError(f"images must be floating-point, got {x.dtype}; divide grey levels by 255")
    if clip is not None and x.numel() and not (clip[0] <= float(x.min()) and float(x.max()) <= clip[1]):
        raise DataError(
            f"images have values in [{float(x.min()):g}, {float(x.max()):g}], outside clip={clip}: certificates are "
            "for data in their own units; move a normalization into the network, or give the range of the data as clip"
        )


def outward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> Box:
    """Ends in another dtype, no further in than they are."""
    low, high = lower.to(dtype), upper.to(dtype)
    return Box(torch.where(low > lower, _down(low), low), torch.where(high < upper, _up(high), high))


def widened(lower: Tensor, upper: Tensor, slack: Tensor | None = None) -> Box:
    """Ends moved outwards: by ``slack`` and a unit in the last place, which is what one rounding can move them."""
    if slack is not None:
        lower, upper = outward(lower.double() - slack, upper.double() + slack, lower.dtype)
    return Box(_down(lower), _up(upper))


def largest(*tensors: Tensor) -> Tensor:
    """The largest finite modulus of all numbers, a scalar."""
    return torch.stack([torch.where(x.isfinite(), x.abs(), 0).amax() for x in tensors]).amax()


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, x.new_tensor(-math.inf))


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, x.new_tensor(math.inf))
