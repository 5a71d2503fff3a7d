r"""Monotone, 1-Lipschitz linear splines as proximal activations: all that is needed is exact, and a spline again.

With knots :math:`z_k`, values :math:`c_k` and slopes :math:`s_k` of the pieces:

- :math:`h^*` is quadratic on each piece: :math:`h^*(z) = h^*(z_k) + c_k(z - z_k) + \tfrac12 s_k(z - z_k)^2`;
- so is its conjugate h, with the roles of knots and values exchanged:
  :math:`h(x) = h(c_k) + z_k(x - c_k) + (x - c_k)^2/(2s_k)`; a level piece is a kink of h;
- :math:`\mathrm{prox}_{t\Psi}` is the linear spline with the values :math:`c_k` at the knots
  :math:`t z_k + (1-t)c_k`, because it takes t p + (1-t) sigma(p) to sigma(p).

Derived here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.bregman.activations import ProximalActivation, check_weight, on_domain, widen
from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.functional import linear_spline
from morphlightning.splines.table import SplineTable


class Spline(ProximalActivation):
    """A linear spline with slopes in [0, 1]; the outer pieces go on as straight lines.

    h_star(0) = 0.

    Args:
        values: Values at the knots: ``(K,)``, or ``(channels, K)`` with a spline for each channel; K >= 2; copied.
        limit: The knots are equally spaced on [-limit, limit]; or increasing knots, ``(K,)`` or as ``values``; copied.
        channel_dim: The axis of the channels.

    Raises:
        ShapeError: values has another shape, or an argument has another number of channels.
        ConfigError: limit is not positive, knots do not increase, or values are not finite.
        NotSupportedError: A slope lies outside [0, 1] by more than the rounding of values.
    """

    def __init__(self, values: Tensor, limit: float | Tensor, channel_dim: int = 1) -> None:
        if values.ndim not in (1, 2) or values.shape[-1] < 2 or not len(values):
            shape = tuple(values.shape)
            raise ShapeError(f"Spline: values has shape {shape}, expected (K,) or (channels, K) with K >= 2")
        if not bool(values.isfinite().all()):
            raise ConfigError("Spline: values must be finite, got NaN or infinite ones")
        self.channel_dim = channel_dim
        self.channels = len(values) if values.ndim == 2 else None
        given = values.detach().to(torch.float64).reshape(-1, values.shape[-1])
        self.knots = _places(limit, given)
        self._at = self.knots if isinstance(limit, Tensor) else (-limit, limit)
        widths = self.knots.diff()
        self.size = float(given.abs().max())
        _check_slopes(given.diff() / widths, 4 * torch.finfo(values.dtype).eps * (1 + self.size / widths))

        self.values = given.cummax(1).values  # level where rounding made it fall
        self.slopes = self.values.diff() / widths
        areas = F.pad((self.values[:, 1:] + self.values[:, :-1]) * widths / 2, (1, 0)).cumsum(1)
        at_zero = _quadratic(areas.new_zeros(len(areas), 1), self.knots, areas, self.values, self.slopes)
        self._areas = areas - at_zero
        self._h = self.values * self.knots - self._areas
        self._inverse = torch.where(self.slopes > 0, 1 / self.slopes, 0.0)
        self._low = torch.where(self.slopes[:, :1] > 0, -math.inf, self.values[:, :1])
        self._high = torch.where(self.slopes[:, -1:] > 0, math.inf, self.values[:, -1:])

    def __call__(self, z: Tensor) -> Tensor:
        """Interpolate the values."""
        values, knots = self.values.to(widen(z)), self._at
        if self.channels is None:
            values, knots = values[0], knots[0] if isinstance(knots, Tensor) else knots
        return linear_spline(z, values, knots, channel_dim=self.channel_dim)

    def prox(self, v: Tensor, t: float) -> Tensor:
        """The spline with the same values at the knots :math:`tz_k + (1-t)c_k`."""
        check_weight(t)
        knots = t * self.knots + (1 - t) * self.values
        slopes = self.slopes / (t + (1 - t) * self.slopes)
        distance, value, slope = _look_up(widen(self._rows(v)), knots, self.values, slopes)
        return self._back(value + slope * distance, v).to(v.dtype)

    def h(self, x: Tensor) -> Tensor:
        """The supremum of x z - h_star(z); +inf beyond level end pieces."""
        rows = self._rows(x)
        low, high = self._low.to(widen(rows)), self._high.to(widen(rows))
        tables = self.values, self._h, self.knots, self._inverse
        return self._back(on_domain(rows, low, high, lambda rows: _quadratic(rows, *tables), self.size), x)

    def h_star(self, z: Tensor) -> Tensor:
        """The integral of sigma from 0 to z."""
        rows = widen(self._rows(z))
        return self._back(_quadratic(rows, self.knots, self._areas, self.values, self.slopes), z)

    def _rows(self, x: Tensor) -> Tensor:
        """One row for each spline."""
        if self.channels is None:
            return x.reshape(1, -1)
        if not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != self.channels:
            raise ShapeError(f"Spline: axis {self.channel_dim} of {tuple(x.shape)} must have {self.channels} channels")
        return x.movedim(self.channel_dim, 0).reshape(self.channels, -1)

    def _back(self, rows: Tensor, like: Tensor) -> Tensor:
        if self.channels is None:
            return rows.view(like.shape)
        return rows.view(like.movedim(self.channel_dim, 0).shape).movedim(0, self.channel_dim)


def _quadratic(x: Tensor, knots: Tensor, values: Tensor, slopes: Tensor, curvatures: Tensor) -> Tensor:
    """On each piece the polynomial with value and slope of its left knot and its own curvature."""
    distance, value, slope, curvature = _look_up(x, knots, values, slopes, curvatures)
    return value + distance * (slope + curvature * distance / 2)


def _look_up(x: Tensor, knots: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    """For x (channels, length): its distance from the left knot of its piece, and what each table says of the piece."""
    knots = knots.to(x)
    index = torch.searchsorted(knots, x.detach().contiguous(), right=True) - 1
    index = index.clamp(0, knots.shape[1] - 2)
    return x - knots.gather(1, index), *(table.to(x).gather(1, index) for table in tables)


def _places(limit: float | Tensor, values: Tensor) -> Tensor:
    """A knot for each value, (channels, K)."""
    if isinstance(limit, Tensor):
        return SplineTable(limit.detach().to(values), values).knots.clone()
    if not 0 < limit < math.inf:
        raise ConfigError(f"Spline: limit must be positive and finite, got {limit}")
    knots = torch.linspace(-limit, limit, values.shape[1], dtype=values.dtype, device=values.device)
    return knots.repeat(len(values), 1)


def _check_slopes(slopes: Tensor, rounding: Tensor) -> None:
    excess = torch.maximum(-slopes, slopes - 1) - rounding
    worst = int(excess.argmax())
    if excess.flatten()[worst] > 0:
        channel, piece = divmod(worst, slopes.shape[1])
        raise NotSupportedError(
            f"Spline: the slope of piece {piece} of channel {channel} is {float(slopes[channel, piece]):.6g}, but only "
            "slopes in [0, 1] make a proximal activation; sort the values to make the spline monotone, divide them by "
            "the steepest slope to make it 1-Lipschitz"
        )
