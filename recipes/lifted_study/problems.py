"""What is to be learned: noisy images and clean ones, or images and their classes, and how it is judged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.bregman import CrossEntropy, OutputLoss, SquaredError
from morphlightning.data import MNIST, Digits

NOISE = 0.3
Part = Literal["validation", "test"]


class Samples(NamedTuple):
    """Inputs and targets."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Problem(ABC):
    """Samples to train on, to choose settings by, and to report.

    Attributes:
        train: As the methods see them.
        validation: As they come.
        test: As they come.
    """

    train: Samples
    validation: Samples
    test: Samples
    loss: ClassVar[OutputLoss]

    @torch.no_grad()
    def judge(self, network: nn.Module, part: Part) -> tuple[float, float]:
        """The loss on the training samples, lower is better, and a score on others, higher is better."""
        network.eval()
        found = self.train_loss(network), self.score(network, getattr(self, part))
        network.train()
        return found

    def train_loss(self, network: nn.Module) -> float:
        return float(self.descended(network(self.train.x), self.train.y))

    @abstractmethod
    def descended(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss as gradient methods take it: a mean."""

    @abstractmethod
    def score(self, network: nn.Module, samples: Samples) -> float:
        """On samples as they come."""


@dataclass(frozen=True)
class Denoising(Problem):
    """Noisy to clean images; judged by the mean squared error over pixels, and by the PSNR in dB.

    Attributes:
        mean: What was subtracted from the training samples; networks work on what is left.
    """

    mean: Samples
    loss = SquaredError()

    def descended(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target)

    def score(self, network: nn.Module, samples: Samples) -> float:
        mse = (network(samples.x - self.mean.x) + self.mean.y - samples.y).square().mean().item()
        return -10 * math.log10(mse) if math.isfinite(mse) else math.nan


@dataclass(frozen=True)
class Classification(Problem):
    """Images to classes; judged by the cross-entropy, and by the accuracy in percent."""

    loss = CrossEntropy()

    def descended(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def score(self, network: nn.Module, samples: Samples) -> float:
        return 100 * float((network(samples.x).argmax(1) == samples.y).double().mean())


@dataclass(frozen=True)
class Images:
    """Images (N, pixels) in [0, 1] with labels.

    Attributes:
        train: The training part.
        test: The test part; its first ``border`` images are for validation, those up to ``end`` are reported.
        border: See above.
        end: See above.
    """

    train: Samples
    test: Samples
    border: int
    end: int

    @classmethod
    def mnist(cls, folder: str) -> Images:
        data = MNIST(folder)
        data.prepare_data()
        return cls(_part(data, train=True), _part(data, train=False), 1000, 3000)

    @classmethod
    def digits(cls) -> Images:
        """Scikit-learn's small digits, which are always there."""
        return cls(_part(Digits(), train=True), _part(Digits(), train=False), 100, 300)

    @property
    def pixels(self) -> int:
        return self.train.x.shape[1]

    def denoising(self, size: int, seed: int, centred: bool = False, dtype: torch.dtype = torch.float32) -> Denoising:
        """The first images of the training part, with the noise of a seed; less their means if ``centred``."""
        generator = torch.Generator().manual_seed(seed)
        clean = self.train.x[:size], self.test.x[: self.border], self.test.x[self.border : self.end]
        noisy = [y + NOISE * torch.randn(y.shape, generator=generator) for y in clean]
        train, validation, test = (Samples(x.to(dtype), y.to(dtype)) for x, y in zip(noisy, clean, strict=True))
        mean = Samples(*(part.mean(0) if centred else torch.zeros_like(part[0]) for part in train))
        return Denoising(Samples(train.x - mean.x, train.y - mean.y), validation, test, mean)

    def classification(self, size: int) -> Classification:
        """The first images of the training part."""
        parts = (self.train, slice(size)), (self.test, slice(self.border)), (self.test, slice(self.border, self.end))
        return Classification(*(Samples(part.x[rows], part.y[rows]) for part, rows in parts))


def _part(data: MNIST | Digits, train: bool) -> Samples:
    images, labels = data.read(train=train)
    return Samples(images.flatten(1).float() / data.white, labels.long())
