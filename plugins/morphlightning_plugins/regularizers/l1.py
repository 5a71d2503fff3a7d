"""Sparsity of weights."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Regularizer, RegularizerContext


@dataclass(frozen=True)
class L1(Regularizer):
    r"""weight * sum of |p| over the parameters whose names match ``pattern``.

    Meant for linear and convolution weights. A max-plus weight vanishes at -inf, not at 0: to make those sparse, mask
    them.

    Source: Tibshirani's lasso.
    """

    weight: float = 1e-5
    pattern: str = "*weight"

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.weight >= 0:
            raise ValueError(f"weight must be >= 0, got {self.weight}")

    def bind(self, module: nn.Module) -> None:
        """Some parameter must match."""
        if not self._chosen(module):
            names = ", ".join(name for name, _ in module.named_parameters())
            raise ConfigError(f"l1: no parameter matches pattern {self.pattern!r}; there are {names}")

    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted l1 norm."""
        return self.weight * torch.stack([p.abs().sum() for p in self._chosen(module)]).sum()

    def _chosen(self, module: nn.Module) -> list[nn.Parameter]:
        from morphlightning.layers import sites

        morph = {id(site.weight) for _, site in sites(module)}
        return [p for name, p in module.named_parameters() if fnmatch(name, self.pattern) and id(p) not in morph]
