"""Heuristics that replace the message to the inputs: which direction is passed on where no gradient represents it.

With messages u and active sets J_i the slope of <u, y> along h is sum_i u_i max_{j in J_i} h_j. What is sent is -h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from morphlightning.interfaces import Heuristic, SiteView
from morphlightning.ops import messages
from morphlightning_plugins.derivatives.selection import check_eps
from morphlightning_plugins.heuristics.updates import Stage


@dataclass(frozen=True)
class _AtTies(Heuristic):
    """What looks at the candidates within ``eps`` of their maximum."""

    stage: ClassVar[Stage] = "message"
    eps: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameter."""
        check_eps(self.eps)


@dataclass(frozen=True)
class Adjoint(_AtTies):
    """The greatest h whose derivative nowhere exceeds -u: h_j = min of -u_i over the rows with j active, else 0.

    It never overshoots, but it may ascend: an input that one row wants down and another one up goes down. Differs from
    the gradient without ties, too, where rows share an input.

    Source: the adjoint erosion of the flat dilation h -> max_{J_i} h_j; derived in docs/bouligand.md, "Messages".
    """

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """-h of every sample."""
        return messages.adjoint(view.active(self.eps), gy)[0]


@dataclass(frozen=True)
class Chebyshev(_AtTies):
    """The h whose derivative is nearest to -u in the sup norm: the adjoint's, plus half of the largest residual.

    Descends where that half, mu, is below ||u||_2^2 / ||u||_1. Differs from the gradient without ties, too.

    Source: derived in docs/bouligand.md, "Messages".
    """

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """-h of every sample."""
        return messages.chebyshev(view.active(self.eps), gy)


@dataclass(frozen=True)
class Shift(_AtTies):
    """All inputs move together, against the sign of sum_i u_i: slope -|sum_i u_i|, exact for a step of any size.

    Scaled to the Euclidean norm of the rule's own message. It knows nothing of single inputs; it is there to compare
    with, and as a candidate of ``best``.

    Source: a dilation commutes with the addition of constants; derived in docs/bouligand.md, "Messages".
    """

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """-h of every sample."""
        message = messages.shift(view.active(self.eps), gy)
        scale: Tensor = default.norm(dim=1, keepdim=True) / view.cells**0.5
        return message * scale


@dataclass(frozen=True)
class Best(_AtTies):
    """In samples with a tie the steepest of eight messages, by their true slopes; elsewhere the rule's own.

    The candidates: winner takes all, equal shares, all to all, by sign (as ``bouligand``), ``chebyshev``, ``shift``,
    and the signs of two of them. The steepest one is scaled to the Euclidean norm of equal shares, so that learning
    rates of earlier layers keep their meaning. Finding the best direction of all is a signed set-cover problem.

    Source: derived in docs/bouligand.md, "Messages".
    """

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """The steepest message of samples with a tie."""
        return view.active(self.eps).steepest(gy, default)


@dataclass(frozen=True)
class FiniteStep(Heuristic):
    """What takes a step of finite size for each sample: messages are no directions here, their size matters.

    Attributes:
        tau: Size of the step, in units of the sample's own derivative u: outputs move towards y - tau u.
        reduction: Whether the loss is the ``"mean"`` or the ``"sum"`` of the samples' losses, to get u from messages.
        accumulation: The Trainer's accumulate_grad_batches, by which it divides losses.
    """

    homogeneous: ClassVar[bool] = False
    tau: float = 0.5
    reduction: str = "mean"
    accumulation: int = 1

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"tau must be a finite number > 0, got {self.tau}; it is the size of a step")
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {self.reduction!r}")
        if self.accumulation < 1:
            raise ValueError(f"accumulation must be >= 1, got {self.accumulation}")

    def per_sample(self, view: SiteView) -> float:
        """What messages are multiplied by to become derivatives of one sample's loss."""
        return float(self.accumulation * (view.samples if self.reduction == "mean" else 1))


@dataclass(frozen=True)
class Target(FiniteStep):
    """Target propagation through the adjunction: x moves towards the input whose output is y - tau u.

    x' is the greatest input with dilation(x') <= y - tau u, by the adjoint erosion, plus half of the largest residual
    (``centred``), which makes it the nearest preimage in the sup norm. The message is (x - x') / tau, clipped to
    ``clip`` times the largest |u| of the sample; inputs that never win receive 0. It looks beyond the maxima of this
    moment, so it sees near ties. As tau falls to 0 it becomes ``adjoint``, or ``chebyshev`` where centred.

    Source: derived in docs/bouligand.md, "Messages".
    """

    stage: ClassVar[Stage] = "message"
    centred: bool = True
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.clip > 0:
            raise ValueError(f"clip must be > 0, got {self.clip}")

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """(x - x') / tau of every sample, in the scale of the messages."""
        scale = self.per_sample(view)
        found = view.arg >= 0
        target = view.forward(view.x) - self.tau * scale * gy
        wins = view.scatter(torch.ones_like(gy), want_w=False)[0] > 0
        moved = torch.where(wins, view.adjoint(torch.where(found, target, torch.inf)), view.x)
        if self.centred:
            lack = torch.where(found, target - view.forward(moved), 0.0)
            moved = moved + wins * lack.amax(1, keepdim=True).clamp_min(0) / 2
        limit = self.clip * gy.abs().amax(1, keepdim=True)
        message = torch.clamp((view.x - moved) / (self.tau * scale), -limit, limit)
        return torch.where(wins, message, 0.0)
