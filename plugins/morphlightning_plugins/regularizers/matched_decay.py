"""The penalty that theorems of global optimality ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.guarantees.optimality import PENALTIES, ParallelSum
from morphlightning.interfaces import Regularizer, RegularizerContext


@dataclass(frozen=True)
class MatchedDecay(Regularizer):
    r"""Weight times :math:`\sum_i \theta(K_i)` over the slices of all parallel sums, theta of the degree of the slices.

    The theta is that of the subnetwork: their norm (degree 1), half the sum of their squares (degree 2), the product or
    the mean power of the norms of L blocks (degree L). A penalty of another degree than the network, such as the weight
    decay of optimizers on a max-plus network without gain, matches no theorem, and is refused.

    Args:
        weight: lambda, >= 0.
        theta: Which penalty is expected, ``norm``, ``half_square``, ``product`` or ``power``; None for any.

    Source: the regularizer of Haeffele and Vidal, arXiv 1506.07540.
    """

    weight: float = 1e-4
    theta: str | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and >= 0, got {self.weight}")
        if self.theta is not None and self.theta not in PENALTIES:
            raise ValueError(f"theta must be one of {', '.join(PENALTIES)}, got {self.theta!r}")

    def bind(self, module: nn.Module) -> None:
        """There must be a parallel sum, with the expected penalty."""
        if not (found := _sums(module)):
            raise ConfigError(
                "matched_decay: the network has no ParallelSum (morphlightning.guarantees.optimality), whose slices "
                "say which penalty matches them"
            )
        for network in found:
            self.check(network)

    def check(self, network: ParallelSum) -> None:
        """Raise ConfigError where the slices of a parallel sum have another penalty than is expected."""
        subnetwork = network.subnetwork
        if self.theta in (None, subnetwork.theta_name):
            return
        blocks = len(subnetwork.blocks)
        raise ConfigError(
            f"matched_decay: theta={self.theta!r} has degree {PENALTIES[str(self.theta)].degree(blocks)}, the slices "
            f"have degree {subnetwork.degree} and the penalty {subnetwork.theta_name!r}; leave theta out, or build the "
            "subnetwork with that theta"
        )

    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted sum."""
        return self.weight * torch.stack([network.penalties().sum() for network in _sums(module)]).sum()


def _sums(module: nn.Module) -> list[ParallelSum]:
    return [child for child in module.modules() if isinstance(child, ParallelSum)]
