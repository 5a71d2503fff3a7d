"""The rule that lets all candidates share a message by how near they are to the maximum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from morphlightning.interfaces import ActiveChunk, DerivativeRule, Pulled, SiteView

NEGLIGIBLE = 40.0  # exp(-40) is below the spacing of float64 at 1


@dataclass(frozen=True)
class Soft(DerivativeRule):
    """Each candidate receives the share that a softmax gives it: u * exp(beta s_j) / sum_k exp(beta s_k).

    The forward pass keeps the maximum; backward is the gradient of log-sum-exp at inverse temperature ``beta``, the
    expected message if the winner were drawn by that softmax. As beta grows it tends to shares of equal size among tied
    candidates. Candidates within 40 / beta of the maximum count, which is ``eps``; touches are expected numbers. Two
    matrix products, without a scan of ties.

    Source: derived in docs/conventions.md, "Derivative rules"; log-sum-exp as a deformation of the maximum is Maslov's.
    """

    beta: float = 10.0

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be a finite number > 0, got {self.beta}; it is an inverse temperature")

    @property
    def eps(self) -> float:  # type: ignore[override]
        """How far from the maximum a candidate's share still counts."""
        return NEGLIGIBLE / self.beta

    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """Share u by softmax."""
        weight = torch.exp(-self.beta * chunk.slack)
        total = torch.zeros_like(u).index_add_(0, chunk.owner, weight)
        share = (u / total)[chunk.owner] * weight
        return share, share

    def backward(
        self, view: SiteView, gy: Tensor, *, want_x: bool = True, want_w: bool = True, count: bool = False
    ) -> Pulled:
        """The gradient of log-sum-exp."""
        gx, gw = view.expected(gy, self.beta, want_x=want_x, want_w=want_w) if want_x or want_w else (gy, gy)
        touched = view.expected((gy != 0).to(gy.dtype), self.beta, want_x=False)[1] if count else None
        return gx if want_x else None, gw if want_w else None, touched
