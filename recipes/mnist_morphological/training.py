"""One run: a way of training, its schedule, and the accuracy after each epoch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from network import Network, Shape
from torch import Tensor

from morphlightning import apply_update_heuristics
from morphlightning.data import MNIST
from morphlightning.functional import softened


@dataclass(frozen=True)
class Images:
    """Images (N, 1, 28, 28) in [0, 1] and their labels, of each part."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def read(cls, folder: str, train_size: int | None, test_size: int | None) -> Images:
        """Read MNIST; a twelfth of the training images is for validation."""
        data = MNIST(folder, val_fraction=1 / 12, train_size=train_size)
        data.prepare_data()
        data.setup()
        parts = [*data.training_sets(), data.test_set()]
        rows = [range(len(part))[: test_size if k else None] for k, part in enumerate(parts)]
        return cls(*((p.clean(r), p.targets(r, p.clean(r[:1]))) for p, r in zip(parts, rows, strict=True)))


@dataclass(frozen=True)
class Way:
    """A way of training.

    Attributes:
        name: What it is called.
        beta: The gradient is that of log-sum-exp, whose inverse temperature grows from the first number to the second;
            None for that of maxima under ``rules``.
        soft_values: Train on the values of log-sum-exp too, not on those of maxima.
        rules: derivative and heuristic of the layers.
        lr: Learning rate of Adam, at its peak.
        anneal: Let the learning rate rise and fall; else it is constant.
        shifts: Share of the batches whose images are moved by up to one pixel.
        shape: The network.
    """

    name: str
    beta: tuple[float, float] | None = (3.0, 10.0)
    soft_values: bool = False
    rules: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.03
    anneal: bool = True
    shifts: float = 1.0
    shape: Shape = field(default_factory=Shape)

    def but(self, name: str, shape: dict[str, Any] | None = None, **changes: Any) -> Way:
        """This way with changes, and changes of its network."""
        return replace(self, name=name, shape=replace(self.shape, **(shape or {})), **changes)


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to; accuracies are of the network with maxima."""

    way: str
    seed: int
    lr: float
    epoch: int
    loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """What a run came to."""

    way: Way
    seed: int
    epochs: list[Epoch]
    test_accuracy: float

    @property
    def val_accuracy(self) -> float:
        """After the last epoch."""
        return self.epochs[-1].val_accuracy


BATCH = 128
HOLD = 0.9
"""Share of the steps after which beta stays at its last value."""
TEMPERATURE = 30.0
"""Factor of the logits inside the cross-entropy at the start; learned. It has no part in what the network answers."""


def train(way: Way, seed: int, images: Images, epochs: int, tell: Callable[[int], None]) -> Run:
    """Train a network from its seed; ``tell`` hears of each epoch's end."""
    torch.manual_seed(seed)
    network = Network(way.shape, **way.rules)
    log_temperature = torch.tensor(math.log(TEMPERATURE), requires_grad=True)
    optimizer = torch.optim.Adam([*network.parameters(), log_temperature], way.lr, betas=(0.9, 0.99), eps=1e-10)
    x, y = images.train
    steps, step, done = epochs * (len(x) // BATCH), 0, []
    for epoch in range(1, epochs + 1):
        began, total = time.process_time(), 0.0
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            batch = _moved(x[rows]) if torch.rand(()) < way.shifts else x[rows]
            for group in optimizer.param_groups:
                group["lr"] = way.lr * (_one_cycle(step / steps, steps) if way.anneal else 1.0)
            with _softness(way, step / steps):
                loss = F.cross_entropy(network(batch) * log_temperature.exp(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            apply_update_heuristics(network)
            optimizer.step()
            total, step = total + loss.item(), step + 1
        network.centre_on(x[:2000])
        mean, seconds = total / (len(x) // BATCH), time.process_time() - began
        done.append(Epoch(way.name, seed, way.lr, epoch, mean, accuracy(network, images.val), seconds))
        tell(epoch)
    return Run(way, seed, done, accuracy(network, images.test))


def _moved(x: Tensor) -> Tensor:
    return x.roll(torch.randint(-1, 2, (2,)).tolist(), (2, 3))


def _one_cycle(progress: float, steps: int) -> float:
    """200 steps up, or a tenth of them, and down by half a cosine."""
    return min(1.0, progress * max(10.0, steps / 200)) * (1 + math.cos(math.pi * progress)) / 2


def _softness(way: Way, progress: float) -> contextlib.AbstractContextManager[Any]:
    if way.beta is None:
        return contextlib.nullcontext()
    first, last = way.beta
    return softened(first * (last / first) ** min(1.0, progress / HOLD), gradient_only=not way.soft_values)


@torch.no_grad()
def accuracy(network: Network, part: tuple[Tensor, Tensor]) -> float:
    """Share of the images that the network with maxima classifies rightly."""
    x, y = part
    network.eval()
    right = sum(int((network(a).argmax(1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True))
    network.train()
    return right / len(x)
