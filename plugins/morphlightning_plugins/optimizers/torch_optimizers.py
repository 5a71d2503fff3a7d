"""torch's optimizers. Weight decay never touches max-plus weights, norms and biases.

Decay pulls a max-plus weight towards 0, where it wins, instead of towards -inf, where it would vanish.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from morphlightning.interfaces import ROLES, Group
from morphlightning_plugins.optimizers.scheduled import Scheduled


@dataclass(frozen=True)
class _ByRole(Scheduled):
    """One parameter group for each role; ``rates`` holds the learning rates of roles where they are not ``lr``."""

    rates: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if unknown := set(self.rates) - set(ROLES):
            raise ValueError(f"rates: no role {', '.join(sorted(unknown))}; there are {', '.join(ROLES)}")
        if not all(rate >= 0 for rate in self.rates.values()):
            raise ValueError(f"rates must be >= 0, got {dict(self.rates)}")

    @abstractmethod
    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer over parameter groups."""

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """One parameter group for each role, named after it."""
        return self.make(
            [
                {
                    "params": group.params,
                    "name": group.role,
                    "lr": self.rates.get(group.role, self.lr),
                    "weight_decay": self.weight_decay if group.decay else 0.0,
                }
                for group in groups
            ]
        )


@dataclass(frozen=True)
class Sgd(_ByRole):
    """Stochastic gradient descent with momentum.

    Source: torch.optim.SGD.
    """

    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.SGD."""
        return torch.optim.SGD(params, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class Adam(_ByRole):
    """Adam; the default of our models.

    ``eps``, torch's, is what small gradients are measured by: weights whose gradients stay below it hardly move.

    Source: Kingma and Ba, arXiv 1412.6980; torch.optim.Adam.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.Adam."""
        return torch.optim.Adam(params, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class AdamW(_ByRole):
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter, arXiv 1711.05101; torch.optim.AdamW.
    """

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.AdamW."""
        return torch.optim.AdamW(params, betas=self.betas, eps=self.eps)
