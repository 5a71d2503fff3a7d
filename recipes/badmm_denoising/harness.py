"""Measures a method: errors of the forward pass at some iterations, and the processor time of the iterations alone."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from images import Samples
from methods import build
from torch import Tensor, nn
from ways import Way

CHECKPOINTS = (
    *range(9), 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 85, 100, 120, 150, 170, 200, 250, 300, 350, 400, 450, 500,
)  # fmt: skip
"""Iterations after which a run is measured."""


@dataclass(frozen=True)
class Point:
    """Where a run is after some iterations.

    Attributes:
        iteration: How many.
        train_mse: Mean squared error over all pixels of the training images.
        psnr: 10 log10(1 / mean squared error) over all pixels of images that were not trained on.
        seconds: Processor time of these iterations and of what comes before the first.
    """

    iteration: int
    train_mse: float
    psnr: float
    seconds: float


@dataclass
class Trace:
    """A run: its points, and what the network made of the images to be shown."""

    points: list[Point] = field(default_factory=list)
    pictures: dict[int, Tensor] = field(default_factory=dict)

    def at(self, iteration: int) -> Point:
        """The point after so many iterations, or the last one before."""
        return max((p for p in self.points if p.iteration <= iteration), key=lambda point: point.iteration)

    @property
    def last(self) -> Point:
        return self.points[-1]

    def reaching(self, psnr: float) -> Point | None:
        """The first point with such a PSNR."""
        return next((point for point in self.points if point.psnr >= psnr), None)


@dataclass(frozen=True)
class Shift:
    """What is subtracted from inputs and targets."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, samples: Samples, centred: bool) -> Shift:
        """The means over the samples, or zeros."""
        return cls(*(part.mean(0) if centred else torch.zeros_like(part[0]) for part in samples))

    def apply(self, samples: Samples) -> Samples:
        return Samples(samples.noisy - self.x, samples.clean - self.y)

    @torch.no_grad()
    def predict(self, network: nn.Module, noisy: Tensor) -> Tensor:
        """What a network that was trained on shifted samples makes of images, shifted back."""
        return network(noisy - self.x) + self.y


def autoencoder(pixels: int, hidden: int, seed: int) -> nn.Sequential:
    """Linear, ReLU, Linear, with torch's weights of this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, pixels))


def measure(
    way: Way,
    network: nn.Sequential,
    train: Samples,
    others: Samples,
    iterations: int,
    checkpoints: Sequence[int] = CHECKPOINTS,
    shown: Sequence[int] = (),
) -> Trace:
    """Train a network and measure it.

    Args:
        way: How.
        network: What is trained; it is changed.
        train: What it is trained on.
        others: What its PSNR is measured on.
        iterations: How many.
        checkpoints: After which it is measured; the last one is in any case.
        shown: Which of the others are kept as pictures.

    Returns:
        The points; a run whose error is no longer finite ends there.
    """
    shift, trace, seconds = Shift.of(train, way.centred), Trace(), 0.0
    x, y = shift.apply(train)
    warm_up(way, network, x, y)
    with without_garbage_collection():
        for iteration in range(iterations + 1):
            began = time.process_time()
            if iteration == 0:
                method = build(way, network, x, y, iterations)
            else:
                method.iterate()
            seconds += time.process_time() - began
            if iteration in checkpoints or iteration == iterations:
                mse = error(shift, network, train)
                trace.points.append(Point(iteration, mse, psnr(error(shift, network, others)), seconds))
                trace.pictures[iteration] = shift.predict(network, others.noisy[list(shown)])
                if not math.isfinite(mse):
                    break
    return trace


def warm_up(way: Way, network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    """Iterate on a copy, so that nothing is loaded or allocated for the first time while the clock runs."""
    method = build(way, deepcopy(network), x, y, 2)
    for _ in range(2):
        method.iterate()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Python looks for cyclic garbage before or after, not while the clock runs."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()  # a run leaves few objects behind, but large ones


def error(shift: Shift, network: nn.Module, samples: Samples) -> float:
    """Mean squared error over all pixels; infinity where it is not finite."""
    found = (shift.predict(network, samples.noisy) - samples.clean).square().mean().item()
    return found if math.isfinite(found) else math.inf


def psnr(mse: float) -> float:
    """Of values in [0, 1]."""
    return -10 * math.log10(mse) if math.isfinite(mse) else -math.inf
