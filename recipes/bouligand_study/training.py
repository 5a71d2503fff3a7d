"""One plain training loop for all parts; rules, heuristics and optimizers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from morphlightning import apply_update_heuristics, registry
from morphlightning.interfaces import Initializer, SiteSpec, Spec
from morphlightning.models import build_optimizer

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """How a network is trained: what its layers do in the backward pass, and the optimizer."""

    label: str
    derivative: Spec = "first"
    heuristic: Spec = "plain"
    optimizer: str = "sgd"
    lr: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rules(self) -> dict[str, Spec]:
        """Options of a layer."""
        return {"derivative": self.derivative, "heuristic": self.heuristic}


@dataclass(frozen=True)
class Normal(Initializer):
    """w ~ N(0, std): what linear layers start from."""

    std: float = 0.05

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        return self.std * torch.randn(spec.shape, generator=generator)


@dataclass(frozen=True)
class Schedule:
    """How long a network is trained."""

    epochs: int
    batch: int
    shape: str = "cosine"


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Sum over outputs, mean over samples: inside one linear cell a rate of 1 solves it, see count_normalized."""
    return 0.5 * (output - target).square().sum(1).mean()


def fit(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    method: Method,
    schedule: Schedule,
    generator: torch.Generator,
    watch: Callable[[Tensor], None] | None = None,
) -> None:
    """Train ``network``; ``watch`` is called with each batch's inputs between the update heuristics and the step."""
    steps = len(x) // schedule.batch * schedule.epochs
    spec = {"name": method.optimizer, "lr": method.lr, "schedule": schedule.shape, **method.options}
    component = registry.build("optimizers", spec)
    optimizer = build_optimizer(network, component)
    scheduler = component.scheduler(optimizer, steps, schedule.epochs)
    network.train()
    for _ in range(schedule.epochs):
        for batch in torch.randperm(len(x), generator=generator).split(schedule.batch)[: len(x) // schedule.batch]:
            optimizer.zero_grad()
            loss(network(x[batch]), y[batch]).backward()
            apply_update_heuristics(network, optimizer)
            if watch is not None:
                watch(x[batch])
            optimizer.step()
            if scheduler is not None:
                scheduler["scheduler"].step()
    network.eval()
