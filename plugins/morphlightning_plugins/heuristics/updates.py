"""Heuristics that act on gradients before the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Heuristic
from morphlightning.layers import gap_quantile

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


@dataclass(frozen=True)
class SupNorm(Heuristic):
    r"""A layer's gradient over its largest entry, g / (layers ||g||_inf): each step moves a weight by at most lr.

    Max-plus operators are nonexpansive in the sup norm, so a step of lr / layers in each of ``layers`` layers moves the
    output of a purely morphological network by at most lr. A gradient of zeros stays zero. Guaranteed for plain SGD.

    Source: derived in docs/conventions.md, "Update heuristics".
    """

    layers: int = 1
    stage: ClassVar[Stage] = "update"
    after: ClassVar[frozenset[str]] = frozenset({"count_normalized"})

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not self.layers >= 1:
            raise ValueError(f"layers must be >= 1, got {self.layers}")

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return g / (layers ||g||_inf)."""
        largest = grad.abs().amax()
        return grad / torch.where(largest > 0, largest, 1) / self.layers


@dataclass(frozen=True)
class RadiusClipped(Heuristic):
    r"""Shrinks a layer's gradient g where lr ||g||_inf exceeds half the ``quantile`` of its gaps.

    A maximum that leads by a gap keeps its winner in every step of sup norm at most gap / 2. So for a share of at least
    1 - ``quantile`` of the rows of the batch (rows with a tie, which any step resolves, are left out) the first-order
    model of the step is exact while the layer's input stays; in openings and closings, whose second stage sees the
    first one move, up to half of that step. Guaranteed for plain SGD without momentum. Gaps are tiny as a rule: this is
    a trust region, not a means to train faster.

    Attributes:
        quantile: In [0, 1).
        lr: The optimizer's rate; None (default) where ``apply_update_heuristics`` is given the optimizer, as
            morphlightning's models and ``MorphUpdates`` do.

    Source: derived in docs/conventions.md, "Update heuristics".
    """

    quantile: float = 0.1
    lr: float | None = None
    stage: ClassVar[Stage] = "update"
    needs: ClassVar[frozenset[str]] = frozenset({"gaps", "lr"})
    after: ClassVar[frozenset[str]] = frozenset({"count_normalized", "sup_norm"})
    syncs: ClassVar[Syncs] = "statistics"

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.quantile < 1:
            raise ValueError(f"quantile must lie in [0, 1), got {self.quantile}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return g times the largest factor <= 1 that keeps lr ||g||_inf below half the quantile."""
        lr = statistics.get("lr") if self.lr is None else self.lr
        if lr is None:
            raise ConfigError(
                "radius_clipped does not know the learning rate: call apply_update_heuristics(model, optimizer) with "
                "the optimizer that steps, or name it, {'name': 'radius_clipped', 'lr': ...}"
            )
        step = lr * grad.abs().amax().double()
        radius = gap_quantile(statistics["gaps"], self.quantile) / 2
        return grad * torch.where(step > radius, radius / step, 1).to(grad.dtype)
