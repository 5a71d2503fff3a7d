"""Messages that ties call for: the specification.

Where maxima tie, the slope of <u, y> along h is sum_i u_i max_{j in J_i} h_j: no gradient represents it, and to find
the steepest h in the sup-norm ball is a signed set-cover problem. Candidates are cheap; their true slopes decide.
Derived in docs/bouligand.md, "Messages".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

NEAR = 1e-5
"""Slopes that differ by this share are taken as equal, or rounding would choose."""

if TYPE_CHECKING:
    from morphlightning.interfaces import ActiveGraph


def steepest(graph: ActiveGraph, u: Tensor, default: Tensor) -> Tensor:
    """Of eight messages that whose negative, scaled to sup norm 1, has the least slope; the first of nearly equal ones.

    It is scaled to the Euclidean norm of the message that ties share equally, so that learning rates upstream keep
    their meaning. Samples without a slope below 0 keep ``default``.

    Args:
        graph: Active candidates.
        u: Messages (samples, units).
        default: What is sent where nothing descends (samples, cells).

    Returns:
        Messages (samples, cells).
    """
    candidates = torch.stack(candidate_messages(graph, u))
    largest = candidates.abs().amax(-1, keepdim=True)
    scaled = candidates / largest.masked_fill(largest == 0, 1)
    slopes = torch.stack([(u * graph.dilate(-message)).sum(-1) for message in scaled])
    slope = slopes.amin(0)
    best = (slopes <= slope + NEAR * slope.abs()).byte().argmax(0)  # the first
    chosen = scaled.gather(0, best[None, :, None].expand(1, *u.shape[:1], scaled.shape[-1]))[0]
    mass = candidates[1].norm(dim=-1, keepdim=True)
    scale = mass / chosen.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    return torch.where((slope < 0)[:, None], chosen * scale, default)


def candidate_messages(graph: ActiveGraph, u: Tensor) -> tuple[Tensor, ...]:
    """The eight (samples, cells): winner takes all, shared equally, to all, by sign, Chebyshev, shift, two signs.

    Cells that are active in no row get 0, but by the shift, whose slope is exact for a step of any size.
    """
    shared, to_all = graph.to_cells(u / graph.size.clamp_min(1)), graph.to_cells(u)
    by_sign = graph.to_cells_by_sign(u)
    active = adjoint(graph, u)[1]
    signs = (torch.where(active, torch.where(m < 0, -1.0, 1.0), 0.0).to(u.dtype) for m in (to_all, by_sign))
    return graph.deliver(u, None), shared, to_all, by_sign, chebyshev(graph, u), shift(graph, u), *signs


def adjoint(graph: ActiveGraph, u: Tensor) -> tuple[Tensor, Tensor]:
    """-h for the greatest h with derivative <= -u, h_j = min of -u_i over rows with j active; and which j are."""
    least = graph.erode(-u)
    active = least < math.inf
    return torch.where(active, -least, 0.0), active


def chebyshev(graph: ActiveGraph, u: Tensor) -> Tensor:
    """-h for the h whose derivative is nearest to -u in the sup norm: the adjoint's, raised by half of its lack."""
    message, active = adjoint(graph, u)
    reached = graph.dilate(-message)
    lack = torch.where(graph.size > 0, -u - reached, 0.0).amax(-1, keepdim=True).clamp_min(0)
    return torch.where(active, message - lack / 2, 0.0)


def shift(graph: ActiveGraph, u: Tensor) -> Tensor:
    """The sign of sum_i u_i for every cell: maxima move with constants, so the slope -|sum_i u_i| is exact."""
    total = torch.where(graph.size > 0, u, 0.0).sum(-1, keepdim=True)
    return total.sign().expand(-1, graph.cells)
