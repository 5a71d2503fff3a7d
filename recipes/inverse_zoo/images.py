"""Images to test on, to tune on and to train with: three groups that share none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from morphlightning.errors import DataError

TUNED_ON = 4
"""Training images that are set aside for tuning, from all over the folder."""


@dataclass(frozen=True)
class Images:
    """Grey images in [0, 1].

    Attributes:
        test: (N, 1, side, side).
        tune: (TUNED_ON, 1, side, side).
        train: (M, 1, H, W), at least of that side.
    """

    test: Tensor
    tune: Tensor
    train: Tensor

    @property
    def side(self) -> int:
        return int(self.test.shape[-1])

    @classmethod
    def folder(cls, folder: Path, side: int, count: int) -> Images:
        """The middles of the first ``count`` images of Set12 that are 256 x 256, and Train400."""
        test = [image for image in read(folder / "Set12") if image.shape == (256, 256)][:count]
        train = torch.stack(read(folder / "Train400"))[:, None]
        if side > train.shape[-1]:  # larger than the training images: tune on images of Set12 that are not tested on
            others = [image for image in read(folder / "Set12") if image.shape == (512, 512)]
            return cls(middle(test, side), middle(others[:TUNED_ON], side), train)
        aside = torch.zeros(len(train), dtype=torch.bool)
        aside[:: -(-len(train) // TUNED_ON)] = True
        return cls(middle(test, side), middle(list(train[aside, 0]), side), train[~aside])

    @classmethod
    def drawn(cls, side: int = 32) -> Images:
        """Rectangles of random places and greys, to try the recipe without data."""
        generator = torch.Generator().manual_seed(0)
        images = torch.full((4 + TUNED_ON, 1, side, side), 0.3)
        for image in images:
            for _ in range(4):
                top, left, high, wide = torch.randint(0, side // 2, (4,), generator=generator).tolist()
                image[0, top : top + high + 4, left : left + wide + 4] = torch.rand((), generator=generator)
        return cls(images[:2], images[2 : 2 + TUNED_ON], images[2 + TUNED_ON :])

    def patches(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Random squares of training images, (count, 1, side, side)."""
        height, width = self.train.shape[-2:]
        chosen = torch.randint(len(self.train), (count,), generator=generator)
        tops = torch.randint(height - side + 1, (count,), generator=generator)
        lefts = torch.randint(width - side + 1, (count,), generator=generator)
        places = zip(chosen, tops, lefts, strict=True)
        return torch.stack([self.train[i, :, top : top + side, left : left + side] for i, top, left in places])


def read(folder: Path) -> list[Tensor]:
    """The PNG files of a folder, sorted by name."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise DataError(f"no PNG images in {folder}: --data-dir is the folder of Set12 and Train400")
    return [torch.from_numpy(np.array(Image.open(path).convert("L"), dtype=np.float32)) / 255 for path in paths]


def middle(images: list[Tensor], side: int) -> Tensor:
    """Their middles."""
    tops = [((image.shape[0] - side) // 2, (image.shape[1] - side) // 2) for image in images]
    cut = [image[y : y + side, x : x + side] for image, (y, x) in zip(images, tops, strict=True)]
    return torch.stack(cut)[:, None].contiguous()
