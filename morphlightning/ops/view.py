"""What a derivative rule or a message heuristic sees of one operator call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.interfaces import ActiveChunk
from morphlightning.ops import eager
from morphlightning.ops.geometry import Geometry, Window


class OperatorView:
    """One call of a max-plus operator, flattened: x (samples, cells), w (taps,), outputs (samples, units).

    A dual operator is seen as the max-plus one inside it, whose input is -x.
    """

    def __init__(self, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry) -> None:
        dtype = eager.compute_dtype(x, w)
        self._x = (-x if geometry.dual else x).to(dtype)
        self._w, self._arg, self._gap = w.to(dtype), arg, gap
        self._geometry, self._backend = replace(geometry, dual=False), backends.backend_for(x)
        self.w, self.gap = self._w.flatten(), gap.flatten(1)

    @cached_property
    def x(self) -> Tensor:
        """Input, +inf replaced by the largest number."""
        return eager.bounded(self._x).flatten(1)

    @cached_property
    def arg(self) -> Tensor:
        """Winning tap of each row, inside the row's candidates."""
        return self._arg.flatten(1).long()

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

    def scatter(self, gy: Tensor) -> tuple[Tensor, Tensor]:
        """Send each message (samples, units) to its winner: gradients (samples, cells) and (taps,)."""
        gx, gw = self._backend.scatter(
            self._rows(gy), self._arg, self._x.shape, self._w.shape, self._geometry, True, True
        )
        return gx.flatten(1), gw.flatten()

    def touches(self, gy: Tensor) -> Tensor:
        """Count, for each weight, the rows with a message different from zero that selected it."""
        return self._backend.touches(self._rows(gy), self._arg, self._w.shape, self._geometry).flatten()

    def counts(self, eps: float) -> Tensor:
        """Number of candidates within eps of the maximum of each row (samples, units), int32; 0 where there is none."""
        counted = self._backend.counts(self._x, self._w, self._arg, self._gap, self._geometry, eps)
        return counted.flatten(1)

    def spread(self, to_cells: Tensor, to_taps: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Send messages (samples, units) to all candidates within eps: gradients (samples, cells) and (taps,)."""
        rows = self._rows(to_cells), self._rows(to_taps)
        gx, gw = self._backend.spread(*rows, self._x, self._w, self._arg, self._gap, self._geometry, eps)
        return gx.flatten(1), gw.flatten()

    def _rows(self, messages: Tensor) -> Tensor:
        return messages.view(self._arg.shape)

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
            yield self._active(part[position], unit, eps, max(1, eager.BUDGET // fan_in))

    def _active(self, sample: Tensor, unit: Tensor, eps: float, at_once: int) -> ActiveChunk:
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
