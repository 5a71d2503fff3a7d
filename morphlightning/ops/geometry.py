"""Which inputs compete for which output: the geometry of a max-plus operator.

Inside ``ops`` an operator sees x of shape (samples, *cells), weights of shape (out, *taps) and gives (samples, *units).
A geometry says which input cell meets tap t of an output unit, and whether the operator is a max-plus one, or its dual
-max(-x + w) = min(x - w). It is written as a string into custom operators, so that compiled graphs can be cached across
processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["neutral", "reflect", "replicate", "circular", "constant"]
BORDERS: tuple[Border, ...] = ("neutral", "reflect", "replicate", "circular", "constant")


@dataclass(frozen=True)
class Dense:
    """Every output of a group sees every input of it: y[g, i] = max_j x[g, j] + w[g, i, j].

    Groups stand behind each other: x (samples, groups * in), w (groups * out, in), y (samples, groups * out).
    """

    groups: int = 1
    dual: bool = False
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Write the geometry as a string, which :func:`parse` reads."""
        object.__setattr__(self, "key", f"dense|{self.groups}|{self.dual}")

    def output_shape(self, x: torch.Size, w: torch.Size) -> tuple[int, ...]:
        """Shape of the output."""
        return (x[0], w[0])

    def fan_in(self, w: torch.Size) -> int:
        """Number of candidates of one output."""
        return w[1]

    def cell(self, unit: Tensor, tap: Tensor, x: torch.Size, w: torch.Size) -> Tensor:
        """Flat input index that meets tap ``tap`` of output ``unit`` (broadcast)."""
        return unit // (w[0] // self.groups) * w[1] + tap.long()


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
    fill: float = 0.0  # what a constant border holds; beside -x where the operator is a dual one
    dual: bool = False
    flat: bool = False  # a promise: all weights are zero and need no gradient

    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Write the geometry as a string, which :func:`parse` reads."""
        sides = (self.stride, self.spacing, self.before, self.after)
        numbers = [",".join(map(str, side)) for side in sides]
        options = (self.groups, self.border, self.fill, self.dual, self.flat)
        object.__setattr__(self, "key", "|".join(["window", *numbers, *map(str, options)]))

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

    @property
    def inside(self) -> Window:
        """The same window over an image that :meth:`pad` has extended."""
        nowhere = (0,) * len(self.stride)
        return replace(self, before=nowhere, after=nowhere, border="neutral", fill=0.0)

    def tables(self, x: torch.Size, w: torch.Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Where input cells are found, through positions in the padded image of one sample.

        Returns:
            The position where the window of each output unit starts; the distance from there to each tap; and the
            flat input index that each position holds, -1 outside the image.
        """
        extents, spatial = self.extents(x, w), tuple(map(sum, zip(x[2:], self.before, self.after, strict=True)))
        number = torch.arange(x[1] * math.prod(spatial), device=device).view(x[1], *spatial)
        outputs = (slice(0, s * (n - 1) + 1, s) for n, s in zip(extents, self.stride, strict=True))
        taps = (slice(0, d * (k - 1) + 1, d) for k, d in zip(w[2:], self.spacing, strict=True))
        start = number[(slice(0, None, w[1]), *outputs)].repeat_interleave(w[0] // self.groups, 0)
        cells = torch.arange(math.prod(x[1:]), dtype=torch.float64, device=device).view(1, *x[1:])
        held = self.pad(cells) if self.wraps else replace(self, border="constant", fill=-1.0).pad(cells)
        return start.flatten(), number[(slice(0, w[1]), *taps)].flatten(), held.flatten().long()

    def cell(self, unit: Tensor, tap: Tensor, x: torch.Size, w: torch.Size) -> Tensor:
        """Flat input index that meets tap ``tap`` of output ``unit`` (broadcast); -1 outside the image."""
        start, away, held = self.tables(x, w, unit.device)
        position = start[unit] + away.index_select(0, tap.flatten()).view(tap.shape)
        return held.index_select(0, position.flatten()).view(position.shape)


Geometry = Dense | Window
DENSE, DUAL_DENSE = Dense(), Dense(dual=True)


@lru_cache(maxsize=1024)
def parse(key: str) -> Geometry:
    """The geometry that ``key`` describes."""
    kind, *parts = key.split("|")
    if kind == "dense":
        groups, dual = parts
        return Dense(int(groups), dual == "True")
    *sides, groups, border, fill, dual, flat = parts
    stride, spacing, before, after = (tuple(map(int, side.split(","))) for side in sides)
    options = (int(groups), cast(Border, border), float(fill), dual == "True", flat == "True")
    return Window(stride, spacing, before, after, *options)
