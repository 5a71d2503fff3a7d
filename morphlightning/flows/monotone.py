r"""Monotone splines whose pieces are given for every number on its own.

A positive function p on [-bound, bound], constant outside, is the slope of an increasing function f. Where p is
constant on each piece, f is a **linear spline** and a density made with it jumps at knots. Where p is itself a
(continuous) linear spline, f is its antiderivative, a **quadratic spline**, and densities are continuous. One piece
alone is an affine map. All are inverted in closed form: with slopes :math:`a \le b` at the ends of a piece of width w
and :math:`r = |y - f(t)|/w`, where t is the end with slope a, :math:`|x - t| = 2wr/(a + \sqrt{a^2 + 2(b - a)r})`; the
root is the slope at x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError

Kind = Literal["quadratic", "linear", "affine"]
KINDS: tuple[Kind, ...] = ("quadratic", "linear", "affine")


class Pieces(NamedTuple):
    """Monotone splines on K pieces; the last axis counts pieces or knots.

    Attributes:
        knots: Ascending, (..., K + 1).
        values: Of the function at the knots, (..., K + 1).
        left: Slopes at the left ends, positive, (..., K).
        right: Slopes at the right ends, (..., K).
    """

    knots: Tensor
    values: Tensor
    left: Tensor
    right: Tensor

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The functions of x (...) and the logarithms of their slopes."""
        inside, (start, width, value, _, left, right) = self._locate(x, self.knots)
        u = (inside - start) / width
        slope = left + (right - left) * u
        y = value + (inside - start) * 0.5 * (left + slope) + (x - inside) * slope
        return y, slope.log()

    def inverse(self, y: Tensor) -> Tensor:
        """The x whose values are y (...), counted from the end of the piece that is less steep: nothing cancels."""
        inside, (start, width, value, end, left, right) = self._locate(y, self.values)
        steeper = right >= left
        flat, change = torch.minimum(left, right), (right - left).abs()
        rise = torch.where(steeper, inside - value, end - inside).clamp_min(0) / width
        slope = (flat * flat + 2 * change * rise).sqrt()
        along = 2 * width * rise / (flat + slope)
        return start + torch.where(steeper, along, width - along) + (y - inside) / slope

    def _locate(self, x: Tensor, grid: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Cut x to the grid; and of its piece the first knot, width, values at both ends, and slopes there."""
        inside = torch.maximum(torch.minimum(x, grid[..., -1]), grid[..., 0])
        index = (x.detach()[..., None] >= grid[..., 1:-1].detach()).sum(-1, keepdim=True)
        ends = (self.values[..., :-1], self.values[..., 1:], self.left, self.right)
        rows = (self.knots[..., :-1], self.knots.diff(), *ends)
        return inside, [row.gather(-1, index)[..., 0] for row in rows]


@dataclass(frozen=True)
class MonotoneSpline:
    r"""Makes monotone splines of free numbers, such as a network gives.

    Of ``count`` numbers the first is the value in the middle; the next give the logarithms of slopes, kept between the
    logarithms of ``slopes`` by a sigmoid; the rest the widths of the pieces by a softmax, none below a tenth of their
    mean. All zero is the identity. The functions are bi-Lipschitz with these slopes and go on as straight lines.

    Args:
        kind: ``"quadratic"`` (slopes at knots), ``"linear"`` (slopes of pieces) or ``"affine"`` (one piece).
        bins: Number of pieces; affine maps have one.
        bound: The knots lie on [-bound, bound].
        slopes: The least and the greatest slope, the one below 1 and the other above.

    Raises:
        ConfigError: A setting is out of its range.

    Source: derived here, as antiderivatives of the linear splines of Unser et al., arXiv 2408.13114; other
    parametrisations are those of Müller et al., arXiv 1808.03856, and Durkan et al., arXiv 1906.04032.
    """

    kind: Kind = "quadratic"
    bins: int = 16
    bound: float = 3.0
    slopes: tuple[float, float] = (0.05, 20.0)

    def __post_init__(self) -> None:
        low, high = self.slopes
        object.__setattr__(self, "slopes", (float(low), float(high)))
        for fits, what in (
            (self.kind in KINDS, f"kind={self.kind!r}, expected one of {', '.join(KINDS)}"),
            (self.bins >= 1, f"bins={self.bins}, expected at least 1"),
            (0 < self.bound < math.inf, f"bound={self.bound}, expected a finite number above 0"),
            (0 < low < 1 < high < math.inf, f"slopes={self.slopes}, expected 0 < least < 1 < greatest"),
        ):
            if not fits:
                raise ConfigError(f"MonotoneSpline: {what}")

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return 1 if self.kind == "affine" else self.bins

    @property
    def slope_count(self) -> int:
        """Number of free slopes."""
        return self.pieces + (self.kind == "quadratic")

    @property
    def count(self) -> int:
        """Free numbers of one spline."""
        return 1 + self.slope_count + (self.pieces if self.pieces > 1 else 0)

    def __call__(self, free: Tensor) -> Pieces:
        """The splines of free numbers (..., count).

        Raises:
            ShapeError: The last axis has another size.
        """
        if free.shape[-1:] != (self.count,):
            raise ShapeError(
                f"MonotoneSpline: the free numbers have shape {tuple(free.shape)}, expected (..., {self.count}) for "
                f"{self.pieces} {self.kind} piece(s)"
            )
        middle, slopes, widths = free.split([1, self.slope_count, free.shape[-1] - 1 - self.slope_count], -1)
        widths = self._widths(widths) if self.pieces > 1 else torch.full_like(middle, 2 * self.bound)
        slopes = self._slopes(slopes)
        left, right = (slopes[..., :-1], slopes[..., 1:]) if self.kind == "quadratic" else (slopes, slopes)
        rises = _cumulated(widths * 0.5 * (left + right))
        return Pieces(_cumulated(widths) - self.bound, rises + middle - 0.5 * rises[..., -1:], left, right)

    def _slopes(self, free: Tensor) -> Tensor:
        low, high = (math.log(slope) for slope in self.slopes)
        start = -low / (high - low)  # the share of the way at which the slope is 1
        shift, rate = math.log(start / (1 - start)), 1 / (start * (1 - start) * (high - low))
        return (low + (high - low) * torch.sigmoid(shift + rate * free)).exp()

    def _widths(self, free: Tensor) -> Tensor:
        return 2 * self.bound * (0.1 / self.pieces + 0.9 * free.softmax(-1))


def _cumulated(steps: Tensor) -> Tensor:
    """Sums of the first k steps, k = 0 to all."""
    return torch.nn.functional.pad(steps.cumsum(-1), (1, 0))
