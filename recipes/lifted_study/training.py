"""Ways of training, and how a run is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from problems import Part, Problem
from torch import Tensor, nn

from morphlightning.bregman import Badmm, Chain, MajorizeMinimize, Method
from morphlightning.bregman.samples import SampleStore
from morphlightning.errors import NonFiniteError

Step = Callable[[], Any]
Way = Callable[[nn.Sequential, Problem, int], Step]
"""Of a network, what it learns and a seed: something that does an iteration each time it is called."""


def network(sizes: Sequence[int], seed: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers between these sizes with activations between them, and torch's weights of this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


# ------------------------------------------------------------------------------------------------------------- the ways
def lifted(kind: type[Method], **settings: Any) -> Way:
    """Iterations of a lifted method over all samples; see :func:`per_layer` for ridge and rho."""

    def way(network: nn.Sequential, problem: Problem, seed: int) -> Step:
        method = kind(Chain(network), problem.loss, **per_layer(settings))
        samples = method.start(*problem.train)
        return lambda: method.iterate(samples, *problem.train)

    return way


def badmm(**settings: Any) -> Way:
    return lifted(Badmm, **settings)


def mm(**settings: Any) -> Way:
    return lifted(MajorizeMinimize, **settings)


def adam(lr: float, weight_decay: float) -> Way:
    """Steps of Adam down the loss of all samples."""

    def way(network: nn.Sequential, problem: Problem, seed: int) -> Step:
        descend = _descent(network, problem, lr, weight_decay)
        return lambda: descend(*problem.train)

    return way


def lifted_batches(kind: type[Method], batch: int, passes: bool = True, **settings: Any) -> Way:
    """A lifted method over batches; an iteration is a pass through all samples, or one batch."""

    def way(network: nn.Sequential, problem: Problem, seed: int) -> Step:
        size = len(problem.train.x)
        method = kind(Chain(network), problem.loss, size, **per_layer(settings))
        store = SampleStore(size, 0, 1)

        def iterate(rows: Tensor) -> None:
            x, y = problem.train.x[rows], problem.train.y[rows]
            kept = store.take(rows, x.device) if method.persistent else None
            samples = method.start(x, y) if kept is None or not kept[1].all() else kept[0]
            method.iterate(samples, x, y)
            if method.persistent:
                store.put(rows, samples)

        return _in_batches(iterate, size, batch, passes, seed)

    return way


def adam_batches(batch: int, lr: float, weight_decay: float, passes: bool = True) -> Way:
    """Adam over batches; an iteration is a pass through all samples, or one batch."""

    def way(network: nn.Sequential, problem: Problem, seed: int) -> Step:
        descend = _descent(network, problem, lr, weight_decay)
        x, y = problem.train
        return _in_batches(lambda rows: descend(x[rows], y[rows]), len(x), batch, passes, seed)

    return way


def per_layer(settings: dict[str, Any]) -> dict[str, Any]:
    """With ``ridge`` and ``ridge_2`` as one setting for the first and all later layers, and ``rho`` likewise."""
    pairs = {name for name in ("ridge", "rho") if f"{name}_2" in settings}
    rest = {name: value for name, value in settings.items() if name.removesuffix("_2") not in pairs}
    return rest | {name: (settings.get(name, 1.0), settings[f"{name}_2"]) for name in pairs}


def _descent(network: nn.Module, problem: Problem, lr: float, weight_decay: float) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)

    def descend(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        problem.descended(network(x), y).backward()
        optimizer.step()

    return descend


def _in_batches(iterate: Callable[[Tensor], Any], size: int, batch: int, passes: bool, seed: int) -> Step:
    """Each pass takes the samples in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[Tensor] = []

    def step() -> None:
        if not waiting:
            waiting.extend(torch.randperm(size, generator=generator).split(batch))
        for _ in range(len(waiting) if passes else 1):
            iterate(waiting.pop(0))

    return step


# ------------------------------------------------------------------------------------------------------------ measuring
@dataclass(frozen=True)
class Point:
    """Where a run is after some iterations.

    Attributes:
        iteration: How many.
        loss: On the training samples; NaN after a step that had no finite solution.
        score: On others.
        seconds: Processor time of the iterations, without the measuring.
    """

    iteration: int
    loss: float
    score: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """A method with its settings, and the points of one seed, the first before any iteration."""

    method: str
    settings: str
    seed: int
    points: list[Point]

    def at(self, iteration: int) -> Point:
        return next(point for point in self.points if point.iteration == iteration)

    def diverged(self, iteration: int) -> bool:
        """Whether from there on it is worse, on what it trains on, than before it was trained."""
        return not any(p.loss <= self.points[0].loss for p in self.points if p.iteration >= iteration)

    def rows(self) -> list[dict[str, Any]]:
        """One a point."""
        about = {"method": self.method, "settings": self.settings, "seed": self.seed}
        return [about | vars(point) for point in self.points]


def measure(
    way: Way, network: nn.Sequential, problem: Problem, at: Sequence[int], seed: int = 0, part: Part = "test"
) -> list[Point]:
    """Train, and judge before the first iteration and after those of ``at``."""
    points, seconds, failed = [Point(0, *problem.judge(network, part), 0.0)], 0.0, False
    step: Step | None = None
    for iteration in range(1, max(at) + 1):
        began = time.process_time()
        try:
            step = step or way(network, problem, seed)
            if not failed:
                step()
        except NonFiniteError:
            failed = True
        seconds += time.process_time() - began
        if iteration in at:
            found = (math.nan, math.nan) if failed else problem.judge(network, part)
            points.append(Point(iteration, *found, seconds))
    return points
