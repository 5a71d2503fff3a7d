"""The optimizer that Lightning counts, saves and restores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch

from morphlightning.bregman.method import Method


class LiftedOptimizer(torch.optim.Optimizer):
    """One step is one iteration of a lifted method: ``step(closure)`` runs the closure, which does the iteration.

    Its parameters are those of the chain's affine layers; its state is that of the method, which is equal on all
    processes. It has no learning rate, and gradients are neither needed nor made.

    Args:
        method: The method.
        forgets: Whether auxiliary variables of samples are not restored with the method's state.
    """

    def __init__(self, method: Method, forgets: bool = False) -> None:
        self.method, self.forgets = method, forgets
        super().__init__(method.chain.parameters(), {})

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
        if self.forgets:
            self.method.forget()
