"""Which candidates are active in which rows: the specification, recomputed some samples or one tap at a time.

Backends that keep lists of active candidates, or kernels for some of the passes, must give the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning import backends
from morphlightning.ops import eager
from morphlightning.ops.geometry import Geometry
from morphlightning.ops.messages import steepest


class Call(NamedTuple):
    """A call of a max-plus operator that is no dual one: x (samples, ...), w (out, ...), winners and gaps."""

    x: Tensor
    w: Tensor
    arg: Tensor
    gap: Tensor
    where: Geometry


class ActiveGraph:
    """The bipartite graph of rows and cells; see :class:`morphlightning.interfaces.ActiveGraph`."""

    def __init__(self, call: Call, eps: float) -> None:
        self.call, self.eps = call, eps
        self.cells, self.units = math.prod(call.x.shape[1:]), math.prod(call.arg.shape[1:])

    @cached_property
    def size(self) -> Tensor:
        """Number of active candidates of each row (samples, units), int32; 0 where there is none."""
        total = torch.zeros_like(self.call.arg.flatten(1))
        for rows, _, active in self._active():
            total[rows] += active.sum(-1, dtype=torch.int32)
        return total

    @cached_property
    def tied(self) -> bool:
        """Whether some row has more than one."""
        return bool((self.call.gap <= self.eps).any())

    def to_cells(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the cells of all its candidates: sums (samples, cells)."""
        gx = gy.new_zeros(len(gy), self.cells + 1)
        for rows, taps, active in self._active():
            gx[rows].index_add_(1, self._cell(taps).flatten(), (active * gy[rows][..., None]).flatten(1))
        return gx[:, :-1].contiguous()

    def to_taps(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the weights of all its candidates: sums (taps,)."""
        w, gw = self.call.w, gy.new_zeros(self.call.w.numel())
        unit = torch.arange(self.units, device=w.device)
        first = unit // (self.units // w.shape[0]) * self.call.where.fan_in(w.shape)
        for rows, taps, active in self._active():
            sent = (active * gy[rows][..., None]).sum(0)
            gw.index_add_(0, (first[:, None] + taps).flatten(), sent.flatten())
        return gw

    def to_cells_by_sign(self, gy: Tensor) -> Tensor:
        """Messages above 0 to the cells of all candidates, below 0 to the one with the least sum of the former."""
        lowered = self.to_cells(gy.clamp_min(0))
        return lowered + self.deliver(gy.clamp_max(0), self.select(lowered))

    def to_taps_by_sign(self, gy: Tensor) -> Tensor:
        """Messages above 0 to the weights of all candidates, below 0 to the winner's: sums (taps,)."""
        x, w, arg, _, where = self.call
        raised = gy.clamp_max(0).view(arg.shape)
        return (
            self.to_taps(gy.clamp_min(0))
            + eager.scatter(raised, arg, x.shape, w.shape, where, want_x=False)[1].flatten()
        )

    def dilate(self, h: Tensor) -> Tensor:
        """Largest h (samples, cells) among each row's candidates (samples, units); 0 where there is none."""
        h = F.pad(h, (0, 1))  # a constant border, which does not move
        best = h.new_full((len(h), self.units), -math.inf)
        for rows, taps, active in self._active():
            here = torch.where(active, h[rows][:, self._cell(taps)], -math.inf).amax(-1)
            best[rows] = torch.maximum(best[rows], here)
        return best.masked_fill_(self.size == 0, 0)

    def erode(self, u: Tensor) -> Tensor:
        """Least u (samples, units) among the rows in which a cell is active (samples, cells); inf where in none."""
        least = u.new_full((len(u), self.cells + 1), math.inf)
        for rows, taps, active in self._active():
            sent = torch.where(active, u[rows][..., None], math.inf).flatten(1)
            least[rows].scatter_reduce_(1, self._cell(taps).flatten().expand(len(sent), -1), sent, "amin")
        return least[:, :-1].contiguous()

    def select(self, values: Tensor) -> Tensor:
        """The candidate of each row with the least value (samples, cells), the first of equal ones; -1 where none."""
        values = F.pad(values, (0, 1), value=math.inf)
        chosen = self.call.arg.flatten(1).clone()
        least = values.new_full(chosen.shape, math.inf)
        for rows, taps, active in self._active():
            here, at = torch.where(active, values[rows][:, self._cell(taps)], math.inf).min(-1)
            less = here < least[rows]
            chosen[rows] = torch.where(less, taps[at].int(), chosen[rows])
            least[rows] = torch.where(less, here, least[rows])
        return chosen

    def deliver(self, gy: Tensor, taps: Tensor | None) -> Tensor:
        """Send each row's message (samples, units) to one candidate, its winner for None: sums (samples, cells)."""
        x, w, arg, _, where = self.call
        rows, taps = gy.view(arg.shape), arg if taps is None else taps.view(arg.shape)
        return backends.backend_for(gy).scatter(rows, taps, x.shape, w.shape, where, True, False)[0].flatten(1)

    def steepest(self, gy: Tensor, default: Tensor) -> Tensor:
        """Of eight messages the steepest one, sample by sample; see :func:`morphlightning.ops.messages.steepest`."""
        if not self.tied:
            return default
        tied = (self.call.gap.flatten(1) <= self.eps).any(1, keepdim=True)
        return torch.where(tied, steepest(self, gy, default), default)

    def _cell(self, taps: Tensor) -> Tensor:
        """Cells (units, taps) that meet these taps; a constant border comes after all others."""
        unit = torch.arange(self.units, device=taps.device)
        cell = self.call.where.cell(unit[:, None], taps.expand(self.units, -1), self.call.x.shape, self.call.w.shape)
        return torch.where(cell < 0, self.cells, cell)

    def _active(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some samples and taps at a time: which candidates (samples, units, taps) lie within eps of their maximum."""
        for rows, taps, scores, top in eager.scored(self.call.x, self.call.w, self.call.where):
            yield rows, taps, (top - scores <= self.eps) & (scores > -math.inf)
