r"""Networks of additions and maxima in 16-bit integers, and their certificates, in which nothing is rounded.

Signed and unsigned dilations and erosions add and compare. With weights rounded to a grid that holds the grey levels of
images, whole networks of them run in integers: the same numbers on every machine, no rounding at all. Two images whose
grey levels differ by at most n have logits that differ by at most n levels, with no tolerance.

Derived here; docs/guarantees.md has the proofs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DataError
from morphlightning.guarantees.robustness.boxes import Box
from morphlightning.ops.integer import maxplus_int16

OFF_GRID = 1e-3
"""So far images may be from grey levels, in grey levels."""


class IntegerLayer(nn.Module):
    r"""A (signed) dilation or erosion of integers: :math:`s \max_j s z_j + w_{ji}`, z = x or (x, -x), s = 1 or -1.

    Args:
        weight: w, (inputs, out) int16.
        sign: 1 for a dilation, -1 for an erosion.
        signed: Whether the weight meets (x, -x).
    """

    weight: Tensor

    def __init__(self, weight: Tensor, sign: int, signed: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.sign, self.signed = sign, signed

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), int16."""
        return self._product(torch.cat([x, -x], -1) if self.signed else x)

    def bounds(self, box: Box) -> Box:
        """The least box that holds the outputs for all integers of a box."""
        if not self.signed:
            return Box(self(box.lower), self(box.upper))
        lower = self._product(torch.cat([box.lower, -box.upper], -1))
        upper = self._product(torch.cat([box.upper, -box.lower], -1))
        a, b = self.weight.int().chunk(2)
        constant = (-(-(a + b) // 2)).amax(0).to(torch.int16)  # rounded up: no integer comes nearer to the kink
        if self.sign > 0:
            return Box(torch.maximum(lower, constant), upper)
        return Box(lower, torch.minimum(upper, -constant))

    def _product(self, z: Tensor) -> Tensor:
        rows = self.sign * z.reshape(-1, z.shape[-1])
        return (self.sign * maxplus_int16(rows, self.weight)).view(*z.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Sizes and kind."""
        inputs, out = self.weight.shape
        kind = ("signed " if self.signed else "") + ("dilation" if self.sign > 0 else "erosion")
        return f"{inputs // (1 + self.signed)}, {out}, {kind}"


class IntegerShift(nn.Module):
    """Subtracts integers.

    Args:
        offset: What is subtracted, int16, of any shape that broadcasts.
    """

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract."""
        return x - self.offset


class IntegerNetwork(nn.Module):
    """A classifier in 16-bit integers, of additions and maxima alone; made by :func:`export_int16`.

    Its unit is 1 / (levels * sublevels) of the range of the data.

    Args:
        parts: Layers on int16.
        levels: The grey level of the highest value of the data; the lowest is 0.
        sublevels: Parts of a grey level.
        roundings: Layers whose weights were rounded.
    """

    def __init__(self, parts: nn.Sequential, levels: int, sublevels: int, roundings: int) -> None:
        super().__init__()
        self.parts, self.levels, self.sublevels, self.roundings = parts, levels, sublevels, roundings

    @property
    def unit(self) -> float:
        """What 1 is in the units of the data, whose range is [0, 1]."""
        return 1 / (self.levels * self.sublevels)

    @property
    def error_bound(self) -> float:
        """How far logits may be from those before rounding, in exact arithmetic: half a unit for each rounded layer."""
        return self.roundings * self.unit / 2

    def grey_levels(self, images: Tensor) -> Tensor:
        """The nearest grey levels, int16: of numbers in [0, 1], or of integers, which are grey levels.

        Raises:
            DataError: Values outside [0, 1], or integers outside 0 ... levels.
        """
        most = 1 if images.is_floating_point() else self.levels
        if images.numel() and not (images.min() >= 0 and images.max() <= most):
            raise DataError(
                f"IntegerNetwork: images of dtype {images.dtype} must lie in [0, {most}], got "
                f"[{float(images.min()):g}, {float(images.max()):g}]"
            )
        if not images.is_floating_point():
            return images.to(torch.int16)
        return (images.double() * self.levels + 0.5).floor().to(torch.int16)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes), int16, in ``unit``; images as for :meth:`grey_levels`."""
        logits: Tensor = self.parts(self.grey_levels(images) * self.sublevels)
        return logits

    @torch.no_grad()
    def margins(self, images: Tensor, labels: Tensor, levels: int | Tensor) -> Tensor:
        """Least margins over all images whose grey levels differ by at most ``levels``, by intervals of integers.

        Args:
            images: (batch, ...), as for :meth:`grey_levels`; of numbers, those that are grey levels.
            labels: Classes (batch,).
            levels: Radius in grey levels, or one for each image, int64.

        Returns:
            (batch,), int32, in ``unit``: positive ones are certificates, also for images of any numbers as near.

        Raises:
            DataError: As :meth:`grey_levels`, or numbers that are more than 1e-3 from grey levels.
        """
        grey = self.grey_levels(images).int()
        if images.is_floating_point() and grey.numel():
            off = float((images.double() * self.levels - grey).abs().max())
            if off > OFF_GRID:
                raise DataError(
                    f"IntegerNetwork: certificates are for images of {self.levels + 1} grey levels, these are up to "
                    f"{off:.3g} of a level away from one; give round(x * {self.levels}) / {self.levels}, or integers"
                )
        reach = torch.as_tensor(levels, device=grey.device).expand(len(grey)).view(-1, *(1,) * (grey.ndim - 1)).int()
        lower, upper = ((grey + s * reach).clamp(0, self.levels) * self.sublevels for s in (-1, 1))
        box = Box(lower.to(torch.int16), upper.to(torch.int16))
        for part in self.parts:
            box = part.bounds(box) if isinstance(part, IntegerLayer) else Box(part(box.lower), part(box.upper))
        return box.margins(labels).int()

    def whole_levels(self, eps: float | Tensor, images: Tensor) -> int | Tensor:
        """The radius in grey levels that holds one in the units of the images, which is rounded up.

        Numbers within 1e-9 above a grey level count as that: all images so near round to the same grey levels.

        Raises:
            ConfigError: A radius that is no whole number, for images that are integers.
        """
        if images.is_floating_point():
            scaled = eps * self.levels - 1e-9
            return scaled.ceil().long() if isinstance(scaled, Tensor) else math.ceil(scaled)
        whole = torch.as_tensor(eps, dtype=torch.float64)
        if not torch.equal(whole, whole.round()):
            raise ConfigError(
                f"eps={float(whole.max()):g} for images of integers must be a whole number of grey levels; "
                f"{float(whole.max()):g} of the range is {math.ceil(float(whole.max()) * self.levels)} levels"
            )
        return whole.long()

    @torch.no_grad()
    def radii(self, images: Tensor, labels: Tensor, limit: int) -> Tensor:
        """The largest certified radii in whole grey levels up to ``limit``, 0 where a decision is wrong, int64."""
        low, high = torch.zeros_like(labels), torch.full_like(labels, limit)
        for _ in range(limit.bit_length()):
            middle = (low + high + 1) // 2
            holds = self.margins(images, labels, middle) > 0
            low, high = torch.where(holds, middle, low), torch.where(holds, high, middle - 1)
        return low


class Agreement(NamedTuple):
    """Of a network of integers with the one it was made of, on some images."""

    decisions: float
    """Share of images that both decide alike."""
    difference: float
    """Largest difference of logits, in the units of the data."""
    bound: float
    """What it can be at most, but for rounding of the other network."""


@torch.no_grad()
def agreement(network: nn.Module, exported: IntegerNetwork, images: Tensor) -> Agreement:
    """How far an exported network decides as the original does, on images of numbers in [0, 1]."""
    logits, integers = network(images), exported(images)
    decisions = (logits.argmax(1) == integers.argmax(1)).double().mean()
    difference = (logits.double() - exported.unit * integers.double()).abs().max()
    return Agreement(float(decisions), float(difference), exported.error_bound)
