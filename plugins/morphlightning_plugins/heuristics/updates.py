"""Heuristics that act on gradients before the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from morphlightning.interfaces import Heuristic

Syncs = Literal["gradients", "statistics", "parameters"]
Stage = Literal["message", "route", "update"]


@dataclass(frozen=True)
class Plain(Heuristic):
    """Nothing is changed: the unit of composition."""

    stage: ClassVar[Stage] = "update"

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """The gradient as it is."""
        return grad


@dataclass(frozen=True)
class CountNormalized(Heuristic):
    """Mean over the samples that touched a weight, instead of over the batch: g_ij * samples / count_ij.

    Inside one linear cell the mean squared error has the Hessian diag(p), p_ij the frequency with which input j is the
    maximum of unit i; dividing by it is Newton's step for weights that are rarely active. Changes the meaning of the
    learning rate: start at 0.3 to 1.

    Source: derived in docs/conventions.md, "Update heuristics".
    """

    stage: ClassVar[Stage] = "update"
    needs: ClassVar[frozenset[str]] = frozenset({"count", "samples"})
    syncs: ClassVar[Syncs] = "statistics"

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return g * samples / count; weights that nothing touched keep their gradient."""
        factor = statistics["samples"] / statistics["count"].clamp_min(1)
        return grad * factor.to(grad.dtype)
