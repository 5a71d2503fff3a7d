r"""Linear splines as tables, and what can be computed of them in closed form.

With knots :math:`t_k`, values :math:`c_k`, widths :math:`h_k = t_{k+1} - t_k` and slopes
:math:`s_k = (c_{k+1} - c_k)/h_k`, for the straight outer pieces too:

- the potential :math:`\psi(x) = \int_0^x f` is quadratic on each piece: :math:`P_k + d(c_k + s_k d/2)` at
  :math:`d = x - t_k`, with :math:`P_{k+1} = P_k + h_k(c_k + c_{k+1})/2`;
- :math:`x + \lambda f(x) = v` is solved by the linear spline of v with values :math:`t_k` at the knots
  :math:`t_k + \lambda c_k`: the proximal map of :math:`\lambda\psi`, if all :math:`1 + \lambda s_k > 0`;
- the inverse of a strictly monotone spline has knots and values exchanged;
- f interpolated at some of its knots has chord slopes, which are averages of slopes: bounds on slopes still hold, and
  the second-order total variation does not grow.

Derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.functional import linear_spline, linear_spline_slope
from morphlightning.functional.splines import check_knots
from morphlightning.ops.plain import plain
from morphlightning.splines.pruning import needed_knots
from morphlightning.splines.tv2 import tv2

Scalars = float | Tensor
"""One number, or one for each spline ``(splines,)``."""
FINEST, MOST_PIECES = 4, 1024
"""Grids that free knots are looked for on: the narrowest piece in up to 4 parts, up to 1024 pieces in all."""
GRID_SLACK = 1e-5
"""So far, in pieces of the grid, a knot may be off: what rounding in float32 does to knots."""


@dataclass(frozen=True, eq=False)
class SplineTable:
    """Continuous, piecewise linear functions; the outer pieces go on as straight lines.

    Methods are differentiable in knots and values unless they say otherwise, and none changes them.

    Args:
        knots: Ascending knots ``(splines, K)``, or ``(K,)`` for all splines; K >= 2.
        values: Values there, ``(splines, K)``, or ``(K,)`` for one spline.
        ends: First and last knot, by who knows that all are equally spaced: splines are then evaluated faster, and
            gradients flow to values alone.

    Raises:
        ShapeError: They have other shapes.
        ConfigError: Knots are not increasing; examined on the CPU alone, since a device would have to be waited for.

    Example:
        >>> relu = SplineTable(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0]))
        >>> relu(torch.tensor([-2.0, 3.0]))
        tensor([0., 3.])
        >>> relu.prox(1.0)(torch.tensor([-2.0, 3.0]))
        tensor([-2.0000,  1.5000])
    """

    knots: Tensor
    values: Tensor
    ends: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        values = self.values[None] if self.values.ndim == 1 else self.values
        knots = self.knots[None] if self.knots.ndim == 1 else self.knots
        shapes = f"knots {tuple(self.knots.shape)} and values {tuple(self.values.shape)}"
        if values.ndim != 2 or knots.ndim != 2 or values.shape[1] < 2 or not len(values):
            raise ShapeError(f"SplineTable: got {shapes}, expected (splines, K) with K >= 2")
        if knots.shape not in (values.shape, (1, values.shape[1])):
            raise ShapeError(f"SplineTable: got {shapes}, expected a knot for each value")
        if _examined(knots):
            check_knots(knots, "SplineTable")
        object.__setattr__(self, "knots", knots.expand_as(values))
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        """Number of splines."""
        return len(self.values)

    # ------------------------------------------------------------------------------------------------ evaluation
    def __call__(self, x: Tensor, channel_dim: int = 1, out: Tensor | None = None) -> Tensor:
        """Value of the splines at x.

        Args:
            x: Any shape.
            channel_dim: The axis of the channels, a multiple of the splines: as many neighbouring channels share one;
                one spline is for all of x.
            out: Where to put it, such as x itself; see :func:`morphlightning.functional.linear_spline`.

        Returns:
            Shape and dtype of x; computed at least in float32. NaN gives NaN.

        Raises:
            ShapeError: The channels are no multiple of the splines.
        """
        knots, values = self._for_channels(x, channel_dim)
        return linear_spline(x, values, knots, channel_dim=channel_dim, out=out)

    def slope(self, x: Tensor, channel_dim: int = 1) -> Tensor:
        """Slope at x, from the right at knots; arguments as for calling."""
        knots, values = self._for_channels(x, channel_dim)
        return linear_spline_slope(x, values, knots, channel_dim=channel_dim)

    def potential(self, x: Tensor, channel_dim: int = 1) -> Tensor:
        """Integral from 0 to x, for every x; arguments as for calling."""
        rows = self._rows(x, channel_dim)
        wide = torch.promote_types(torch.promote_types(x.dtype, self.values.dtype), torch.float32)
        areas = F.pad(self.knots.diff(dim=1) * (self.values[:, 1:] + self.values[:, :-1]) / 2, (1, 0)).cumsum(1)
        at_zero = self._integral(self.values.new_zeros(len(self), 1), areas)
        psi = (self._integral(rows.to(wide), areas) - at_zero).to(x.dtype)
        if len(self) == 1:
            return psi.view(x.shape)
        return psi.view(x.movedim(channel_dim, 0).shape).movedim(0, channel_dim)

    @property
    def slopes(self) -> Tensor:
        """Slope of each piece, (splines, K - 1)."""
        return self.values.diff(dim=1) / self.knots.diff(dim=1)

    def tv2(self) -> Tensor:
        """Second-order total variation of each spline, the sum of |changes of slope|, (splines,)."""
        return tv2(self.values, self.knots)

    def lipschitz(self) -> Tensor:
        """Smallest Lipschitz constant of each spline, its steepest slope, in float64 (splines,)."""
        return self.double().slopes.abs().amax(1)

    # ----------------------------------------------------------------------------------------------- new splines
    def double(self) -> SplineTable:
        """The same in float64."""
        return SplineTable(self.knots.double(), self.values.double(), self.ends)

    def detach(self) -> SplineTable:
        """The same without gradients."""
        return SplineTable(self.knots.detach(), self.values.detach(), self.ends)

    @torch.no_grad()
    def on_grid(self) -> SplineTable:
        """The same functions with equally spaced knots, up to rounding, where a few hundred are enough; else itself.

        Evaluation is several times faster than with free knots. Not differentiable.
        """
        if self.ends is not None:
            return self
        knots = self.knots.double()
        first, last = float(knots[0, 0]), float(knots[0, -1])
        narrowest = float(knots.diff(dim=1).min())
        for parts in range(1, FINEST + 1):
            width = narrowest / parts
            count = round((last - first) / width)
            at = (knots - first) * (count / (last - first))
            if count > MOST_PIECES:
                break
            if bool((at - at.round()).abs().max() <= GRID_SLACK):
                grid = torch.linspace(first, last, count + 1, dtype=knots.dtype, device=knots.device)
                fine = self.double()._at(grid.expand(len(self), -1)).values.to(self.values.dtype)
                return SplineTable(grid.to(self.knots.dtype), fine, (first, last))
        return self

    def prox(self, weight: Scalars) -> SplineTable:
        r"""Proximal map of ``weight`` times the potential, :math:`(1 + \lambda f)^{-1}`, a spline again.

        Args:
            weight: :math:`\lambda` >= 0.

        Raises:
            NotSupportedError: A slope is not above -1/weight: the map would have several values.
        """
        knots = self.knots + _column(weight, self.values) * self.values
        _require(knots.diff(dim=1) > 0, self, f"prox({weight}) needs slopes above -1/weight")
        return SplineTable(knots, self.knots.expand_as(knots))

    def inverse(self) -> SplineTable:
        """Inverse functions.

        Raises:
            NotSupportedError: A spline is neither strictly increasing nor strictly decreasing.
        """
        rises = self.values[:, -1:] > self.values[:, :1]
        steps = self.values.diff(dim=1)
        _require(torch.where(rises, steps > 0, steps < 0), self, "only strictly monotone splines have an inverse")
        knots, values = (torch.where(rises, table, table.flip(1)) for table in (self.values, self.knots))
        return SplineTable(knots, values)

    def combine(self, a: Scalars, other: SplineTable, b: Scalars) -> SplineTable:
        """The splines a f + b g, with the knots of both; one spline, or one number, goes with many."""
        f_weight, g_weight = _column(a, self.values), _column(b, self.values)
        count = max(len(self), len(other), len(f_weight), len(g_weight))
        f, g = self._repeated(count), other._repeated(count)
        if f.knots.shape != g.knots.shape or not torch.equal(f.knots, g.knots):
            knots = _sorted_union(f.knots, g.knots)
            f, g = f._at(knots), g._at(knots)
        return SplineTable(f.knots, f_weight * f.values + g_weight * g.values)

    def rescale(self, scale: Scalars) -> SplineTable:
        r"""The splines :math:`f(\alpha x)/\alpha`, :math:`\alpha > 0`, which have the same slopes."""
        alpha = _column(scale, self.values)
        if _examined(alpha) and not bool((alpha > 0).all()):
            raise ConfigError(f"rescale: scale must be positive, got {scale}")
        return SplineTable(self.knots / alpha, self.values / alpha)

    def insert(self, knots: Tensor) -> SplineTable:
        """The same functions with more knots, (n,) for all splines or (splines, n); those there already count once."""
        more = knots.to(self.knots).expand(len(self), -1)
        return self._at(_sorted_union(self.knots, more))

    def prune(self, tolerance: float) -> SplineTable:
        """Interpolation at the fewest knots that move no value, anywhere on the line, by more than ``tolerance``.

        Outer pieces are kept, bounds on slopes still hold, and tv2 does not grow. Splines that need fewer knots than
        the others get more of them on their last piece, which changes nothing. Not differentiable.

        Raises:
            ConfigError: tolerance is negative or NaN.

        Source: a shortest path through all chords that pass within tolerance of all knots they skip; derived here.
        """
        if not tolerance >= 0:
            raise ConfigError(f"prune: tolerance must be >= 0, got {tolerance}")
        table = self.detach()
        keep = needed_knots(table.knots.double(), table.values.double(), tolerance)
        knots, order = torch.where(keep, table.knots, math.inf).sort(1)
        count = int(keep.sum(1).max())
        knots, values = knots[:, :count], table.values.gather(1, order)[:, :count]
        extended = table._at(_fill_up(knots))
        return SplineTable(extended.knots, torch.where(knots.isinf(), extended.values, values))

    def rows(self) -> list[dict[str, float]]:
        """The knots as a plain table: spline, knot, value, and the slope of the piece to the right of the knot."""
        slopes = torch.cat([self.slopes, self.slopes[:, -1:]], 1)
        columns = zip(*(t.detach().double().flatten().tolist() for t in (self.knots, self.values, slopes)), strict=True)
        count = self.values.shape[1]
        return [
            {"spline": i // count, "knot": knot, "value": value, "slope": slope}
            for i, (knot, value, slope) in enumerate(columns)
        ]

    # -------------------------------------------------------------------------------------------------- plumbing
    def _for_channels(self, x: Tensor, channel_dim: int) -> tuple[tuple[float, float] | Tensor, Tensor]:
        """Knots and values as :func:`linear_spline` takes them."""
        if len(self) == 1:
            return self.ends or self.knots[0], self.values[0]
        each = self._channels_each(x, channel_dim)
        values = self.values.repeat_interleave(each, 0)
        if self.ends is not None:
            return self.ends, values
        shared = self.knots.stride(0) == 0  # one row of knots, expanded
        return self.knots[0] if shared else self.knots.repeat_interleave(each, 0), values

    def _channels_each(self, x: Tensor, channel_dim: int) -> int:
        if not -x.ndim <= channel_dim < x.ndim or x.shape[channel_dim] % len(self):
            raise ShapeError(
                f"SplineTable: axis {channel_dim} of x {tuple(x.shape)} must have a multiple of {len(self)} channels"
            )
        return x.shape[channel_dim] // len(self)

    def _rows(self, x: Tensor, channel_dim: int) -> Tensor:
        """One row for each spline."""
        if len(self) == 1:
            return x.reshape(1, -1)
        each = self._channels_each(x, channel_dim)
        return x.movedim(channel_dim, 0).reshape(len(self), each * (x.numel() // max(x.shape[channel_dim], 1)))

    def _integral(self, rows: Tensor, areas: Tensor) -> Tensor:
        """An antiderivative at (splines, n), by its values at the knots."""
        knots = self.knots.to(rows)
        index = torch.searchsorted(knots.detach().contiguous(), rows.detach().contiguous(), right=True) - 1
        index = index.clamp(0, knots.shape[1] - 2)
        area, value, slope = (table.to(rows).gather(1, index) for table in (areas, self.values, self.slopes))
        distance = rows - knots.gather(1, index)
        return area + distance * (value + slope * distance / 2)

    def _at(self, knots: Tensor) -> SplineTable:
        """The interpolation at other knots (splines, n)."""
        return SplineTable(knots, self(knots, channel_dim=0))

    def _repeated(self, count: int) -> SplineTable:
        if len(self) not in (1, count):
            raise ShapeError(f"combine: {len(self)} splines do not go with {count}; give as many, or one")
        return SplineTable(self.knots.expand(count, -1), self.values.expand(count, -1))


def _examined(tensor: Tensor) -> bool:
    """Whether its numbers can be looked at without waiting for a device, and mean something."""
    return plain(tensor) and not tensor.is_cuda


def _column(scalars: Scalars, like: Tensor) -> Tensor:
    return torch.as_tensor(scalars, dtype=like.dtype, device=like.device).reshape(-1, 1)


def _sorted_union(one: Tensor, other: Tensor) -> Tensor:
    """Ascending knots of both, each once."""
    count = max(len(one), len(other))
    knots = torch.cat([one.expand(count, -1), other.expand(count, -1)], 1).sort(1).values
    again = F.pad(knots.diff(dim=1) <= 0, (1, 0))
    knots = torch.where(again, math.inf, knots).sort(1).values
    return _fill_up(knots[:, : int((~again).sum(1).max())])


def _fill_up(knots: Tensor) -> Tensor:
    """Knots with infinite ones at the end of a row replaced by finite ones, spaced as the last two."""
    count = knots.isfinite().sum(1, keepdim=True)
    last = knots.gather(1, count - 1)
    width = last - knots.gather(1, count - 2)
    beyond = torch.arange(knots.shape[1], device=knots.device) - (count - 1)
    return torch.where(knots.isinf(), last + beyond * width, knots)


def _require(fits: Tensor, table: SplineTable, what: str) -> None:
    """Raise NotSupportedError, naming a piece, unless all pieces fit."""
    if plain(fits) and not bool(fits.all()):
        spline, piece = (int(i) for i in (~fits).nonzero()[0])
        table = table.detach()
        ends = table.knots[spline, piece : piece + 2].tolist()
        raise NotSupportedError(
            f"{what}; piece {piece} of spline {spline}, on [{ends[0]:.6g}, {ends[1]:.6g}], has slope "
            f"{float(table.slopes[spline, piece]):.6g}"
        )
