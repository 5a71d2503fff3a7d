"""Bounds of the slopes of linear splines: what they guarantee, and how values are brought into them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.splines.projection import clip_steps, nearest_steps

Knots = tuple[float, float] | Tensor
"""First and last of equally spaced knots, or ascending knots ``(K,)``, or ``(splines, K)``."""
Metric = Literal["clip", "l2"]
_PROJECTIONS = {"clip": clip_steps, "l2": nearest_steps}
_TRIES = 8  # the margin of a strict projection doubles from one to the next


@dataclass(frozen=True)
class SlopeConstraint:
    r"""Linear splines with slopes in [min, max] everywhere.

    Args:
        min: Least slope.
        max: Largest slope.
        odd: f(-x) = -f(x) besides; needs knots that are symmetric about 0.
        level_ends: The outer pieces are level, so that f is constant outside the knots.
        strict: Projected values, rounded to their dtype, lie exactly inside: float64 slopes of them are in [min, max].
            Otherwise they may be outside by rounding, at most ``8 eps max(|bound|, max|values|/width)`` with the
            dtype's eps.

    Raises:
        ConfigError: min > max, no slope is in the bounds, or level ends that the bounds exclude.

    Source: the slope-constrained splines of Unser et al. (arXiv 2408.13114).
    """

    min: float = -math.inf
    max: float = math.inf
    odd: bool = False
    level_ends: bool = False
    strict: bool = False

    NAMED: ClassVar[dict[str, tuple[float, float]]] = {
        "lipschitz": (-1.0, 1.0),
        "firmly_nonexpansive": (0.0, 1.0),
        "monotone": (0.0, math.inf),
    }

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not self.min <= self.max or self.min == math.inf or self.max == -math.inf:
            raise ConfigError(f"slopes in [{self.min}, {self.max}]: expected min <= max, not both the same infinity")
        if self.level_ends and not self.min <= 0 <= self.max:
            raise ConfigError(f"level ends have slope 0, which is not in [{self.min}, {self.max}]")

    @classmethod
    def of(cls, spec: str | Mapping[str, Any] | SlopeConstraint | None) -> SlopeConstraint:
        """A constraint from its name, its arguments, itself, or None for none.

        Names: ``lipschitz`` [-1, 1], ``firmly_nonexpansive`` [0, 1], ``monotone`` [0, inf).

        Raises:
            ConfigError: Unknown name or argument.
        """
        if isinstance(spec, SlopeConstraint):
            return spec
        if spec is None:
            return cls()
        if isinstance(spec, str):
            if spec not in cls.NAMED:
                raise ConfigError(f"unknown slope constraint {spec!r}; there are {', '.join(cls.NAMED)}")
            return cls(*cls.NAMED[spec])
        if not isinstance(spec, Mapping):
            raise ConfigError(f"slope constraint {spec!r}: expected a name, a mapping, a SlopeConstraint or None")
        try:
            return cls(**spec)
        except TypeError as error:
            fields = ", ".join(cls.__dataclass_fields__)
            raise ConfigError(f"slope constraint {dict(spec)}: {error}; the arguments are {fields}") from error

    # --------------------------------------------------------------------------------------------- guarantees
    @property
    def lipschitz(self) -> float:
        """The Lipschitz constant that is guaranteed, infinite for none."""
        return max(abs(self.min), abs(self.max))

    @property
    def monotone(self) -> bool:
        """Whether f cannot decrease: it is the derivative of a convex potential."""
        return self.min >= 0

    @property
    def firmly_nonexpansive(self) -> bool:
        """Whether f is a proximal map of a convex function."""
        return self.min >= 0 and self.max <= 1

    @property
    def invertible(self) -> bool:
        """Whether f strictly increases."""
        return self.min > 0

    @property
    def weak_convexity(self) -> float:
        """The rho for which potential + rho/2 x^2 is convex, where f is the potential's derivative."""
        return max(0.0, -self.min)

    # --------------------------------------------------------------------------------------------- projection
    def project(self, values: Tensor, knots: Knots, metric: Metric = "clip") -> Tensor:
        r"""Values that obey, of the shape and dtype of ``values``; computed in float64, differentiable.

        ``l2`` gives the nearest ones, ``clip`` clips slopes, integrates again and keeps each spline's mean, as the
        papers do. The nearest *odd* values are the nearest values to the odd part: the map n -> -flip(n) is an
        isometry that keeps the bounds, so that the projection of odd values is odd, and with
        :math:`\|n - c\|^2 = \|n - c_{odd}\|^2 + \|c_{odd} - c\|^2` for odd n the second term is constant.

        Args:
            values: ``(splines, K)``.
            knots: Where they lie; gradients flow to a tensor of knots, too.
            metric: ``clip`` or ``l2``.

        Raises:
            ShapeError: values or knots have other shapes.
            ConfigError: Unknown metric, knots unfit for odd splines, or bounds too narrow for ``strict`` in this dtype.
        """
        if metric not in _PROJECTIONS:
            raise ConfigError(f"metric={metric!r}: expected one of {', '.join(_PROJECTIONS)}")
        widths = self._widths(values, knots)
        if self == SlopeConstraint(strict=self.strict):
            return values
        if not self.strict:
            return self._projected(values.double(), widths, self._bounds(widths), metric).to(values.dtype)
        return self._strictly(values, widths, metric)

    def _strictly(self, values: Tensor, widths: Tensor, metric: Metric) -> Tensor:
        """Shrink the bounds by what rounding moves slopes, more and more until none is outside."""
        lower, upper = self._bounds(widths)
        eps, margin = torch.finfo(values.dtype).eps, torch.zeros_like(lower)
        for _ in range(_TRIES):
            if (lower + margin > upper - margin).any():
                break
            projected = self._projected(values.double(), widths, (lower + margin, upper - margin), metric)
            stored = projected.to(values.dtype)
            with torch.no_grad():
                if not (self._violations(stored, widths) > 0).any():
                    return stored
                rounding = eps * (projected.abs().amax(-1, keepdim=True) / widths + self._largest_bound)
                margin = torch.where(lower == upper, 0.0, torch.maximum(2 * margin, rounding))
        raise ConfigError(
            f"slopes in [{self.min}, {self.max}] cannot be kept strictly in {values.dtype} with pieces as narrow as "
            f"{widths.min().item():.3g} and values up to {values.abs().max().item():.3g}; widen the bounds or the "
            "pieces, take a wider dtype, or strict=False"
        )

    def _projected(self, values: Tensor, widths: Tensor, bounds: tuple[Tensor, Tensor], metric: Metric) -> Tensor:
        low, high = (bound * widths for bound in bounds)
        if self.odd:  # a mean is lost in the end: rounding must not be measured by it
            values = _odd_part(values) if metric == "l2" else values - values.mean(-1, keepdim=True)
        projected = _PROJECTIONS[metric](values, low, high)
        return _odd_part(projected) if self.odd else projected

    def _bounds(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of each piece's slope; the largest number instead of infinity, so that 0 times it is 0."""
        largest = torch.finfo(torch.float64).max
        lower = torch.full_like(widths, max(self.min, -largest))
        upper = torch.full_like(widths, min(self.max, largest))
        if self.level_ends:
            for bound in (lower, upper):
                bound[..., 0] = bound[..., -1] = 0
        return lower, upper

    def _widths(self, values: Tensor, knots: Knots) -> Tensor:
        """Widths of the pieces, float64, ``(K - 1,)`` or ``(splines, K - 1)``."""
        if values.ndim != 2 or values.shape[1] < 2:
            raise ShapeError(f"values has shape {tuple(values.shape)}, expected (splines, K) with K >= 2")
        pieces = values.shape[1] - 1
        if not isinstance(knots, Tensor):
            low, high = knots
            if not low < high:
                raise ConfigError(f"the last knot must be above the first, got {tuple(knots)}")
            if self.odd and low != -high:
                raise ConfigError(f"an odd spline needs knots symmetric about 0, got {tuple(knots)}")
            return values.new_full((pieces,), (high - low) / pieces, dtype=torch.float64)
        if knots.shape not in (values.shape, values.shape[1:]):
            raise ShapeError(f"values {tuple(values.shape)} need as many knots, got {tuple(knots.shape)}")
        wide = knots.double()
        if self.odd:
            skew = (wide + wide.flip(-1)).abs().max() / wide.abs().max()
            if not skew <= 8 * torch.finfo(knots.dtype).eps:
                raise ConfigError(f"an odd spline needs knots symmetric about 0; these are not, by {skew:.2g}")
        return wide.diff(dim=-1)

    # --------------------------------------------------------------------------------------------- verification
    def excess(self, values: Tensor, knots: Knots) -> float:
        """By how much a slope, computed in float64, exceeds its bounds at most; 0 where none does."""
        return float(self._violations(values, self._widths(values, knots)).max().clamp_min(0))

    def admits(self, values: Tensor, knots: Knots) -> bool:
        """Whether the values obey: exactly where strict, else within ``8 eps max(|bound|, max|values|/width)``."""
        return self._fault(values, knots) is None

    def check(self, values: Tensor, knots: Knots) -> None:
        """Require that the values obey.

        Raises:
            ConfigError: They do not; the message names the worst spline and piece, its slope and the bounds.
        """
        fault = self._fault(values, knots)
        if fault is not None:
            raise ConfigError(fault)

    @torch.no_grad()
    def _fault(self, values: Tensor, knots: Knots) -> str | None:
        widths = self._widths(values, knots)
        eps = 0.0 if self.strict else 8 * torch.finfo(values.dtype).eps
        size = values.double().abs().amax(-1, keepdim=True)
        beyond = self._violations(values, widths) - eps * (size / widths).clamp_min(self._largest_bound)
        if not (beyond <= 0).all():
            spline, piece = divmod(int(beyond.nan_to_num(math.inf).argmax()), beyond.shape[1])
            slope = (values.double().diff(dim=-1) / widths)[spline, piece].item()
            level = self.level_ends and piece in (0, beyond.shape[1] - 1)
            low, high = (0, 0) if level else (self.min, self.max)
            return (
                f"spline {spline}, piece {piece}: slope {slope:.9g} is not in [{low:.9g}, {high:.9g}]; project() first"
            )
        if self.odd and not ((values + values.flip(-1)).abs() <= eps * size).all():
            return "the splines are not odd: f(-x) = -f(x) does not hold at their knots; project() first"
        return None

    @property
    def _largest_bound(self) -> float:
        return max((abs(bound) for bound in (self.min, self.max) if math.isfinite(bound)), default=0.0)

    def _violations(self, values: Tensor, widths: Tensor) -> Tensor:
        """How far each slope is outside its bounds, negative inside."""
        lower, upper = self._bounds(widths.detach())
        slopes = values.detach().double().diff(dim=-1) / widths.detach()
        return torch.maximum(lower - slopes, slopes - upper)


def _odd_part(values: Tensor) -> Tensor:
    return (values - values.flip(-1)) / 2
