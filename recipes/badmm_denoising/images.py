"""Noisy and clean images: what is trained on, what settings are chosen by, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from morphlightning.data import MNIST, Digits
from morphlightning.errors import ConfigError


class Samples(NamedTuple):
    """Noisy and clean images (N, pixels)."""

    noisy: Tensor
    clean: Tensor


class Task(NamedTuple):
    """The parts of one seed and noise level."""

    train: Samples
    validation: Samples
    held_out: Samples


@dataclass(frozen=True)
class Images:
    """Clean images of the training and the test part, and how many of them a part of a task has.

    Attributes:
        train: (N, pixels) in [0, 1].
        test: Likewise.
        labels: Of the test images.
        hidden: Units of the autoencoder.
        sizes: Images to train on, for validation, held out.
    """

    train: Tensor
    test: Tensor
    labels: Tensor
    hidden: int
    sizes: tuple[int, int, int]

    @classmethod
    def mnist(cls, folder: str) -> Images:
        """1000 of MNIST's training images, the first 1000 of its test images for validation, the next 2000 held out."""
        data = MNIST(folder)
        data.prepare_data()
        return cls._of(data, 64, (1000, 1000, 2000))

    @classmethod
    def digits(cls) -> Images:
        """Few of scikit-learn's small digits, which are always there."""
        return cls._of(Digits(), 16, (100, 100, 200))

    @classmethod
    def _of(cls, data: MNIST | Digits, hidden: int, sizes: tuple[int, int, int]) -> Images:
        (train, _), (test, labels) = data.read(train=True), data.read(train=False)
        return cls(*(part.flatten(1).float() / data.white for part in (train, test)), labels, hidden, sizes)

    @property
    def pixels(self) -> int:
        return self.train.shape[1]

    def task(self, noise: float, seed: int) -> Task:
        """The training images of a seed, which no other seed has, and test images; all with noise of the seed."""
        train, validation, held_out = self.sizes
        if (seed + 1) * train > len(self.train):
            raise ConfigError(
                f"seed {seed} would train on images {seed * train} to {(seed + 1) * train - 1}, but there are only "
                f"{len(self.train)}; take seeds below {len(self.train) // train}"
            )
        clean = (
            self.train[seed * train :][:train],
            self.test[:validation],
            self.test[validation:][:held_out],
        )
        generator = torch.Generator().manual_seed(seed)
        return Task(*(Samples(y + noise * torch.randn(y.shape, generator=generator), y) for y in clean))

    def one_of_each(self) -> list[int]:
        """Where the first held-out image of each class is, among the held-out ones."""
        _, validation, held_out = self.sizes
        labels = self.labels[validation:][:held_out].tolist()
        return [labels.index(label) for label in sorted(set(labels))]
