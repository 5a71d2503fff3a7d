"""Learnable linear splines as modules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.splines.base import Constraint, Extrapolation, Projection, SplineModule
from morphlightning.splines.constraint import Metric
from morphlightning.splines.starts import Function, Start, start
from morphlightning.splines.table import SplineTable

if TYPE_CHECKING:
    from morphlightning.bregman import Spline

Limit = float | Sequence[float] | Tensor
_NARROWEST = 1e-3  # of the mean width of pieces between learned knots


class LinearSpline(SplineModule):
    r"""Continuous, piecewise linear, with equally spaced knots :math:`t_k` and values :math:`c_k` to learn.

    :math:`f(x) = c_k + (c_{k+1} - c_k)(x - t_k)/h` on piece k; the outer pieces go on as straight lines. NaN gives NaN.

    Args:
        channels: One spline for each channel, or None for one spline.
        channel_dim: The axis of the channels.
        knots: Number of knots, >= 2.
        limit: The knots lie on [-limit, limit]; or (low, high); or a tensor of data, whose range is taken.
        init: The function to start from: a name, a function, or a SplineTable. It is brought into the constraint.
        groups: That many splines, each shared by neighbouring channels; None for one each.
        constraint: Bounds of the slopes: what :meth:`SlopeConstraint.of` takes. None for no bounds.
        projection: ``forward`` brings the values into the constraint whenever they are used, and gradients pass through
            that; ``step`` after each optimizer step (``project_``, which models call).
        metric: ``clip``, or ``l2`` for the nearest values; as :meth:`SlopeConstraint.project`.
        extrapolation: ``linear``, or ``constant`` outside the knots.
        learn_scale: Learn :math:`\alpha > 0` in :math:`f(\alpha x)/\alpha`, which leaves slopes as they are.

    Raises:
        ConfigError: Any of these that cannot work.

    Source: the B-spline form of learnable linear splines (Bohra et al. 2020; Unser et al., arXiv 2408.13114).
    """

    def __init__(
        self,
        channels: int | None = None,
        channel_dim: int = 1,
        knots: int = 51,
        limit: Limit = 3.0,
        init: Start | Function | SplineTable = "relu",
        groups: int | None = None,
        constraint: Constraint = None,
        projection: Projection = "forward",
        metric: Metric = "clip",
        extrapolation: Extrapolation = "linear",
        learn_scale: bool = False,
    ) -> None:
        super().__init__(channels, channel_dim, groups, constraint, projection, metric, extrapolation, learn_scale)
        self.ends = _ends(limit)
        places = torch.linspace(*self.ends, _at_least_two(knots)).expand(self.splines, -1)
        self.values = nn.Parameter(start(init)(places).clone())
        self._project_()

    def _places(self) -> tuple[float, float]:
        return self.ends

    def get_extra_state(self) -> Tensor:
        """The first and the last knot, which no change of device or dtype may round."""
        return torch.tensor(self.ends, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore them from a checkpoint."""
        low, high = state.tolist()
        self.ends, self._kept = (low, high), None

    def prune(self, tolerance: float) -> NonuniformSpline:
        """With the fewest knots that move no value by more than ``tolerance``; as :meth:`SplineTable.prune`."""
        return _pruned(self, tolerance)

    def proximal(self) -> Spline:
        """It as a proximal activation; NotSupportedError unless all slopes lie in [0, 1]."""
        values, ends, scale = self._applied()
        if scale is not None or ends[0] != -ends[1]:
            return super().proximal()
        return self._proximal(values, float(ends[1]))


class NonuniformSpline(SplineModule):
    r"""Continuous, piecewise linear, with knots where they are wanted: given, placed by data, or learned.

    Args:
        channels: One spline for each channel, or None for one spline.
        channel_dim: The axis of the channels.
        knots: Increasing positions ``(K,)``, or ``(splines, K)``; or their number, for equally spaced ones to start
            from (see :meth:`adapt_`).
        limit: As for LinearSpline, where ``knots`` is a number.
        init: As for LinearSpline.
        groups: As for LinearSpline.
        constraint: As for LinearSpline.
        projection: As for LinearSpline.
        metric: As for LinearSpline.
        extrapolation: As for LinearSpline.
        learn_scale: As for LinearSpline.
        learn_knots: Learn the inner knots, by a softmax of their distances between the ends, which stay. No piece
            becomes narrower than 1/1000 of the mean. Those of an odd spline stay symmetric about 0.
        share_knots: One set of knots for all splines, which is faster, unless ``knots`` has a row for each.

    Raises:
        ConfigError: Any of these that cannot work, such as knots that are not increasing.

    Source: the nonuniform linear splines of Unser et al. (arXiv 2408.13114).
    """

    knots: Tensor

    def __init__(
        self,
        channels: int | None = None,
        channel_dim: int = 1,
        knots: int | Sequence[float] | Tensor = 21,
        limit: Limit = 3.0,
        init: Start | Function | SplineTable = "relu",
        groups: int | None = None,
        constraint: Constraint = None,
        projection: Projection = "forward",
        metric: Metric = "clip",
        extrapolation: Extrapolation = "linear",
        learn_scale: bool = False,
        learn_knots: bool = False,
        share_knots: bool = True,
    ) -> None:
        super().__init__(channels, channel_dim, groups, constraint, projection, metric, extrapolation, learn_scale)
        places = self._given(knots, limit, share_knots)
        self.register_buffer("knots", places.clone())
        self.logits = nn.Parameter(torch.zeros(len(places), places.shape[1] - 1)) if learn_knots else None
        self._set_knots(places)
        self.values = nn.Parameter(start(init)(self._places().detach().expand(self.splines, -1)).clone())
        self._project_()

    def _given(self, knots: int | Sequence[float] | Tensor, limit: Limit, share_knots: bool) -> Tensor:
        if isinstance(knots, int):
            places = torch.linspace(*_ends(limit), _at_least_two(knots))[None]
        else:
            places = torch.as_tensor(knots, dtype=torch.get_default_dtype()).detach()
            places = places[None] if places.ndim == 1 else places
            if places.ndim != 2 or places.shape[1] < 2 or len(places) not in (1, self.splines):
                raise ConfigError(
                    f"knots must be a number, K >= 2 positions or {self.splines} rows of them, got a tensor of shape "
                    f"{tuple(torch.as_tensor(knots).shape)}"
                )
        SplineTable(places, torch.zeros_like(places))  # raises unless they increase
        return places if share_knots else places.expand(self.splines, -1)

    def _places(self) -> Tensor:
        knots = self.knots.to(torch.promote_types(self.knots.dtype, torch.float32))
        if self.logits is None:
            return knots
        low, high = knots[:, :1], knots[:, -1:]
        share = (1 - _NARROWEST) * self.logits.to(knots.dtype).softmax(1) + _NARROWEST / self.logits.shape[1]
        places = torch.cat([low, low + (high - low) * share[:, :-1].cumsum(1), high], 1)
        odd = self.constraint is not None and self.constraint.odd
        return (places - places.flip(1)) / 2 if odd else places

    @torch.no_grad()
    def _set_knots(self, knots: Tensor) -> None:
        self.knots.copy_(knots)
        if self.logits is not None:
            share = knots.diff(dim=1) / (knots[:, -1:] - knots[:, :1])
            free = (share - _NARROWEST / share.shape[1]).clamp_min(_NARROWEST / share.shape[1])
            self.logits.copy_(free.log())

    @torch.no_grad()
    def adapt_(self, samples: Tensor, uniform: float = 0.02) -> Self:
        """Move the knots to quantiles of samples, and interpolate the function there.

        The knot nearest to a kink is moved onto it, the strongest kinks first, so that a function with fewer kinks than
        knots stays as it is between the least and the largest sample.

        Args:
            samples: Inputs, of any shape that ``forward`` takes.
            uniform: The share of equally spaced knots that is blended in, which keeps knots apart; in (0, 1].

        Raises:
            ConfigError: uniform lies outside (0, 1], or samples are fewer than two, equal, or not finite.
        """
        if not 0 < uniform <= 1:
            raise ConfigError(f"uniform must lie in (0, 1], got {uniform}")
        before = SplineTable(self._places(), self._inside()).double()
        scale = self.values.new_ones(self.splines) if self.log_scale is None else self.log_scale.exp()
        rows = self._rows(samples).double() * scale[:, None]
        rows = rows.reshape(len(self.knots), -1)
        if rows.shape[1] < 2 or not bool((rows.amax(1) > rows.amin(1)).all()) or not bool(rows.isfinite().all()):
            raise ConfigError("adapt_: samples must be finite and not all equal, at least two for each spline")
        knots = _quantiles(rows, self.knots.shape[1], uniform)
        bends = before.slopes.diff(dim=1).abs()
        if len(knots) == 1:  # shared knots lie in the same places for all splines
            bends = bends.sum(0, keepdim=True)
        for row, places, strength in zip(knots, before.knots, bends, strict=False):
            _move_onto_kinks(row, places[1:-1], strength)
        self._set_knots(knots.to(self.knots.dtype))
        self.values.copy_(before(self._places().double().expand(self.splines, -1), channel_dim=0))
        return self

    def prune(self, tolerance: float) -> NonuniformSpline:
        """With the fewest knots that move no value by more than ``tolerance``; as :meth:`SplineTable.prune`."""
        return _pruned(self, tolerance)


def _quantiles(rows: Tensor, count: int, uniform: float) -> Tensor:
    """Quantiles of each row at equal distances, from the least to the largest, blended with equally spaced numbers."""
    at = torch.linspace(0, 1, count, dtype=rows.dtype, device=rows.device)
    ordered = rows.sort(1).values
    low, high = ordered[:, :1], ordered[:, -1:]
    return uniform * (low + (high - low) * at) + (1 - uniform) * ordered[:, ((rows.shape[1] - 1) * at).round().long()]


def _move_onto_kinks(knots: Tensor, kinks: Tensor, strength: Tensor) -> None:
    """Move inner knots, in place, onto neighbouring kinks, the strongest first, each knot once."""
    taken = torch.zeros(len(knots), dtype=torch.bool)
    taken[[0, -1]] = True
    for kink in kinks[strength.argsort(descending=True)][: int((strength > 0).sum())]:
        right = int(torch.searchsorted(knots, kink))
        free = [i for i in (right - 1, right) if 0 < right < len(knots) and not taken[i]]
        if free:
            nearest = min(free, key=lambda i: float((knots[i] - kink).abs()))
            knots[nearest], taken[nearest] = kink, True


def _pruned(module: SplineModule, tolerance: float) -> NonuniformSpline:
    table = module.table().prune(tolerance)
    constraint = module.constraint
    if constraint is not None and constraint.odd:  # pruned knots need not be symmetric
        constraint = dataclasses.replace(constraint, odd=False)
    pruned = NonuniformSpline(
        module.channels,
        module.channel_dim,
        knots=table.knots,
        init=table,
        groups=None if module.channels is None else module.splines,
        constraint=constraint,
        projection=module.projection,
        metric=module.metric,
        share_knots=module.splines == 1,
    )
    return pruned.to(table.values).train(module.training)


def _ends(limit: Limit) -> tuple[float, float]:
    given = torch.as_tensor(limit, dtype=torch.float64)
    low, high = (-float(given), float(given)) if given.ndim == 0 else (float(given.min()), float(given.max()))
    if not (low < high and math.isfinite(high - low)):
        raise ConfigError(f"limit must be > 0, or (low, high) with low < high, got {limit}")
    return low, high


def _at_least_two(knots: int) -> int:
    if knots < 2:
        raise ConfigError(f"knots must be >= 2, got {knots}")
    return knots
