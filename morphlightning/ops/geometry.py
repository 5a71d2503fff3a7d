"""Which inputs compete for which output: the geometry of a max-plus operator.

Inside ``ops`` an operator sees x of shape (samples, *cells), weights of shape (out, *taps) and gives (samples, *units).
A geometry says which input cell meets tap t of an output unit. It is written as a string into custom operators, so
that compiled graphs can be cached across processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["neutral", "reflect", "replicate", "circular", "constant"]
BORDERS: tuple[Border, ...] = ("neutral", "reflect", "replicate", "circular", "constant")


@dataclass(frozen=True)
class Dense:
    """Every output sees every input: y[i] = max_j x[j] + w[i, j]."""

    def key(self) -> str:
        """The geometry as a string."""
        return "dense"

    def output_shape(self, x: torch.Size, w: torch.Size) -> tuple[int, ...]:
        """Shape of the output."""
        return (x[0], w[0])

    def fan_in(self, w: torch.Size) -> int:
        """Number of candidates of one output."""
        return w[1]

    def cell(self, unit: Tensor, tap: Tensor, x: torch.Size, w: torch.Size) -> Tensor:
        """Flat input index that meets tap ``tap`` of output ``unit`` (broadcast)."""
        return tap.expand(torch.broadcast_shapes(unit.shape, tap.shape))


@dataclass(frozen=True)
class Window:
    """A correlation-ordered window: y[o, p] = max over c, q of x[c, stride p + spacing q - before] + w[o, c, q].

    Taps are numbered channel first, then row-major, so that a lower tap is a lower input position.
    """

    stride: tuple[int, ...]
    spacing: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int = 1
    border: Border = "neutral"
    fill: float = 0.0

    def key(self) -> str:
        """The geometry as a string."""
        sides = (self.stride, self.spacing, self.before, self.after)
        return "|".join(
            [*(",".join(str(n) for n in side) for side in sides), f"{self.groups}|{self.border}|{self.fill}"]
        )

    @property
    def wraps(self) -> bool:
        """Whether one input cell can meet an output twice, or out of order."""
        return self.border in ("reflect", "replicate", "circular")

    def extents(self, x: torch.Size, w: torch.Size) -> tuple[int, ...]:
        """Spatial extents of the output."""
        sides = zip(x[2:], w[2:], self.stride, self.spacing, self.before, self.after, strict=True)
        return tuple((size + lo + hi - d * (k - 1) - 1) // s + 1 for size, k, s, d, lo, hi in sides)

    def output_shape(self, x: torch.Size, w: torch.Size) -> tuple[int, ...]:
        """Shape of the output."""
        return (x[0], w[0], *self.extents(x, w))

    def fan_in(self, w: torch.Size) -> int:
        """Number of candidates of one output."""
        return math.prod(w[1:])

    def pad(self, x: Tensor) -> Tensor:
        """Extend x over its borders as ``border`` says."""
        if not any(self.before) and not any(self.after):
            return x
        widths = [n for lo, hi in zip(reversed(self.before), reversed(self.after), strict=True) for n in (lo, hi)]
        if self.border in ("neutral", "constant"):
            return F.pad(x, widths, value=-math.inf if self.border == "neutral" else self.fill)
        return F.pad(x, widths, mode=self.border)

    def positions(self, axis: int, size: int, taps: int, device: torch.device) -> Tensor:
        """Input coordinate along one axis for (output coordinate, tap coordinate); -1 outside."""
        lo, hi, s, d = self.before[axis], self.after[axis], self.stride[axis], self.spacing[axis]
        extent = (size + lo + hi - d * (taps - 1) - 1) // s + 1
        source = torch.arange(size, device=device)
        if self.wraps:
            source = F.pad(source[None].float(), (lo, hi), mode=self.border)[0].long()
        else:
            source = F.pad(source, (lo, hi), value=-1)
        return source[s * torch.arange(extent, device=device)[:, None] + d * torch.arange(taps, device=device)]

    def cell(self, unit: Tensor, tap: Tensor, x: torch.Size, w: torch.Size) -> Tensor:
        """Flat input index that meets tap ``tap`` of output ``unit`` (broadcast); -1 outside the image."""
        extents, window = self.extents(x, w), w[2:]
        channel = unit // math.prod(extents) // (w[0] // self.groups) * w[1] + tap // math.prod(window)
        flat, outside = channel, torch.zeros((), dtype=torch.bool, device=unit.device)
        step_p, step_q = math.prod(extents), math.prod(window)
        for axis, (extent, taps, size) in enumerate(zip(extents, window, x[2:], strict=True)):
            step_p, step_q = step_p // extent, step_q // taps
            table = self.positions(axis, size, taps, unit.device)
            at = table[unit // step_p % extent, tap // step_q % taps]
            outside = outside | (at < 0)
            flat = flat * size + at
        return torch.where(outside, -1, flat)


Geometry = Dense | Window
DENSE = Dense()


@lru_cache(maxsize=1024)
def parse(key: str) -> Geometry:
    """The geometry that ``key`` describes."""
    if key == "dense":
        return DENSE
    *sides, groups, border, fill = key.split("|")
    stride, spacing, before, after = (tuple(map(int, side.split(","))) for side in sides)
    return Window(stride, spacing, before, after, int(groups), cast(Border, border), float(fill))
