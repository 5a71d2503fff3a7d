"""Sign descent as a manual-optimization loop: the smallest complete example of a Loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from morphlightning.interfaces import Batch, Group, Loop, StepContext, TrainerFacts


class SignDescent(torch.optim.Optimizer):
    """p <- p - lr sign(m), m <- momentum m + (1 - momentum) g; m is saved with the optimizer's state."""

    def __init__(self, params: Any, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; the closure computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 1 - group["momentum"])
                p.sub_(state["mean"].sign(), alpha=group["lr"])
        return loss


@dataclass
class Signum(Loop):
    """Descent along the sign of the averaged gradient, in a loop of its own (no automatic optimization).

    A step of size lr in the sup norm: the natural geometry of max-plus weights, whose outputs move by at most lr.

    Source: Bernstein et al., arXiv 1802.04434 (Signum).
    """

    lr: float = 1e-3
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")

    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        """Take all parameters; any network will do."""
        self._params = [p for group in groups for p in group.params]

    def refuse(self, facts: TrainerFacts) -> list[str]:
        """Gradient scaling is not written here."""
        if facts.precision == "16-mixed":
            return ["precision 16-mixed scales gradients, which this loop does not undo; use bf16-mixed or 32-true"]
        return []

    def optimizer(self) -> torch.optim.Optimizer:
        """SignDescent over all parameters."""
        return SignDescent(self._params, self.lr, self.momentum)

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """One descent step."""

        def closure() -> Tensor:
            loss = context.loss(context.forward(batch.input), batch.target)
            context.backward(loss)
            return loss

        return {"loss": context.step(closure)}
