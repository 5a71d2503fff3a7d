"""What a derivative rule or a message heuristic sees of one operator call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.interfaces import ActiveChunk, ActiveGraph
from morphlightning.ops import eager
from morphlightning.ops.geometry import Dense, Geometry, Window
from morphlightning.ops.soft import log_sum_exp_plus


class OperatorView:
    """One call of a max-plus operator, flattened: x (samples, cells), w (taps,), outputs (samples, units).

    A dual operator is seen as the max-plus one inside it, whose input is -x.
    """

    def __init__(self, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry) -> None:
        dtype = eager.compute_dtype(x, w)
        self._x = (-x if geometry.dual else x).to(dtype)
        self._w, self._arg, self._gap = w.to(dtype), arg, gap
        self._geometry, self._backend = replace(geometry, dual=False), backends.backend_for(x)
        self._graphs: dict[float, ActiveGraph] = {}
        self.w, self.gap = self._w.flatten(), gap.flatten(1)

    @cached_property
    def x(self) -> Tensor:
        """Input, +inf replaced by the largest number."""
        return eager.bounded(self._x).flatten(1)

    @property
    def arg(self) -> Tensor:
        """Winning tap of each row, inside the row's candidates."""
        return self._arg.flatten(1)

    @property
    def samples(self) -> int:
        """Size of the batch."""
        return self._x.shape[0]

    @property
    def cells(self) -> int:
        """Number of input values of one sample."""
        return math.prod(self._x.shape[1:])

    @property
    def units(self) -> int:
        """Number of output values of one sample."""
        return self.gap.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """The max-plus operator of another input (samples, cells): (samples, units)."""
        return self._backend.value(x.view(self._x.shape), self._w, self._geometry).flatten(1)

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint erosion of y (samples, units): the greatest x (samples, cells) with forward(x) <= y."""
        where, (outs, taps) = self._geometry, self._w.flatten(1).shape
        if isinstance(where, Dense):
            transposed = self._w.unflatten(0, (where.groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
            return self._backend.value(y, transposed, replace(where, dual=True))
        unit = torch.arange(self.units, device=y.device)
        weights = self._w.view(outs, taps).repeat_interleave(self.units // outs, 0)
        least = y.new_full((len(y), self.cells + 1), math.inf)
        for tap in range(taps):
            cell = where.cell(unit, torch.full_like(unit, tap), self._x.shape, self._w.shape)
            cell = torch.where(cell < 0, self.cells, cell).expand(len(y), -1)
            least.scatter_reduce_(1, cell, y - weights[:, tap], "amin")
        return least[:, :-1].contiguous()

    def scatter(self, gy: Tensor, *, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Send each message (samples, units) to its winner: gradients (samples, cells) and (taps,)."""
        gx, gw = self._backend.scatter(
            gy.view(self._arg.shape), self._arg, self._x.shape, self._w.shape, self._geometry, want_x, want_w
        )
        return gx.flatten(1) if want_x else gx, gw.flatten()

    def touches(self, gy: Tensor) -> Tensor:
        """Count, for each weight, the rows with a message different from zero that selected it."""
        return self._backend.touches(gy.view(self._arg.shape), self._arg, self._w.shape, self._geometry).flatten()

    def active(self, eps: float) -> ActiveGraph:
        """The graph of candidates within eps of their maximum, made once."""
        if eps not in self._graphs:
            self._graphs[eps] = self._backend.active(self._x, self._w, self._arg, self._gap, self._geometry, eps)
        return self._graphs[eps]

    def expected(self, gy: Tensor, beta: float, *, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Share messages (samples, units) out by softmax(beta * scores): the gradient of log-sum-exp."""
        with torch.enable_grad():
            x, w = self._x.detach().requires_grad_(want_x), self._w.detach().requires_grad_(want_w)
            y = self._log_sum_exp(x, w, torch.as_tensor(beta, dtype=x.dtype, device=x.device))
            wanted = [leaf for leaf in (x, w) if leaf.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, gy.view(y.shape)))
        none = gy.new_empty(0)
        return next(found).flatten(1) if want_x else none, next(found).flatten() if want_w else none

    def _log_sum_exp(self, x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
        where = self._geometry
        if isinstance(where, Dense):
            parts = zip(x.chunk(where.groups, 1), w.chunk(where.groups), strict=True)
            return torch.cat([log_sum_exp_plus(part, weights, beta) for part, weights in parts], 1)
        return log_sum_exp_plus(where.pad(x), w, beta, replace(where.inside, flat=False))

    def projection(self, u: Tensor, tau: float, *, count: bool) -> tuple[Tensor, Tensor]:
        """Pseudo-gradients (w - w') / tau of the metric projections w' of each row on {maximum = y - tau u}."""
        moved, touched = self._backend.project(
            u.view(self._arg.shape), self._x, self._w, self._arg, self._gap, self._geometry, tau, count
        )
        return moved.flatten(), touched.flatten()

    def chunks(self, rows: Tensor, eps: float) -> Iterator[ActiveChunk]:
        """Active sets of the rows marked in ``rows`` (samples, units), whole samples at a time."""
        fan_in = self._geometry.fan_in(self._w.shape)
        per_sample = rows.sum(1)
        todo = per_sample.nonzero()[:, 0]
        if len(todo) == 0:
            return
        together = max(1, eager.BUDGET // (int(per_sample.max()) * fan_in))
        for part in todo.split(together):
            position, unit = rows[part].nonzero(as_tuple=True)
            yield self._active_chunk(part[position], unit, eps, max(1, eager.BUDGET // fan_in))

    def _active_chunk(self, sample: Tensor, unit: Tensor, eps: float, at_once: int) -> ActiveChunk:
        """Active pairs of the given rows; scores are computed ``at_once`` rows at a time."""
        found, first = [], 0
        for s, u in zip(sample.split(at_once), unit.split(at_once), strict=True):
            found.append(self._pairs(s, u, eps, first))
            first += len(s)
        owner, cell, tap, slack, winner = (torch.cat(column) for column in zip(*found, strict=True))
        return ActiveChunk(sample, unit, owner, cell, tap, slack, winner, torch.bincount(owner, minlength=len(sample)))

    def _pairs(self, sample: Tensor, unit: Tensor, eps: float, first: int) -> tuple[Tensor, ...]:
        fan_in = self._geometry.fan_in(self._w.shape)
        local = torch.arange(fan_in, device=unit.device)
        cell = self._geometry.cell(unit[:, None], local, self._x.shape, self._w.shape)
        tap = unit[:, None] // (self.units // self._w.shape[0]) * fan_in + local
        inputs = self.x[sample[:, None], cell]
        if isinstance(self._geometry, Window):
            outside = self._geometry.fill if self._geometry.border == "constant" else -math.inf
            inputs = eager.bounded(inputs.masked_fill(cell < 0, outside))
        # the same sum in the same dtype as in the forward pass: else an exact tie would be missed
        scores = inputs + self.w[tap]
        slack = scores.amax(1, keepdim=True) - scores
        owner, at = ((slack <= eps) & (scores > -math.inf)).nonzero(as_tuple=True)
        winner = at == self.arg[sample, unit][owner]
        return owner + first, cell[owner, at], tap[owner, at], slack[owner, at], winner
