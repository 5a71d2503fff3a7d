"""What modules of learnable linear splines share, wherever their knots lie."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional import linear_spline, linear_spline_slope
from morphlightning.interfaces import API_VERSION, LipschitzSpec
from morphlightning.ops.plain import plain
from morphlightning.splines.constraint import Metric, SlopeConstraint
from morphlightning.splines.fitting import least_squares
from morphlightning.splines.starts import Function, Start, start
from morphlightning.splines.table import Scalars, SplineTable
from morphlightning.splines.tv2 import prox_tv2, tv2

if TYPE_CHECKING:
    from morphlightning.bregman import Spline

Projection = Literal["forward", "step"]
Extrapolation = Literal["linear", "constant"]
Constraint = str | Mapping[str, Any] | SlopeConstraint | None


class Applied(NamedTuple):
    """The splines as they are applied: f(scale x)/scale."""

    values: Tensor
    """(splines, K)."""
    knots: tuple[float, float] | Tensor
    """First and last of equally spaced ones, or a tensor (1 or splines, K)."""
    scale: Tensor | None
    """(splines,)."""


class SplineModule(nn.Module):
    """Learnable linear splines, under control of their slopes; the base of LinearSpline and NonuniformSpline.

    Attributes:
        values: Parameter (splines, K), what is learned; where ``projection="forward"`` these are brought into the
            constraint whenever they are used.
        log_scale: Parameter (splines,), the logarithm of the scale, or None.
        constraint: The :class:`SlopeConstraint`, or None.
    """

    api_version: ClassVar[str] = API_VERSION
    roles: ClassVar[Mapping[str, str]] = {"log_scale": "scale"}
    values: nn.Parameter

    def __init__(
        self,
        channels: int | None,
        channel_dim: int,
        groups: int | None,
        constraint: Constraint,
        projection: Projection,
        metric: Metric,
        extrapolation: Extrapolation,
        learn_scale: bool,
    ) -> None:
        super().__init__()
        _check_choice("projection", projection, ("forward", "step"))
        _check_choice("metric", metric, ("clip", "l2"))
        _check_choice("extrapolation", extrapolation, ("linear", "constant"))
        if groups is not None and (groups < 1 or (channels or 1) % groups):
            raise ConfigError(f"groups must divide channels, got groups={groups} and channels={channels}")
        self.channels, self.channel_dim, self.splines = channels, channel_dim, groups or channels or 1
        self.constraint = None if constraint is None else SlopeConstraint.of(constraint)
        self.projection, self.metric, self.extrapolation = projection, metric, extrapolation
        if extrapolation == "constant" and self.constraint and not self.constraint.min <= 0 <= self.constraint.max:
            raise ConfigError(f"constant extrapolation has slope 0, which {self.constraint} does not allow")
        self.log_scale = nn.Parameter(torch.zeros(self.splines)) if learn_scale else None
        self._kept: tuple[tuple[Tensor, ...], Applied] | None = None

    @abstractmethod
    def _places(self) -> tuple[float, float] | Tensor:
        """Where ``values`` lie: ends of equally spaced knots, or a tensor (1 or splines, K), at least float32."""

    # ------------------------------------------------------------------------------------------------ evaluation
    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of x; computed at least in float32."""
        values, knots, scale = self._applied()
        return self._evaluate(linear_spline, x, values if scale is None else values / scale[:, None], knots, scale)

    def derivative(self, x: Tensor) -> Tensor:
        """Slope at x, from the right at knots."""
        return self._evaluate(linear_spline_slope, x, *self._applied())

    def potential(self, x: Tensor) -> Tensor:
        """Integral from 0 to x."""
        if self.splines > 1:
            self._channels_each(x)  # a table alone would take any multiple of its splines
        return self.table().potential(x, self.channel_dim)

    def _evaluate(
        self,
        form: Callable[..., Tensor],
        x: Tensor,
        values: Tensor,
        knots: tuple[float, float] | Tensor,
        scale: Tensor | None,
    ) -> Tensor:
        dtype = x.dtype
        if len(values) == 1:
            values, knots = values[0], knots[0] if isinstance(knots, Tensor) else knots
            if scale is not None:
                x = x * scale  # one number
        else:
            each = self._channels_each(x)
            if scale is not None:
                x = x * _spread(scale, each).view(-1, *(1,) * (x.ndim - 1 - self.channel_dim % x.ndim))
            values = _spread(values, each)
            if isinstance(knots, Tensor):
                knots = knots[0] if len(knots) == 1 else _spread(knots, each)
        return form(x, values, knots, channel_dim=self.channel_dim).to(dtype)

    def _channels_each(self, x: Tensor) -> int:
        """How many channels share a spline."""
        if not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != self.channels:
            raise ShapeError(
                f"{type(self).__name__}: axis {self.channel_dim} of x {tuple(x.shape)} must have "
                f"{self.channels} channels"
            )
        return self.channels // self.splines

    # --------------------------------------------------------------------------------------------- what it knows
    def table(self) -> SplineTable:
        """The splines as they are applied, projected, extrapolated and scaled; differentiable."""
        values, knots, scale = self._applied()
        ends = None if isinstance(knots, Tensor) else knots
        table = SplineTable(_at(knots, values), values, ends)
        return table if scale is None else table.rescale(scale)

    def tv2(self) -> Tensor:
        """Second-order total variation of each spline, (splines,); differentiable. The scale does not matter."""
        values, knots, _ = self._applied()
        return tv2(values, knots)

    def lipschitz(self) -> Tensor:
        """Smallest Lipschitz constant of each spline, in float64 (splines,); differentiable."""
        values, knots, _ = self._applied()
        return SplineTable(_at(knots, values.double()), values.double()).lipschitz()

    def lipschitz_spec(self) -> LipschitzSpec:
        """The steepest slope of all; with ``constraint`` strict not above its bounds."""
        steepest = float(self.lipschitz().detach().max())
        if self.constraint is None or not self.constraint.strict:
            steepest = math.nextafter(steepest, math.inf)  # the division may have rounded it down
        return LipschitzSpec(steepest, "any", "any", True, "the steepest slope of its splines")

    def prox(self, weight: Scalars) -> SplineTable:
        """Proximal map of ``weight`` times the potential; as :meth:`SplineTable.prox`."""
        return self.table().prox(weight)

    def inverse(self) -> SplineTable:
        """Inverse functions; as :meth:`SplineTable.inverse`."""
        return self.table().inverse()

    def proximal(self) -> Spline:
        """It as a proximal activation; NotSupportedError unless all slopes lie in [0, 1]."""
        table = self.table()
        return self._proximal(table.values, table.knots)

    def _proximal(self, values: Tensor, limit: float | Tensor) -> Spline:
        from morphlightning.bregman import Spline

        each = (self.channels or 1) // self.splines
        limit = _spread(limit, each) if isinstance(limit, Tensor) else limit
        values = _spread(values, each)
        return Spline(values[0] if self.channels is None else values, limit, self.channel_dim)

    # ------------------------------------------------------------------------------------------------- changing it
    @torch.no_grad()
    def project_(self) -> None:
        """Bring the values into the constraint; where ``projection="forward"`` they are projected on use instead."""
        if self.projection == "step":
            self._project_()

    @torch.no_grad()
    def prox_tv2_(self, weight: float) -> None:
        """Replace the values between the knots by the proximal map of ``weight`` times their ``tv2``: fewer kinks.

        Of the values as they are applied; what ``extrapolation="constant"`` adds is left out.
        """
        self.values.copy_(prox_tv2(self._inside(), self._for_projection(), weight))

    @torch.no_grad()
    def fit_(self, target: Function | SplineTable | Start | tuple[Tensor, Tensor]) -> Self:
        """Learn a function now: interpolate it at the knots, or fit samples (x, y) of it by least squares.

        Samples have one shape, as inputs have. Where no sample says anything the spline goes on straight. What was
        found is then brought into the constraint.
        """
        scale = self.values.new_ones(self.splines, 1) if self.log_scale is None else self.log_scale.exp()[:, None]
        knots = _at(self._places(), self.values.double()).expand(self.splines, -1)
        if isinstance(target, tuple):
            x, y = (self._rows(t).double() * scale for t in target)
            values = least_squares(x, y, knots)
        else:
            values = start(target)(knots / scale) * scale
        self.values.copy_(values)
        self._project_()
        return self

    @torch.no_grad()
    def unconstrained(self) -> Self:
        """A copy that computes the same, with the values projected for good and no constraint; for inference."""
        settled = copy.deepcopy(self)
        settled.values.copy_(self._inside())
        settled.constraint = None
        return settled

    @torch.no_grad()
    def _project_(self) -> None:
        if self.constraint is not None:
            self.values.copy_(self.constraint.project(self.values, self._for_projection(), self.metric))

    def _for_projection(self) -> tuple[float, float] | Tensor:
        knots = self._places()
        return knots[0] if isinstance(knots, Tensor) and len(knots) == 1 else knots

    def _rows(self, x: Tensor) -> Tensor:
        """One row for each spline."""
        if self.splines == 1:
            return x.reshape(1, -1)
        self._channels_each(x)
        return x.movedim(self.channel_dim, 0).reshape(self.splines, -1)

    # ----------------------------------------------------------------------------------------- what is applied
    def _applied(self) -> Applied:
        """Values, knots and scale; in evaluation mode and without gradients kept until a parameter or buffer changes.

        Numbers are compared: fused optimizers and edits of ``.data`` leave version counters as they are.
        """
        if self.training:
            return self._compute()
        tensors = (*self.parameters(), *self.buffers())
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if wanted or not plain(*tensors) or _captured(self.values):
            return self._compute()
        if self._kept is None or not all(map(_same, self._kept[0], tensors)):
            with torch.inference_mode(False), torch.no_grad():
                self._kept = tuple(t.clone() for t in tensors), self._compute()
        return self._kept[1]

    def _compute(self) -> Applied:
        values, knots = self._inside(), self._places()
        if self.extrapolation == "constant":
            values = torch.cat([values[:, :1], values, values[:, -1:]], 1)
            knots = _with_one_more_at_each_end(knots, values.shape[1])
        return Applied(values, knots, None if self.log_scale is None else self.log_scale.to(values.dtype).exp())

    def _inside(self) -> Tensor:
        """The values at the knots, at least in float32, projected where that happens on use."""
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        if self.constraint is None or self.projection == "step":
            return values
        return self.constraint.project(values, self._for_projection(), self.metric)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train; what was kept for evaluation is dropped."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = None
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Without what was kept for evaluation."""
        return self.__dict__ | {"_kept": None}

    def extra_repr(self) -> str:
        """Number of splines and knots, and the constraint."""
        described = f"splines={self.splines}, knots={self.values.shape[1]}"
        return described if self.constraint is None else f"{described}, {self.constraint}, {self.projection}"


def _spread(rows: Tensor, each: int) -> Tensor:
    """Each row for so many neighbouring channels."""
    return rows if each == 1 else rows.repeat_interleave(each, 0)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being recorded, which cannot wait for a comparison."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _at(knots: tuple[float, float] | Tensor, values: Tensor) -> Tensor:
    """All knots (1 or splines, K), in the dtype of the values."""
    if isinstance(knots, Tensor):
        return knots.to(values.dtype)
    return torch.linspace(*knots, values.shape[1], dtype=values.dtype, device=values.device)[None]


def _with_one_more_at_each_end(knots: tuple[float, float] | Tensor, count: int) -> tuple[float, float] | Tensor:
    """Knots spaced on as they are; ``count`` in the end."""
    if isinstance(knots, Tensor):
        before, after = 2 * knots[:, :1] - knots[:, 1:2], 2 * knots[:, -1:] - knots[:, -2:-1]
        return torch.cat([before, knots, after], 1)
    low, high = knots
    width = (high - low) / (count - 3)
    return low - width, high + width


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
