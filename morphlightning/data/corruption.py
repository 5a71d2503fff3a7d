"""What makes an image's input out of its clean version: noise and missing pixels, drawn per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor

Task = Literal["classification", "denoising", "inpainting", "reconstruction"]
TRAINING, TEST, VALIDATION = range(3)  # streams: collections of samples that are numbered separately
TASKS: tuple[Task, ...] = ("classification", "denoising", "inpainting", "reconstruction")


@dataclass(frozen=True)
class Corruption:
    """Makes inputs from clean images; what is random depends on (seed, stream, epoch, sample) and nothing else.

    Each (epoch, sample) owns a stretch of the counter-based generator Philox that no other reaches, so a sample's noise
    does not depend on its batch, its worker or its process. (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as
    easy as 1, 2, 3; SC 2011.)

    Attributes:
        task: ``"denoising"`` adds Gaussian noise, ``"inpainting"`` sets pixels to 0, the others change nothing.
        noise: Standard deviation of the noise, in the units of the images (white is 1), or (lowest, highest) to draw
            each image's own uniformly. The sum is not clipped.
        missing: Probability that a pixel (all its channels together) is missing.
        seed: Seed of the run.
        stream: Which collection of samples the indices count.
        fixed: Draw the same in every epoch.
    """

    task: Task = "classification"
    noise: float | tuple[float, float] = 0.0
    missing: float = 0.0
    seed: int = 0
    stream: int = TRAINING
    fixed: bool = False

    def __call__(self, clean: Tensor, epochs: Sequence[int], samples: Sequence[int]) -> Tensor:
        """Corrupt a batch of clean images.

        Args:
            clean: Images of shape (B, C, H, W), float32.
            epochs: The epoch of each image, length B.
            samples: The index of each image in its collection, length B.

        Returns:
            The inputs, of the same shape; ``clean`` itself where the task leaves images as they are.
        """
        if self.task == "denoising":
            level = self.levels(epochs, samples).view(-1, *[1] * (clean.ndim - 1))
            return clean + level * self._draw(clean.shape, epochs, samples, normal=True)
        if self.task == "inpainting":
            shape = (len(clean), 1, *clean.shape[2:])
            return clean * (self._draw(shape, epochs, samples, normal=False) >= self.missing)
        return clean

    def levels(self, epochs: Sequence[int], samples: Sequence[int]) -> Tensor:
        """Tell the standard deviation of each image's noise, float32 of shape (B,)."""
        if not isinstance(self.noise, tuple):
            return torch.full((len(samples),), self.noise)
        low, high = self.noise
        draws = self._draw((len(samples), 1), epochs, samples, normal=False, substream=1)
        return draws[:, 0].mul_(high - low).add_(low)

    def _draw(
        self, shape: Sequence[int], epochs: Sequence[int], samples: Sequence[int], normal: bool, substream: int = 0
    ) -> Tensor:
        out = np.empty((shape[0], int(np.prod(shape[1:]))), dtype=np.float32)
        bits = Philox(0)
        draw = Generator(bits).standard_normal if normal else Generator(bits).random
        # Setting the counter of one generator takes a hundredth of the time of making a new one, if the state holds
        # plain lists. The position 4 says that the buffer of four words is used up.
        counter = [0, substream, 0, 0]  # counts up from there, far from reaching the next substream
        inner = {"counter": counter, "key": [self.seed, self.stream]}
        state: Any = {
            **bits.state,
            "state": inner,
            "buffer": [0, 0, 0, 0],
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        for row, (epoch, sample) in enumerate(zip(epochs, samples, strict=True)):
            counter[2:] = 0 if self.fixed else epoch, sample
            bits.state = state
            draw(dtype=np.float32, out=out[row])
        return torch.from_numpy(out).view(tuple(shape))
