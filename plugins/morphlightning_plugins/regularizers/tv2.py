"""Few kinks in learned splines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Regularizer, RegularizerContext, Spline


@dataclass(frozen=True)
class TV2(Regularizer):
    r"""Weight times :math:`\mathrm{TV}^{(2)}`, the sum of absolute changes of slope, over all learned splines.

    It is the l1 norm of the kinks, and like it sets many to 0. Splines are found by their capability
    (``morphlightning.interfaces.Spline``), wherever they are in the network.

    Args:
        weight: A number, or a mapping from patterns of module names to numbers, ``{"features.*": 1e-3, "*": 1e-4}``,
            of which the first that matches counts; splines that match none are left alone.
        mode: ``subgradient`` adds the term to the loss. ``prox`` leaves it out and takes a proximal step, weight times
            the learning rate of the values, after each step of the optimizer, so that kinks vanish exactly; for modules
            of :mod:`morphlightning.splines`. Constraints are restored afterwards. Level pieces that a module adds
            outside its knots are not looked at.

    Source: Bohra et al. (2020); the proximal step is forward-backward splitting with the exact proximal map.
    """

    weight: float | Mapping[str, float] = 1e-4
    mode: Literal["subgradient", "prox"] = "subgradient"

    def __post_init__(self) -> None:
        """Check the parameters."""
        for weight in self._weights.values():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weight must be finite and >= 0, got {weight}")
        if self.mode not in ("subgradient", "prox"):
            raise ValueError(f"mode must be subgradient or prox, got {self.mode!r}")

    @property
    def _weights(self) -> Mapping[str, float]:
        return self.weight if isinstance(self.weight, Mapping) else {"*": self.weight}

    def bind(self, module: nn.Module) -> None:
        """There must be splines, every pattern must match one, and ``prox`` needs modules that offer it."""
        names = [name for name, child in module.named_modules() if isinstance(child, Spline)]
        if not names:
            raise ConfigError("tv2: the network has no learnable splines; use the activation linear_spline, or no tv2")
        for pattern in self._weights:
            if not any(fnmatch(name, pattern) for name in names):
                raise ConfigError(f"tv2: no spline matches pattern {pattern!r}; there are {', '.join(names)}")
        if self.mode == "prox":
            for child, _ in self._chosen(module):
                if not hasattr(child, "prox_tv2_"):
                    raise ConfigError(f"tv2: {type(child).__name__} has no prox_tv2_; use mode='subgradient'")

    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted sum; 0 in mode ``prox``."""
        if self.mode == "prox":
            return context.output.new_zeros(())
        return torch.stack([weight * child.tv2().sum() for child, weight in self._chosen(module)]).sum()

    def prox_(self, module: nn.Module, steps: Mapping[nn.Parameter, float]) -> None:
        """The proximal step of mode ``prox``."""
        if self.mode == "prox":
            for child, weight in self._chosen(module):
                step = weight * steps.get(child.values, 0.0)
                if step > 0:
                    child.prox_tv2_(step)

    def _chosen(self, module: nn.Module) -> Iterator[tuple[Any, float]]:
        """The splines that have a weight, and it."""
        for name, child in module.named_modules():
            if isinstance(child, Spline):
                weight = next((w for pattern, w in self._weights.items() if fnmatch(name, pattern)), None)
                if weight is not None:
                    yield child, weight
