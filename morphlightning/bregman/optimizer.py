"""The optimizer that Lightning counts, saves and restores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch

from morphlightning.bregman.method import Method


class LiftedOptimizer(torch.optim.Optimizer):
    """One step is one iteration of a lifted method: ``step(closure)`` runs the closure, which does the iteration.

    Its parameters are those of the chain's affine layers; its state is that of the method, which is equal on all
    processes. Gradients are neither needed nor made. It has no learning rate: the ``lr`` of 1 is for tools that read
    one, such as Lightning's LearningRateMonitor.

    Args:
        method: The method.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        super().__init__(method.chain.parameters(), {"lr": 1.0})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One iteration."""
        return None if closure is None else closure()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the state of the method."""
        return super().state_dict() | {"method": self.method.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the method goes on from its own state."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "method"})
        self.method.load_state_dict(state_dict["method"])
