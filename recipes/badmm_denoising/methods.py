"""What trains a network: something built on (network, x, y) that iterates; here, steps of torch's optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ways import Way


class Method(Protocol):
    """Trains the network that it was built on, on the samples that it was built on."""

    def iterate(self) -> None:
        """Do one iteration; it leaves its weights in the network."""


class Descent:
    """Steps of an optimizer down the mean squared error of all samples.

    Args:
        network: What is trained.
        x: Inputs.
        y: Targets.
        optimizer: Over the parameters of the network.
        iterations: After which a learning rate that falls by half a cosine is zero; None keeps it.
    """

    def __init__(
        self, network: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, iterations: int | None = None
    ) -> None:
        self.network, self.x, self.y, self.optimizer, self.iterations = network, x, y, optimizer, iterations
        self.rate, self.done = optimizer.param_groups[0]["lr"], 0

    def iterate(self) -> None:
        if self.iterations is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * (1 + math.cos(math.pi * self.done / self.iterations)) / 2
        self.optimizer.step(self.evaluate)
        self.done += 1

    def evaluate(self) -> Tensor:
        """The loss, its gradient being left in the parameters."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def loss(self) -> Tensor:
        return F.mse_loss(self.network(self.x), self.y)


class LineSearches(Descent):
    """L-BFGS, whose iteration is a direction and a line search; weight decay is a part of its loss.

    An iteration of torch's begins where the last line search has ended, so what is known there is not computed again.
    """

    def __init__(self, network: nn.Module, x: Tensor, y: Tensor, weight_decay: float) -> None:
        optimizer = torch.optim.LBFGS(
            network.parameters(), max_iter=1, max_eval=25, history_size=20, tolerance_grad=0, tolerance_change=0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip
        super().__init__(network, x, y, optimizer)
        self.weight_decay = weight_decay
        self.known: tuple[Tensor, Tensor] | None = None

    def evaluate(self) -> Tensor:
        here = torch.cat([parameter.detach().flatten() for parameter in self.network.parameters()])
        if self.known is None or not torch.equal(self.known[0], here):
            self.known = here, super().evaluate()
        return self.known[1]

    def loss(self) -> Tensor:
        decay = sum(parameter.square().sum() for parameter in self.network.parameters())
        return super().loss() + 0.5 * self.weight_decay * decay


def build(way: Way, network: nn.Sequential, x: Tensor, y: Tensor, iterations: int) -> Method:
    """Put a method on a network and samples, for so many iterations."""
    return BUILDERS[way.method](way, network, x, y, iterations)


def descent(way: Way, network: nn.Sequential, x: Tensor, y: Tensor, iterations: int) -> Method:
    options = {name: value for name, value in way.settings if name != "schedule"}
    if way.method == "nesterov":
        options["nesterov"] = way["momentum"] > 0
    kind = torch.optim.Adam if way.method == "adam" else torch.optim.SGD
    optimizer = kind(network.parameters(), **options)
    return Descent(network, x, y, optimizer, iterations if way["schedule"] == "cosine" else None)


def line_searches(way: Way, network: nn.Sequential, x: Tensor, y: Tensor, iterations: int) -> Method:
    return LineSearches(network, x, y, way["weight_decay"])


def lifted(way: Way, network: nn.Sequential, x: Tensor, y: Tensor, iterations: int) -> Method:
    from lifted import Lifted

    return Lifted(way, network, x, y)


BUILDERS: dict[str, Callable[[Way, nn.Sequential, Tensor, Tensor, int], Method]] = {
    "sgd": descent,
    "nesterov": descent,
    "adam": descent,
    "lbfgs": line_searches,
    "badmm": lifted,
    "mm": lifted,
}
