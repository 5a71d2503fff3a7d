"""The rule that follows the sign of the message, as the Bouligand derivative of a maximum does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from morphlightning.interfaces import ActiveChunk, DerivativeRule, Pulled, SiteView
from morphlightning_plugins.derivatives.selection import check_eps


@dataclass(frozen=True)
class Bouligand(DerivativeRule):
    """To lower a maximum, lower all tied candidates; to raise it, raise one.

    The Bouligand derivative of y = max_j s_j along d is max over the tied j of d_j. A message u > 0 asks for a lower
    y, which falls only if every tied candidate falls; u < 0 asks for a higher y, for which one candidate is enough:
    among weights the winner, among inputs the one that the positive messages of the same sample oppose least.

    Source: the idea of the Bouligand derivative for morphological layers is Blusseau, arXiv 2403.12975; this rule is
    derived in docs/conventions.md, "Derivative rules".
    """

    scope: ClassVar[Literal["row", "sample"]] = "sample"
    eps: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_eps(self.eps)

    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """All candidates of rows with u > 0; of rows with u < 0 the least opposed cell and the winning tap."""
        message = u[chunk.owner]
        lower = message > 0
        chosen = _least_opposed(chunk, u, message)
        to_cells = torch.where(lower | chosen, message, 0.0)
        to_taps = torch.where(lower | chunk.winner, message, 0.0)
        return to_cells, to_taps

    def backward(
        self, view: SiteView, gy: Tensor, *, want_x: bool = True, want_w: bool = True, count: bool = False
    ) -> Pulled:
        """The same by sums over the active graph."""
        graph = view.active(self.eps)
        if not graph.tied:
            return self.to_winners(view, gy, want_x, want_w, count)
        touched = None
        if count:
            touched = graph.to_taps((gy > 0).to(gy.dtype)) + view.touches(gy.clamp_max(0))
        gx = graph.to_cells_by_sign(gy) if want_x else None
        return gx, graph.to_taps_by_sign(gy) if want_w else None, touched


def _least_opposed(chunk: ActiveChunk, u: Tensor, message: Tensor) -> Tensor:
    """For each row one pair: the cell with the least positive mass of its sample, the first of equal ones."""
    if len(message) == 0:
        return torch.zeros_like(message, dtype=torch.bool)
    sample = chunk.sample[chunk.owner]
    width = int(chunk.cell.max()) + 2  # cell -1 is a constant border
    _, key = torch.unique(sample * width + chunk.cell + 1, return_inverse=True)
    mass = message.new_zeros(int(key.max()) + 1).index_add_(0, key, message.clamp_min(0))[key]
    mass = mass.masked_fill(chunk.cell < 0, math.inf)  # it cannot be raised
    least = mass.new_full(u.shape, math.inf).scatter_reduce_(0, chunk.owner, mass, "amin")
    position = torch.arange(len(message), device=message.device)
    candidate = torch.where(mass == least[chunk.owner], position, len(message))
    first = position.new_full(u.shape, len(message)).scatter_reduce_(0, chunk.owner, candidate, "amin")
    return position == first[chunk.owner]
